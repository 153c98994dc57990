"""Section 10: undamped K-FAC follows the same path in function space, however the network is parametrised."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot
from tqdm import tqdm

from fisherlab.data import load_dataset
from fisherlab.optim import SGD, NaturalGradient
from fisherlab.streams import generator
from fisherlab.studies.study import Part, Tables

WIDTHS = (20, 14, 12, 10)  # inputs are principal components: border pixels would make the first factor singular
CASES, STEPS = 2000, 25
MIXING = 0.4  # size of the random part of the maps
TABLE = "invariance.csv"
NATURAL: dict[str, Any] = {"kind": "exact", "lr": 0.1, "damping": 0.0}
METHODS: Mapping[str, Any] = {
    "block-diagonal": NATURAL | {"structure": "kronecker"},
    "block-tridiagonal": NATURAL | {"structure": "kronecker_tridiagonal"},
    "block-diagonal, damping 1e-2": NATURAL | {"structure": "kronecker", "damping": 1e-2},
    "gradient descent": None,
}


class Reparametrised(nn.Module):
    """A tanh network with Omega_i phi(Phi_i s_i) in place of phi(s_i), i = 0 ... L.

    Attributes:
        layers: The linear layers, whose weights are the only parameters.
    """

    def __init__(self, widths: tuple[int, ...] = WIDTHS) -> None:
        super().__init__()
        pairs = list(pairwise(widths))
        self.layers = nn.ModuleList(nn.Linear(n, out, dtype=torch.float64) for n, out in pairs)
        self.omega = [torch.eye(n + 1, dtype=torch.float64) for n, _ in pairs]
        self.phi = [torch.eye(out, dtype=torch.float64) for _, out in pairs]

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits.

        Args:
            x: [B, inputs].

        Returns:
            [B, outputs].
        """
        for i, (layer, omega, phi) in enumerate(zip(self.layers, self.omega, self.phi, strict=True)):
            a = x.tanh() if i else x
            x = layer(a @ omega[:-1, :-1].mT + omega[:-1, -1]) @ phi.mT
        return x


@torch.no_grad()
def twin(model: Reparametrised, change: str) -> nn.Module:
    """The same function by other parameters.

    Args:
        model: With Omega and Phi the identity.
        change: `affine`: random invertible Omega and Phi; `logistic`: tanh(s) = 2 sigma(2 s) - 1 written with logistic
            units, Omega and Phi absorbed in the weights.

    Returns:
        A model whose outputs are the same: W' = Phi^-1 W Omega^-1.
    """
    source, other = generator(1, "invariance"), Reparametrised()
    layers: Any = zip(model.layers, other.layers, strict=True)
    for i, (layer, own) in enumerate(layers):
        omega, phi = other.omega[i], other.phi[i]
        if change == "affine":
            omega[:-1] += MIXING * torch.randn(omega[:-1].shape, generator=source, dtype=omega.dtype)
            phi += MIXING * torch.randn(phi.shape, generator=source, dtype=phi.dtype)
        elif i:
            omega *= 0.5  # a' = (a + 1) / 2
            omega[:-1, -1], omega[-1, -1] = 0.5, 1.0
        if change == "logistic" and i < len(other.layers) - 1:
            phi *= 0.5  # s' = 2 s
        w = torch.cat([layer.weight, layer.bias.unsqueeze(-1)], -1)
        w = torch.linalg.solve(omega, torch.linalg.solve(phi, w), left=False)
        own.weight.copy_(w[:, :-1])
        own.bias.copy_(w[:, -1])
    return other if change == "affine" else _chained(other.layers)


def _chained(layers: nn.ModuleList) -> nn.Module:
    return nn.Sequential(*[m for layer in layers for m in (layer, nn.Sigmoid())][:-1])


def part(settings: Mapping[str, Any]) -> Part:
    """Make the part of the study that follows both paths.

    Args:
        settings: The scale's.

    Returns:
        The part.
    """
    return Part("invariance", (TABLE,), lambda bar: _tables(settings, bar), settings=("dataset",))


def _tables(settings: Mapping[str, Any], bar: tqdm[Any]) -> Tables:
    x, y = _data(settings["dataset"])
    bar.reset(2 * len(METHODS))
    rows = []
    for method in METHODS:
        for change in ("affine", "logistic"):
            rows.append(_compared(method, change, x, y))
            bar.update()
    return {TABLE: pd.concat(rows)}


def _data(dataset: str) -> tuple[Tensor, Tensor]:
    """Principal components of pictures, each of unit variance, and the classes as ten zeros and ones."""
    split = load_dataset(dataset).splits["train"]
    x = split.x[:CASES].double()
    components = torch.linalg.svd(x - x.mean(0), full_matrices=False)[0][:, : WIDTHS[0]]
    return components * len(x) ** 0.5, one_hot(split.y[:CASES], WIDTHS[-1]).double()


def start() -> Reparametrised:
    """The original network, the same every time."""
    source, model = generator(0, "invariance"), Reparametrised()
    layers: Any = model.layers
    for layer in layers:
        # Large: where the units are nearly linear, one layer's gradients follow from the next one's, and an undamped
        # block-tridiagonal inverse does not exist.
        nn.init.xavier_normal_(layer.weight, 3, source)
        nn.init.normal_(layer.bias, 0, 0.5, source)
    return model


def path(model: nn.Module, method: str, x: Tensor, y: Tensor, steps: int = STEPS) -> Tensor:
    """Train a model, and note its outputs.

    Args:
        model: It.
        method: A key of `METHODS`.
        x: Inputs.
        y: Targets.
        steps: How many.

    Returns:
        [steps + 1, B, outputs].
    """
    options = METHODS[method]
    optimizer: Any = (
        SGD(model, "bernoulli", lr=0.1) if options is None else NaturalGradient(model, "bernoulli", **options)
    )

    def outputs() -> Iterator[Tensor]:
        yield model(x).detach()
        for _ in range(steps):
            optimizer.step(x, y)
            yield model(x).detach()

    return torch.stack(list(outputs()))


def _compared(method: str, change: str, x: Tensor, y: Tensor) -> pd.DataFrame:
    """Both paths by step: losses, the place in the plane in which the first path moves most, how far they are apart."""
    one, other = path(start(), method, x, y), path(twin(start(), change), method, x, y)
    travelled = float((one - one[0]).abs().max())
    moved = (one - one[0]).flatten(1)
    plane = torch.linalg.svd(moved, full_matrices=False)[2][:2]
    columns: dict[str, Any] = {"step": range(len(one)), "apart": (one - other).abs().amax((1, 2)) / travelled}
    for name, which in (("original", one), ("transformed", other)):
        columns[f"loss_{name}"] = torch.nn.functional.softplus(which).sub(which * y).sum(-1).mean(-1)
        places = (which - one[0]).flatten(1) @ plane.mT
        columns |= {f"{axis}_{name}": places[:, i] for i, axis in enumerate(("u", "v"))}
    return pd.DataFrame({"method": method, "change": change, **{k: list(map(float, v)) for k, v in columns.items()}})
