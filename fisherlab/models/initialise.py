"""Initialisations by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Generator, Tensor, nn

from fisherlab.errors import UsageError, did_you_mean
from fisherlab.models.dense import Dense

SPARSE_INPUTS = 15  # incoming weights per unit, Martens and Grosse (2015), their released code


def _pytorch(weight: Tensor, bias: Tensor | None, generator: Generator | None) -> None:
    """Weights and biases from U(-1/sqrt(inputs), 1/sqrt(inputs)), the default of `nn.Linear`."""
    bound = 1 / math.sqrt(weight.shape[-1])
    weight.uniform_(-bound, bound, generator=generator)
    if bias is not None:
        bias.uniform_(-bound, bound, generator=generator)


def _half(weight: Tensor, bias: Tensor | None, generator: Generator | None) -> None:
    """PyTorch's default, halved: a deep net starts on a longer plateau."""
    _pytorch(weight, bias, generator)
    weight.mul_(0.5)
    if bias is not None:
        bias.mul_(0.5)


def _glorot(weight: Tensor, bias: Tensor | None, generator: Generator | None) -> None:
    """Weights from U(-r, r), r = sqrt(6 / (inputs + outputs)); biases zero (Glorot and Bengio 2010)."""
    nn.init.xavier_uniform_(weight, generator=generator)
    _zero(bias)


def _glorot_biases(weight: Tensor, bias: Tensor | None, generator: Generator | None) -> None:
    """Weights and biases alike, as one matrix of inputs and a one (Sun and Nielsen 2017, their code)."""
    outputs, inputs = weight.shape[0], weight.shape[1] + (bias is not None)
    bound = math.sqrt(6 / (inputs + outputs))
    weight.uniform_(-bound, bound, generator=generator)
    if bias is not None:
        bias.uniform_(-bound, bound, generator=generator)


def _sparse(weight: Tensor, bias: Tensor | None, generator: Generator | None) -> None:
    """15 incoming N(0, 1) weights per unit, inputs drawn with replacement; else zero (Martens and Grosse 2015)."""
    outputs, inputs = weight.shape
    columns = torch.randint(inputs, (outputs, SPARSE_INPUTS), generator=generator, device=weight.device)
    values = torch.randn(outputs, SPARSE_INPUTS, generator=generator, device=weight.device, dtype=weight.dtype)
    weight.zero_().scatter_(-1, columns, values)
    _zero(bias)


def _zeros(weight: Tensor, bias: Tensor | None, generator: Generator | None) -> None:
    """All zero: the start of the convex models."""
    weight.zero_()
    _zero(bias)


def _zero(bias: Tensor | None) -> None:
    if bias is not None:
        bias.zero_()


INITIALISATIONS: dict[str, Callable[[Tensor, Tensor | None, Generator | None], None]] = {
    "pytorch": _pytorch,
    "half": _half,
    "glorot": _glorot,
    "glorot_biases": _glorot_biases,
    "sparse": _sparse,
    "zeros": _zeros,
}


def initialise(model: nn.Module, name: str, generator: Generator | None = None) -> nn.Module:
    """Initialise every fully connected layer of a model in place.

    Args:
        model: A model without replica axes.
        name: pytorch, half, glorot, glorot_biases, sparse or zeros.
        generator: Source of the random numbers; the global one when None.

    Returns:
        The same model.

    Raises:
        UsageError: If the name is unknown.
    """
    if name not in INITIALISATIONS:
        raise UsageError(f"init={name!r} is no initialisation: {did_you_mean(name, INITIALISATIONS)}")
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, (Dense, nn.Linear)):
                INITIALISATIONS[name](layer.weight, cast("Tensor | None", layer.bias), generator)
    return model
