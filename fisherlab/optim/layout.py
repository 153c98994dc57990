"""How a model's trainable parameters lie in groups, and in flat vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fisherlab.errors import UsageError
from fisherlab.fisher.capture import Capture
from fisherlab.models.dense import Dense
from fisherlab.optim.hyper import Hyper, is_zero, on


def replica_axes(model: nn.Module) -> torch.Size:
    """The replica axes: what the weights of the Dense layers have before [out, in].

    Args:
        model: Any.

    Returns:
        Their sizes, none where the model has no replicas.

    Raises:
        UsageError: If the layers differ in them.
    """
    shapes = {module.weight.shape[:-2] for module in model.modules() if isinstance(module, Dense)}
    if len(shapes) > 1:
        raise UsageError(f"layers with different replica axes {sorted(map(tuple, shapes))}: expected one shape for all")
    return next(iter(shapes), torch.Size())


def parameter_groups(model: nn.Module, capture: Capture | None, lr: Hyper, lr_uncovered: Hyper) -> list[dict[str, Any]]:
    """Split the trainable parameters in covered and uncovered.

    Args:
        model: Any.
        capture: Knows the layers that a preconditioner covers; None where there is none, and one group.
        lr: Learning rate of the first group.
        lr_uncovered: Of the second, which is there if a parameter is covered by no layer.

    Returns:
        For torch.optim, with the parameters' names.

    Raises:
        UsageError: If nothing is trainable, or nothing covered.
    """
    trainable = {p: n for n, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        raise UsageError("the model has no trainable parameters: expected at least one with requires_grad=True")
    if capture is None:
        groups = [(list(trainable), lr)]
    elif not capture.layers:
        raise UsageError("the model has no layer that a natural gradient covers: expected nn.Linear or fisherlab.Dense")
    else:
        covered = [p for layer in capture.layers for p in layer.parameters]
        groups = [(covered, lr), ([p for _, p in capture.uncovered], lr_uncovered)]
    return [{"params": own, "names": [trainable[p] for p in own], "lr": rate} for own, rate in groups if own]


def flat(parts: Sequence[Tensor], replicas: torch.Size, out: Tensor | None = None) -> Tensor:
    """Write parts, shaped as parameters, one after another into one vector.

    Args:
        parts: Each [..., *shape].
        replicas: The replica axes [...].
        out: Where to, [..., P].

    Returns:
        [..., P].
    """
    if out is None:
        out = parts[0].new_empty(*replicas, sum(sizes(parts, replicas)))
    if all(t.is_contiguous() for t in parts):
        return torch.cat([t.reshape(*replicas, -1) for t in parts], -1, out=out)
    for t, room in zip(parts, cut(out, parts, replicas), strict=True):  # strided ones are read but once
        room.copy_(t)
    return out


def cut(vector: Tensor, parameters: Sequence[Tensor], replicas: torch.Size) -> list[Tensor]:
    """Cut a vector into the parameters' parts.

    Args:
        vector: [..., P].
        parameters: Those that it is the vector of, in order.
        replicas: The replica axes [...].

    Returns:
        Views, shaped as the parameters.
    """
    lead = len(replicas)
    parts = vector.split(sizes(parameters, replicas), -1)
    return [v.view((*v.shape[:-1], *p.shape[lead:])) for v, p in zip(parts, parameters, strict=True)]


def sizes(parameters: Sequence[Tensor], replicas: torch.Size) -> list[int]:
    """Count the numbers in each of one replica's parameters.

    Args:
        parameters: Any.
        replicas: The replica axes.

    Returns:
        Their sum is P.
    """
    return [math.prod(p.shape[len(replicas) :]) for p in parameters]


def l2_gradient(parameters: Sequence[Tensor], l2: Hyper, replicas: torch.Size, *, biases: bool) -> list[Tensor] | None:
    """L2's part of the objective's gradient.

    Args:
        parameters: Any, of the replica axes.
        l2: Strength.
        replicas: The replica axes.
        biases: Whether the biases count.

    Returns:
        l2 * W, zero for biases unless asked; None where there is no L2.
    """
    if is_zero(l2):
        return None
    lead = len(replicas)
    strength = {p.ndim: on(l2, p, p.ndim - lead) for p in parameters}
    return [p * strength[p.ndim] if p.ndim > lead + 1 or biases else torch.zeros_like(p) for p in parameters]
