"""Step rules: how a direction becomes a step. The functional core, on flat vectors [..., P].

Each writes v and returns c > 0 for the update p <- p - c * v, rounded as torch.optim rounds: one replica is bit-equal
to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from fisherlab.optim.hyper import Hyper, fraction, host, is_zero, on, positive

State = dict[str, Any]


def momentum_rule(
    direction: Tensor, state: State, v: Tensor, *, lr: Hyper, momentum: Hyper = 0.0, nesterov: bool = False
) -> Tensor:
    """Heavy ball or Nesterov momentum, acting on the (preconditioned) direction, as torch.optim.SGD.

    Args:
        direction: [..., P].
        state: Holds `buffer` between steps.
        v: Overwritten, [..., P]; without `nesterov` it is the buffer.
        lr: Learning rate.
        momentum: Decay of the buffer; the number 0 keeps none.
        nesterov: Look ahead by one more decay.

    Returns:
        c, broadcastable to [...].
    """
    scale = on(lr, direction, 0)
    if is_zero(momentum):
        if "buffer" in state:  # of steps with momentum, and perhaps v itself
            state["buffer"] = state["buffer"].clone()
        v.copy_(direction)
        return scale
    decay = on(momentum, direction)
    if "buffer" not in state:
        state["buffer"] = direction.clone()
    else:
        state["buffer"] = torch.mul(state["buffer"], decay, out=None if nesterov else v).add_(direction)
    if nesterov:
        torch.addcmul(direction, state["buffer"], decay, out=v)
    else:
        v.copy_(state["buffer"])  # onto itself, which costs nothing, but after the first step and after a resume
    return scale


def adam_rule(
    direction: Tensor,
    state: State,
    v: Tensor,
    *,
    lr: Hyper,
    beta1: Hyper = 0.9,
    beta2: Hyper = 0.999,
    eps: Hyper = 1e-8,
) -> Tensor:
    """Adam (Kingma and Ba 2015), as torch.optim.Adam.

    Args:
        direction: [..., P].
        state: Holds `step`, `mean` and `square` between steps.
        v: Overwritten, [..., P].
        lr: Learning rate.
        beta1: Decay of the mean.
        beta2: Decay of the uncentred variance.
        eps: Added to the root.

    Returns:
        c = 1.
    """
    if "step" not in state:
        state.update(step=0, mean=torch.zeros_like(direction), square=torch.zeros_like(direction))
    state["step"] += 1
    keep2 = on(1 - host(beta2), direction)
    state["mean"].lerp_(direction, on(1 - host(beta1), direction))
    state["square"].mul_(on(beta2, direction)).addcmul_(direction * keep2, direction)
    correction1 = _each(beta1, lambda b: 1 - b ** state["step"])
    correction2 = _each(beta2, lambda b: (1 - b ** state["step"]) ** 0.5)
    denominator = (state["square"].sqrt() / on(correction2, direction)).add_(on(eps, direction))
    step_size = on(host(lr) / correction1, direction)
    torch.mul(state["mean"], step_size, out=v).div_(denominator)
    return torch.ones((), dtype=direction.dtype, device=direction.device)


RULES: dict[str, Callable[..., Tensor]] = {"momentum": momentum_rule, "adam": adam_rule}
CHECKS = {"momentum": fraction, "beta1": fraction, "beta2": fraction, "eps": positive}


@cache
def options_of(rule: Callable[..., Any]) -> tuple[str, ...]:
    """List the options of a rule that are its own.

    Args:
        rule: A rule, or a class of one; its own options are the keyword-only arguments, but for the learning rate.

    Returns:
        Their names.
    """
    return tuple(n for n, p in signature(rule).parameters.items() if p.kind is p.KEYWORD_ONLY and n != "lr")


def checked_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Check what the rules above take.

    Args:
        options: By name.

    Returns:
        The same.

    Raises:
        UsageError: If a value is out of range.
    """
    return {name: CHECKS[name](name, value) if name in CHECKS else value for name, value in options.items()}


def kl_clipped(direction: Tensor, gradient: Tensor, lr: Hyper, kl_clip: Hyper) -> Tensor:
    """Scale a direction v by nu = min(1, sqrt(kappa / (lr^2 v^T grad))).

    Args:
        direction: v, [..., P].
        gradient: [..., P].
        lr: Learning rate.
        kl_clip: kappa.

    Returns:
        nu * v; v where v^T grad is not above 0.
    """
    form = on(lr, direction, 0).square() * (direction * gradient).sum(-1)
    nu = (on(kl_clip, direction, 0) / form).sqrt().clamp(max=1)
    return direction * torch.where(form > 0, nu, torch.ones_like(nu)).unsqueeze(-1)


def _each(values: Hyper, function: Callable[[float], float]) -> Tensor:
    """Python's arithmetic, one replica at a time: a vectorised power or root may round differently."""
    found = host(values)
    return torch.tensor([function(v) for v in found.flatten().tolist()], dtype=torch.float64).reshape(found.shape)
