"""The full matrix over all covered parameters, P x P (the primal system)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fisherlab.errors import UsageError
from fisherlab.fisher.kinds import Statistics
from fisherlab.fisher.linalg import add_to_diagonal, cholesky, second_moment, symmetric
from fisherlab.fisher.structure import Structure, stacked, total

MAX_PARAMETERS = 10_000  # a float32 matrix of this size is 400 MB, and its Cholesky takes seconds


def per_example(stats: Statistics) -> Tensor:
    """The vectors u = vec(g a-bar^T), layers in order, each row-major as [out, in + 1].

    Args:
        stats: Statistics of one batch.

    Returns:
        Tensor [..., M*B, P].
    """
    parts = []
    for inputs, g in zip(stats.inputs, stats.gradients, strict=True):
        outer = g.unsqueeze(-1) * inputs.joined.unsqueeze(-3).unsqueeze(-2)
        parts.append(outer.flatten(-2).flatten(-3, -2))
    return torch.cat(parts, -1)


class Full(Structure):
    """The dense Fisher of all covered parameters, damped by lambda I."""

    def __init__(self, damping_mode: str | None = None) -> None:
        super().__init__(damping_mode)
        self._lower: Tensor | None = None
        self._root: Tensor | None = None

    @property
    def matrix(self) -> Tensor:
        """The average [..., P, P]; there is one after the first update."""
        assert self._lower is not None, "update comes first"
        return symmetric(self._lower)

    def start_at_identity(self, stats: Statistics) -> None:
        """See `Structure.start_at_identity`."""
        u = per_example(stats)
        self._lower = torch.eye(u.shape[-1], dtype=u.dtype, device=u.device).expand(*u.shape[:-2], -1, -1).clone()

    def update(self, stats: Statistics, decay: float) -> None:
        """See `Structure.update`.

        Args:
            stats: The batch's statistics.
            decay: Weight of what was there.

        Raises:
            UsageError: If the matrix would be too large.
        """
        size = parameters(stats)
        if size > MAX_PARAMETERS:
            raise UsageError(
                f"structure=full needs a {size} x {size} matrix: expected at most {MAX_PARAMETERS} parameters; "
                "use structure=gram or kronecker"
            )
        self._lower = second_moment([per_example(stats)], stats.weight / stats.batch, old=self._lower, decay=decay)

    def refresh(self, damping: Tensor, solves: int = 1) -> Tensor:
        """See `Structure.refresh`."""
        assert self._lower is not None, "update comes before refresh"
        self._root, failed = cholesky(add_to_diagonal(self._lower, damping))
        return stacked([failed])

    def solve(self, gradient: list[Tensor], extra: list[Tensor] | None = None) -> list[Tensor]:
        """See `Structure.solve`."""
        assert self._root is not None, "refresh comes before solve"
        v = total(gradient, extra)
        flat = torch.cat([layer.flatten(-2) for layer in v], -1)
        u = torch.cholesky_solve(flat.unsqueeze(-1), self._root).squeeze(-1)
        sizes = [layer.shape[-2] * layer.shape[-1] for layer in v]
        return [part.unflatten(-1, layer.shape[-2:]) for part, layer in zip(u.split(sizes, -1), v, strict=True)]

    def state(self) -> dict[str, Any]:
        """See `Structure.state`: the matrix and its factorisation."""
        return {"matrix": self._lower, "root": self._root}

    def load(self, state: dict[str, Any]) -> None:
        """See `Structure.load`."""
        self._lower, self._root = state["matrix"], state["root"]


def parameters(stats: Statistics) -> int:
    """Count the covered parameters P.

    Args:
        stats: Statistics whose shapes tell the sizes.

    Returns:
        P.
    """
    return sum(g.shape[-1] * s.width for g, s in zip(stats.gradients, stats.inputs, strict=True))
