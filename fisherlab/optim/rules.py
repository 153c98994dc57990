"""Step rules: how a direction becomes a step. The functional core, on flat vectors [..., P].

Each writes v and returns c > 0 for the update p <- p - c * v, rounded as torch.optim rounds: one replica is bit-equal
to it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fisherlab.optim.hyper import Hyper, host, is_zero, on

State = dict[str, Any]


def momentum_rule(direction: Tensor, state: State, v: Tensor, *, lr: Hyper, momentum: Hyper, nesterov: bool) -> Tensor:
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
    direction: Tensor, state: State, v: Tensor, *, lr: Hyper, beta1: Hyper, beta2: Hyper, eps: Hyper
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
    # Python's power, one replica at a time: a vectorised power may round differently in its tail.
    correction1 = 1 - _power(beta1, state["step"])
    correction2 = (1 - _power(beta2, state["step"])).sqrt()
    denominator = (state["square"].sqrt() / on(correction2, direction)).add_(on(eps, direction))
    step_size = on(host(lr) / correction1, direction)
    torch.mul(state["mean"], step_size, out=v).div_(denominator)
    return torch.ones((), dtype=direction.dtype, device=direction.device)


def _power(base: Hyper, exponent: int) -> Tensor:
    bases = host(base)
    return torch.tensor([b**exponent for b in bases.flatten().tolist()], dtype=torch.float64).reshape(bases.shape)
