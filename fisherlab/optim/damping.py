"""Damping policies: how lambda changes from step to step; every replica goes its own way, and nothing synchronises."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fisherlab.errors import UsageError, did_you_mean
from fisherlab.optim.hyper import Hyper, positive


class Policy:
    """What the optimizer asks of a damping policy.

    Args:
        start: The first lambda, [...].
    """

    hears_ratios = False
    hears_traces = False
    steps: int | None = None  # of the training, where that matters

    def __init__(self, start: Hyper) -> None:
        self.start = start

    def damping(self, step: int) -> Hyper:
        """Give lambda.

        Args:
            step: Counted from 0.

        Returns:
            lambda of this step, [...].
        """
        raise NotImplementedError

    def wants_ratio(self, step: int) -> bool:
        """Whether it wants to be told the reduction ratio of a step, which costs two forward passes."""
        del step
        return False

    def tell(self, rho: Tensor) -> None:
        """Hear the reduction ratio of the step just taken.

        Args:
            rho: Change of the objective over the change that the quadratic model predicted, [...].
        """

    def hear_trace(self, trace: Tensor) -> None:
        """Hear the trace of a batch's Fisher, at every update of the statistics.

        Args:
            trace: [...].
        """

    def hear_loss(self, loss: Tensor) -> None:
        """Hear the mean nll of a batch, before its step.

        Args:
            loss: [...].
        """

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned.

        Args:
            state: As `state` returned it.
        """
        del state


class Schedule(Policy):
    """From `start` at the first step to `end` at the last: along a line, or by equal factors.

    Args:
        start: The first lambda, [...].
        end: The last lambda, [...].
        steps: Steps of the training; the trainer sets them.
    """

    exponential = False

    def __init__(self, start: Hyper, end: Hyper, steps: int | None = None) -> None:
        super().__init__(start)
        self.end, self.steps = end, steps
        self._logs = _log_ratio(start, end)

    def damping(self, step: int) -> Hyper:
        """See `Policy.damping`."""
        if self.steps is None:
            raise UsageError("damping_steps=null does not fit a schedule: expected the number of steps of the training")
        done = min(1.0, step / max(1, self.steps - 1))
        if self.exponential:
            return self.start * torch.exp(-done * self._logs)
        return self.start + (self.end - self.start) * done


class Linear(Schedule):
    """Along a line."""


class Exponential(Schedule):
    """By equal factors."""

    exponential = True


class LevenbergMarquardt(Policy):
    """lambda by the reduction ratio, every 5 steps (Martens and Grosse 2015, Section 6.5).

    Above 3/4 the quadratic model is trusted more:
    lambda <- (19/20)^5 lambda; below 1/4 less: lambda <- (20/19)^5 lambda. A step that a learning rate scales does what
    the model predicts while it is small, so there lambda falls until it is not: a least lambda ends that.

    Args:
        start: The first lambda, [...].
        least: The least lambda, [...]; None is none, as in the paper.
    """

    hears_ratios = True
    period = 5
    omega = 19 / 20

    def __init__(self, start: Hyper, least: Hyper | None = None) -> None:
        super().__init__(start)
        self._now: Hyper = start
        self._least = torch.as_tensor(0.0 if least is None else least, dtype=torch.float64)

    def damping(self, step: int) -> Hyper:
        """See `Policy.damping`."""
        del step
        return self._now

    def wants_ratio(self, step: int) -> bool:
        """See `Policy.wants_ratio`."""
        return (step + 1) % self.period == 0

    def tell(self, rho: Tensor) -> None:
        """See `Policy.tell`; minus infinity, or no number, counts as below 1/4."""
        factor = self.omega**self.period
        now = torch.as_tensor(self._now, dtype=torch.float64).to(rho.device)
        self._least = self._least.to(rho.device)
        smaller = torch.where(rho > 0.75, torch.maximum(now * factor, self._least), now)
        self._now = torch.where(rho >= 0.25, smaller, now / factor)

    def state(self) -> dict[str, Any]:
        """See `Policy.state`."""
        return {"now": self._now}

    def load(self, state: dict[str, Any]) -> None:
        """See `Policy.load`."""
        self._now = state["now"]


class Settling(Policy):
    """Large on the plateau, small once the Fisher has settled (ours; see the study fujimori2022).

    What is inverted is an average of past batches, so it is wrong by as much as the Fisher has moved since, and it will
    move where a plateau is left; lambda covers that error. Both are read off what a step knows anyway: e is a moving
    average of |tau / m - 1|, with the trace tau of each batch's Fisher and its own moving average m; p is 1 as long as
    the loss is the first one, and 0 from half of it on, linear between. lambda = end (start / end)^max(e, p), e at most
    1.

    Args:
        start: lambda on the plateau, and where the Fisher has moved by as much as itself, [...].
        end: lambda where it does not move, [...].
    """

    hears_traces = True
    memory, smoothing, fallen = 0.95, 0.8, 0.5

    def __init__(self, start: Hyper, end: Hyper) -> None:
        super().__init__(start)
        self.end = end
        self._mean: Tensor | None = None
        self._error: Tensor | None = None
        self._first: Tensor | None = None
        self._loss: Tensor | None = None
        self._ends: tuple[Tensor, Tensor] | None = None

    def damping(self, step: int) -> Hyper:
        """See `Policy.damping`."""
        del step
        if self._error is None or self._loss is None or self._first is None:
            return self.start
        plateau = (self._loss / self._first - self.fallen) / (1 - self.fallen)
        share = torch.maximum(self._error, plateau).nan_to_num(1.0).clamp(0, 1)
        if self._ends is None or self._ends[0].device != share.device:
            end = torch.as_tensor(self.end, dtype=torch.float64)
            self._ends = (end.to(share.device), _log_ratio(self.start, self.end).to(share.device))
        return self._ends[0] * torch.exp(share * self._ends[1])

    def hear_trace(self, trace: Tensor) -> None:
        """See `Policy.hear_trace`."""
        tau = trace.double()
        if self._mean is None or self._error is None:
            self._mean, self._error = tau, torch.ones_like(tau)  # nothing is known yet
            return
        moved = (tau / self._mean - 1).abs().nan_to_num(1.0, posinf=1.0)
        self._error = self.smoothing * self._error + (1 - self.smoothing) * moved
        self._mean = self.memory * self._mean + (1 - self.memory) * tau

    def hear_loss(self, loss: Tensor) -> None:
        """See `Policy.hear_loss`."""
        now = loss.double()
        if self._first is None or self._loss is None:
            self._first = self._loss = now
            return
        self._loss = self.smoothing * self._loss + (1 - self.smoothing) * now

    def state(self) -> dict[str, Any]:
        """See `Policy.state`."""
        return {"mean": self._mean, "error": self._error, "first": self._first, "loss": self._loss}

    def load(self, state: dict[str, Any]) -> None:
        """See `Policy.load`."""
        self._mean, self._error = state["mean"], state["error"]
        self._first, self._loss = state["first"], state["loss"]


def _log_ratio(start: Hyper, end: Hyper) -> Tensor:
    """log(start / end), one replica at a time: a vectorised logarithm may round differently in its tail."""
    pairs = torch.broadcast_tensors(*(torch.as_tensor(v, dtype=torch.float64) for v in (start, end)))
    logs = [math.log(a / b) for a, b in zip(*(t.flatten().tolist() for t in pairs), strict=True)]
    return torch.tensor(logs, dtype=torch.float64).view(pairs[0].shape).to(pairs[0].device)


POLICIES: dict[str, type[Policy]] = {
    "linear": Linear,
    "exponential": Exponential,
    "lm": LevenbergMarquardt,
    "settling": Settling,
}


def make_policy(
    damping: Hyper | str | None, start: Hyper | None, end: Hyper | None, steps: int | None
) -> Policy | None:
    """Build the policy that a name stands for.

    Args:
        damping: A number, or a key of `POLICIES`.
        start: The first lambda.
        end: The last lambda of a schedule, the least one of others.
        steps: Steps of the training, of a schedule; None where they will be set later.

    Returns:
        The policy; None where the damping is a number.

    Raises:
        UsageError: If there is no such policy, it lacks something, or something would have no effect.
    """
    if not isinstance(damping, str):
        for name, value in (("damping_start", start), ("damping_end", end)):
            if value is not None:
                raise UsageError(
                    f"{name} has no effect where damping is a number: expected one of {', '.join(POLICIES)}"
                )
        return None
    if damping not in POLICIES:
        raise UsageError(f"damping={damping!r} is no number and no policy: {did_you_mean(damping, POLICIES)}")
    if start is None:
        raise UsageError(f"damping_start=null does not fit damping={damping}: expected the first damping")
    policy, start = POLICIES[damping], positive("damping_start", start)
    end = None if end is None else positive("damping_end", end)
    if policy is LevenbergMarquardt:
        return LevenbergMarquardt(start, end)
    if end is None:
        raise UsageError(f"damping_end=null does not fit damping={damping}: expected the last, or least, damping")
    return policy(start, end, steps) if issubclass(policy, Schedule) else Settling(start, end)
