"""Matrix products whose bits do not depend on how many replicas stand beside each other."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad


def product(left: Tensor, right: Tensor) -> Tensor:
    """Multiply, replicas in the batch dimension.

    A product with one row or one column is a matrix-vector product to BLAS where it is the only one of its batch, and
    sums in another order than among others: with a row, or column, of zeros more it is a matrix product everywhere.

    Args:
        left: [..., m, k].
        right: [..., k, n].

    Returns:
        Tensor [..., m, n].
    """
    rows, columns = left.shape[-2], right.shape[-1]
    if max(left.ndim, right.ndim) == 2 or (rows > 1 and columns > 1):  # without replicas there is nothing beside it
        return left @ right
    left = pad(left, (0, 0, 0, 1)) if rows == 1 else left
    right = pad(right, (0, 1)) if columns == 1 else right
    return (left @ right)[..., :rows, :columns]
