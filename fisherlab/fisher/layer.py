"""The block-diagonal Fisher: one dense block per layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from fisherlab.fisher.blocks import Blocks
from fisherlab.fisher.full import outer
from fisherlab.fisher.kinds import Statistics


class LayerBlocks(Blocks):
    """One block per layer; what couples two layers is left out."""

    name = "layer"
    instead = "unit or kronecker"

    def sizes(self, shapes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """See `Blocks.sizes`."""
        return [(1, out * n) for out, n in shapes]

    def rows(self, stats: Statistics, family: int) -> Iterator[Tensor]:
        """See `Blocks.rows`."""
        yield outer(stats.inputs[family], stats.gradients[family]).unsqueeze(-3)
