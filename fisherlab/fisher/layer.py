"""The block-diagonal Fisher: one dense block per layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from fisherlab.fisher.blocks import Blocks
from fisherlab.fisher.full import outer
from fisherlab.fisher.kinds import Statistics
from fisherlab.fisher.linalg import accumulate

CHUNK = 64 << 20  # bytes of one replica's weighted inputs, beyond which the rows u serve


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

    def moment(self, stats: Statistics, family: int, weight: float, old: Tensor | None, decay: float) -> Tensor:
        """See `Blocks.moment`: several columns of an example share its inputs, so their g g^T are added first."""
        a, g = stats.inputs[family].joined, stats.gradients[family]
        columns, batch, units, n = *g.shape[-3:], a.shape[-1]
        # One or two columns cost less by rows, of which half of the symmetric products is formed.
        if columns <= 2 or a.element_size() * batch * units**2 * n > CHUNK:
            return super().moment(stats, family, weight, old, decay)
        if old is None or not decay:
            old, decay = g.new_zeros(*g.shape[:-3], 1, units * n, units * n), 0.0
        between = g.movedim(-3, -1) @ g.movedim(-3, -2)  # [..., B, units, units]
        weighted = (between.unsqueeze(-1) * a.unsqueeze(-2).unsqueeze(-2)).flatten(-2).movedim(-2, -3)
        # The rows of unit i: a^T [sum_m g_i g_j a]_j, one product over the examples.
        left = a.unsqueeze(-3).expand(*weighted.shape[:-1], n)
        accumulate(old.view(*old.shape[:-3], units, n, units * n), left, weighted, decay, (1 - decay) * weight)
        return old
