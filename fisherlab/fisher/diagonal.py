"""The diagonal of the Fisher."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fisherlab.fisher.kinds import Statistics
from fisherlab.fisher.structure import Structure, stacked, total
from fisherlab.products import product, summed


class Diagonal(Structure):
    """E[u^2] for every entry; a product of squared factors, so that no per-example gradient is formed."""

    per_layer = True

    def __init__(self, damping_mode: str | None = None) -> None:
        super().__init__(damping_mode)
        self.entries: list[Tensor] = []
        self._damped: list[Tensor] = []

    def start_at_identity(self, stats: Statistics) -> None:
        """See `Structure.start_at_identity`."""
        pairs = zip(stats.inputs, stats.gradients, strict=True)
        self.entries = [g.new_ones(*g.shape[:-3], g.shape[-1], inputs.width) for inputs, g in pairs]

    def update(self, stats: Statistics, decay: float) -> None:
        """See `Structure.update`."""
        weight = stats.weight / stats.batch
        pairs = zip(stats.inputs, stats.gradients, strict=True)
        fresh = [product(g.square().sum(-3).mT, inputs.joined.square()).mul(weight) for inputs, g in pairs]
        if decay and self.entries:
            fresh = [old.mul_(decay).add_(new, alpha=1 - decay) for old, new in zip(self.entries, fresh, strict=True)]
        self.entries = fresh

    def refresh(self, damping: Tensor, solves: int = 1) -> Tensor:
        """See `Structure.refresh`."""
        damped = [d + damping.to(d.dtype)[..., None, None] for d in self.entries]
        failed = [~((d > 0) & torch.isfinite(d)).all(-1).all(-1) for d in damped]
        self._damped = [torch.where(bad[..., None, None], 1.0, d) for bad, d in zip(failed, damped, strict=True)]
        return stacked(failed)

    def solve(self, gradient: list[Tensor], extra: list[Tensor] | None = None) -> list[Tensor]:
        """See `Structure.solve`."""
        return [v / d for v, d in zip(total(gradient, extra), self._damped, strict=True)]

    def matvec(self, v: list[Tensor]) -> list[Tensor]:
        """See `Structure.matvec`."""
        return [layer * d for layer, d in zip(v, self.entries, strict=True)]

    def trace(self) -> Tensor:
        """See `Structure.trace`."""
        return summed([d.sum((-2, -1)) for d in self.entries])

    def dense(self) -> Tensor:
        """See `Structure.dense`."""
        return torch.cat([d.flatten(-2) for d in self.entries], -1).diag_embed()

    def state(self) -> dict[str, Any]:
        """See `Structure.state`."""
        return {"entries": list(self.entries), "damped": list(self._damped)}

    def load(self, state: dict[str, Any]) -> None:
        """See `Structure.load`."""
        self.entries, self._damped = list(state["entries"]), list(state["damped"])
