"""A structure for the first layer, one for the last, one for what lies between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fisherlab.fisher.kinds import Statistics
from fisherlab.fisher.linalg import block_diagonal
from fisherlab.fisher.structure import Structure, total
from fisherlab.products import summed


def ends(layers: int) -> list[slice]:
    """Cut a chain of layers into the first, those between, and the last; a single one is the last.

    Args:
        layers: How many.

    Returns:
        Three slices, some perhaps empty.
    """
    last = layers - 1
    return [slice(0, min(1, last)), slice(1, max(1, last)), slice(last, layers)]


class Mixed(Structure):
    """Block-diagonal: each part of the layers by a structure of its own.

    Args:
        first: Of the first layer; a single layer is the last.
        between: Of the layers between.
        last: Of the last layer.
    """

    def __init__(self, first: Structure, between: Structure, last: Structure) -> None:
        super().__init__(between.damping_mode)
        self._given = (first, between, last)
        self._parts: list[tuple[Structure, slice]] = []
        self.per_layer = all(part.per_layer for part in self._given)

    def check(self, shapes: Sequence[tuple[int, int]]) -> None:
        """See `Structure.check`; it is then known which layer is the last."""
        parts = zip(self._given, ends(len(shapes)), strict=True)
        self._parts = [(part, where) for part, where in parts if shapes[where]]
        for part, where in self._parts:
            part.check(shapes[where])

    def report(self) -> dict[str, Tensor]:
        """See `Structure.report`."""
        return {name: value for part, _ in self._parts for name, value in part.report().items()}

    def start_at_identity(self, stats: Statistics) -> None:
        """See `Structure.start_at_identity`."""
        for part, where in self._parts:
            part.start_at_identity(_some(stats, where))

    def update(self, stats: Statistics, decay: float) -> None:
        """See `Structure.update`."""
        for part, where in self._parts:
            part.update(_some(stats, where), decay)

    def refresh(self, damping: Tensor, solves: int = 1) -> Tensor:
        """See `Structure.refresh`."""
        masks = [part.refresh(damping, solves) for part, _ in self._parts]
        shape = torch.broadcast_shapes(*(mask.shape[1:] for mask in masks))
        return torch.cat([mask.expand(-1, *shape) for mask in masks])

    def solve(self, gradient: list[Tensor], extra: list[Tensor] | None = None) -> list[Tensor]:
        """See `Structure.solve`."""
        v = total(gradient, extra)
        return [u for part, where in self._parts for u in part.solve(v[where])]

    def matvec(self, v: list[Tensor]) -> list[Tensor]:
        """See `Structure.matvec`."""
        return [u for part, where in self._parts for u in part.matvec(v[where])]

    def trace(self) -> Tensor:
        """See `Structure.trace`."""
        return summed(torch.broadcast_tensors(*(part.trace() for part, _ in self._parts)))

    def dense(self) -> Tensor:
        """See `Structure.dense`."""
        return block_diagonal([part.dense() for part, _ in self._parts])

    def state(self) -> dict[str, Any]:
        """See `Structure.state`."""
        return {"parts": [part.state() for part, _ in self._parts]}

    def load(self, state: dict[str, Any]) -> None:
        """See `Structure.load`."""
        for (part, _), own in zip(self._parts, state["parts"], strict=True):
            part.load(own)


def _some(stats: Statistics, where: slice) -> Statistics:
    return Statistics(stats.inputs[where], stats.gradients[where], stats.weight)
