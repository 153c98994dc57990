"""The paper's problem: two classes, unit-norm inputs, targets +-0.5; and a wide network that can be set back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fisherlab.data import load_dataset
from fisherlab.errors import UsageError
from fisherlab.fisher.capture import Capture
from fisherlab.models import wide
from fisherlab.ntk import Grams, Jacobian, analytic
from fisherlab.streams import generator


@dataclass(frozen=True)
class Network:
    """A setting of the infinite-width theory.

    Attributes:
        activation: relu, erf or tanh.
        sigma_w2: sigma_w^2.
        sigma_b2: sigma_b^2.
        unit_norm: Whether inputs have norm 1 (the paper); else the root of their number. With norm 1 pre-activations of
            the first layer have variance 2/784, which relu does not notice: there erf and tanh are all but linear, and
            any bias drowns the input.
    """

    activation: str = "relu"
    sigma_w2: float = 2.0
    sigma_b2: float = 0.0
    unit_norm: bool = True


NETWORKS = {
    "relu": Network(),
    "relu with biases": Network(sigma_b2=0.1, unit_norm=False),
    "erf": Network("erf", unit_norm=False),
    "erf with biases": Network("erf", sigma_b2=0.1, unit_norm=False),
    "tanh": Network("tanh", unit_norm=False),
    "tanh with biases": Network("tanh", sigma_b2=0.1, unit_norm=False),
}


@dataclass(frozen=True)
class Data:
    """Examples of two classes.

    Attributes:
        x: Training inputs [N, inputs].
        y: Targets, +0.5 for the first class, else -0.5, [N].
        x_test: Test inputs [N', inputs].
        y_test: Their targets [N'].
    """

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor


def data(settings: Mapping[str, Any], network: str = "relu") -> Data:
    """Take the first examples of two classes, in stored order.

    Args:
        settings: The scale's.
        network: A key of `NETWORKS`, which says how long the inputs are.

    Returns:
        The examples in float64.
    """
    first, second = settings["classes"]
    found = _data(settings["dataset"], first, second, settings["examples"], settings["tests"])
    size = 1.0 if NETWORKS[network].unit_norm else found.x.shape[1] ** 0.5
    return Data(found.x * size, found.y, found.x_test * size, found.y_test)


@lru_cache(maxsize=2)
def _data(dataset: str, first: int, second: int, examples: int, tests: int) -> Data:
    splits = load_dataset(dataset).splits
    kept = [torch.nonzero((s.y == first) | (s.y == second))[:, 0] for s in splits.values()]
    parts = [(s.x[i], s.y[i]) for s, i in zip(splits.values(), kept, strict=True)]
    if "test" in splits:
        (x, y), (x_test, y_test) = (parts[list(splits).index(name)] for name in ("train", "test"))
    else:  # one split: those that come after
        (x, y), (x_test, y_test) = parts[0], tuple(part[examples:] for part in parts[0])
    for label in (first, second):
        if not any(bool((part[1] == label).any()) for part in parts):
            raise UsageError(f"classes=[{first},{second}]: '{dataset}' has no class {label}")
    for name, wanted, there in (("examples", examples, len(x)), ("tests", tests, len(x_test))):
        if wanted > there:
            raise UsageError(f"{name}={wanted}: '{dataset}' has {there} of the classes {first} and {second}")
    rows = [_scaled(part) for part in (x[:examples], x_test[:tests])]
    targets = [torch.where(part == first, 0.5, -0.5).double() for part in (y[:examples], y_test[:tests])]
    return Data(rows[0], targets[0], rows[1], targets[1])


def _scaled(x: Tensor) -> Tensor:
    """Standardised by its own mean and deviation, then rows of norm 1, as the released code does."""
    x = x.double()
    return torch.nn.functional.normalize((x - x.mean()) / x.std(correction=0), dim=1)


class Net:
    """A wide network in float64: what a finite width adds to the theory is not mixed with rounding.

    Args:
        network: A key of `NETWORKS`.
        inputs: Number of inputs.
        width: M.
        layers: L.
        seed: Of its parameters; the same seed with another width is another draw.
    """

    def __init__(self, network: str, inputs: int, width: int, layers: int, seed: int) -> None:
        one = NETWORKS[network]
        options: Any = {"activation": one.activation, "sigma_w2": one.sigma_w2, "sigma_b2": one.sigma_b2}
        source = generator(seed, "init")
        self.width, self.layers = width, layers
        # Drawn in float32, as the paper's: a float64 network computes with the same parameters.
        self.model = wide(inputs, 1, width=width, layers=layers, generator=source, **options).double()
        self.capture = Capture(self.model)
        self._start = [p.detach().clone() for p in self.model.parameters()]

    def restore(self) -> None:
        """Set the parameters back to where they began."""
        for p, start in zip(self.model.parameters(), self._start, strict=True):
            p.data.copy_(start)

    def jacobian(self, x: Tensor) -> Jacobian:
        """Differentiate at examples, [N, inputs]."""
        return Jacobian.of(self.capture, x)

    def outputs(self, x: Tensor) -> Tensor:
        """Compute f [N]."""
        with torch.no_grad():
            return self.model(x)[:, 0]

    def move(self, step: list[Tensor], eta: float) -> None:
        """Subtract eta times a step.

        Args:
            step: A homogeneous weight per layer.
            eta: Learning rate.
        """
        for layer, u in zip(self.capture.layers, step, strict=True):
            for p, part in zip(layer.parameters, layer.split(u), strict=True):
                p.data.sub_(part, alpha=eta)


def infinite(network: str, points: Data, layers: int) -> tuple[Grams, Grams]:
    """Compute the kernels of infinite width.

    Args:
        network: A key of `NETWORKS`.
        points: Examples.
        layers: L.

    Returns:
        Among training examples, and between test and training examples.
    """
    one = NETWORKS[network]
    x = torch.cat([points.x, points.x_test])
    options: Any = {"activation": one.activation, "sigma_w2": one.sigma_w2, "sigma_b2": one.sigma_b2}
    return analytic.kernels(x, len(points.x), layers=layers, **options)


def loss(f: Tensor, y: Tensor) -> Tensor:
    """Half the mean squared residual.

    Args:
        f: Outputs [..., N].
        y: Targets [N].

    Returns:
        Tensor [...].
    """
    return 0.5 * (f - y).square().mean(-1)
