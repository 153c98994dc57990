"""The one optimizer: an optional preconditioner, a step rule, L2; every hyper-parameter may differ between replicas."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from fisherlab.errors import SolveError, UsageError
from fisherlab.fisher.capture import Capture
from fisherlab.fisher.linalg import readable
from fisherlab.fisher.structure import total
from fisherlab.likelihood import Likelihood, make_likelihood
from fisherlab.models.dense import Dense
from fisherlab.optim.hyper import Hyper, host, is_zero, not_negative, on, positive
from fisherlab.optim.preconditioner import Preconditioner
from fisherlab.optim.rules import adam_rule, momentum_rule
from fisherlab.streams import Streams

RULES: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {"momentum": momentum_rule, "adam": adam_rule}
FORMAT = 1


class FisherOptimizer(torch.optim.Optimizer):
    """Minimise the mean nll of a model, plus L2, one batch at a time.

    The presets (`SGD`, `Adam`, `KFAC`, `EFNGD`) are thin; this class does the work. Learning-rate schedulers of torch
    work on its `param_groups`: the first holds the parameters that the preconditioner covers, the second, where there
    are any, those that take the plain gradient.

    Args:
        model: The model; its covered layers are `Dense` and `nn.Linear`.
        likelihood: categorical, bernoulli, gaussian, or a `Likelihood`.
        lr: Learning rate.
        rule: `momentum` or `adam`.
        rule_options: Keyword arguments of the rule.
        preconditioner: None steps along the plain gradient.
        damping: lambda on F; needs a preconditioner.
        l2: Strength of the L2 term, 0.5 * l2 * ||W||^2 in the objective.
        l2_biases: Whether it includes the biases.
        l2_in_curvature: Whether the curvature is F + (lambda + l2) I, the objective's own.
        kl_clip: kappa; scales the direction v so that lr^2 * v^T (F + lambda I) v <= kappa, with v^T grad in place of
            the quadratic form (equal where v solves the damped system); None is off.
        lr_uncovered: Learning rate of the parameters that no structure covers; `lr` when None.
        seed: Seed of the label noise, or one per stream.
    """

    def __init__(
        self,
        model: nn.Module,
        likelihood: str | Likelihood,
        *,
        lr: Hyper,
        rule: str = "momentum",
        rule_options: dict[str, Any] | None = None,
        preconditioner: Preconditioner | None = None,
        damping: Hyper | None = None,
        l2: Hyper = 0.0,
        l2_biases: bool = False,
        l2_in_curvature: bool = True,
        kl_clip: Hyper | None = None,
        lr_uncovered: Hyper | None = None,
        seed: int | Sequence[int] = 0,
    ) -> None:
        self.model = model
        self.likelihood = make_likelihood(likelihood)
        self.rule = rule
        self.preconditioner = preconditioner
        self.l2, self.l2_biases, self.l2_in_curvature = not_negative("l2", l2), l2_biases, l2_in_curvature
        self.kl_clip = None if kl_clip is None else positive("kl_clip", kl_clip)
        self.replicas = _replicas(model)
        groups = self._groups(positive("lr", lr), lr_uncovered)
        options = dict(rule_options or {})
        if damping is not None:
            options["damping"] = not_negative("damping", damping)
        super().__init__(groups, options)
        first = self.param_groups[0]["params"][0]
        self.streams = Streams(seed if isinstance(seed, int) else list(seed), first.device)
        self.record_norms = False
        self.report: dict[str, Tensor] = {}
        self._gradient: list[list[Tensor]] = []
        self._rule_state: list[dict[str, Any]] = [{} for _ in self.param_groups]

    @cached_property
    def capture(self) -> Capture:
        """The capture of the model; a plain optimizer needs none, and takes models that a capture refuses."""
        return Capture(self.model)

    def _groups(self, lr: Hyper, lr_uncovered: Hyper | None) -> list[dict[str, Any]]:
        """Split the trainable parameters in covered and uncovered."""
        trainable = [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]
        if not trainable:
            raise UsageError("the model has no trainable parameters: expected at least one with requires_grad=True")
        if self.preconditioner is None:
            return [{"params": [p for _, p in trainable], "names": [n for n, _ in trainable], "lr": lr}]
        if not self.capture.layers:
            raise UsageError(
                "the model has no layer that a natural gradient covers: expected nn.Linear or fisherlab.Dense"
            )
        names = {id(p): n for n, p in trainable}
        covered = [p for layer in self.capture.layers for p in layer.parameters]
        groups = [{"params": covered, "names": [names[id(p)] for p in covered], "lr": lr}]
        rest = self.capture.uncovered
        if rest:
            own = lr if lr_uncovered is None else positive("lr_uncovered", lr_uncovered)
            groups.append({"params": [p for _, p in rest], "names": [n for n, _ in rest], "lr": own})
        return groups

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
        """
        loss, directions = self._plain(x, y) if self.preconditioner is None else self._natural(x, y)
        if self.preconditioner is not None and not self.replicas and readable(loss):
            self.check()
        squares = []
        for group, state, direction in zip(self.param_groups, self._rule_state, directions, strict=True):
            options = {k: group[k] for k in ("momentum", "nesterov", "beta1", "beta2", "eps") if k in group}
            v, c = RULES[self.rule](direction, state, lr=group["lr"], **options)
            for p, part in zip(group["params"], v.split(_sizes(group["params"], self.replicas), -1), strict=True):
                p.addcmul_(part.view(p.shape), c.reshape(*c.shape, *[1] * (p.ndim - c.ndim)) if c.ndim else c)
            if self.record_norms:
                squares.append(torch.linalg.vector_norm(v, dim=-1).mul_(c.abs()))
        if self.record_norms:
            self.report["update_norm"] = squares[0] if len(squares) == 1 else torch.stack(squares).norm(dim=0)
            norms = [torch.linalg.vector_norm(g, dim=-1) for g in self.gradients]
            self.report["grad_norm"] = norms[0] if len(norms) == 1 else torch.stack(norms).norm(dim=0)
        return loss

    @property
    def gradients(self) -> list[Tensor]:
        """The last step's gradient of the objective, flat [..., P], one per parameter group."""
        return [self._flat(parts) for parts in self._gradient]

    def _plain(self, x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The loss, and the gradient of the objective, flat, for every parameter alike."""
        parameters = self.param_groups[0]["params"]
        with torch.enable_grad():
            f = self.model(x)
        loss = self._loss(f.detach(), y)
        found = torch.autograd.grad(
            f, parameters, self.likelihood.residual(f.detach(), y) / f.shape[-2], allow_unused=True
        )
        filled = [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]
        flat = self._flat(total(filled, self._l2_gradient(parameters)))
        self._gradient = [[flat]]
        return loss, [flat]

    def _natural(self, x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The loss, and the natural gradient of the covered parameters and the plain one of the others, flat."""
        assert self.preconditioner is not None
        captured = self.capture(x)
        f, batch = captured.output, captured.output.shape[-2]
        loss = self._loss(f, y)
        rest = [p for group in self.param_groups[1:] for p in group["params"]]
        mean = self.likelihood.mean(f)
        observed, rest_gradients = captured.backward(self.likelihood.residual_at(mean, y), rest)
        gradient = [s.weighted_sum(g) / batch for s, g in zip(captured.inputs, observed, strict=True)]
        extra = self._l2_gradient(self.param_groups[0]["params"])
        joined = None if extra is None else self._joined(extra)
        damping = host(self.param_groups[0]["damping"])
        if self.l2_in_curvature:
            damping = damping + host(self.l2)
        self.preconditioner.observe(captured, self.likelihood, y, observed, mean, self.streams)
        direction = self.preconditioner(gradient, joined, damping.to(f.device, non_blocking=True))
        self._gradient = [total(self._parts(gradient), extra)]
        steps = [self._clipped(self._flat(self._parts(direction)))]
        if rest:
            self._gradient.append(total([g / batch for g in rest_gradients], self._l2_gradient(rest)))
            steps.append(self._flat(self._gradient[1]))
        return loss, steps

    def _loss(self, f: Tensor, y: Tensor) -> Tensor:
        loss = self.likelihood.nll(f, y).mean(-1)
        if loss.shape != self.replicas:
            raise UsageError(
                f"the model's output of shape {tuple(f.shape)} does not fit: expected [batch, outputs] behind the "
                f"replica axes {tuple(self.replicas)}"
            )
        return loss

    def _clipped(self, direction: Tensor) -> Tensor:
        """KL clip: nu = min(1, sqrt(kappa / (lr^2 v^T grad)))."""
        if self.kl_clip is None:
            return direction
        lr = on(self.param_groups[0]["lr"], direction, 0)
        form = lr.square() * (direction * self.gradients[0]).sum(-1)
        nu = (on(self.kl_clip, direction, 0) / form).sqrt().clamp(max=1)
        return direction * torch.where(form > 0, nu, torch.ones_like(nu)).unsqueeze(-1)

    def _l2_gradient(self, parameters: list[Tensor]) -> list[Tensor] | None:
        """l2 * W, zero for biases unless asked; None where there is no L2."""
        if is_zero(self.l2):
            return None
        lead = len(self.replicas)
        strength = {p.ndim: on(self.l2, p, p.ndim - lead) for p in parameters}
        return [
            p * strength[p.ndim] if p.ndim > lead + 1 or self.l2_biases else torch.zeros_like(p) for p in parameters
        ]

    def _flat(self, parts: Sequence[Tensor]) -> Tensor:
        if len(parts) == 1:
            return parts[0].reshape(*self.replicas, -1)
        return torch.cat([t.reshape(*self.replicas, -1) for t in parts], -1)

    def _parts(self, joined: list[Tensor]) -> list[Tensor]:
        return [part for layer, m in zip(self.capture.layers, joined, strict=True) for part in layer.split(m)]

    def _joined(self, parts: list[Tensor]) -> list[Tensor]:
        rest = iter(parts)
        return [layer.join([next(rest) for _ in layer.parameters]) for layer in self.capture.layers]

    def check(self) -> None:
        """Raise if a damped matrix could not be factorised in any replica; synchronises.

        Raises:
            SolveError: Names the layer and the step.
        """
        failures = None if self.preconditioner is None else self.preconditioner.failures()
        if failures is None:
            return
        for step, block in zip(*(t.flatten().tolist() for t in failures), strict=True):
            if step >= 0:
                raise SolveError(self.failure_message(step, block), step)

    def failure_message(self, step: int, block: int) -> str:
        """Say which damped matrix could not be factorised.

        Args:
            step: The optimizer's step, counted from 0.
            block: Index of the block.

        Returns:
            One line.
        """
        assert self.preconditioner is not None
        place = f"of layer '{self.capture.layers[block].name}' " if self.preconditioner.structure.per_layer else ""
        values = host(self.param_groups[0]["damping"]).flatten().tolist()
        damping = values[0] if len(values) == 1 else values
        return (
            f"the damped {self.preconditioner.structure_name} matrix {place}could not be factorised at step {step}, "
            f"not in float64 either (damping={damping}): expected a larger damping, or a smaller lr if the statistics "
            "are not finite"
        )

    def describe(self) -> dict[str, Any]:
        """Say which Fisher is in use, its scale, and what is preconditioned.

        Returns:
            Plain values by name, for printing and for the run's records.
        """
        pre = self.preconditioner
        about: dict[str, Any] = {"rule": self.rule, "likelihood": self.likelihood.name}
        if pre is not None:
            about |= {
                "kind": str(pre.kind),
                "structure": pre.structure_name,
                "damping_mode": pre.structure.damping_mode,
            }
            about |= {"scale": "mean over examples", "preconditioned": self.param_groups[0]["names"]}
            about["plain_gradient"] = [n for group in self.param_groups[1:] for n in group["names"]]
        return about

    def state_dict(self) -> dict[str, Any]:
        """Collect everything for a bit-exact resume: rule buffers, counters, factors, hyper-parameters.

        Returns:
            Tensors and plain values.
        """
        groups = [{k: v for k, v in group.items() if k != "params"} for group in self.param_groups]
        return {
            "format": FORMAT,
            "param_groups": copy.deepcopy(groups),
            "rule": [{k: v.clone() if isinstance(v, Tensor) else v for k, v in s.items()} for s in self._rule_state],
            "preconditioner": None if self.preconditioner is None else copy.deepcopy(self.preconditioner.state_dict()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Args:
            state: As `state_dict` returned it.

        Raises:
            UsageError: If it belongs to another kind of optimizer or model.
        """
        names = [group["names"] for group in self.param_groups]
        if state.get("format") != FORMAT or [g["names"] for g in state["param_groups"]] != names:
            raise UsageError("the optimizer state does not fit this model: expected the same parameter names")
        if (state["preconditioner"] is None) != (self.preconditioner is None):
            raise UsageError("the optimizer state does not fit: only one of the two has a preconditioner")
        for group, loaded in zip(self.param_groups, copy.deepcopy(state["param_groups"]), strict=True):
            group.update(loaded)
        device = self.param_groups[0]["params"][0].device
        self._rule_state = _copied(state["rule"], device)
        if self.preconditioner is not None:
            self.preconditioner.load_state_dict(_copied(state["preconditioner"], device))


def _copied(state: Any, device: torch.device) -> Any:
    """Copy nested dicts and lists of tensors and plain values to a device."""
    if isinstance(state, Tensor):
        return state.to(device, copy=True)
    if isinstance(state, dict):
        return {k: _copied(v, device) for k, v in state.items()}
    return [_copied(v, device) for v in state] if isinstance(state, list) else state


def _replicas(model: nn.Module) -> torch.Size:
    """The replica axes: what the weights of the Dense layers have before [out, in]."""
    shapes = {module.weight.shape[:-2] for module in model.modules() if isinstance(module, Dense)}
    if len(shapes) > 1:
        raise UsageError(f"layers with different replica axes {sorted(map(tuple, shapes))}: expected one shape for all")
    return next(iter(shapes), torch.Size())


def _sizes(parameters: Sequence[Tensor], replicas: torch.Size) -> list[int]:
    return [math.prod(p.shape[len(replicas) :]) for p in parameters]
