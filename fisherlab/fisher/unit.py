"""The unit-wise Fisher: one dense block per unit, over its incoming weights and its bias."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from fisherlab.fisher.blocks import Blocks
from fisherlab.fisher.kinds import Statistics
from fisherlab.fisher.linalg import accumulate
from fisherlab.fisher.outer import OuterProducts
from fisherlab.products import repeated

CHUNK = 64 << 20  # bytes of one replica's rows that are formed at a time


class UnitBlocks(Blocks):
    """One block per unit, E[g_i^2 a-bar a-bar^T] (unit-wise: Ollivier 2015; Amari, Karakida and Oizumi 2019)."""

    name = "unit"
    instead = "diagonal or kronecker"

    def __init__(self, damping_mode: str | None = None) -> None:
        super().__init__(damping_mode)
        # By layer, where the same batch comes at every step: set by who knows that (a full-batch study).
        self.outer: dict[int, OuterProducts] = {}

    def sizes(self, shapes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """See `Blocks.sizes`."""
        return list(shapes)

    def rows(self, stats: Statistics, family: int) -> Iterator[Tensor]:
        """See `Blocks.rows`: the columns or samples of an example share its inputs, so their g_i^2 are added first."""
        a = stats.inputs[family].joined.unsqueeze(-3)
        roots = stats.gradients[family].square().sum(-3).sqrt().mT.unsqueeze(-1)
        # Counted for one replica: cut in another way, a replica in a group could round in another way than alone.
        units = max(1, CHUNK // (a.element_size() * a.shape[-2] * a.shape[-1]))
        for some in roots.split(units, -3):
            yield a * some

    def moment(self, stats: Statistics, family: int, weight: float, old: Tensor | None, decay: float) -> Tensor:
        """See `Blocks.moment`: by outer products of the inputs, one product for all units, or for all replicas."""
        outer = self.outer.get(family)
        if outer is not None and outer.fits(stats.inputs[family]):
            fresh = outer.moment(stats.gradients[family].square().sum(-3).mT.mul(weight))
            return fresh if old is None or not decay else old.mul_(decay).add_(fresh, alpha=1 - decay)
        a, g = stats.inputs[family].joined, stats.gradients[family]
        n = a.shape[-1]
        if n > 2 * g.shape[-1] or a.element_size() * a.shape[-2] * n * n > CHUNK:
            return super().moment(stats, family, weight, old, decay)
        if old is None or not decay:
            old, decay = g.new_zeros(*g.shape[:-3], g.shape[-1], n, n), 0.0
        products = (a.unsqueeze(-1) * a.unsqueeze(-2)).flatten(-2)
        weights = g.square().sum(-3)
        accumulate(
            old.view(*old.shape[:-2], n * n),
            weights,
            repeated(products, g.shape[:-3]),
            decay,
            (1 - decay) * weight,
        )
        return old
