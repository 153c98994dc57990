"""Kronecker-factored blocks, one per layer: F_l ~ A_l (x) G_l (Martens and Grosse 2015, Section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fisherlab.fisher.inputs import Inputs, MeanGradient
from fisherlab.fisher.kinds import Statistics
from fisherlab.fisher.linalg import (
    INVERSE_FROM,
    block_diagonal,
    by_lanes,
    cholesky,
    eigh,
    inverse,
    second_moment,
    symmetric,
)
from fisherlab.fisher.structure import Structure, stacked, total
from fisherlab.products import product, summed


def input_factor(inputs: Inputs, old: Tensor | None = None, decay: float = 0.0) -> Tensor:
    """A = E[a-bar a-bar^T], the ones column included; its lower triangle, see `second_moment`.

    Args:
        inputs: A layer's homogeneous inputs, B examples.
        old: The average so far; overwritten.
        decay: Its weight.

    Returns:
        Tensor [..., in + 1, in + 1], or [..., in, in] without biases.
    """
    return second_moment(inputs.parts, 1 / inputs.a.shape[-2], old=old, decay=decay)


def output_factor(gradients: Tensor, weight: float, old: Tensor | None = None, decay: float = 0.0) -> Tensor:
    """G = E[g g^T], over the examples and the kind's columns or samples; its lower triangle.

    Args:
        gradients: Pre-activation gradients [..., M, B, out].
        weight: Of each of the M.
        old: The average so far; overwritten.
        decay: Its weight.

    Returns:
        Tensor [..., out, out].
    """
    return second_moment([gradients.flatten(-3, -2)], weight / gradients.shape[-2], old=old, decay=decay)


def factored_damping(a: Tensor, g: Tensor, damping: Tensor) -> tuple[Tensor, Tensor]:
    """Split lambda over the factors by pi (Martens and Grosse 2015, Section 6.3).

    Args:
        a: Input factors [..., n, n].
        g: Output factors [..., m, m].
        damping: lambda, [...].

    Returns:
        pi * gamma for A and gamma / pi for G, with gamma = sqrt(lambda) and pi the root of the ratio of the mean
        eigenvalues; pi = 1 where either trace is zero or not finite.
    """
    mean_a = a.diagonal(dim1=-2, dim2=-1).mean(-1)
    mean_g = g.diagonal(dim1=-2, dim2=-1).mean(-1)
    ratio = mean_a / mean_g
    usable = torch.isfinite(ratio) & (ratio > 0)
    pi = torch.where(usable, ratio, torch.ones_like(ratio)).sqrt()
    gamma = damping.sqrt().to(a.dtype)
    return pi * gamma, gamma / pi


def _lost(values: Tensor) -> Tensor:
    """Whether the smallest of ascending eigenvalues [..., n] is below n * eps of the largest."""
    return values[..., 0] <= values.shape[-1] * torch.finfo(values.dtype).eps * values[..., -1]


class Kronecker(Structure):
    """Block-diagonal K-FAC.

    Damping modes: `factored` adds pi * gamma to A and gamma / pi to G (Section 6.3); `tikhonov` adds lambda to the
    products of their eigenvalues, which is (A (x) G + lambda I) exactly; `trace` adds lambda tr(A) tr(G) to them.
    """

    damping_modes: tuple[str, ...] = ("factored", "tikhonov", "trace")
    per_layer = True

    def __init__(self, damping_mode: str | None = None) -> None:
        super().__init__(damping_mode)
        self._a: list[Tensor] = []
        self._g: list[Tensor] = []
        self._prepared: list[tuple[Tensor, ...]] = []
        self._explicit = False

    @property
    def a(self) -> list[Tensor]:
        """The input factors A, per layer [..., in + 1, in + 1]."""
        return [symmetric(m) for m in self._a]

    @property
    def g(self) -> list[Tensor]:
        """The pre-activation gradient factors G, per layer [..., out, out]."""
        return [symmetric(m) for m in self._g]

    def start_at_identity(self, stats: Statistics) -> None:
        """See `Structure.start_at_identity`."""
        self._a = [self._identity(s.a, s.width) for s in stats.inputs]
        self._g = [self._identity(g[..., 0, :, :], g.shape[-1]) for g in stats.gradients]

    @staticmethod
    def _identity(like: Tensor, n: int) -> Tensor:
        eye = torch.eye(n, dtype=like.dtype, device=like.device)
        return eye.expand(*like.shape[:-2], n, n).clone()

    def update(self, stats: Statistics, decay: float) -> None:
        """See `Structure.update`."""
        old_a: Sequence[Tensor | None] = self._a or [None] * len(stats.inputs)
        old_g: Sequence[Tensor | None] = self._g or [None] * len(stats.gradients)
        self._a = [input_factor(s, o, decay) for s, o in zip(stats.inputs, old_a, strict=True)]
        self._g = [output_factor(g, stats.weight, o, decay) for g, o in zip(stats.gradients, old_g, strict=True)]

    def refresh(self, damping: Tensor, solves: int = 1) -> Tensor:
        """See `Structure.refresh`."""
        self._explicit = solves >= INVERSE_FROM
        pairs = list(zip(self._a, self._g, strict=True))
        prepare = self._factorised if self.damping_mode == "factored" else self._eigenbases
        prepared, failed = zip(*prepare(pairs, damping), strict=True)
        self._prepared = list(prepared)
        return stacked(list(failed))

    def _factorised(
        self, pairs: list[tuple[Tensor, Tensor]], damping: Tensor
    ) -> list[tuple[tuple[Tensor, ...], Tensor]]:
        damped = []
        for a, g in pairs:
            on_a, on_g = factored_damping(a, g, damping)
            damped += [(a, on_a), (g, on_g)]
        done = by_lanes(inverse if self._explicit else cholesky, damped)
        return [((a, g), bad_a | bad_g) for (a, bad_a), (g, bad_g) in zip(done[::2], done[1::2], strict=True)]

    def _eigenbases(
        self, pairs: list[tuple[Tensor, Tensor]], damping: Tensor
    ) -> list[tuple[tuple[Tensor, ...], Tensor]]:
        return [self._eigen(a, g, damping * self._size(a, g)) for a, g in pairs]

    def _size(self, a: Tensor, g: Tensor) -> Tensor | float:
        """What the damping is measured by."""
        if self.damping_mode != "trace":
            return 1.0
        return a.diagonal(dim1=-2, dim2=-1).sum(-1) * g.diagonal(dim1=-2, dim2=-1).sum(-1)

    @staticmethod
    def _eigen(a: Tensor, g: Tensor, damping: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        values_a, vectors_a, bad_a = eigh(a)
        values_g, vectors_g, bad_g = eigh(g)
        damped = values_g.unsqueeze(-1) * values_a.unsqueeze(-2) + damping.to(a.dtype)[..., None, None]
        # Undamped, an eigenvalue that is rounding noise beside its factor's largest would be divided by.
        noise = _lost(values_a) | _lost(values_g)
        return (vectors_a, vectors_g, damped), bad_a | bad_g | (noise & (damping <= 0))

    def solve(self, gradient: list[Tensor], extra: list[Tensor] | None = None) -> list[Tensor]:
        """See `Structure.solve`: U = G^-1 V A^-1 with damped factors, or by the joint eigenbasis."""
        solve = self._solve_factored if self.damping_mode == "factored" else self._solve_eigen
        return [solve(v, *p) for v, p in zip(total(gradient, extra), self._prepared, strict=True)]

    def _solve_factored(self, v: Tensor, on_a: Tensor, on_g: Tensor) -> Tensor:
        if self._explicit:
            return product(product(on_g, v), on_a)
        left = torch.cholesky_solve(v, on_g)
        return torch.cholesky_solve(left.mT, on_a).mT

    def solve_mean(self, gradient: MeanGradient, extra: list[Tensor] | None = None) -> list[Tensor]:
        """See `Structure.solve_mean`."""
        if extra is not None or not gradient.inputs:
            return super().solve_mean(gradient, extra)
        if self.damping_mode == "factored":
            return [self._solve_batch(gradient, i, *p) for i, p in enumerate(self._prepared)]
        return [self._unrotated(self._rotated(gradient, i, *p[:2]), *p) for i, p in enumerate(self._prepared)]

    def _solve_batch(self, gradient: MeanGradient, i: int, on_a: Tensor, on_g: Tensor) -> Tensor:
        """A layer's solve; of a batch that is small beside the layer, each example's part by itself: g G^-1, a A^-1."""
        inputs, g = gradient.inputs[i], gradient.gradients[i]
        batch, m, n = *g.shape[-2:], inputs.width
        if batch * (m * m + n * n) >= m * n * (m + n):  # operations, by the layer's size and the batch alone
            return self._solve_factored(gradient.layer(i), on_a, on_g)
        if self._explicit:
            g, a = product(g, on_g), product(inputs.joined, on_a)
        else:
            g, a = torch.cholesky_solve(g.mT, on_g).mT, torch.cholesky_solve(inputs.joined.mT, on_a).mT
        return Inputs(a, None).weighted_sum(g, 1 / batch)

    @staticmethod
    def _rotated(gradient: MeanGradient, i: int, vectors_a: Tensor, vectors_g: Tensor) -> Tensor:
        """A layer's gradient in the joint eigenbasis; the layer's size and the batch's alone decide how."""
        # Of a layer with many inputs a small batch is rotated in place of the gradient: the first layer's inputs, and
        # their eigenvectors, are common to all replicas of a stream.
        inputs, g = gradient.inputs[i], gradient.gradients[i]
        batch, out = g.shape[-2:]
        if batch > 2 * out or inputs.width < 4 * out:
            return product(product(vectors_g.mT, gradient.layer(i)), vectors_a)
        return Inputs(product(inputs.joined, vectors_a), None).weighted_sum(product(g, vectors_g), 1 / batch)

    def _solve_eigen(self, v: Tensor, vectors_a: Tensor, vectors_g: Tensor, denominator: Tensor) -> Tensor:
        rotated = product(product(vectors_g.mT, v), vectors_a)
        return self._unrotated(rotated, vectors_a, vectors_g, denominator)

    @staticmethod
    def _unrotated(rotated: Tensor, vectors_a: Tensor, vectors_g: Tensor, denominator: Tensor) -> Tensor:
        return product(product(vectors_g, rotated / denominator), vectors_a.mT)

    def matvec(self, v: list[Tensor]) -> list[Tensor]:
        """See `Structure.matvec`."""
        return [product(product(g, layer), a) for layer, a, g in zip(v, self.a, self.g, strict=True)]

    def trace(self) -> Tensor:
        """See `Structure.trace`: of a Kronecker product, the product of the traces."""
        traces = [[m.diagonal(dim1=-2, dim2=-1).sum(-1) for m in pair] for pair in zip(self._a, self._g, strict=True)]
        return summed([a * g for a, g in traces])

    def dense(self) -> Tensor:
        """See `Structure.dense`: G (x) A, for a layer's matrix is laid out row by row."""
        products = [torch.einsum("...ij,...kl->...ikjl", g, a) for a, g in zip(self.a, self.g, strict=True)]
        return block_diagonal([p.flatten(-2).flatten(-3, -2) for p in products])

    def state(self) -> dict[str, Any]:
        """See `Structure.state`: the factors, and the factorisations of the last refresh."""
        prepared = [list(p) for p in self._prepared]
        return {"a": list(self._a), "g": list(self._g), "prepared": prepared, "explicit": self._explicit}

    def load(self, state: dict[str, Any]) -> None:
        """See `Structure.load`."""
        self._a, self._g = list(state["a"]), list(state["g"])
        self._prepared, self._explicit = [tuple(p) for p in state["prepared"]], state["explicit"]
