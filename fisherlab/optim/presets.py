"""Presets: the optimizers by their names in the literature. Each is a choice of rule and preconditioner, no more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from fisherlab.errors import UsageError
from fisherlab.fisher.kinds import MAX_COLUMNS
from fisherlab.likelihood import Likelihood
from fisherlab.optim.hyper import Hyper, fraction, host
from fisherlab.optim.optimizer import FisherOptimizer
from fisherlab.optim.preconditioner import Preconditioner


class SGD(FisherOptimizer):
    """Stochastic gradient descent with momentum, bit-equal to torch.optim.SGD given equal gradients.

    Args:
        model: The model.
        likelihood: categorical, bernoulli, gaussian, or a `Likelihood`.
        lr: Learning rate.
        momentum: Decay of the momentum buffer.
        nesterov: Nesterov's look-ahead.
        **options: L2 and seed, see `FisherOptimizer`.
    """

    per_replica = ("lr", "momentum", "l2")

    def __init__(
        self,
        model: nn.Module,
        likelihood: str | Likelihood,
        *,
        lr: Hyper = 0.1,
        momentum: Hyper = 0.0,
        nesterov: bool = False,
        **options: Any,
    ) -> None:
        rule = {"momentum": momentum, "nesterov": nesterov}
        super().__init__(model, likelihood, lr=lr, rule_options=rule, **options)


class Adam(FisherOptimizer):
    """Adam (Kingma and Ba 2015), bit-equal to torch.optim.Adam given equal gradients.

    Args:
        model: The model.
        likelihood: categorical, bernoulli, gaussian, or a `Likelihood`.
        lr: Learning rate.
        beta1: Decay of the mean of the gradients.
        beta2: Decay of the mean of their squares.
        eps: Added to the root of the mean square.
        **options: L2 and seed, see `FisherOptimizer`.
    """

    per_replica = ("lr", "beta1", "beta2", "eps", "l2")

    def __init__(
        self,
        model: nn.Module,
        likelihood: str | Likelihood,
        *,
        lr: Hyper = 1e-3,
        beta1: Hyper = 0.9,
        beta2: Hyper = 0.999,
        eps: Hyper = 1e-8,
        **options: Any,
    ) -> None:
        rule = {"beta1": beta1, "beta2": beta2, "eps": eps}
        super().__init__(model, likelihood, lr=lr, rule="adam", rule_options=rule, **options)


class NaturalGradient(FisherOptimizer):
    """A natural-gradient method by its four choices: kind x structure x damping x step rule.

    Args:
        model: The model.
        likelihood: categorical, bernoulli, gaussian, or a `Likelihood`.
        lr: Learning rate.
        damping: lambda, added to the mean Fisher, or the name of a policy; see `FisherOptimizer`.
        momentum: Decay of the momentum buffer; acts on the preconditioned gradient.
        nesterov: Nesterov's look-ahead.
        kind: exact, mc, empirical or relative.
        structure: kronecker, kronecker_tridiagonal, full, gram, smaller, layer, pairs, unit, shared or diagonal.
        damping_mode: factored, tikhonov or trace; the structure's own when None.
        ema: eps_max of the moving average of the statistics.
        ema_start: batch or identity.
        stats_period: Steps between updates of the statistics.
        inverse_period: Steps between factorisations, see `Preconditioner`.
        tau1: Part of a batch's examples from which the statistics are taken, see `Preconditioner`.
        samples: Sampled labels per example, for mc.
        max_columns: The most outputs for exact.
        **options: L2, KL clip, learning rate of uncovered parameters, and seed, see `FisherOptimizer`.
    """

    per_replica = (*FisherOptimizer.per_replica, "momentum")

    def __init__(
        self,
        model: nn.Module,
        likelihood: str | Likelihood,
        *,
        lr: Hyper = 1.0,
        damping: Hyper | str = 1e-3,
        momentum: Hyper = 0.0,
        nesterov: bool = False,
        kind: str = "exact",
        structure: str = "smaller",
        damping_mode: str | None = None,
        ema: float = 0.0,
        ema_start: str = "batch",
        stats_period: int = 1,
        inverse_period: int = 1,
        tau1: float = 1.0,
        samples: int = 1,
        max_columns: int = MAX_COLUMNS,
        **options: Any,
    ) -> None:
        preconditioner = Preconditioner(
            kind,
            structure,
            damping_mode,
            ema=ema,
            ema_start=ema_start,
            stats_period=stats_period,
            inverse_period=inverse_period,
            tau1=tau1,
            samples=samples,
            max_columns=max_columns,
        )
        rule = {"momentum": momentum, "nesterov": nesterov}
        super().__init__(
            model, likelihood, lr=lr, rule_options=rule, preconditioner=preconditioner, damping=damping, **options
        )
        outside = not (self.l2_in_curvature or preconditioner.structure.keeps)
        if outside and not isinstance(damping, str) and bool(((host(damping).cpu() == 0) & (host(self.l2) > 0)).any()):
            raise UsageError(
                "damping=0 with l2 outside the curvature does not fit a Gram system: L2's gradient lies outside the "
                "span of the batch, where the matrix is zero; expected damping above 0, or l2_in_curvature=true"
            )


class KFAC(NaturalGradient):
    """K-FAC, block-diagonal (Martens and Grosse 2015, Section 4.2), with sampled labels and factored Tikhonov damping.

    Takes every argument of `NaturalGradient`; only these defaults differ: lr=0.1, damping=1.0, momentum=0.9, kind=mc,
    structure=kronecker (and so damping_mode=factored), ema=0.95, inverse_period=10.
    """

    def __init__(self, model: nn.Module, likelihood: str | Likelihood, **options: Any) -> None:
        defaults: dict[str, Any] = {"lr": 0.1, "damping": 1.0, "momentum": 0.9, "kind": "mc", "structure": "kronecker"}
        super().__init__(model, likelihood, **(defaults | {"ema": 0.95, "inverse_period": 10} | options))


class RNGD(FisherOptimizer):
    """Relative natural gradient descent (Sun and Nielsen 2017), as in the authors' code.

    The first and the last layer are seen as linear, with one matrix for all units; hidden layers neuron by neuron. The
    matrices start at the identity; each batch's are taken after its step.

    Args:
        model: The model.
        likelihood: categorical, bernoulli, gaussian, or a `Likelihood`.
        lr: Learning rate.
        damping: In parts of each matrix's trace; or the name of a policy.
        momentum: Decay of the momentum buffer.
        first: Structure of the first layer: shared (linear), or unit.
        between: Structure of the hidden layers: unit, or pairs (two layers in a block; small nets only).
        last: Structure of the last layer: shared (linear), or layer (the RFIM of the softmax layer).
        damping_mode: trace, or tikhonov.
        ema: Weight of the past in the matrices.
        ema_start: identity, or batch.
        stats_period: Steps between updates of the matrices.
        inverse_period: T, steps between factorisations.
        inverse_early: Steps at the beginning that factorise too, see `Preconditioner`.
        late: Whether the matrices are those after the step.
        activation: Of the hidden layers; None finds it in the model.
        iota: Leak of the relu's zone.
        omega: Width of its smoothing.
        **options: L2, learning rate of uncovered parameters, and seed, see `FisherOptimizer`.
    """

    per_replica = (*FisherOptimizer.per_replica, "momentum")

    def __init__(
        self,
        model: nn.Module,
        likelihood: str | Likelihood,
        *,
        lr: Hyper = 0.01,
        damping: Hyper | str = 1e-4,
        momentum: Hyper = 0.0,
        first: str = "shared",
        between: str = "unit",
        last: str = "shared",
        damping_mode: str = "trace",
        ema: float = 0.995,
        ema_start: str = "identity",
        stats_period: int = 1,
        inverse_period: int = 100,
        inverse_early: int = 0,
        late: bool = True,
        activation: str | None = None,
        iota: float = 0.0,
        omega: float = 1.0,
        **options: Any,
    ) -> None:
        preconditioner = Preconditioner(
            "relative",
            between,
            damping_mode,
            first=first,
            last=last,
            ema=ema,
            ema_start=ema_start,
            stats_period=stats_period,
            inverse_period=inverse_period,
            inverse_early=inverse_early,
            late=late,
            activation=activation,
            zone={"iota": iota, "omega": omega},
        )
        rule = {"momentum": momentum, "nesterov": False}
        options = {"l2_in_curvature": False} | options  # damping is in parts of a trace
        super().__init__(
            model, likelihood, lr=lr, rule_options=rule, preconditioner=preconditioner, damping=damping, **options
        )


class EFNGD(NaturalGradient):
    """Empirical-Fisher natural gradient: exact full matrix of each batch, by the smaller of primal and dual system.

    On a mini-batch and as lambda -> 0 this lowers all B losses equally; it is the EFGD of Kunstner et al. (2019) only
    where the batch is the whole data set. Takes every argument of `NaturalGradient`; only these defaults differ:
    damping=1.0, kind=empirical.
    """

    def __init__(self, model: nn.Module, likelihood: str | Likelihood, **options: Any) -> None:
        defaults: dict[str, Any] = {"lr": 1.0, "damping": 1.0, "kind": "empirical"}
        super().__init__(model, likelihood, **(defaults | {"structure": "smaller"} | options))


class KFACMartens(FisherOptimizer):
    """K-FAC by the whole recipe of Martens and Grosse (2015), Algorithm 2, with their constants.

    Args:
        model: The model; every parameter must be covered.
        likelihood: categorical, bernoulli, gaussian, or a `Likelihood`.
        damping: `lm` adapts lambda by the reduction ratio; a number keeps it.
        damping_start: lambda_0; about 1 for classification, says the authors' code.
        structure: kronecker (block-diagonal) or kronecker_tridiagonal.
        momentum: Whether mu delta_0 is part of the step.
        gamma_search: Whether gamma is searched; else sqrt(lambda + eta).
        ema: eps_max of the factors.
        inverse_period: T_3.
        inverse_early: Steps at the beginning that factorise too.
        tau1: Part of the batch for the statistics.
        tau2: Part of the batch for products with F; the paper has 1/4, the authors' code 1.
        l2: eta.
        l2_biases: Whether eta concerns the biases too.
        chunk: The most examples at a time; bounds the memory.
        average: xi of the average of the iterates, None for none.
        average_from: Steps before it begins; the paper has none, the authors' code 200.
        seed: Of the label noise.
    """

    per_replica = ("damping", "damping_start", "l2")

    def __init__(
        self,
        model: nn.Module,
        likelihood: str | Likelihood,
        *,
        damping: Hyper | str = "lm",
        damping_start: Hyper | None = 150.0,
        structure: str = "kronecker",
        momentum: bool = True,
        gamma_search: bool = True,
        ema: float = 0.95,
        inverse_period: int = 20,
        inverse_early: int = 3,
        tau1: float = 0.125,
        tau2: float = 1.0,
        l2: Hyper = 1e-5,
        l2_biases: bool = True,
        chunk: int | None = 5000,
        average: float | None = 0.99,
        average_from: int = 200,
        seed: int | Sequence[int] = 0,
    ) -> None:
        preconditioner = Preconditioner(
            "mc",
            structure,
            "factored",
            ema=ema,
            tau1=tau1,
            inverse_period=inverse_period,
            inverse_early=inverse_early,
        )
        rule = {"momentum": momentum, "tau2": tau2, "search": gamma_search}
        super().__init__(
            model,
            likelihood,
            lr=1.0,  # the rule finds the size of the step
            rule="quadratic",
            rule_options=rule,
            preconditioner=preconditioner,
            damping=damping,
            damping_start=damping_start if isinstance(damping, str) else None,
            l2=l2,
            l2_biases=l2_biases,
            chunk=chunk,
            average=average,
            average_from=average_from,
            seed=seed,
        )


def scheduled_momentum(step: int) -> float:
    """The momentum schedule of Sutskever et al. (2013), before its largest value: 1 - 2^(-1 - log2(floor(t/250) + 1)).

    Args:
        step: t, counted from 0.

    Returns:
        In [1/2, 1).
    """
    return 1 - 0.5 / (step // 250 + 1)


class NAG(FisherOptimizer):
    """Nesterov's accelerated gradient with the momentum schedule of Sutskever et al. (2013), the baseline of K-FAC.

    mu_t = min(scheduled_momentum(t), mu_max) with t counted from 0.

    Args:
        model: The model.
        likelihood: categorical, bernoulli, gaussian, or a `Likelihood`.
        lr: Learning rate.
        momentum: mu_max.
        **options: L2, averaging and seed, see `FisherOptimizer`.
    """

    per_replica = ("lr", "momentum", "l2")

    def __init__(
        self,
        model: nn.Module,
        likelihood: str | Likelihood,
        *,
        lr: Hyper = 0.01,
        momentum: Hyper = 0.99,
        **options: Any,
    ) -> None:
        self.largest = fraction("momentum", momentum)
        rule = {"momentum": momentum, "nesterov": True}
        super().__init__(model, likelihood, lr=lr, rule_options=rule, **options)
        self.steps = 0

    def step(self, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        """See `FisherOptimizer.step`."""
        scheduled, largest = scheduled_momentum(self.steps), self.largest
        own = largest.clamp(max=scheduled) if isinstance(largest, Tensor) else min(scheduled, largest)
        self.param_groups[0]["momentum"] = own
        self.steps += 1
        return super().step(x, y)

    def state_dict(self) -> dict[str, Any]:
        """See `FisherOptimizer.state_dict`."""
        return super().state_dict() | {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `FisherOptimizer.load_state_dict`."""
        super().load_state_dict(state)
        self.steps = state["steps"]
