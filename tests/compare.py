"""Comparison of arrays that prints the ratio when they differ: a wrong scale is seen at once."""

import torch
from torch import Tensor


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    """Assert max |actual - expected| <= tolerance * max |expected|."""
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    actual, expected = actual.detach().double(), expected.detach().double()
    assert actual.isfinite().all(), f"{int((~actual.isfinite()).sum())} of {actual.numel()} entries are not finite"
    size = expected.abs().max().item()
    error = (actual - expected).abs().max().item()
    if error > tolerance * size:
        ratio = (actual / expected)[expected != 0]
        low, middle, high = (
            (f(ratio).item() for f in (torch.min, torch.median, torch.max)) if ratio.numel() else [float("nan")] * 3
        )
        raise AssertionError(
            f"largest error {error:.3g}, allowed {tolerance:.1g} * {size:.3g}; "
            f"ratio actual / expected: lowest {low:.10g}, median {middle:.10g}, highest {high:.10g}"
        )


def assert_same_bits(actual: Tensor, expected: Tensor) -> None:
    """Assert equality bit for bit (NaN equals NaN)."""
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    assert actual.dtype == expected.dtype, f"{actual.dtype}, expected {expected.dtype}"
    different = (actual != expected) & ~(actual.isnan() & expected.isnan())
    count = int(different.sum())
    worst = (actual - expected)[different].abs().max().item() if count and actual.is_floating_point() else 0.0
    assert not count, f"{count} of {actual.numel()} entries differ, by at most {worst:.3g}"
