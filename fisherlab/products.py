"""Matrix products whose bits do not depend on how many replicas stand beside each other."""

from __future__ import annotations

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
    rows, columns = left.shape[-2], right.shape[-1]
    alone = max(left.ndim, right.ndim) == 2  # without replicas there is nothing beside it
    if alone or (min(rows, columns) > SMALL and left.dtype != torch.float64):
        return left @ right
    left = pad(left, (0, 0, 0, 1)) if rows == 1 else left
    right = pad(right, (0, 1)) if columns == 1 else right
    lead = torch.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    return (_repeated(left, lead) @ _repeated(right, lead))[..., :rows, :columns]


def _repeated(matrix: Tensor, lead: torch.Size) -> Tensor:
    """Repeat a matrix along leading axes; what is transposed in memory stays so, which matmul would copy."""
    if matrix.shape[:-2] == lead:
        return matrix
    expanded = matrix.expand(*lead, *matrix.shape[-2:])
    return expanded.mT.contiguous().mT if matrix.stride(-2) == 1 else expanded.contiguous()
