"""Inverses of damped Gram matrices, and what is said where there is none."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fisherlab.errors import UsageError
from fisherlab.fisher.linalg import symmetric


def invert(k: Tensor, shift: Tensor | float, what: str) -> Tensor:
    """(K + shift I)^-1 of a Gram matrix; refused where it is singular in float64.

    Args:
        k: Symmetric, positive semi-definite, [N, N], float64.
        shift: At least 0.
        what: Names the matrix in the message.

    Returns:
        The inverse, symmetric.

    Raises:
        UsageError: If the matrix is singular, with the first pair of equal examples where there is one.
    """
    if not bool(k.isfinite().all()):  # LAPACK would hang on it, or raise
        raise UsageError(f"{what} is not finite: the network has diverged; expected a smaller learning rate")
    values, vectors = torch.linalg.eigh(symmetric(k))
    damped = values + shift
    if damped[0] <= len(k) * torch.finfo(k.dtype).eps * damped[-1]:
        rank = int((values > len(k) * torch.finfo(k.dtype).eps * values[-1]).sum())
        raise UsageError(f"{what} is singular: rank {rank} of {len(k)}; {_reason(k)}; expected damping above 0")
    return (vectors / damped) @ vectors.mT


def _reason(k: Tensor) -> str:
    """Which examples have the same row, by their distance in the kernel; else that some are dependent."""
    size = k.diagonal()
    apart = size[:, None] + size[None, :] - 2 * k
    apart = apart / (size[:, None] + size[None, :]).clamp(min=1e-300) + torch.eye(len(k), dtype=k.dtype)
    worst = int(apart.argmin())
    first, second = sorted(divmod(worst, len(k)))
    if apart.flatten()[worst] < 1e-12:
        return f"examples {first} and {second} are the same there"
    return "its examples are linearly dependent there"


@dataclass(frozen=True)
class Damping:
    """rho, which is added to a block of the Fisher.

    Attributes:
        rho: At least 0.
        relative: Whether `rho` is in units of the block's mean eigenvalue, over those that may differ from zero: at
            most N of a block of N examples' rows. An absolute rho means something else at every width.
    """

    rho: float = 0.0
    relative: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.rho < float("inf"):
            raise UsageError(f"damping={self.rho}: expected a finite number of at least 0")

    def of(self, trace: Tensor | float, size: int) -> float:
        """Say what is added to one block.

        Args:
            trace: Of the block.
            size: How many eigenvalues of it may differ from zero.

        Returns:
            rho, absolute.
        """
        return self.rho * float(trace) / size if self.relative else self.rho


NONE = Damping()
