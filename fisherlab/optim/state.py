"""What an optimizer remembers, as nested dicts and lists of tensors: copied, and taken apart by replica."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def mapped(state: Any, f: Callable[[Tensor], Tensor]) -> Any:
    """Apply a function to every tensor of a state.

    Args:
        state: Nested dicts, lists and tuples of tensors and plain values.
        f: The function.

    Returns:
        The same nest with what `f` returned; plain values as they are.
    """
    if isinstance(state, Tensor):
        return f(state)
    if isinstance(state, dict):
        return {k: mapped(v, f) for k, v in state.items()}
    return type(state)(mapped(v, f) for v in state) if isinstance(state, (list, tuple)) else state


def copied(state: Any, device: torch.device) -> Any:
    """Copy a state to a device.

    Args:
        state: See `mapped`.
        device: Where the copies go.

    Returns:
        The copy.
    """
    return mapped(state, lambda t: t.to(device, copy=True))


def part(t: Tensor, places: Sequence[Sequence[int]], replicas: Sequence[int]) -> Tensor:
    """Some replicas' part of a tensor.

    Args:
        t: Tensor [*replicas, ...], or with a 1 for an axis that several replicas share.
        places: The indices along each replica axis.
        replicas: The replica axes.

    Returns:
        A copy with those places of each replica axis; the tensor itself where it has no such axes.
    """
    if _has_axes(t, replicas):
        for axis, own in enumerate(places):
            t = t if t.shape[axis] == 1 else _selected(t, axis, own)
    return t


def _selected(t: Tensor, axis: int, places: Sequence[int]) -> Tensor:
    """Some places of an axis, laid out as the tensor: BLAS may sum in another order where a factor is transposed."""
    order = sorted(range(t.ndim), key=t.stride, reverse=True)
    found = t.permute(order).index_select(order.index(axis), torch.tensor(places, device=t.device))
    return found.permute([order.index(i) for i in range(t.ndim)])


def forget(state: Any, at: Sequence[int], replicas: Sequence[int]) -> None:
    """Set one replica's own part of a state to zero, in place; what it shares with others stays.

    Args:
        state: See `mapped`.
        at: Index of the replica.
        replicas: The replica axes.
    """

    def zero(t: Tensor) -> Tensor:
        if _has_axes(t, replicas) and t.shape[: len(replicas)] == torch.Size(replicas):
            t[tuple(at)] = 0
        return t

    mapped(state, zero)


def _has_axes(t: Tensor, replicas: Sequence[int]) -> bool:
    return t.ndim >= len(replicas) and all(n in (1, r) for n, r in zip(t.shape, replicas, strict=False))
