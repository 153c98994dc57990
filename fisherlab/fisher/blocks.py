"""Dense blocks on the diagonal of the Fisher; which parameters share a block is all in which the structures differ."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from fisherlab.errors import UsageError
from fisherlab.fisher.kinds import Statistics
from fisherlab.fisher.linalg import block_diagonal, by_lanes, cholesky, second_moment, symmetric
from fisherlab.fisher.structure import Structure, stacked, total
from fisherlab.products import product

MAX_SIZE = 10_000  # a float32 block of this size is 400 MB, and its Cholesky takes seconds
MAX_NUMBERS = 10**9  # of all blocks together, 4 GB in float32


class Blocks(Structure):
    """Blocks of the Fisher, each damped by lambda I. Equal blocks form a family, a tensor [..., N, n, n].

    Attributes:
        name: Of the structure.
        instead: What to take where a block is too large.
    """

    per_layer = True
    name: ClassVar[str]
    instead: ClassVar[str]

    def __init__(self, damping_mode: str | None = None) -> None:
        super().__init__(damping_mode)
        self._lower: list[Tensor] = []
        self._roots: list[Tensor] = []

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

    def moment(self, stats: Statistics, family: int, weight: float) -> Tensor:
        """Estimate a family from a batch: weight * sum of u u^T.

        Args:
            stats: Statistics of one batch.
            family: Which.
            weight: Of each vector u.

        Returns:
            Lower triangles [..., N, n, n].
        """
        pieces = [second_moment([rows], weight) for rows in self.rows(stats, family)]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, -3)

    @property
    def families(self) -> list[Tensor]:
        """The averages, [..., N, n, n]."""
        return [symmetric(m) for m in self._lower]

    def start_at_identity(self, stats: Statistics) -> None:
        """See `Structure.start_at_identity`."""
        g = stats.gradients[0]
        eyes = [(n, torch.eye(size, dtype=g.dtype, device=g.device)) for n, size in self.sizes(stats.shapes)]
        self._lower = [eye.expand(*g.shape[:-3], n, *eye.shape).clone() for n, eye in eyes]

    def update(self, stats: Statistics, decay: float) -> None:
        """See `Structure.update`."""
        self.check(stats.shapes)
        weight, fresh = stats.weight / stats.batch, []
        for i in range(len(self.sizes(stats.shapes))):
            fresh.append(self.moment(stats, i, weight))
        if decay and self._lower:
            fresh = [old.mul_(decay).add_(new, alpha=1 - decay) for old, new in zip(self._lower, fresh, strict=True)]
        self._lower = fresh

    def check(self, shapes: Sequence[tuple[int, int]]) -> None:
        """See `Structure.check`.

        Args:
            shapes: (out, in + 1) of every layer.

        Raises:
            UsageError: If a block would be too large.
        """
        largest = max(size for _, size in self.sizes(shapes))
        if largest > MAX_SIZE:
            raise UsageError(
                f"structure={self.name} needs a {largest} x {largest} matrix: expected at most {MAX_SIZE} parameters "
                f"in a block; use structure={self.instead}"
            )
        if (numbers := sum(n * size**2 for n, size in self.sizes(shapes))) > MAX_NUMBERS:
            raise UsageError(
                f"structure={self.name} needs {numbers:.2g} numbers: expected at most {MAX_NUMBERS:.2g}; "
                f"use structure={self.instead}"
            )

    def refresh(self, damping: Tensor, solves: int = 1) -> Tensor:
        """See `Structure.refresh`."""
        if not self._lower:
            raise ValueError(f"{self.name} has no average yet: call update first")
        done = [by_lanes(cholesky, [(m, damping.unsqueeze(-1))])[0] for m in self._lower]
        self._roots = [root for root, _ in done]
        return stacked([failed.any(-1) for _, failed in done])

    def solve(self, gradient: list[Tensor], extra: list[Tensor] | None = None) -> list[Tensor]:
        """See `Structure.solve`."""
        v = total(gradient, extra)
        parts = [torch.cholesky_solve(b.unsqueeze(-1), r) for b, r in zip(self._cut(v), self._roots, strict=True)]
        return self._pasted(parts, v)

    def matvec(self, v: list[Tensor]) -> list[Tensor]:
        """See `Structure.matvec`."""
        return self._pasted([product(m, b.unsqueeze(-1)) for b, m in zip(self._cut(v), self.families, strict=True)], v)

    def trace(self) -> Tensor:
        """See `Structure.trace`."""
        return torch.stack([m.diagonal(dim1=-2, dim2=-1).sum((-2, -1)) for m in self._lower]).sum(0)

    def dense(self) -> Tensor:
        """See `Structure.dense`."""
        return block_diagonal([block for m in self.families for block in m.unbind(-3)])

    def _cut(self, v: list[Tensor]) -> list[Tensor]:
        """Cut a vector into the families', [..., N, n]."""
        flat = torch.cat([layer.flatten(-2) for layer in v], -1)
        shapes = [m.shape[-3:-1] for m in self._lower]
        return [b.unflatten(-1, s) for b, s in zip(flat.split([s.numel() for s in shapes], -1), shapes, strict=True)]

    @staticmethod
    def _pasted(parts: list[Tensor], like: list[Tensor]) -> list[Tensor]:
        """Undo `_cut`, from columns [..., N, n, 1]."""
        flat = torch.cat([b.flatten(-3) for b in parts], -1)
        sizes = [layer.shape[-2] * layer.shape[-1] for layer in like]
        return [u.unflatten(-1, layer.shape[-2:]) for u, layer in zip(flat.split(sizes, -1), like, strict=True)]

    def state(self) -> dict[str, Any]:
        """See `Structure.state`: the averages and their factorisations."""
        return {"lower": list(self._lower), "roots": list(self._roots)}

    def load(self, state: dict[str, Any]) -> None:
        """See `Structure.load`."""
        self._lower, self._roots = list(state["lower"]), list(state["roots"])
