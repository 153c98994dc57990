"""The one optimizer: an optional preconditioner, a step rule, L2; every hyper-parameter may differ between replicas."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fisherlab.errors import SolveError, UsageError, did_you_mean
from fisherlab.fisher.capture import Capture
from fisherlab.fisher.linalg import readable
from fisherlab.fisher.structure import total
from fisherlab.likelihood import Likelihood, make_likelihood
from fisherlab.optim import failing, saved
from fisherlab.optim.averaging import Average
from fisherlab.optim.damping import make_policy
from fisherlab.optim.hyper import Hyper, host, not_negative, on, per_replica, positive
from fisherlab.optim.layout import cut, flat, l2_gradient, parameter_groups, replica_axes
from fisherlab.optim.passes import Passes
from fisherlab.optim.preconditioner import Preconditioner
from fisherlab.optim.quadratic import QuadraticRule
from fisherlab.optim.reduction import Reduction
from fisherlab.optim.rules import RULES, checked_options, kl_clipped, options_of
from fisherlab.optim.state import forget
from fisherlab.optim.vectors import Vectors
from fisherlab.streams import Streams


class FisherOptimizer(torch.optim.Optimizer):
    """Minimise the mean nll of a model, plus L2, one batch at a time.

    The presets (`SGD`, `Adam`, `KFAC`, `EFNGD`) are thin; this class does the work. Learning-rate schedulers of torch
    work on its `param_groups`: the first holds the parameters that the preconditioner covers, the second, where there
    are any, those that take the plain gradient. They need an `lr` that is a number; one that is a tensor, with a value
    per replica, is driven by fisherlab's trainer.

    A hyper-parameter is a number, or a tensor that broadcasts to the model's replica axes.

    Args:
        model: The model; its covered layers are `Dense` and `nn.Linear`.
        likelihood: categorical, bernoulli, gaussian, or a `Likelihood`.
        lr: Learning rate.
        rule: `momentum`, `adam` or `quadratic` (alpha and mu by the quadratic model of the exact F).
        rule_options: Keyword arguments of the rule.
        preconditioner: None steps along the plain gradient.
        damping: lambda on F, or the name of a policy (linear, exponential, lm, settling); needs a preconditioner.
        damping_start: First lambda of a policy.
        damping_end: Last lambda of a schedule, least one of settling, and of lm where it is to have one.
        damping_steps: Steps of the training, for a schedule; the trainer sets it.
        l2: Strength of the L2 term, 0.5 * l2 * ||W||^2 in the objective.
        l2_biases: Whether it includes the biases.
        l2_in_curvature: Whether the curvature is F + (lambda + l2) I, the objective's own.
        kl_clip: kappa; scales the direction v so that lr^2 * v^T (F + lambda I) v <= kappa, with v^T grad in place of
            the quadratic form (equal where v solves the damped system); acts before momentum; None is off.
        lr_uncovered: Learning rate of the parameters that no structure covers; `lr` when None.
        chunk: The most examples that a natural-gradient step takes through the model at a time; bounds the memory.
        average: xi, weight of the past in an average of the iterates; None keeps none.
        average_from: Steps before the averaging begins.
        seed: Seed of the label noise, or one per stream: S of them where the replica axes are [S, H].

    Raises:
        UsageError: If a value is out of range, does not fit the replica axes, or would have no effect.
    """

    # The arguments that may be tensors, one value per replica; a sweep puts runs that differ in no other side by side.
    per_replica: ClassVar[tuple[str, ...]] = (
        *("lr", "damping", "damping_start", "damping_end", "l2", "kl_clip", "lr_uncovered"),
    )

    def __init__(
        self,
        model: nn.Module,
        likelihood: str | Likelihood,
        *,
        lr: Hyper,
        rule: str = "momentum",
        rule_options: dict[str, Any] | None = None,
        preconditioner: Preconditioner | None = None,
        damping: Hyper | str | None = None,
        damping_start: Hyper | None = None,
        damping_end: Hyper | None = None,
        damping_steps: int | None = None,
        l2: Hyper = 0.0,
        l2_biases: bool = False,
        l2_in_curvature: bool = True,
        kl_clip: Hyper | None = None,
        lr_uncovered: Hyper | None = None,
        chunk: int | None = None,
        average: float | None = None,
        average_from: int = 0,
        seed: int | Sequence[int] = 0,
    ) -> None:
        needy = {"damping": damping, "kl_clip": kl_clip, "lr_uncovered": lr_uncovered}
        _check_choices(rule, rule_options or {}, preconditioner, needy)
        self.model = model
        self.likelihood = make_likelihood(likelihood)
        self.rule = rule
        self.preconditioner = preconditioner
        self.replicas = replica_axes(model)
        self.passes = Passes(model, self.likelihood, preconditioner, self.replicas, chunk)
        self.average = None if average is None else Average(average, average_from)
        self.policy = make_policy(damping, damping_start, damping_end, damping_steps)
        if self.policy is not None and self.policy.hears_traces and preconditioner is not None:
            preconditioner.tell_trace = self.policy.hear_trace
        self.l2, self.l2_biases, self.l2_in_curvature = not_negative("l2", l2), l2_biases, l2_in_curvature
        self.kl_clip = None if kl_clip is None else positive("kl_clip", kl_clip)
        own = lr if lr_uncovered is None else lr_uncovered
        covering = None if preconditioner is None else self.capture
        groups = parameter_groups(model, covering, positive("lr", lr), positive("lr_uncovered", own))
        if preconditioner is not None:
            preconditioner.meet(model, self.capture.layers)
        self.quadratic = QuadraticRule(**(rule_options or {})) if rule == "quadratic" else None
        if self.quadratic is not None and (preconditioner is None or len(groups) > 1):
            raise UsageError("rule=quadratic needs a preconditioner that covers every parameter")
        options = checked_options(rule_options or {}) if self.quadratic is None else {}
        if damping is not None:
            options["damping"] = self.policy.start if self.policy else not_negative("damping", damping)  # type: ignore[arg-type]
        policy = {"damping_start": damping_start, "damping_end": damping_end}
        for name, value in ({"lr": lr, "l2": l2} | needy | options | policy).items():
            per_replica(name, value, self.replicas)
        self.streams = self._streams(seed, groups[0]["params"][0].device)
        self.passes.streams = self.streams
        super().__init__(groups, options)
        self.record_norms = False
        self.report: dict[str, Tensor] = {}
        self.vectors = Vectors(self.replicas)
        self._again: Callable[[Tensor], list[Tensor]] | None = None  # holds the batch, so no longer than a step
        self.rule_state: list[dict[str, Any]] = [{} for _ in self.param_groups]

    def _streams(self, seed: int | Sequence[int], device: torch.device) -> Streams:
        """The label noise: one stream, or one per stream axis."""
        found = Streams(seed, device)
        streams = [len(found.seeds)] if isinstance(found.seeds, list) else []
        if streams and (len(self.replicas) != 2 or streams[0] != self.replicas[0]):
            raise UsageError(
                f"seed={found.seeds} does not fit: expected one integer, or one per stream of replica axes "
                f"[streams, lanes], here {tuple(self.replicas)}"
            )
        return found

    def __getstate__(self) -> dict[str, Any]:
        """Copy and pickle everything: torch's own would keep the groups only.

        Returns:
            The attributes, less the `step` that a learning-rate scheduler wraps, which belongs to this very object.
        """
        return {k: v for k, v in self.__dict__.items() if k != "step"}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refuse: the groups follow from the model.

        Args:
            param_group: As torch.optim wants it.

        Raises:
            UsageError: After construction, always.
        """
        if hasattr(self, "rule_state"):  # the last thing that construction sets
            raise UsageError("the parameter groups follow from the model: expected a new optimizer for another model")
        # Its wrapper imports torch.compile, a second of each process, for what is never compiled.
        inspect.unwrap(torch.optim.Optimizer.add_param_group)(self, param_group)

    @torch.no_grad()
    def step(self, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        """Take one step on a batch.

        Args:
            x: Inputs [..., B, in].
            y: Targets, as the likelihood wants them.

        Returns:
            Mean nll of the batch before the step, [...].

        Raises:
            SolveError: If a damped matrix could not be factorised (CPU, no replica axes; else see `check`).
            UsageError: If the batch does not fit the model, or the model has changed.
        """
        if not all(p.requires_grad for p in self.parameters):
            pairs = [pair for g in self.param_groups for pair in zip(g["names"], g["params"], strict=True)]
            frozen = next(name for name, p in pairs if not p.requires_grad)
            raise UsageError(f"'{frozen}' was frozen after construction: expected a new optimizer for what is left")
        watched = self._begin_step()
        loss, directions = self._plain(x, y) if self.preconditioner is None else self._natural(x, y)
        if self.quadratic is None or not self.quadratic.searches(self.preconditioner):
            self.look(loss)  # a search looks at the factorisation that it has chosen
        if self.policy is not None:
            self.policy.hear_loss(loss)
        if self.record_norms or watched:
            self.vectors.write()
        factors, predicted = self._apply_rule(x, directions)
        if self.preconditioner is not None:
            self.report |= self.preconditioner.structure.report()
        ratio = Reduction(self, x, y, loss, factors, predicted) if watched else None
        for _, p, part, scale in self.parts_of_step(factors):
            p.addcmul_(part, scale, value=-1)
        self.passes.late(x)
        if ratio is not None and self.policy is not None:
            self.report["rho"] = ratio.measure()
            self.policy.tell(self.report["rho"])
        if self.average is not None:
            self.average.update(self.parameters)
        return loss

    def _apply_rule(self, x: Tensor, directions: list[Tensor]) -> tuple[list[Tensor], Tensor | None]:
        """Turn directions into vectors, of which the step is -c times; gives c per group, and M(delta) if known."""
        factors, norms, predicted = [], [], None
        if self.quadratic is not None:
            predicted = self.quadratic(self, x, directions[0])
            self._again = None
            factors = [on(self.param_groups[0]["lr"], directions[0], 0)]
        for i, (group, direction) in enumerate(zip(self.param_groups, directions, strict=True)):
            if self.quadratic is None:
                options = {k: group[k] for k in options_of(RULES[self.rule]) if k in group}
                v = self.vectors.pairs[i][1]
                factors.append(RULES[self.rule](direction, self.rule_state[i], v, lr=group["lr"], **options))
            if self.record_norms:  # now, while the cache holds them
                norms.append(self.vectors.norms(i, factors[i]))
        if self.record_norms:
            joint = norms[0] if len(norms) == 1 else torch.stack(norms).norm(dim=0)
            self.report["grad_norm"], self.report["update_norm"] = joint.unbind()
        return factors, predicted

    def _begin_step(self) -> bool:
        """Let the policy choose lambda; gives whether it wants to hear of the reduction ratio."""
        if self.policy is None or self.preconditioner is None:
            return False
        step = self.preconditioner.step
        self.param_groups[0]["damping"] = self.policy.damping(step)
        if self.policy.hears_ratios:  # a column of steps.csv from the first row on
            self.report["rho"] = torch.full(self.replicas, math.nan, device=self.parameters[0].device)
        return self.policy.wants_ratio(step)

    def parts_of_step(self, factors: list[Tensor]) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
        """Cut the step that is being taken into the parameters' parts.

        Args:
            factors: c of each parameter group, as the rule gave it.

        Yields:
            A parameter's name, itself, its part of the rule's vector, and c, which that is to be multiplied with.
        """
        for group, (_, v), c in zip(self.param_groups, self.vectors.pairs, factors, strict=True):
            parts = cut(v, group["params"], self.replicas)
            for name, p, part in zip(group["names"], group["params"], parts, strict=True):
                yield name, p, part, c.reshape(*c.shape, *[1] * (p.ndim - c.ndim)) if c.ndim else c

    @property
    def gradients(self) -> list[Tensor]:
        """The last step's gradient of the objective, flat [..., P], one per parameter group.

        Until the next step, and as long as the batch's tensors are not written to: it may be computed only now.
        """
        return self.vectors.gradients

    @property
    def parameters(self) -> list[Tensor]:
        """All trainable parameters, group by group."""
        return [p for group in self.param_groups for p in group["params"]]

    @property
    def capture(self) -> Capture:
        """The capture of the model."""
        return self.passes.capture

    def _plain(self, x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The loss, and the gradient of the objective, flat, for every parameter alike."""
        parameters = self.param_groups[0]["params"]
        loss, found = self.passes.plain(x, y, parameters)
        return loss, [self.vectors.keep(0, total(found, self.l2_gradient(parameters)))]

    def _natural(self, x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The loss, and the natural gradient of the covered parameters and the plain one of the others, flat."""
        assert self.preconditioner is not None
        rest = [p for group in self.param_groups[1:] for p in group["params"]]
        loss, gradient, rest_gradients = self.passes.natural(x, y, rest)
        extra = self.l2_gradient(self.param_groups[0]["params"])
        joined = None if extra is None else self._joined(extra)
        damping = self.ridge if self.quadratic is None else self.quadratic.damping(self.ridge, host(self.l2))
        direction = self.preconditioner(gradient, joined, damping.to(loss.device, non_blocking=True))
        if self.quadratic is not None:
            self._again = partial(self.preconditioner.again, gradient, joined)
        self.vectors.make_room(0, self.param_groups[0]["params"])
        self.vectors.keep_later(lambda: total(self._parts(gradient.layers), extra))
        steps = [flat(self._parts(direction), self.replicas)]
        if self.kl_clip is not None:
            steps[0] = kl_clipped(steps[0], self.gradients[0], self.param_groups[0]["lr"], self.kl_clip)
        if rest:
            mean = [g / x.shape[-2] for g in rest_gradients]
            steps.append(self.vectors.keep(1, total(mean, self.l2_gradient(rest))))
        return loss, steps

    @property
    def ridge(self) -> Tensor:
        """What is added to F: lambda, and eta where L2 counts as curvature; float64 [...]."""
        damping = host(self.param_groups[0]["damping"])
        return damping + host(self.l2).to(damping.device) if self.l2_in_curvature else damping

    def resolve(self, damping: Tensor) -> Tensor:
        """Make the direction of the present step anew, with another damping of the factors.

        Args:
            damping: [...].

        Returns:
            Flat [..., P].
        """
        assert self._again is not None
        return flat(self._parts(self._again(damping)), self.replicas)

    def by_name(self, vector: Tensor) -> dict[str, Tensor]:
        """Cut a flat vector of the covered parameters.

        Args:
            vector: [..., P].

        Returns:
            By parameter name, shaped as the parameters.
        """
        group = self.param_groups[0]
        return dict(zip(group["names"], cut(vector, group["params"], self.replicas), strict=True))

    def l2_gradient(self, parameters: list[Tensor]) -> list[Tensor] | None:
        """L2's part of the objective's gradient; see `layout.l2_gradient`."""
        return l2_gradient(parameters, self.l2, self.replicas, biases=self.l2_biases)

    def _parts(self, joined: list[Tensor]) -> list[Tensor]:
        return [part for layer, m in zip(self.capture.layers, joined, strict=True) for part in layer.split(m)]

    def _joined(self, parts: list[Tensor]) -> list[Tensor]:
        rest = iter(parts)
        return [layer.join([next(rest) for _ in layer.parameters]) for layer in self.capture.layers]

    def look(self, computed: Tensor) -> None:
        """As `check`, where that costs nothing: without replica axes, on the CPU.

        Args:
            computed: Anything of this step, which tells where it was computed.

        Raises:
            SolveError: Names the layer and the step.
        """
        if self.preconditioner is not None and not self.replicas and readable(computed):
            self.check()

    def check(self) -> None:
        """Raise if a damped matrix could not be factorised in any replica; synchronises.

        What it raises is told once: the next step factorises anew, with the damping that it finds.

        Raises:
            SolveError: Names the layer and the step.
        """
        if failures := self.failures():
            assert self.preconditioner is not None
            self.preconditioner.forgive()
            raise failures[min(failures)]

    def failures(self) -> dict[tuple[int, ...], SolveError]:
        """Which replicas' damped matrices could not be factorised; synchronises.

        Returns:
            By the replica's index, an error that names the layer and the step at which it failed first.
        """
        return failing.failures(self)

    def forget(self, at: Sequence[int]) -> None:
        """Set what is remembered of one replica to zero; the others keep their bits.

        What it computes until its next factorisation is of no account.

        Args:
            at: Its index.
        """
        forget(self.rule_state, at, self.replicas)
        # Its lambda and gamma stay: they keep its matrices, which are zero from now on, invertible.
        forget(self.quadratic.last if self.quadratic else None, at, self.replicas)
        forget(self.average.values if self.average else None, at, self.replicas)
        if self.preconditioner is not None:
            forget(self.preconditioner.structure.state(), at, self.replicas)

    def describe(self) -> dict[str, Any]:
        """Say which Fisher is in use, its scale, and what is preconditioned.

        Returns:
            Plain values by name, for printing and for the run's records.
        """
        return saved.describe(self)

    def state_dict(self) -> dict[str, Any]:
        """Collect everything for a bit-exact resume: rule buffers, counters, factors, hyper-parameters.

        Returns:
            Tensors and plain values.
        """
        return saved.collect(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Args:
            state: As `state_dict` returned it.

        Raises:
            UsageError: If it belongs to another kind of optimizer or model.
        """
        saved.restore(self, state)


def _check_choices(
    rule: str, rule_options: dict[str, Any], preconditioner: Preconditioner | None, needy: dict[str, Any]
) -> None:
    """Refuse a rule that is unknown, and what would have no effect or be missing."""
    rules = {**RULES, "quadratic": QuadraticRule}
    if rule not in rules:
        raise UsageError(f"rule={rule!r} is unknown: {did_you_mean(str(rule), rules)}")
    options = options_of(rules[rule])
    if unknown := [name for name in rule_options if name not in options]:
        raise UsageError(f"rule={rule} has no option {unknown[0]!r}: {did_you_mean(unknown[0], options)}")
    unused = [name for name, value in needy.items() if value is not None and preconditioner is None]
    if unused:
        raise UsageError(f"{unused[0]} has no effect without a preconditioner: expected none")
    if preconditioner is not None and needy["damping"] is None:
        raise UsageError("damping=None does not fit a preconditioner: expected a number of at least 0")
