"""The step by the quadratic model: how far along the direction, and how much of the last step (the K-FAC recipe).

Martens and Grosse (2015), Sections 6.4 and 7: delta = alpha Delta + mu delta_0 minimises M(delta) = grad^T delta +
1/2 delta^T (F + (lambda + eta) I) delta with the exact F of a part of the batch, whatever Delta was made from. In
Section 6.6 gamma, the damping of the factors, is the one of three candidates whose step has the least M.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fisherlab.errors import UsageError
from fisherlab.fisher.pushforward import fisher_products
from fisherlab.optim.preconditioner import stride_of

if TYPE_CHECKING:
    from fisherlab.optim.optimizer import FisherOptimizer
    from fisherlab.optim.preconditioner import Preconditioner

NOISE = 8  # roundings of the products, relative to the determinant, at which the last step adds nothing


def minimiser(products: Tensor, slopes: Tensor, rounding: float = 2e-16) -> Tensor:
    """Minimise 1/2 c^T B c - s^T c over one or two coefficients; a vector that adds nothing gets 0.

    Args:
        products: B [..., k, k], symmetric, k at most 2.
        slopes: s [..., k].
        rounding: Relative, of what the products were computed in.

    Returns:
        c [..., k]; the minimum is -1/2 s^T c.
    """
    first = products[..., 0, 0]
    alone = torch.where(first > 0, slopes[..., 0] / first, torch.zeros_like(first))
    if slopes.shape[-1] == 1:
        return alone.unsqueeze(-1)
    cross, second = products[..., 0, 1], products[..., 1, 1]
    determinant = first * second - cross.square()
    usable = determinant > NOISE * rounding * first * second
    safe = torch.where(usable, determinant, torch.ones_like(determinant))
    alpha = (second * slopes[..., 0] - cross * slopes[..., 1]) / safe
    mu = (first * slopes[..., 1] - cross * slopes[..., 0]) / safe
    return torch.stack([torch.where(usable, alpha, alone), torch.where(usable, mu, torch.zeros_like(mu))], -1)


class GammaSearch:
    """gamma by trial: every 20 steps the best of gamma, omega gamma and gamma / omega (Section 6.6).

    Attributes:
        now: gamma, [...].
    """

    period = 20
    omega = math.sqrt(19 / 20) ** 20
    cap = 1.0  # when raised; in the authors' code only

    def __init__(self, start: Tensor, least: Tensor) -> None:
        self.now, self.least = start, least

    def due(self, step: int) -> bool:
        """Whether to search at a step, counted from 0."""
        return (step + 1) % self.period == 0

    def candidates(self) -> list[Tensor]:
        """The values to try, the present one first."""
        lower = torch.maximum(self.now * self.omega, self.least)
        return [self.now, lower, torch.clamp(self.now / self.omega, max=self.cap).maximum(self.least)]


@dataclass(frozen=True)
class Trial:
    """A candidate for the step, and what the model predicts of it.

    Attributes:
        v: The rule's vector, -delta, [..., P].
        coefficients: alpha and, with momentum, mu, [..., k].
        predicted: M(delta), [...].
        kept: The factorisations that made it, to be taken up again where it wins.
        gamma: Of these, [...].
        failed: Which of their blocks could not be made, bool [..., blocks].
    """

    v: Tensor
    coefficients: Tensor
    predicted: Tensor
    kept: Any
    gamma: Tensor | None
    failed: Tensor

    @property
    def rank(self) -> Tensor:
        """M(delta); infinite where it has no value, or where a factorisation failed, [...]."""
        return self.predicted.nan_to_num(math.inf).masked_fill(self.failed.any(-1), math.inf)


Products = Callable[[Sequence[Tensor]], Tensor]


def propose(
    direction: Tensor, last: Tensor | None, gradient: Tensor, products: Products, ridge: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Make the step of a direction.

    Args:
        direction: -Delta, [..., P].
        last: -delta_0, [..., P]; None at the first step, or without momentum.
        gradient: Of the objective, [..., P].
        products: From flat vectors to their inner products in the exact F, [..., k, k].
        ridge: lambda + eta, [...].

    Returns:
        v = -delta [..., P], the coefficients [..., k] in float64, and M(delta) [...].
    """
    vectors = [direction] if last is None else [direction, last]
    dots = torch.stack([torch.stack([(a * b).sum(-1) for b in vectors], -1) for a in vectors], -2)
    slopes = torch.stack([(gradient * a).sum(-1) for a in vectors], -1).double()
    b = products(vectors).double() + ridge.to(slopes.device)[..., None, None] * dots.double()
    c = minimiser(b, slopes, torch.finfo(direction.dtype).eps)
    v = sum((a * c[..., i, None].to(a.dtype) for i, a in enumerate(vectors)), torch.zeros_like(direction))
    return v, c, -0.5 * (slopes * c).sum(-1)


class QuadraticRule:
    """The rule: alpha and mu by the quadratic model, gamma by search where asked.

    Args:
        momentum: Whether the last step takes part.
        tau2: Part of the batch on which the exact F is evaluated, 1/k.
        search: Whether gamma is searched; else gamma = sqrt(lambda + eta).
    """

    def __init__(self, *, momentum: bool = True, tau2: float = 1.0, search: bool = False) -> None:
        self.momentum, self.stride, self.search = momentum, stride_of("tau2", tau2), search
        self.last: Tensor | None = None
        self.gamma: GammaSearch | None = None

    def damping(self, ridge: Tensor, l2: Tensor) -> Tensor:
        """What the factors are damped with.

        Args:
            ridge: lambda + eta, float64 [...].
            l2: eta, float64 [...].

        Returns:
            gamma^2, [...].
        """
        if not self.search:
            return ridge
        if self.gamma is None:
            self.gamma = GammaSearch(ridge.sqrt(), l2.to(ridge).sqrt().expand_as(ridge).clone())
        return self.gamma.now.square()

    def __call__(self, optimizer: FisherOptimizer, x: Tensor, direction: Tensor) -> Tensor:
        """Write v = -delta, and report alpha, mu, gamma and M.

        Args:
            optimizer: With the objective's gradient and the present factorisations.
            x: Inputs [..., B, in].
            direction: -Delta by the present factorisations, flat [..., P].

        Returns:
            M(delta), [...].

        Raises:
            SolveError: If no candidate for gamma could be factorised (CPU, no replica axes).
            UsageError: If the learning rate is not 1.
        """
        lr = optimizer.param_groups[0]["lr"]
        if not isinstance(lr, Tensor) and lr != 1:  # a trainer freezes replicas by a tensor with zeros
            raise UsageError(f"lr={lr} does not fit rule=quadratic, which finds the size of the step: expected 1")
        best = self._try(optimizer, x, direction, None if self.gamma is None else self.gamma.now)
        pre = optimizer.preconditioner
        assert pre is not None
        if self.gamma is not None and self.searches(pre):
            for gamma in self.gamma.candidates()[1:]:
                other = self._try(optimizer, x, optimizer.resolve(gamma.square()), gamma)
                best = _better(other, best)
            pre.structure.load(pre.structure.state() | best.kept)
            pre.settle(best.failed.movedim(-1, 0))
            optimizer.look(best.predicted)
            assert best.gamma is not None
            self.gamma.now = best.gamma
        self.last = best.v if self.momentum else None
        optimizer.vectors.pairs[0][1].copy_(best.v)
        optimizer.report["alpha"] = best.coefficients[..., 0]
        optimizer.report["mu"] = best.coefficients[..., 1:].sum(-1)
        optimizer.report["model_change"] = best.predicted
        if best.gamma is not None:
            optimizer.report["gamma"] = best.gamma.expand(best.predicted.shape)
        return best.predicted

    def searches(self, pre: Preconditioner | None) -> bool:
        """Whether gamma is searched at the step whose direction was just made.

        Args:
            pre: The optimizer's.

        Returns:
            Only every 20th step, and only where asked.
        """
        return pre is not None and self.gamma is not None and self.gamma.due(pre.step - 1)

    def _try(self, optimizer: FisherOptimizer, x: Tensor, direction: Tensor, gamma: Tensor | None) -> Trial:
        rows = x[..., :: self.stride, :]

        def products(vectors: Sequence[Tensor]) -> Tensor:
            changes = [optimizer.by_name(vector) for vector in vectors]
            return fisher_products(optimizer.model, optimizer.likelihood, rows, changes, optimizer.passes.chunk)

        found = propose(direction, self.last, optimizer.gradients[0], products, optimizer.ridge.to(direction.device))
        pre, shape = optimizer.preconditioner, found[2].shape
        assert pre is not None
        kept = {k: v for k, v in pre.structure.state().items() if k in ("prepared", "links")}
        # After a resume nothing was factorised yet: what the checkpoint holds had been looked at.
        failed = torch.zeros(*shape, 1).bool() if pre.refreshed is None else pre.refreshed.movedim(0, -1)
        return Trial(*found, kept, gamma, failed.to(found[2].device))

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        gamma = None if self.gamma is None else [self.gamma.now, self.gamma.least]
        return {"last": self.last, "gamma": gamma}

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned.

        Args:
            state: As `state` returned it.
        """
        self.last = state["last"]
        self.gamma = None if state["gamma"] is None else GammaSearch(*state["gamma"])


def _better(one: Trial, other: Trial) -> Trial:
    """The trial with the lower M, replica by replica; one without a value, or that could not be factorised, loses."""
    wins = one.rank < other.rank
    return Trial(*(_choose(wins, getattr(one, f.name), getattr(other, f.name)) for f in fields(Trial)))


def _choose(wins: Tensor, one: Any, other: Any) -> Any:
    """Choose tensors, replica by replica, in equal nests."""
    if isinstance(one, Tensor):
        return torch.where(wins[(..., *[None] * (one.ndim - wins.ndim))], one, other)
    if isinstance(one, dict):
        return {k: _choose(wins, v, other[k]) for k, v in one.items()}
    if isinstance(one, (list, tuple)):
        return [_choose(wins, a, b) for a, b in zip(one, other, strict=True)]
    return one
