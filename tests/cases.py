"""Small problems and the optimizers under test, shared by the test modules."""

import itertools
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

import fisherlab
from fisherlab.fisher import Capture, Kind, Statistics, statistics
from fisherlab.likelihood import make_likelihood
from fisherlab.models import Dense
from fisherlab.streams import Streams, generator
from tests.reference import flatten

LIKELIHOODS = ("categorical", "bernoulli", "gaussian")
LAYERS = ("linear", "dense", "ntk")
KINDS = ("exact", "mc", "empirical")

# Every preset, and the compositions that take other paths through the code.
PRESETS: dict[str, tuple[type, dict[str, Any]]] = {
    "sgd": (fisherlab.SGD, {"lr": 0.1}),
    "momentum": (fisherlab.SGD, {"lr": 0.1, "momentum": 0.9}),
    "nesterov": (fisherlab.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "adam": (fisherlab.Adam, {"lr": 0.01}),
    "kfac": (fisherlab.KFAC, {"inverse_period": 2}),
    "kfac-inverse": (fisherlab.KFAC, {"inverse_period": 5, "stats_period": 2}),  # few refreshes: an explicit inverse
    "kfac-tau1": (fisherlab.KFAC, {"tau1": 0.5, "inverse_period": 2}),
    "kfac-tikhonov": (fisherlab.KFAC, {"kind": "empirical", "damping_mode": "tikhonov", "inverse_period": 1}),
    "kfac-exact": (fisherlab.KFAC, {"kind": "exact", "ema_start": "identity", "stats_period": 2}),
    "kfac-tridiagonal": (fisherlab.KFAC, {"structure": "kronecker_tridiagonal", "inverse_period": 2}),
    "kfac-lm": (fisherlab.KFAC, {"damping": "lm", "damping_start": 0.5, "inverse_period": 2}),
    "kfac-exponential": (
        fisherlab.KFAC,
        {"damping": "exponential", "damping_start": 1.0, "damping_end": 0.1, "damping_steps": 6, "inverse_period": 2},
    ),
    "kfac-settling": (fisherlab.KFAC, {"damping": "settling", "damping_start": 1.0, "damping_end": 0.1}),
    "rngd": (fisherlab.RNGD, {"inverse_period": 2, "lr": 0.1}),
    "rngd-softmax": (
        fisherlab.RNGD,
        {
            "last": "layer",
            "first": "unit",
            "ema_start": "batch",
            "late": False,
            "inverse_period": 5,
            "lr": 0.1,
            "damping": 0.1,
        },
    ),
    "rngd-pairs": (
        fisherlab.RNGD,
        {"first": "pairs", "between": "pairs", "last": "pairs", "inverse_period": 2, "lr": 0.1},
    ),
    "efngd": (fisherlab.EFNGD, {}),
    "gram-exact": (fisherlab.NaturalGradient, {"kind": "exact", "structure": "gram", "lr": 0.3}),
    "gram-mc": (
        fisherlab.NaturalGradient,
        {"kind": "mc", "structure": "gram", "samples": 2, "lr": 0.3, "damping": 0.1},
    ),
    "full": (fisherlab.NaturalGradient, {"kind": "exact", "structure": "full", "ema": 0.9, "lr": 0.3}),
    "layer": (fisherlab.NaturalGradient, {"kind": "mc", "structure": "layer", "ema": 0.9, "lr": 0.3, "damping": 0.1}),
    "unit": (
        fisherlab.NaturalGradient,
        {"structure": "unit", "ema": 0.9, "inverse_period": 2, "lr": 0.1, "damping": 0.1},
    ),
    "diagonal": (
        fisherlab.NaturalGradient,
        {"kind": "empirical", "structure": "diagonal", "ema": 0.9, "lr": 0.1, "damping": 0.3},
    ),
}
NATURAL = {name: preset for name, preset in PRESETS.items() if issubclass(preset[0], fisherlab.NaturalGradient)}


def layer(kind: str, inputs: int, outputs: int, bias: bool, source: torch.Generator) -> nn.Module:
    """A layer of some kind with random weights."""
    if kind == "linear":
        made: nn.Module = nn.Linear(inputs, outputs, bias=bias)
    elif kind == "dense":
        made = Dense(inputs, outputs, bias=bias)
    else:
        made = Dense(inputs, outputs, bias=bias, scale=1.5 / inputs**0.5, bias_scale=0.3)
    with torch.no_grad():
        for p in made.parameters():
            p.normal_(0, 0.7, generator=source)
    return made


def model_of(
    kind: str = "dense", widths: tuple[int, ...] = (4, 5, 3), *, bias: bool = True, seed: int = 0
) -> nn.Sequential:
    """A tanh network in float64."""
    source = generator(seed, "test/model")
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    for i, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        modules[f"layer{i}"] = layer(kind, inputs, outputs, bias, source)
        if i < len(widths) - 2:
            modules[f"tanh{i}"] = nn.Tanh()
    return nn.Sequential(modules).double()


def batch_of(
    likelihood: str,
    batch: int = 6,
    inputs: int = 4,
    outputs: int = 3,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """Random inputs and targets."""
    x = torch.randn(batch, inputs, generator=generator(seed, "test/x"), dtype=dtype)
    source = generator(seed, "test/y")
    if likelihood == "categorical":
        return x, torch.randint(outputs, (batch,), generator=source)
    if likelihood == "bernoulli":
        return x, torch.randint(2, (batch, outputs), generator=source).to(dtype)
    return x, torch.randn(batch, outputs, generator=source, dtype=dtype)


def parameters(model: nn.Sequential) -> Tensor:
    """All parameters in homogeneous order."""
    return flatten(model, {k: v.detach().clone() for k, v in model.named_parameters()})


def direction(optimizer: fisherlab.NaturalGradient, x: Tensor, y: Tensor) -> Tensor:
    """What an optimizer of lr 1 and no momentum subtracts in its next step, in homogeneous order."""
    before = parameters(optimizer.model)
    optimizer.step(x, y)
    return before - parameters(optimizer.model)


def label_noise(optimizer: fisherlab.NaturalGradient, x: Tensor, outputs: int = 3, step: int = 0) -> Tensor:
    """The noise that an optimizer draws its labels from."""
    shape = (optimizer.preconditioner.samples, len(x), outputs)
    return optimizer.likelihood.noise(optimizer.streams, step, shape, x.dtype)


def batch_statistics(
    model: nn.Module, likelihood: str, kind: str, x: Tensor, y: Tensor, noise: Tensor | None = None, **options: int
) -> tuple[Statistics, list[Tensor]]:
    """The statistics of a batch and the gradient of its mean nll, per layer."""
    captured = Capture(model)(x)
    own = make_likelihood(likelihood)
    observed, _ = captured.backward(own.residual(captured.output, y))
    gradient = [i.weighted_sum(g) / x.shape[-2] for i, g in zip(captured.inputs, observed, strict=True)]
    return statistics(Kind(kind), captured, own, y, observed, noise, **options), gradient


def noise_of(likelihood: str, samples: int, batch: int = 6, outputs: int = 3, seed: int = 0) -> Tensor:
    """Label noise in float64."""
    return make_likelihood(likelihood).noise(Streams(seed), 0, (samples, batch, outputs), torch.float64)


def flat(layers: list[Tensor]) -> Tensor:
    """Homogeneous matrices per layer as one vector."""
    return torch.cat([m.flatten(-2) for m in layers], -1)


def like(layers: list[Tensor], seed: int = 1) -> list[Tensor]:
    """Random matrices of the same shapes."""
    return [
        torch.randn(m.shape, dtype=m.dtype, generator=generator(seed, "test/like", i)) for i, m in enumerate(layers)
    ]
