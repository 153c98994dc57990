"""Dense blocks on the diagonal of the Fisher; which parameters share a block is all in which the structures differ."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from fisherlab.errors import UsageError
from fisherlab.fisher.kinds import Statistics
from fisherlab.fisher.linalg import INVERSE_FROM, block_diagonal, by_lanes, cholesky, inverse, second_moment, symmetric
from fisherlab.fisher.structure import Structure, stacked, total
from fisherlab.products import product, summed

MAX_SIZE = 10_000  # a float32 block of this size is 400 MB, and its Cholesky takes seconds
MAX_NUMBERS = 10**9  # of all blocks together, 4 GB in float32


class Blocks(Structure):
    """Blocks of the Fisher, equal ones as a family, a tensor [..., N, n, n].

    Damping modes: `tikhonov` adds lambda I to each; `trace` adds lambda times its own trace.

    Attributes:
        name: Of the structure.
        instead: What to take where a block is too large.
    """

    damping_modes = ("tikhonov", "trace")
    per_layer = True
    name: ClassVar[str]
    instead: ClassVar[str]

    def __init__(self, damping_mode: str | None = None) -> None:
        super().__init__(damping_mode)
        self._sizes: list[tuple[int, int]] = []
        self._lower: list[Tensor] = []
        self._prepared: list[Tensor] = []
        self._explicit = False

    @abstractmethod
    def sizes(self, shapes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Tell the number N of blocks and their size n, for every family.

        Args:
            shapes: (out, in + 1) of every layer.

        Returns:
            Pairs (N, n); the families in the order of the parameters.
        """

    @abstractmethod
    def rows(self, stats: Statistics, family: int) -> Iterator[Tensor]:
        """The vectors u of a batch, restricted to a family's blocks.

        Args:
            stats: Statistics of one batch.
            family: Which.

        Yields:
            Tensors [..., k, rows, n], of some of the blocks each, in order.
        """

    def moment(self, stats: Statistics, family: int, weight: float, old: Tensor | None, decay: float) -> Tensor:
        """Move a family's average towards a batch: old * decay + (1 - decay) * weight * sum of u u^T.

        Args:
            stats: Statistics of one batch.
            family: Which.
            weight: Of each vector u.
            old: The average so far, overwritten where `decay` is not zero.
            decay: Its weight.

        Returns:
            Lower triangles [..., N, n, n].
        """
        pieces, at = [], 0
        for rows in self.rows(stats, family):
            some = None if old is None else old[..., at : at + rows.shape[-3], :, :]
            pieces.append(second_moment([rows], weight, old=some, decay=decay))
            at += rows.shape[-3]
        if old is not None and decay:
            return old
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, -3)

    def lower(self, family: int) -> Tensor:
        """A family's average, of which the lower triangles count, [..., N, n, n]; it may be kept in another way."""
        return self._lower[family]

    @property
    def families(self) -> list[Tensor]:
        """The averages, [..., N, n, n]."""
        return [symmetric(m) for m in self._every]

    @property
    def _every(self) -> list[Tensor]:
        return [self.lower(i) for i in range(len(self._lower))]

    def start_at_identity(self, stats: Statistics) -> None:
        """See `Structure.start_at_identity`."""
        self.check(stats.shapes)
        g = stats.gradients[0]
        eyes = [(n, torch.eye(size, dtype=g.dtype, device=g.device)) for n, size in self._sizes]
        axes = [self._axes(stats, i) for i in range(len(eyes))]
        self._lower = [eye.expand(*own, n, *eye.shape).clone() for own, (n, eye) in zip(axes, eyes, strict=True)]

    def layers(self, family: int) -> slice:
        """Tell which layers a family's blocks are of.

        Args:
            family: Which.

        Returns:
            One, unless a structure says otherwise.
        """
        return slice(family, family + 1)

    def _axes(self, stats: Statistics, family: int) -> torch.Size:
        """The replica axes of a family's average: some share their inputs, and where nothing else counts, all of it."""
        where = self.layers(family)
        layers = zip(stats.inputs[where], stats.gradients[where], strict=True)
        return torch.broadcast_shapes(*(shape for s, g in layers for shape in (s.a.shape[:-2], g.shape[:-3])))

    def update(self, stats: Statistics, decay: float) -> None:
        """See `Structure.update`."""
        self.check(stats.shapes)
        old: Sequence[Tensor | None] = self._lower or [None] * len(self._sizes)
        self._lower = [self.moment(stats, i, stats.weight / stats.batch, o, decay) for i, o in enumerate(old)]

    def check(self, shapes: Sequence[tuple[int, int]]) -> None:
        """See `Structure.check`.

        Args:
            shapes: (out, in + 1) of every layer.

        Raises:
            UsageError: If a block would be too large.
        """
        self._sizes = self.sizes(shapes)
        largest = max(size for _, size in self._sizes)
        if largest > MAX_SIZE:
            raise UsageError(
                f"structure={self.name} needs a {largest} x {largest} matrix: expected at most {MAX_SIZE} parameters "
                f"in a block; use structure={self.instead}"
            )
        if (numbers := sum(n * size**2 for n, size in self._sizes)) > MAX_NUMBERS:
            raise UsageError(
                f"structure={self.name} needs {numbers:.2g} numbers: expected at most {MAX_NUMBERS:.2g}; "
                f"use structure={self.instead}"
            )

    def refresh(self, damping: Tensor, solves: int = 1) -> Tensor:
        """See `Structure.refresh`."""
        if not self._lower:
            raise ValueError(f"{self.name} has no average yet: call update first")
        self._explicit = solves >= INVERSE_FROM
        factorise = inverse if self._explicit else cholesky
        done = [by_lanes(factorise, [(m, self._amount(m, damping))])[0] for m in self._every]
        self._prepared = [found for found, _ in done]
        return stacked([failed.any(-1) for _, failed in done])

    def _amount(self, m: Tensor, damping: Tensor) -> Tensor:
        """What is added to the diagonal of each block, [..., N]."""
        each = damping.unsqueeze(-1)
        return each * m.diagonal(dim1=-2, dim2=-1).sum(-1) if self.damping_mode == "trace" else each

    def solve(self, gradient: list[Tensor], extra: list[Tensor] | None = None) -> list[Tensor]:
        """See `Structure.solve`."""
        v = total(gradient, extra)
        # An inverse is symmetric, and this layout of it the fastest.
        solve = (lambda b, r: product(b.mT, r).mT) if self._explicit else torch.cholesky_solve
        return self._pasted([solve(b, r) for b, r in zip(self._cut(v), self._prepared, strict=True)], v)

    def matvec(self, v: list[Tensor]) -> list[Tensor]:
        """See `Structure.matvec`."""
        return self._pasted([product(m, b) for b, m in zip(self._cut(v), self.families, strict=True)], v)

    def trace(self) -> Tensor:
        """See `Structure.trace`."""
        return summed([m.diagonal(dim1=-2, dim2=-1).sum((-2, -1)) for m in self._every])

    def dense(self) -> Tensor:
        """See `Structure.dense`."""
        return block_diagonal([block for m in self.families for block in m.unbind(-3)])

    def _cut(self, v: list[Tensor]) -> list[Tensor]:
        """Cut a vector into the families' columns, [..., N, n, 1]."""
        flat = torch.cat([layer.flatten(-2) for layer in v], -1)
        shapes = [torch.Size((*size, 1)) for size in self._sizes]
        return [b.unflatten(-1, s) for b, s in zip(flat.split([s.numel() for s in shapes], -1), shapes, strict=True)]

    def _pasted(self, parts: list[Tensor], like: list[Tensor]) -> list[Tensor]:
        """Undo `_cut`."""
        flat = torch.cat([b.flatten(-3) for b in parts], -1)
        sizes = [layer.shape[-2] * layer.shape[-1] for layer in like]
        return [u.unflatten(-1, layer.shape[-2:]) for u, layer in zip(flat.split(sizes, -1), like, strict=True)]

    def state(self) -> dict[str, Any]:
        """See `Structure.state`: the averages, and what the last refresh prepared."""
        kept = {"lower": list(self._lower), "prepared": list(self._prepared)}
        return kept | {"explicit": self._explicit, "sizes": list(self._sizes)}

    def load(self, state: dict[str, Any]) -> None:
        """See `Structure.load`."""
        self._lower, self._prepared = list(state["lower"]), list(state["prepared"])
        self._explicit, self._sizes = state["explicit"], state["sizes"]
