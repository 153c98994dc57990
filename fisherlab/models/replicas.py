"""Replicas: models of equal shape side by side, as leading axes of every parameter."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import nn

from fisherlab.errors import UsageError
from fisherlab.models.dense import Dense
from fisherlab.models.normalise import BatchNorm


def can_replicate(model: nn.Module) -> bool:
    """Tell whether every parameter of a model belongs to a layer that takes replica axes: Dense, BatchNorm.

    Args:
        model: Any model.

    Returns:
        True for models built of these and of modules without parameters and buffers.
    """
    able = [m for m in model.modules() if isinstance(m, (Dense, BatchNorm))]
    own = {id(t) for m in able for t in (*m.parameters(recurse=False), *m.buffers(recurse=False))}
    return all(id(t) in own for t in (*model.parameters(), *model.buffers()))


def stack_replicas(models: Sequence[nn.Module], shape: Sequence[int]) -> nn.Module:
    """Put models of equal structure side by side.

    Args:
        models: prod(shape) models without replica axes, see `can_replicate`, in row-major order of `shape`.
        shape: The replica axes.

    Returns:
        One model whose parameters are [*shape, ...]; the given models are left as they are.

    Raises:
        UsageError: If the number of models does not fit, or one has parameters outside such layers.
    """
    if len(models) != math.prod(shape):
        raise UsageError(f"{len(models)} models do not fill replica axes {tuple(shape)}")
    if not all(map(can_replicate, models)):
        raise UsageError(
            "replica axes need a model whose parameters all belong to fisherlab.Dense or fisherlab.BatchNorm layers"
        )
    stacked = copy.deepcopy(models[0])
    parts = [{**dict(m.named_parameters()), **dict(m.named_buffers())} for m in models]
    for name, own in (*stacked.named_parameters(), *stacked.named_buffers()):
        rows = torch.stack([p[name].detach() for p in parts])
        own.data = rows.reshape(*shape, *own.shape)
    return stacked
