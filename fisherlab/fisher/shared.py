"""One block per layer that all its units share, I (x) A: what is left where the units' blocks are equal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from fisherlab.fisher.blocks import Blocks
from fisherlab.fisher.kinds import Statistics
from fisherlab.fisher.linalg import block_diagonal
from fisherlab.products import summed


class SharedBlocks(Blocks):
    """The mean of the unit-wise blocks, E[mean_i g_i^2 a-bar a-bar^T], in the place of each.

    For the relative Fisher of a linear layer, whose g_i are all 1, it is the unit-wise Fisher itself: E[a-bar a-bar^T].
    """

    name = "shared"
    instead = "diagonal"

    def __init__(self, damping_mode: str | None = None) -> None:
        super().__init__(damping_mode)
        self._units: list[int] = []  # by layer

    def check(self, shapes: Sequence[tuple[int, int]]) -> None:
        """See `Blocks.check`."""
        self._units = [out for out, _ in shapes]
        super().check(shapes)

    def sizes(self, shapes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """See `Blocks.sizes`."""
        return [(1, n) for _, n in shapes]

    def rows(self, stats: Statistics, family: int) -> Iterator[Tensor]:
        """See `Blocks.rows`."""
        g = stats.gradients[family]
        yield (stats.inputs[family].joined * g.square().sum(-3).mean(-1, keepdim=True).sqrt()).unsqueeze(-3)

    def trace(self) -> Tensor:
        """See `Structure.trace`: each block counts for all units."""
        traces = [m.diagonal(dim1=-2, dim2=-1).sum((-2, -1)) for m in self._lower]
        return summed([t * self._units[i] for i, t in enumerate(traces)])

    def dense(self) -> Tensor:
        """See `Structure.dense`."""
        blocks = [m.squeeze(-3) for m in self.families]
        return block_diagonal([block for i, block in enumerate(blocks) for _ in range(self._units[i])])

    def _cut(self, v: list[Tensor]) -> list[Tensor]:
        """The units side by side, [..., 1, n, out]."""
        return [layer.mT.unsqueeze(-3) for layer in v]

    def _pasted(self, parts: list[Tensor], like: list[Tensor]) -> list[Tensor]:
        """Undo `_cut`."""
        return [part.squeeze(-3).mT for part in parts]
