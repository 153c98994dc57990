"""The dual system: exact full-matrix solves through the B x B (or M*B x M*B) Gram matrix of the per-example gradients.

K = sum over layers of (a a^T) o (g g^T), so no per-example gradient is ever formed. Solved in coefficient form,
u = U^T (K + B lambda I)^-1 w with U^T w = B * gradient: the textbook Woodbury form (g - U^T (...) U g) / lambda loses
all digits in float32 when lambda is small.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fisherlab.errors import UsageError
from fisherlab.fisher.full import per_example
from fisherlab.fisher.kinds import Statistics
from fisherlab.fisher.linalg import add_to_diagonal, cholesky
from fisherlab.fisher.structure import Structure, stacked
from fisherlab.products import product, summed

MAX_ROWS = 20_000  # a float64 system of this size is 3.2 GB, and takes minutes


class Gram(Structure):
    """The damped full matrix of one batch, solved in its dual; keeps no average, because its basis is the batch."""

    keeps = False

    def __init__(self, damping_mode: str | None = None) -> None:
        super().__init__(damping_mode)
        self._stats: Statistics | None = None
        self._root: Tensor | None = None
        self._shift: Tensor | None = None

    def update(self, stats: Statistics, decay: float) -> None:
        """See `Structure.update`; `decay` must be zero.

        Args:
            stats: The batch's statistics.
            decay: 0.

        Raises:
            ValueError: If a decay is given.
            UsageError: If the dual system would be too large.
        """
        if decay:
            raise ValueError("gram keeps no average: its basis is the batch")
        if stats.rows > MAX_ROWS:
            raise UsageError(
                f"a batch of {stats.batch} examples needs a {stats.rows} x {stats.rows} dual system: expected at most "
                f"{MAX_ROWS} rows; use a smaller batch_size, or structure=full"
            )
        self._stats = stats

    def kernel(self) -> Tensor:
        """K = U U^T in float64, the rows u of U scaled by the root of the kind's weight.

        Returns:
            Tensor [..., M*B, M*B].

        Raises:
            ValueError: Before the first update.
        """
        stats, k = self._batch(), None
        for inputs, g in zip(stats.inputs, stats.gradients, strict=True):
            aa, rows = inputs.a @ inputs.a.mT, g.flatten(-3, -2)
            if inputs.ones is not None:
                aa.add_(inputs.ones**2)
            term = rows @ rows.mT
            # The columns or samples of an example share its inputs.
            term.unflatten(-1, g.shape[-3:-1]).unflatten(-3, g.shape[-3:-1]).mul_(aa[..., None, :, None, :])
            k = term.double() if k is None else k.add_(term)
        assert k is not None
        return k.mul_(stats.weight)

    @property
    def needs_gradient(self) -> bool:
        """See `Structure.needs_gradient`: where the gradient lies in the span of the rows, its coefficients do."""
        return self._batch().coefficients is None

    def refresh(self, damping: Tensor, solves: int = 1) -> Tensor:
        """See `Structure.refresh`."""
        k = self.kernel()
        assert self._stats is not None
        shift = damping.double()
        self._shift = torch.where(shift > 0, shift, math.inf)  # undamped, nothing lies outside the span: divide it away
        self._root, failed = cholesky(add_to_diagonal(k, shift * self._stats.batch))
        if self._stats.coefficients is None:  # the gradient lies outside the span, where only the damping is
            failed = failed | (shift <= 0)
        return stacked([failed])

    def solve(self, gradient: list[Tensor], extra: list[Tensor] | None = None) -> list[Tensor]:
        """See `Structure.solve`.

        With w known, u = U^T c + v / lambda and (K + B lambda I) c = w - U v / lambda, where v is what lies outside the
        span of U (L2). For mc the gradient itself lies outside, and takes the part of v.

        Args:
            gradient: The gradient of the mean nll, per layer.
            extra: L2's part of the objective's gradient, per layer.

        Returns:
            u, per layer.

        Raises:
            ValueError: Before the first refresh.
        """
        stats = self._stats
        if stats is None or self._root is None or self._shift is None:
            raise ValueError("gram is not prepared: call update and refresh first")
        w = stats.coefficients
        outside = extra
        if w is None:
            outside = gradient if extra is None else [g + e for g, e in zip(gradient, extra, strict=True)]
        root = math.sqrt(stats.weight)
        right = self._root.new_zeros(()) if w is None else w.flatten(-2).double() / root
        if outside is not None:
            right = right - root * self._products(stats, outside) / self._shift[..., None]
        c = root * torch.cholesky_solve(right.unsqueeze(-1), self._root).squeeze(-1)
        parts = self._combine(stats, c)
        if outside is None:
            return parts
        over = (1 / self._shift)[..., None, None]
        return [(p.double() + v.double() * over).to(v.dtype) for p, v in zip(parts, outside, strict=True)]

    def matvec(self, v: list[Tensor]) -> list[Tensor]:
        """See `Structure.matvec`: weight / B * U^T U v."""
        stats = self._batch()
        return self._combine(stats, self._products(stats, v) * (stats.weight / stats.batch))

    def trace(self) -> Tensor:
        """See `Structure.trace`: that of K / B."""
        return self.kernel().diagonal(dim1=-2, dim2=-1).sum(-1) / self._batch().batch

    def dense(self) -> Tensor:
        """See `Structure.dense`."""
        u = per_example(self._batch())
        return u.mT @ u * (self._batch().weight / self._batch().batch)

    def _batch(self) -> Statistics:
        if self._stats is None:
            raise ValueError("gram has no batch yet: call update first")
        return self._stats

    @staticmethod
    def _combine(stats: Statistics, c: Tensor) -> list[Tensor]:
        """Sum c_mn u_mn per layer."""
        parts = []
        for inputs, g in zip(stats.inputs, stats.gradients, strict=True):
            weights = c.unflatten(-1, g.shape[-3:-1]).to(g.dtype).unsqueeze(-1)
            parts.append(inputs.weighted_sum((weights * g).sum(-3)))
        return parts

    @staticmethod
    def _products(stats: Statistics, v: list[Tensor]) -> Tensor:
        """u_mn^T v = g_mn^T V a-bar_n, summed over layers, in float64 [..., M*B]."""
        terms = [
            (g * product(inputs.joined, layer.mT).unsqueeze(-3)).sum(-1).double()
            for inputs, g, layer in zip(stats.inputs, stats.gradients, v, strict=True)
        ]
        return summed(torch.broadcast_tensors(*terms)).flatten(-2)
