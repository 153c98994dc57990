"""One dense block per two neighbouring layers: a subsystem of two layers, inputs to pre-activations and on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fisherlab.fisher.blocks import Blocks
from fisherlab.fisher.full import outer
from fisherlab.fisher.kinds import Statistics


class PairBlocks(Blocks):
    """Layers 1 and 2 share a block, 3 and 4, and so on; one that is left over has its own."""

    per_layer = False
    name = "pairs"
    instead = "unit"

    def sizes(self, shapes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """See `Blocks.sizes`."""
        numbers = [out * n for out, n in shapes]
        return [(1, sum(numbers[i : i + 2])) for i in range(0, len(numbers), 2)]

    def layers(self, family: int) -> slice:
        """See `Blocks.layers`."""
        return slice(2 * family, 2 * family + 2)

    def rows(self, stats: Statistics, family: int) -> Iterator[Tensor]:
        """See `Blocks.rows`."""
        both = self.layers(family)
        layers = zip(stats.inputs[both], stats.gradients[both], strict=True)
        yield torch.cat([outer(inputs, g) for inputs, g in layers], -1).unsqueeze(-3)
