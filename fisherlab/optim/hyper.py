"""Hyper-parameters: a number, or one number per replica."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fisherlab.errors import UsageError

Hyper = float | Tensor


def checked(name: str, value: Hyper, valid: Callable[[Tensor], Tensor], expected: str) -> Hyper:
    """Check a hyper-parameter at construction.

    Args:
        name: Its name, for the message.
        value: A number, or a tensor with the replica axes [...].
        valid: Elementwise test.
        expected: What to say was expected.

    Returns:
        The value; a tensor as float64 on the CPU, so that schedules and powers are exact and each replica's own.

    Raises:
        UsageError: If any element is invalid.
    """
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number and not isinstance(value, Tensor):
        raise UsageError(f"{name}={value!r} is no number: expected {expected}")
    host = torch.as_tensor(value, dtype=torch.float64, device="cpu")
    if not bool((torch.isfinite(host) & valid(host)).all()):
        raise UsageError(f"{name}={value if is_number else host.tolist()} is out of range: expected {expected}")
    return host if isinstance(value, Tensor) else float(value)


def positive(name: str, value: Hyper) -> Hyper:
    """Check value > 0; see `checked`."""
    return checked(name, value, lambda v: v > 0, "a positive number")


def not_negative(name: str, value: Hyper) -> Hyper:
    """Check value >= 0; see `checked`."""
    return checked(name, value, lambda v: v >= 0, "a number of at least 0")


def fraction(name: str, value: Hyper) -> Hyper:
    """Check 0 <= value < 1; see `checked`."""
    return checked(name, value, lambda v: (v >= 0) & (v < 1), "a number in [0, 1)")


def per_replica(name: str, value: object, replicas: torch.Size) -> None:
    """Check that a hyper-parameter, where it is a tensor, broadcasts to the replica axes.

    Args:
        name: Its name, for the message.
        value: Anything.
        replicas: The replica axes.

    Raises:
        UsageError: Names both shapes.
    """
    if not isinstance(value, Tensor):
        return
    shape = (1,) * (len(replicas) - value.ndim) + tuple(value.shape)
    if len(shape) > len(replicas) or any(n not in (1, r) for n, r in zip(shape, replicas, strict=True)):
        raise UsageError(
            f"{name} of shape {tuple(value.shape)} does not fit: expected a number, or a tensor that broadcasts to the "
            f"replica axes {tuple(replicas)}"
        )


def host(value: Hyper) -> Tensor:
    """The value as a float64 tensor where it is.

    Args:
        value: Number or tensor [...].

    Returns:
        float64 tensor [...].
    """
    return torch.as_tensor(value, dtype=torch.float64)


def on(value: Hyper, like: Tensor, dims: int = 1) -> Tensor:
    """Bring a hyper-parameter beside a tensor, ready to broadcast.

    Args:
        value: Number or tensor [...].
        like: Tells dtype and device.
        dims: How many trailing axes to add.

    Returns:
        Tensor [..., 1 * dims]; no synchronisation.
    """
    t = host(value).to(like.device, like.dtype, non_blocking=True)
    return t.reshape(*t.shape, *[1] * dims) if t.ndim else t


def is_zero(value: Hyper) -> bool:
    """Whether a hyper-parameter is the number 0 (a tensor never counts, so that all replicas take one path).

    Args:
        value: Number or tensor.

    Returns:
        True for the number 0.
    """
    return not isinstance(value, Tensor) and value == 0
