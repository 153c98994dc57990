"""The exact full matrix of one batch by whichever of its two systems is smaller: primal (P x P) or dual (M*B x M*B)."""

from __future__ import annotations

from torch import Tensor

from fisherlab.fisher.full import Full, parameters
from fisherlab.fisher.gram import Gram
from fisherlab.fisher.kinds import Statistics
from fisherlab.fisher.structure import Structure


class Smaller(Structure):
    """Full or gram, decided by the shapes of each batch; both solve the same system."""

    keeps = False

    def __init__(self, damping_mode: str | None = None) -> None:
        super().__init__(damping_mode)
        self.chosen: Structure = Full()

    def update(self, stats: Statistics, decay: float) -> None:
        """See `Structure.update`."""
        self.chosen = Gram() if stats.rows < parameters(stats) else Full()
        self.chosen.update(stats, decay)

    @property
    def needs_gradient(self) -> bool:
        """See `Structure.needs_gradient`."""
        return self.chosen.needs_gradient

    def refresh(self, damping: Tensor, solves: int = 1) -> Tensor:
        """See `Structure.refresh`."""
        return self.chosen.refresh(damping, solves)

    def solve(self, gradient: list[Tensor], extra: list[Tensor] | None = None) -> list[Tensor]:
        """See `Structure.solve`."""
        return self.chosen.solve(gradient, extra)

    def matvec(self, v: list[Tensor]) -> list[Tensor]:
        """See `Structure.matvec`."""
        return self.chosen.matvec(v)

    def trace(self) -> Tensor:
        """See `Structure.trace`."""
        return self.chosen.trace()

    def dense(self) -> Tensor:
        """See `Structure.dense`."""
        return self.chosen.dense()
