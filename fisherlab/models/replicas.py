"""Replicas: models of equal shape side by side, as leading axes of every parameter."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import nn

from fisherlab.errors import UsageError
from fisherlab.models.dense import Dense


def can_replicate(model: nn.Module) -> bool:
    """Tell whether every parameter of a model belongs to a Dense layer, the only kind with replica axes.

    Args:
        model: Any model.

    Returns:
        True for models built of Dense layers and parameter-free modules.
    """
    dense = {id(p) for m in model.modules() if isinstance(m, Dense) for p in m.parameters(recurse=False)}
    return all(id(p) in dense for p in model.parameters()) and not any(True for _ in model.buffers())


def stack_replicas(models: Sequence[nn.Module], shape: Sequence[int]) -> nn.Module:
    """Put models of equal structure side by side.

    Args:
        models: prod(shape) models of Dense layers without replica axes, in row-major order of `shape`.
        shape: The replica axes.

    Returns:
        One model whose parameters are [*shape, ...]; the given models are left as they are.

    Raises:
        UsageError: If the number of models does not fit, or one has parameters outside Dense layers.
    """
    if len(models) != math.prod(shape):
        raise UsageError(f"{len(models)} models do not fill replica axes {tuple(shape)}")
    if not all(map(can_replicate, models)):
        raise UsageError("replica axes need a model whose parameters all belong to fisherlab.Dense layers")
    stacked = copy.deepcopy(models[0])
    parts = [dict(m.named_parameters()) for m in models]
    for name, parameter in stacked.named_parameters():
        rows = torch.stack([p[name].detach() for p in parts])
        parameter.data = rows.reshape(*shape, *parameter.shape)
    return stacked
