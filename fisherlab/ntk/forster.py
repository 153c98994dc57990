"""Inputs in radial-isotropic position: unit rows with X^T X = (N / M_0) I, for K-FAC with M_0 < N (Forster 2002)."""

from __future__ import annotations

import torch
from torch import Tensor

from fisherlab.errors import UsageError

ITERATIONS = 100
TOLERANCE = 1e-3


def radial_isotropic(x: Tensor, *, iterations: int = ITERATIONS, tolerance: float = TOLERANCE) -> Tensor:
    """Whiten and normalise the rows in turn, until both hold (Karakida and Osawa 2020, their released code).

    Inputs that never vary, or vary together, are left out first: the result has as many columns as `x` has rank.

    Args:
        x: Examples [N, inputs], more than their rank.
        iterations: At most so many.
        tolerance: Largest relative deviation of X^T X from (N / M_0) I.

    Returns:
        Tensor [N, M_0], rows of length 1.

    Raises:
        UsageError: If the rank is N already, or the iteration does not settle.
    """
    n = len(x)
    u, values, _ = torch.linalg.svd(x.double(), full_matrices=False)
    rank = int((values > max(x.shape) * torch.finfo(torch.float64).eps * values[0]).sum())
    if rank == n:
        raise UsageError(f"{n} examples are linearly independent: radial-isotropic position is for more than the rank")
    rows = u[:, :rank] * values[:rank]
    for _ in range(iterations):
        rows = torch.nn.functional.normalize(rows, dim=1)
        square = rows.mT @ rows * (rank / n)
        if float((square - torch.eye(rank, dtype=square.dtype)).abs().max()) <= tolerance:
            return rows.to(x.dtype)
        spectrum, vectors = torch.linalg.eigh(square)
        rows = rows @ (vectors * spectrum.rsqrt()) @ vectors.mT
    raise UsageError(
        f"radial-isotropic position was not reached in {iterations} iterations: too many examples coincide"
    )
