"""The Hessian of the mean nll, dense: what the Fisher is held against."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fisherlab.errors import UsageError
from fisherlab.fisher.capture import Capture, Layer
from fisherlab.likelihood import Likelihood

MAX_SIZE = 5000  # 200 MB in float64, and as many back-propagations of the gradient


def hessian(model: nn.Module, likelihood: Likelihood, x: Tensor, y: Tensor) -> Tensor:
    """Compute the Hessian with respect to the covered parameters, by back-propagating every entry of the gradient.

    Args:
        model: Without replica axes.
        likelihood: Of its outputs.
        x: Inputs [B, in].
        y: Targets.

    Returns:
        Tensor [P, P], symmetric; ordered as `Structure.dense`: the layers in order, each row by row as [out, in + 1].

    Raises:
        UsageError: If there are too many parameters.
    """
    layers = Capture(model).layers
    size = sum(p.numel() for layer in layers for p in layer.parameters)
    if size > MAX_SIZE:
        raise UsageError(f"a Hessian of {size} x {size} is too large: expected at most {MAX_SIZE} parameters")
    with torch.enable_grad():
        loss = likelihood.nll(model(x), y).mean()
        flat = _joined(layers, _gradients(loss, layers, create_graph=True))
    rows = [_joined(layers, _gradients(entry, layers)) for entry in flat]
    return torch.stack(rows)


def _gradients(of: Tensor, layers: Sequence[Layer], *, create_graph: bool = False) -> list[Tensor]:
    parameters = [p for layer in layers for p in layer.parameters]
    if not of.requires_grad:  # linear in every parameter
        return [torch.zeros_like(p) for p in parameters]
    return list(
        torch.autograd.grad(of, parameters, retain_graph=True, create_graph=create_graph, materialize_grads=True)
    )


def _joined(layers: Sequence[Layer], parts: Sequence[Tensor]) -> Tensor:
    """Put tensors shaped as the parameters in one vector, each layer row by row as [out, in + 1]."""
    left = iter(parts)
    return torch.cat([layer.join([next(left) for _ in layer.parameters]).flatten() for layer in layers])
