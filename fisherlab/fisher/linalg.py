"""Linear algebra over replicas: one bad matrix is marked and never disturbs the others.

`torch.linalg.cholesky` raises for a whole batch when one matrix fails, so failed and non-finite lanes are replaced by the identity
before any further call and reported in a mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

BLOCKED_FROM = 256  # columns from which a symmetric product is cut in two; measured, see scripts/bench.py


@contextmanager
def full_precision() -> Iterator[None]:
    """Keep float32 curvature products out of TF32 and bf16, whatever precision the model runs with.

    Yields:
        None.
    """
    before = torch.get_float32_matmul_precision()
    if before != "highest":
        torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        if before != "highest":
            torch.set_float32_matmul_precision(before)


def gram_of_columns(x: Tensor) -> Tensor:
    """x^T x, computing each off-diagonal block once.

    Args:
        x: Tensor [..., B, n].

    Returns:
        Symmetric tensor [..., n, n].
    """
    n = x.shape[-1]
    if n < BLOCKED_FROM:
        return x.mT @ x
    half = n // 2
    out = x.new_empty(*x.shape[:-2], n, n)
    left, right = x[..., :half], x[..., half:]
    out[..., :half, :half] = left.mT @ left
    out[..., half:, half:] = right.mT @ right
    cross = left.mT @ right
    out[..., :half, half:] = cross
    out[..., half:, :half] = cross.mT
    return out


def add_to_diagonal(m: Tensor, amount: Tensor) -> Tensor:
    """M + amount * I, leaving M as it is.

    Args:
        m: Square matrices [..., n, n].
        amount: One number per matrix, [...]; broadcasts.

    Returns:
        New tensor [..., n, n].
    """
    shape = torch.broadcast_shapes(m.shape[:-2], amount.shape)
    out = m.expand(*shape, *m.shape[-2:]).clone()
    out.diagonal(dim1=-2, dim2=-1).add_(amount.to(m.dtype).unsqueeze(-1))
    return out


def _bad_to_identity(m: Tensor, bad: Tensor) -> Tensor:
    eye = torch.eye(m.shape[-1], dtype=m.dtype, device=m.device)
    return torch.where(bad[..., None, None], eye, m)


def _cholesky_once(m: Tensor) -> tuple[Tensor, Tensor]:
    """Factors, and the lanes that failed: a pivot that is not positive, or that cancellation left no digit of."""
    factor, info = torch.linalg.cholesky_ex(m)
    noise = m.shape[-1] * torch.finfo(m.dtype).eps
    lost = factor.diagonal(dim1=-2, dim2=-1).square() <= noise * m.diagonal(dim1=-2, dim2=-1)
    return factor, (info != 0) | lost.any(-1)


def cholesky(m: Tensor) -> tuple[Tensor, Tensor]:
    """Lower Cholesky factors, retried in float64; failed lanes get the identity.

    The retry reads the failure flags on the CPU, where that is free, and concerns the failed lanes only: the others keep their bits.
    On an accelerator reading them would stall the queue at every refresh, so the factorisation runs in float64 at once.

    Args:
        m: Symmetric matrices [..., n, n]; left as they are.

    Returns:
        The factors in the dtype of `m`, and a bool mask [...] of the lanes that failed.
    """
    bad = ~torch.isfinite(m.diagonal(dim1=-2, dim2=-1).sum(-1))
    work = m if m.device.type in ("cpu", "meta") else m.double()
    factor, failed = _cholesky_once(_bad_to_identity(work, bad))
    factor = factor.to(m.dtype)
    if m.dtype != torch.float64 and readable(failed) and bool(failed.any()):
        again, twice = _cholesky_once(m[failed].double())
        factor[failed] = again.to(m.dtype)
        failed = failed.masked_scatter(failed, twice)
    return _bad_to_identity(factor, failed), failed | bad


def eigh(m: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvalues, clamped at zero, and eigenvectors; non-finite lanes get the identity.

    Args:
        m: Symmetric positive semi-definite matrices [..., n, n]; left as they are.

    Returns:
        Eigenvalues [..., n], eigenvectors [..., n, n] in columns, and a bool mask [...] of the lanes that failed.
    """
    bad = ~torch.isfinite(m.sum((-2, -1)))
    values, vectors = torch.linalg.eigh(_bad_to_identity(m, bad))
    return values.clamp(min=0), vectors, bad


def readable(t: Tensor) -> bool:
    """Tell whether reading a tensor's values costs nothing: it lies on the CPU, and has values (fake tensors have none).

    Args:
        t: Any tensor.

    Returns:
        False on an accelerator, where reading stalls the queue.
    """
    return t.device.type == "cpu" and not isinstance(t, torch._subclasses.FakeTensor)
