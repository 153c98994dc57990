"""The preconditioners by name, and how far one is from isotropic in function space."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from fisherlab.errors import UsageError, did_you_mean
from fisherlab.ntk import dual
from fisherlab.ntk.diagonal import Diagonal
from fisherlab.ntk.factored import Factored
from fisherlab.ntk.grams import Grams, Jacobian, grams
from fisherlab.ntk.solving import NONE, Damping
from fisherlab.ntk.units import Units


class Preconditioner(Protocol):
    """A natural gradient of one batch."""

    def kernel(self, cross: Grams, rows: Jacobian) -> Tensor:
        """S' = J' G^-1 J^T / N, [N', N]."""

    def step(self, jacobian: Jacobian, r: Tensor) -> list[Tensor]:
        """G^-1 J^T r / N, a homogeneous weight per layer."""


VARIANTS = {
    "gd": "gradient descent",
    "exact": "the whole Fisher",
    "layer": "block-diagonal, a block per layer",
    "tridiagonal": "block-tridiagonal",
    "kfac": "K-FAC",
    "unit": "unit-wise",
    "diagonal": "entry-wise diagonal",
}


def make(variant: str, jacobian: Jacobian, damping: Damping = NONE, own: Grams | None = None) -> Preconditioner:
    """Make a natural gradient of a batch.

    Args:
        variant: A key of `VARIANTS`.
        jacobian: Of the batch.
        damping: rho.
        own: Its Gram matrices, where they are known already.

    Returns:
        The preconditioner.

    Raises:
        UsageError: If there is no such variant, or its system is singular.
    """
    if variant not in VARIANTS:
        raise UsageError(f"variant={variant!r} is unknown: {did_you_mean(variant, VARIANTS)}")
    if variant == "diagonal":
        return Diagonal(jacobian, damping)
    own = grams(jacobian) if own is None else own
    if variant == "unit":
        return Units(jacobian, own, damping)
    if variant == "kfac":
        return Factored(jacobian, own, damping)
    build = {"gd": dual.descent, "exact": dual.exact, "layer": dual.layerwise, "tridiagonal": dual.tridiagonal}
    return build[variant](own, damping)


def isotropy(s: Tensor) -> float:
    """||S - (tr S / N) I||_F / ||S||_F: 0 for a multiple of the identity.

    Args:
        s: S = J G^-1 J^T / N, [N, N].

    Returns:
        From 0 to below 1.
    """
    mean = s.diagonal().mean()
    return float(torch.linalg.norm(s - mean * torch.eye(len(s), dtype=s.dtype)) / torch.linalg.norm(s))
