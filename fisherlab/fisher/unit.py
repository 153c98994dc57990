"""The unit-wise Fisher: one dense block per unit, over its incoming weights and its bias."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from fisherlab.fisher.blocks import Blocks
from fisherlab.fisher.kinds import Statistics
from fisherlab.fisher.linalg import accumulate
from fisherlab.fisher.outer import OuterProducts
from fisherlab.fisher.packed import numbers, outer_products, packed, unpacked
from fisherlab.products import repeated

CHUNK = 64 << 20  # bytes of one replica's rows, or outer products, that are formed at a time


class UnitBlocks(Blocks):
    """One block per unit, E[g_i^2 a-bar a-bar^T] (unit-wise: Ollivier 2015; Amari, Karakida and Oizumi 2019)."""

    name = "unit"
    instead = "diagonal or kronecker"

    def __init__(self, damping_mode: str | None = None) -> None:
        super().__init__(damping_mode)
        # By layer, where the same batch comes at every step: set by who knows that (a full-batch study), at the start.
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

    def lower(self, family: int) -> Tensor:
        """See `Blocks.lower`."""
        kept = self._lower[family]
        return unpacked(kept, self._sizes[family][1]) if self._packs(family) else kept

    def start_at_identity(self, stats: Statistics) -> None:
        """See `Blocks.start_at_identity`."""
        super().start_at_identity(stats)
        self._lower = [packed(m) if self._packs(i) else m for i, m in enumerate(self._lower)]

    def _packs(self, family: int) -> bool:
        """Whether the average is kept packed: where the outer products of the inputs serve many units."""
        units, n = self._sizes[family]
        return n <= 2 * units and family not in self.outer

    def moment(self, stats: Statistics, family: int, weight: float, old: Tensor | None, decay: float) -> Tensor:
        """See `Blocks.moment`: by outer products of the inputs, one product for all units, or for all replicas."""
        a, weights = stats.inputs[family], stats.gradients[family].square().sum(-3)
        outer = self.outer.get(family)
        if outer is not None and outer.fits(a):
            fresh = outer.moment(weights.mT.mul(weight))
            return fresh if old is None or not decay else old.mul_(decay).add_(fresh, alpha=1 - decay)
        if not self._packs(family):
            return super().moment(stats, family, weight, old, decay)
        size = numbers(a.width)
        if old is None or not decay:
            old, decay = weights.new_zeros(*weights.shape[:-2], weights.shape[-1], size), 0.0
        scale, most = (1 - decay) * weight, max(1, CHUNK // (weights.element_size() * size))
        for some, part in zip(a.joined.split(most, -2), weights.split(most, -2), strict=True):
            accumulate(old, part, repeated(outer_products(some), weights.shape[:-2]), decay, scale)
            decay = 1.0  # the other examples of the batch are added
        return old
