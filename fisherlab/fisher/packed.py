"""Symmetric matrices kept as half of their numbers: trapezoids, a few rows at a time up to their diagonal, end to end.

A weighted sum of outer products of the same vectors, for many sets of weights, is then one matrix product over the
examples with half the operations, and half the memory to pass through, of the whole matrices.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROWS = 20  # of a trapezoid; measured on 81 columns: 0.4 to 0.7 of the time of whole matrices


def _trapezoids(n: int) -> list[tuple[int, int]]:
    return [(start, min(start + ROWS, n)) for start in range(0, n, ROWS)]


def numbers(n: int) -> int:
    """Count what is kept of an n x n matrix."""
    return sum((end - start) * end for start, end in _trapezoids(n))


def outer_products(a: Tensor) -> Tensor:
    """Multiply the entries of vectors with each other.

    Args:
        a: Vectors [..., n].

    Returns:
        a a^T, packed, [..., numbers(n)].
    """
    pairs = [a[..., start:end].unsqueeze(-1) * a[..., :end].unsqueeze(-2) for start, end in _trapezoids(a.shape[-1])]
    return torch.cat([pair.flatten(-2) for pair in pairs], -1)


def packed(m: Tensor) -> Tensor:
    """Keep the lower half.

    Args:
        m: Matrices [..., n, n].

    Returns:
        Tensor [..., numbers(n)].
    """
    return torch.cat([m[..., start:end, :end].flatten(-2) for start, end in _trapezoids(m.shape[-1])], -1)


def unpacked(p: Tensor, n: int) -> Tensor:
    """Lay out what is kept.

    Args:
        p: Tensor [..., numbers(n)].
        n: Rows of the matrices.

    Returns:
        Matrices [..., n, n], of which the lower triangle counts.
    """
    out, at = p.new_zeros(*p.shape[:-1], n, n), 0
    for start, end in _trapezoids(n):
        count = (end - start) * end
        out[..., start:end, :end] = p[..., at : at + count].unflatten(-1, (end - start, end))
        at += count
    return out
