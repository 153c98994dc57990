"""Kronecker-factored blocks, one per layer: F_l ~ A_l (x) G_l (Martens and Grosse 2015, Section 3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fisherlab.fisher.capture import Inputs
from fisherlab.fisher.kinds import Statistics
from fisherlab.fisher.linalg import add_to_diagonal, cholesky, eigh, gram_of_columns
from fisherlab.fisher.structure import Structure, moving_average, stacked, total


def input_factor(inputs: Inputs) -> Tensor:
    """A = E[a-bar a-bar^T], the ones column included.

    Args:
        inputs: A layer's homogeneous inputs, B examples.

    Returns:
        Tensor [..., in + 1, in + 1], or [..., in, in] without biases.
    """
    a = inputs.a
    product = gram_of_columns(a) / a.shape[-2]
    if inputs.ones is None:
        return product
    mean = (inputs.ones * a.mean(-2)).unsqueeze(-1)
    corner = torch.full_like(mean[..., :1, :], inputs.ones**2)
    return torch.cat([torch.cat([product, mean], -1), torch.cat([mean.mT, corner], -1)], -2)


def output_factor(gradients: Tensor, weight: float) -> Tensor:
    """G = E[g g^T], over the examples and the kind's columns or samples.

    Args:
        gradients: Pre-activation gradients [..., M, B, out].
        weight: Of each of the M.

    Returns:
        Tensor [..., out, out].
    """
    rows = gradients.flatten(-3, -2)
    return gram_of_columns(rows) * (weight / gradients.shape[-2])


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


class Kronecker(Structure):
    """Block-diagonal K-FAC.

    Damping modes: `factored` adds pi * gamma to A and gamma / pi to G (Section 6.3); `tikhonov` adds lambda to the products of
    their eigenvalues, which is (A (x) G + lambda I) exactly (Section 6.2's plain form).
    """

    damping_modes = ("factored", "tikhonov")
    per_layer = True

    def __init__(self, damping_mode: str | None = None) -> None:
        super().__init__(damping_mode)
        self.a: list[Tensor | None] = []
        self.g: list[Tensor | None] = []
        self._prepared: list[tuple[Tensor, ...]] = []

    def start_at_identity(self, stats: Statistics) -> None:
        """See `Structure.start_at_identity`."""
        self.a = [self._identity(s.a, s.a.shape[-1] + (s.ones is not None)) for s in stats.inputs]
        self.g = [self._identity(g[..., 0, :, :], g.shape[-1]) for g in stats.gradients]

    @staticmethod
    def _identity(like: Tensor, n: int) -> Tensor:
        eye = torch.eye(n, dtype=like.dtype, device=like.device)
        return eye.expand(*like.shape[:-2], n, n).clone()

    def update(self, stats: Statistics, decay: float) -> None:
        """See `Structure.update`."""
        layers = len(stats.inputs)
        old_a, old_g = self.a or [None] * layers, self.g or [None] * layers
        self.a = [moving_average(o, input_factor(s), decay) for o, s in zip(old_a, stats.inputs, strict=True)]
        self.g = [
            moving_average(o, output_factor(g, stats.weight), decay)
            for o, g in zip(old_g, stats.gradients, strict=True)
        ]

    def refresh(self, damping: Tensor) -> Tensor:
        """See `Structure.refresh`."""
        prepare = self._cholesky if self.damping_mode == "factored" else self._eigen
        prepared = [prepare(a, g, damping) for a, g in zip(self.a, self.g, strict=True) if a is not None and g is not None]
        self._prepared = [p for p, _ in prepared]
        return stacked([failed for _, failed in prepared])

    @staticmethod
    def _cholesky(a: Tensor, g: Tensor, damping: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        on_a, on_g = factored_damping(a, g, damping)
        root_a, bad_a = cholesky(add_to_diagonal(a, on_a))
        root_g, bad_g = cholesky(add_to_diagonal(g, on_g))
        return (root_a, root_g), bad_a | bad_g

    @staticmethod
    def _eigen(a: Tensor, g: Tensor, damping: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        values_a, vectors_a, bad_a = eigh(a)
        values_g, vectors_g, bad_g = eigh(g)
        damped = values_g.unsqueeze(-1) * values_a.unsqueeze(-2) + damping.to(a.dtype)[..., None, None]
        singular = (damped <= 0).any(-1).any(-1)
        return (vectors_a, vectors_g, damped), bad_a | bad_g | singular

    def solve(self, gradient: list[Tensor], extra: list[Tensor] | None = None) -> list[Tensor]:
        """See `Structure.solve`: U = G^-1 V A^-1 with damped factors, or by the joint eigenbasis."""
        solve = self._solve_factored if self.damping_mode == "factored" else self._solve_eigen
        return [solve(v, *p) for v, p in zip(total(gradient, extra), self._prepared, strict=True)]

    @staticmethod
    def _solve_factored(v: Tensor, root_a: Tensor, root_g: Tensor) -> Tensor:
        left = torch.cholesky_solve(v, root_g)
        return torch.cholesky_solve(left.mT, root_a).mT

    @staticmethod
    def _solve_eigen(v: Tensor, vectors_a: Tensor, vectors_g: Tensor, denominator: Tensor) -> Tensor:
        rotated = vectors_g.mT @ v @ vectors_a
        return vectors_g @ (rotated / denominator) @ vectors_a.mT

    def state(self) -> dict[str, Any]:
        """See `Structure.state`: the factors, and the factorisations of the last refresh."""
        return {"a": list(self.a), "g": list(self.g), "prepared": [list(p) for p in self._prepared]}

    def load(self, state: dict[str, Any]) -> None:
        """See `Structure.load`."""
        self.a, self.g = list(state["a"]), list(state["g"])
        self._prepared = [tuple(p) for p in state["prepared"]]
