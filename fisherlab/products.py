"""Matrix products, and sums, whose bits do not depend on how many replicas stand beside each other."""

from __future__ import annotations

import functools
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.functional import pad

SMALL = 16  # rows or columns; on an EPYC of 2022 the order depends on the layout up to 11


def product(left: Tensor, right: Tensor) -> Tensor:
    """Multiply, replicas in the batch dimension.

    A product with one row or one column is a matrix-vector product to BLAS where it is the only one of its batch, and
    sums in another order than among others: with a row, or column, of zeros more it is a matrix product everywhere.
    MKL on AMD's processors sums small products, and all in double precision, in an order that depends on which factor
    is transposed: there, what is repeated for the replicas keeps its layout, as it does where there is one. (Others are
    a third faster where matmul lays it out anew.)

    Args:
        left: [..., m, k].
        right: [..., k, n].

    Returns:
        Tensor [..., m, n].
    """
    rows, inner, columns = *left.shape[-2:], right.shape[-1]
    alone = max(left.ndim, right.ndim) == 2  # without replicas there is nothing beside it
    if alone or (min(rows, inner, columns) > SMALL and left.dtype != torch.float64):
        return left @ right
    if 1 in (rows, inner, columns):  # with one inner index, the gradients are such products
        left = _padded(left, rows == 1, inner == 1)
        right = _padded(right, inner == 1, columns == 1)
    lead = torch.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    return (repeated(left, lead) @ repeated(right, lead))[..., :rows, :columns]


def _padded(m: Tensor, row: bool, column: bool) -> Tensor:
    """One row or column of zeros more; torch's own copies what it adds nothing to."""
    return pad(m, (0, int(column), 0, int(row))) if row or column else m


def repeated(matrix: Tensor, lead: torch.Size) -> Tensor:
    """Repeat a matrix along leading axes; what is transposed in memory stays so, which matmul would copy.

    Args:
        matrix: [..., m, n], whose leading axes broadcast to `lead`.
        lead: The leading axes of the result.

    Returns:
        [*lead, m, n].
    """
    if matrix.shape[:-2] == lead:
        return matrix
    expanded = matrix.expand(*lead, *matrix.shape[-2:])
    return expanded.mT.contiguous().mT if matrix.stride(-2) == 1 else expanded.contiguous()


def summed(terms: Iterable[Tensor]) -> Tensor:
    """Add tensors one after another: a sum over a stack of five or more goes another way where there are no replicas.

    Args:
        terms: At least one; all of one shape.

    Returns:
        A tensor of that shape.
    """
    return functools.reduce(torch.add, terms)
