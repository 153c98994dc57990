"""Block-tridiagonal K-FAC: the inverse, not the matrix, has blocks for neighbouring layers only.

Martens and Grosse (2015), Section 4.3 and Appendix B. The layers form a chain, in the order of the model.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fisherlab.fisher.inputs import MeanGradient
from fisherlab.fisher.kinds import Statistics
from fisherlab.fisher.kronecker import Kronecker, factored_damping
from fisherlab.fisher.linalg import by_lanes, cholesky, eigh
from fisherlab.fisher.structure import stacked, total
from fisherlab.products import product, summed


class Link(NamedTuple):
    """What ties a layer to the next one, as solves need it.

    Attributes:
        psi_a: Psi^A = A_(i-1,i) A_(i,i)^-1, [..., in_i + 1, in_(i+1) + 1].
        psi_g: Psi^G = G_(i,i+1) G_(i+1,i+1)^-1, [..., out_i, out_(i+1)].
        k_a: K_1 of Appendix B, which makes A the identity and C = Psi^A A' Psi^A^T the diagonal of s_a.
        k_g: K_2, the same for G and D = Psi^G G' Psi^G^T.
        rest: 1 - s_g s_a^T, [..., out_i, in_i + 1].
        untied: In how many directions rounding left nothing of it, [...]: there the layer is inverted by itself.
    """

    psi_a: Tensor
    psi_g: Tensor
    k_a: Tensor
    k_g: Tensor
    rest: Tensor
    untied: Tensor


class KroneckerTridiagonal(Kronecker):
    """K-FAC with a block-tridiagonal inverse; the diagonal blocks are those of `Kronecker`, with factored damping."""

    damping_modes = ("factored",)

    def __init__(self, damping_mode: str | None = None) -> None:
        super().__init__(damping_mode)
        self._cross: list[tuple[Tensor, Tensor]] = []
        self._links: list[Link] = []
        self._last: tuple[Tensor, Tensor] | None = None

    @property
    def cross(self) -> list[tuple[Tensor, Tensor]]:
        """A_(i-1,i) [..., in_i + 1, in_(i+1) + 1] and G_(i,i+1) [..., out_i, out_(i+1)] of neighbouring layers."""
        return list(self._cross)

    def start_at_identity(self, stats: Statistics) -> None:
        """See `Structure.start_at_identity`: nothing ties the layers."""
        super().start_at_identity(stats)
        self._cross = [(a * 0.0, g * 0.0) for a, g in _cross(stats)]

    def update(self, stats: Statistics, decay: float) -> None:
        """See `Structure.update`."""
        super().update(stats, decay)
        fresh = _cross(stats)
        if self._cross and decay:
            pairs = zip(self._cross, fresh, strict=True)
            fresh = [
                (a.mul(decay).add_(c, alpha=1 - decay), g.mul(decay).add_(d, alpha=1 - decay))
                for (a, g), (c, d) in pairs
            ]
        self._cross = fresh

    def refresh(self, damping: Tensor, solves: int = 1) -> Tensor:
        """See `Structure.refresh`."""
        del solves
        damped = []
        for a, g in zip(self._a, self._g, strict=True):
            on_a, on_g = factored_damping(a, g, damping)
            damped += [(a, on_a), (g, on_g)]
        roots = by_lanes(cholesky, damped)
        failed = [a[1] | g[1] for a, g in zip(roots[::2], roots[1::2], strict=True)]
        self._prepared = [(a[0], g[0]) for a, g in zip(roots[::2], roots[1::2], strict=True)]
        self._links = []
        for i, (cross_a, cross_g) in enumerate(self._cross):
            (root_a, root_g), (next_a, next_g) = self._prepared[i : i + 2]
            link, bad = _link(_half(cross_a, root_a, next_a), _half(cross_g, root_g, next_g))
            self._links.append(link)
            failed[i] = failed[i] | bad
        return stacked(failed)

    def report(self) -> dict[str, Tensor]:
        """See `Structure.report`: `untied`, the directions of all layers in which rounding left no tie to the next."""
        return {"untied": summed([link.untied for link in self._links])} if self._links else {}

    def solve_mean(self, gradient: MeanGradient, extra: list[Tensor] | None = None) -> list[Tensor]:
        """See `Structure.solve_mean`."""
        return self.solve(gradient.layers, extra)

    def solve(self, gradient: list[Tensor], extra: list[Tensor] | None = None) -> list[Tensor]:
        """See `Structure.solve`: Xi^T Lambda Xi, from the right."""
        v = total(gradient, extra)
        x = [_pushed(one, link, after, -1) for one, link, after in zip(v, self._links, v[1:], strict=False)] + v[-1:]
        y = [_conditional(one, link) for one, link in zip(x, self._links, strict=False)]
        y.append(self._solve_factored(x[-1], *self._prepared[-1]))
        return y[:1] + [
            _pulled(one, link, before, -1) for one, link, before in zip(y[1:], self._links, y, strict=False)
        ]

    def matvec(self, v: list[Tensor]) -> list[Tensor]:
        """See `Structure.matvec`: of F-hat, whose inverse (where it has one) is block-tridiagonal."""
        tie = [(self.a[i + 1], self.g[i + 1]) for i in range(len(self._cross))]
        psi = [(_right_solve(c, a), _right_solve(d, g)) for (c, d), (a, g) in zip(self._cross, tie, strict=True)]
        return self._chain(v, list(zip(self.a, self.g, strict=True)), psi)

    def damped_matvec(self, v: list[Tensor]) -> list[Tensor]:
        """Multiply by the damped F-hat of the last refresh.

        Args:
            v: Per layer.

        Returns:
            F-hat v, per layer: what `solve` undoes.
        """
        factors = [(product(a, a.mT), product(g, g.mT)) for a, g in self._prepared]
        return self._chain(v, factors, [(link.psi_a, link.psi_g) for link in self._links])

    def _chain(
        self, v: list[Tensor], factors: list[tuple[Tensor, Tensor]], psi: list[tuple[Tensor, Tensor]]
    ) -> list[Tensor]:
        """Xi^-1 Lambda^-1 Xi^-T v, from the right."""
        t = v[:1]
        for one, (a, g) in zip(v[1:], psi, strict=True):
            t.append(one + product(product(g.mT, t[-1]), a))
        w = [product(product(g, one), a) for one, (a, g) in zip(t, factors, strict=True)]
        for i, ((psi_a, psi_g), (cross_a, cross_g)) in enumerate(zip(psi, self._cross, strict=True)):
            c, d = product(psi_a, cross_a.mT), product(psi_g, cross_g.mT)
            w[i] = w[i] - product(product(d, t[i]), c)
        for i in reversed(range(len(psi))):
            w[i] = w[i] + product(product(psi[i][1], w[i + 1]), psi[i][0].mT)
        return w

    def dense(self) -> Tensor:
        """See `Structure.dense`: F-hat, column by column; for small networks."""
        sizes = [(g.shape[-1], a.shape[-1]) for a, g in zip(self._a, self._g, strict=True)]
        count = sum(out * inputs for out, inputs in sizes)
        lead = self._g[0].shape[:-2]
        columns = []
        for i in range(count):
            unit = self._g[0].new_zeros(*lead, count)
            unit[..., i] = 1
            parts = unit.split([out * inputs for out, inputs in sizes], -1)
            v = [part.unflatten(-1, size) for part, size in zip(parts, sizes, strict=True)]
            columns.append(torch.cat([one.flatten(-2) for one in self.matvec(v)], -1))
        return torch.stack(columns, -1)

    def state(self) -> dict[str, Any]:
        """See `Structure.state`."""
        return super().state() | {
            "cross": [list(c) for c in self._cross],
            "links": [list(link) for link in self._links],
        }

    def load(self, state: dict[str, Any]) -> None:
        """See `Structure.load`."""
        super().load(state)
        self._cross = [(a, g) for a, g in state["cross"]]
        self._links = [Link(*link) for link in state["links"]]


def _cross(stats: Statistics) -> list[tuple[Tensor, Tensor]]:
    """The cross factors of a batch: second moments of neighbouring layers' inputs, and of their gradients."""
    batch = stats.batch
    inputs = [s.joined for s in stats.inputs]
    rows = [g.flatten(-3, -2) for g in stats.gradients]
    return [
        (product(a.mT, b) / batch, product(g.mT, h) * (stats.weight / batch))
        for a, b, g, h in zip(inputs, inputs[1:], rows, rows[1:], strict=False)
    ]


def _half(cross: Tensor, root: Tensor, after: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One factor's share of a link: Psi, K and s.

    Args:
        cross: The cross factor to the next layer.
        root: Cholesky factor of this layer's damped factor.
        after: Of the next layer's.

    Returns:
        Psi; K with K^T (root root^T) K = I and K^T (Psi cross^T) K = diag(s); s in [0, 1]; and where that failed, bool
        [...].
    """
    lead = torch.broadcast_shapes(cross.shape[:-2], after.shape[:-2])
    psi = torch.cholesky_solve(cross.mT.expand(*lead, *cross.mT.shape[-2:]), after).mT
    c = product(psi, cross.mT)
    half = torch.linalg.solve_triangular(root, c, upper=False)
    middle = torch.linalg.solve_triangular(root, half.mT, upper=False)
    s, vectors, bad = eigh((middle + middle.mT) / 2)
    # Rounding may lead out of [0, 1], where the exact values lie.
    return psi, torch.linalg.solve_triangular(root.mT, vectors, upper=True), s.clamp(max=1), bad


def _link(a: tuple[Tensor, Tensor, Tensor, Tensor], g: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Link, Tensor]:
    """Both factors' shares, joined; and where either failed."""
    rest = 1 - g[2].unsqueeze(-1) * a[2].unsqueeze(-2)
    gone = ~(rest > 0)  # damped, it is positive but for rounding; a lane that failed has no number
    link = Link(a[0], g[0], a[1], g[1], rest.masked_fill(gone, 1.0), gone.sum((-2, -1)).to(rest.dtype))
    return link, a[3] | g[3]


def _pushed(v: Tensor, link: Link, after: Tensor, sign: float) -> Tensor:
    """Add sign * Psi^G after Psi^A^T to v."""
    return v + sign * product(product(link.psi_g, after), link.psi_a.mT)


def _pulled(y: Tensor, link: Link, before: Tensor, sign: float) -> Tensor:
    """Add sign * Psi^G^T before Psi^A to y."""
    return y + sign * product(product(link.psi_g.mT, before), link.psi_a)


def _conditional(x: Tensor, link: Link) -> Tensor:
    """Sigma_(i|i+1)^-1 x, by Appendix B: (A (x) G - C (x) D)^-1."""
    return product(product(link.k_g, product(product(link.k_g.mT, x), link.k_a) / link.rest), link.k_a.mT)


def _right_solve(cross: Tensor, m: Tensor) -> Tensor:
    """Multiply by the pseudo-inverse: a cross factor has nothing where m is singular."""
    return product(cross, torch.linalg.pinv(m, hermitian=True))
