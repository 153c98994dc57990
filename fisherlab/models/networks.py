"""The networks of the five papers: one builder, many presets."""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor, nn

from fisherlab.elementwise import elu, logistic
from fisherlab.errors import UsageError, did_you_mean
from fisherlab.models.dense import Dense
from fisherlab.models.initialise import initialise
from fisherlab.models.normalise import BatchNorm


class Logistic(nn.Module):
    """The logistic function, with the same bits wherever a replica lies."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply `fisherlab.elementwise.logistic`."""
        return logistic(x)


class ELU(nn.Module):
    """The exponential linear unit, with the same bits wherever a replica lies."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply `fisherlab.elementwise.elu`."""
        return elu(x)


class Erf(nn.Module):
    """The error function, whose infinitely wide kernels have a closed form."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply `torch.erf`."""
        return torch.erf(x)


ACTIVATIONS: dict[str, Callable[[], nn.Module] | None] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "erf": Erf,
    "logistic": Logistic,
    "elu": ELU,
    "linear": None,
}


NORMS = ("none", "after")


def _chain(
    widths: Sequence[int], activations: Sequence[str], *, bias: bool = True, normed: bool = False
) -> nn.Sequential:
    """Stack Dense layers of the given widths, behind each but the last an activation, and a normalisation if asked."""
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    for i, (inputs, outputs) in enumerate(itertools.pairwise(widths), start=1):
        modules[f"layer{i}"] = Dense(inputs, outputs, bias=bias)
        name = activations[i - 1] if i <= len(activations) else "linear"
        if name not in ACTIVATIONS:
            raise UsageError(f"activation={name!r} is unknown: {did_you_mean(name, ACTIVATIONS)}")
        make = ACTIVATIONS[name]
        if make is not None:
            modules[f"{name}{i}"] = make()
        if normed and i < len(widths) - 1:
            modules[f"norm{i}"] = BatchNorm(outputs)
    return nn.Sequential(modules)


def _positive(name: str, value: int) -> None:
    if not isinstance(value, int) or value < 1:
        raise UsageError(f"{name}={value!r} is no layer width: expected an integer of at least 1")


def mlp(
    inputs: int,
    outputs: int,
    *,
    hidden: Sequence[int] = (80, 80, 80),
    activation: str = "relu",
    init: str = "pytorch",
    bias: bool = True,
    batch_norm: str = "none",
    generator: Generator | None = None,
) -> nn.Module:
    """Build a multi-layer perceptron; by default the 784-80-80-80-10 net of Sun and Nielsen (2017).

    Args:
        inputs: Number of inputs.
        outputs: Number of outputs.
        hidden: Widths of the hidden layers.
        activation: relu, tanh, erf, logistic, elu or linear, after every hidden layer.
        init: pytorch, half, glorot, glorot_biases, sparse or zeros.
        bias: Whether the layers have biases.
        batch_norm: none, or after: behind the activation of every hidden layer (BNA of Sun and Nielsen 2017).
        generator: Source of the initial weights.

    Returns:
        A model without replica axes that maps [B, inputs] to [B, outputs].

    Raises:
        UsageError: If a width or a name is unknown.
    """
    for width in hidden:
        _positive("hidden", width)
    if batch_norm not in NORMS:
        raise UsageError(f"batch_norm={batch_norm!r} is unknown: {did_you_mean(str(batch_norm), NORMS)}")
    chain = _chain([inputs, *hidden, outputs], [activation] * len(hidden), bias=bias, normed=batch_norm == "after")
    return initialise(chain, init, generator)


def deep_linear(
    inputs: int,
    outputs: int,
    *,
    layers: int = 6,
    width: int = 100,
    init: str = "pytorch",
    bias: bool = True,
    generator: Generator | None = None,
) -> nn.Module:
    """Build a deep linear network; by default 6 weight matrices with 100 units between (Fujimori et al. 2022).

    Args:
        inputs: Number of inputs.
        outputs: Number of outputs.
        layers: Number of weight matrices.
        width: Units of every hidden layer.
        init: pytorch, half, glorot, glorot_biases, sparse or zeros.
        bias: Whether the layers have biases.
        generator: Source of the initial weights.

    Returns:
        A model without replica axes that maps [B, inputs] to [B, outputs].
    """
    _positive("layers", layers)
    return mlp(
        inputs, outputs, hidden=[width] * (layers - 1), activation="linear", init=init, bias=bias, generator=generator
    )


def wide(
    inputs: int,
    outputs: int,
    *,
    width: int = 4096,
    layers: int = 3,
    activation: str = "relu",
    sigma_w2: float = 2.0,
    sigma_b2: float = 0.0,
    generator: Generator | None = None,
) -> nn.Module:
    """Build a wide network in the NTK parameterisation (Karakida and Osawa 2020): s = sigma_w/sqrt(M) W h + sigma_b b.

    Args:
        inputs: Number of inputs.
        outputs: Number of outputs.
        width: Units of every hidden layer, M.
        layers: Number of weight matrices, L.
        activation: relu, tanh, erf, logistic, elu or linear, after every hidden layer.
        sigma_w2: sigma_w^2; the weights themselves are drawn from N(0, 1).
        sigma_b2: sigma_b^2; 0 is a network without biases.
        generator: Source of the initial parameters.

    Returns:
        A model without replica axes that maps [B, inputs] to [B, outputs].

    Raises:
        UsageError: If a size or a variance does not fit.
    """
    _positive("width", width)
    _positive("layers", layers)
    for name, value, good in (("sigma_w2", sigma_w2, sigma_w2 > 0), ("sigma_b2", sigma_b2, sigma_b2 >= 0)):
        if not good:
            raise UsageError(
                f"{name}={value} is no variance: expected a number {'above' if name == 'sigma_w2' else 'of at least'} 0"
            )
    model = _chain([inputs, *[width] * (layers - 1), outputs], [activation] * (layers - 1), bias=sigma_b2 > 0)
    for layer in model:
        if isinstance(layer, Dense):
            layer.scale, layer.bias_scale = math.sqrt(sigma_w2 / layer.weight.shape[-1]), math.sqrt(sigma_b2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
    return model


def autoencoder(
    inputs: int,
    outputs: int,
    *,
    hidden: Sequence[int] = (1000, 500, 250),
    code: int = 30,
    activation: str = "logistic",
    init: str = "sparse",
    generator: Generator | None = None,
) -> nn.Module:
    """Build the mirrored autoencoder of Martens and Grosse (2015), Section 13: linear code units.

    Args:
        inputs: Number of inputs.
        outputs: Must equal `inputs`; the outputs are the natural parameters of the reconstruction.
        hidden: Widths of the encoder's hidden layers; the decoder mirrors them.
        code: Units of the code layer.
        activation: relu, tanh, erf, logistic, elu or linear, after every hidden layer but the code.
        init: pytorch, half, glorot, glorot_biases, sparse or zeros.
        generator: Source of the initial weights.

    Returns:
        A model without replica axes that maps [B, inputs] to [B, inputs].

    Raises:
        UsageError: If `outputs` differs from `inputs`.
    """
    if outputs != inputs:
        raise UsageError(f"outputs={outputs} does not fit an autoencoder of {inputs} inputs: set target=input")
    for width in (*hidden, code):
        _positive("hidden", width)
    widths = [inputs, *hidden, code, *reversed(hidden), inputs]
    activations = [activation] * len(hidden) + ["linear"] + [activation] * len(hidden)
    return initialise(_chain(widths, activations), init, generator)


def linear(
    inputs: int, outputs: int, *, init: str = "zeros", bias: bool = True, generator: Generator | None = None
) -> nn.Module:
    """Build the single-layer (generalised) linear model; convex, so it starts at zero.

    Args:
        inputs: Number of inputs.
        outputs: Number of outputs.
        init: pytorch, half, glorot, glorot_biases, sparse or zeros.
        bias: Whether there is a bias, the ones column appended last (Kunstner et al. 2019).
        generator: Source of the initial weights.

    Returns:
        A model without replica axes that maps [B, inputs] to [B, outputs].
    """
    return mlp(inputs, outputs, hidden=(), init=init, bias=bias, generator=generator)
