"""Matrices that can be held against each other: of a batch's vectors u (any kind), and K-FAC's approximation of one.

Norms and inner products are Frobenius', of whole matrices (all blocks between layers) and of each layer's block. For
the matrices of vectors they come from products of Gram matrices, so that nothing of size P x P is ever formed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property

import torch
from torch import Tensor

from fisherlab.errors import SolveError
from fisherlab.fisher.gram import Gram
from fisherlab.fisher.kinds import Statistics
from fisherlab.fisher.kronecker import Kronecker
from fisherlab.fisher.structure import Structure


def cross(left: Statistics, right: Statistics) -> list[Tensor]:
    """Inner products of two batches' vectors, u_i^T v_j, per layer; scaled, so that M = sum u u^T without a factor.

    Args:
        left: Without replica axes.
        right: Alike.

    Returns:
        Tensor [rows, rows'] per layer.
    """
    found = []
    scale = (left.weight / left.batch * right.weight / right.batch) ** 0.5
    pairs = zip(left.inputs, left.gradients, right.inputs, right.gradients, strict=True)
    for inputs, g, other_inputs, other_g in pairs:
        aa = inputs.joined @ other_inputs.joined.mT * scale
        gg = g.flatten(0, 1) @ other_g.flatten(0, 1).mT
        # The columns or samples of an example share its inputs.
        tiled = gg.unflatten(0, g.shape[:2]).unflatten(-1, other_g.shape[:2]) * aa[:, None, :]
        found.append(tiled.flatten(2).flatten(0, 1))
    return found


class Matrix(ABC):
    """A symmetric positive semi-definite matrix over all covered parameters, in float64, without replica axes.

    Args:
        stats: What it is estimated from.
        structure: Solves with it; updated here.
    """

    def __init__(self, stats: Statistics, structure: Structure) -> None:
        self.stats, self.structure = stats, structure
        structure.update(stats, 0.0)

    def solve(self, gradient: list[Tensor], damping: float, *, own: bool) -> list[Tensor]:
        """Solve (M + lambda I) u = gradient.

        Args:
            gradient: Per layer.
            damping: lambda.
            own: Whether the gradient is that of the batch which the matrix is made of.

        Returns:
            u, per layer.

        Raises:
            SolveError: If the damped matrix could not be factorised.
        """
        del own
        return self._solved(self.structure, gradient, damping)

    @staticmethod
    def _solved(structure: Structure, gradient: list[Tensor], damping: float) -> list[Tensor]:
        failed = structure.refresh(torch.tensor(damping, dtype=torch.float64, device=gradient[0].device))
        if bool(failed.any()):
            raise SolveError(f"a matrix damped by {damping:g} could not be factorised: expected a larger damping", 0)
        return structure.solve(gradient)

    def quadratic(self, v: list[Tensor]) -> float:
        """v^T M v."""
        return float(self.structure.quadratic(v))

    @property
    @abstractmethod
    def traces(self) -> list[float]:
        """The trace of every layer's block."""

    @abstractmethod
    def inners(self, other: Matrix) -> tuple[float, list[float]]:
        """Inner products with another matrix: of the whole matrices, and of every layer's blocks."""

    @property
    @abstractmethod
    def squares(self) -> tuple[float, list[float]]:
        """Squared norms: of the whole matrix, and of every layer's block."""

    @property
    @abstractmethod
    def eigenvalues(self) -> Tensor:
        """Eigenvalues, descending; zeros beyond the rank are left out."""


class Vectors(Matrix):
    """M = sum of u u^T over a batch: exact, Monte Carlo or empirical Fisher, all blocks between layers included.

    Args:
        stats: Of one batch.
    """

    def __init__(self, stats: Statistics) -> None:
        super().__init__(stats, Gram())

    def solve(self, gradient: list[Tensor], damping: float, *, own: bool) -> list[Tensor]:
        """See `Matrix.solve`; the gradient of another batch lies outside the span of this one's vectors."""
        structure = self.structure
        if not own:
            structure = Gram()
            structure.update(Statistics(self.stats.inputs, self.stats.gradients, self.stats.weight), 0.0)
        return self._solved(structure, gradient, damping)

    @cached_property
    def kernels(self) -> list[Tensor]:
        """U U^T per layer."""
        return cross(self.stats, self.stats)

    @property
    def traces(self) -> list[float]:
        """See `Matrix.traces`."""
        return [float(k.trace()) for k in self.kernels]

    def inners(self, other: Matrix) -> tuple[float, list[float]]:
        """See `Matrix.inners`."""
        if not isinstance(other, Vectors):
            return other.inners(self)
        found = self.kernels if other is self else cross(self.stats, other.stats)
        return _square(torch.stack(found).sum(0)), [_square(k) for k in found]

    @cached_property
    def squares(self) -> tuple[float, list[float]]:
        """See `Matrix.squares`."""
        return self.inners(self)

    @cached_property
    def eigenvalues(self) -> Tensor:
        """See `Matrix.eigenvalues`: those of U U^T."""
        return torch.linalg.eigvalsh(torch.stack(self.kernels).sum(0)).flip(0).clamp(min=0)


class KFAC(Matrix):
    """K-FAC's approximation of a matrix of vectors: block-diagonal, A (x) G per layer.

    Args:
        stats: Of one batch.
    """

    def __init__(self, stats: Statistics) -> None:
        self._kronecker = Kronecker("tikhonov")
        super().__init__(stats, self._kronecker)

    @property
    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        return list(zip(self._kronecker.a, self._kronecker.g, strict=True))

    @property
    def traces(self) -> list[float]:
        """See `Matrix.traces`."""
        return [float(a.trace() * g.trace()) for a, g in self._pairs]

    def inners(self, other: Matrix) -> tuple[float, list[float]]:
        """See `Matrix.inners`: sum of u^T (A (x) G) u = (g^T G g) (a^T A a); what couples layers meets zeros."""
        if isinstance(other, KFAC):
            products = [
                float((a * b).sum() * (g * h).sum()) for (a, g), (b, h) in zip(self._pairs, other._pairs, strict=True)
            ]
            return sum(products), products
        stats, found = other.stats, []
        for (a, g), inputs, gradients in zip(self._pairs, stats.inputs, stats.gradients, strict=True):
            of_inputs = ((inputs.joined @ a) * inputs.joined).sum(-1)
            of_gradients = ((gradients @ g) * gradients).sum(-1)
            found.append(float((of_gradients * of_inputs).sum()) * stats.weight / stats.batch)
        return sum(found), found

    @property
    def squares(self) -> tuple[float, list[float]]:
        """See `Matrix.squares`."""
        found = [_square(a) * _square(g) for a, g in self._pairs]
        return sum(found), found

    @cached_property
    def eigenvalues(self) -> Tensor:
        """See `Matrix.eigenvalues`: the products of the factors'."""
        products = [torch.outer(*(torch.linalg.eigvalsh(m).clamp(min=0) for m in p)).flatten() for p in self._pairs]
        return torch.cat(products).sort(descending=True).values


def _square(m: Tensor) -> float:
    return float(m.square().sum())
