"""Figures 2, 3, 5 and 6: the exact Fisher of the middle layers of a small net beside its approximations and inverses.

Rows and columns are in the paper's order: by layer, then by input unit (the bias last), then by output unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from tqdm import tqdm

from fisherlab.data import load_dataset
from fisherlab.fisher.capture import Capture
from fisherlab.fisher.kinds import Kind, statistics
from fisherlab.fisher.kronecker import Kronecker
from fisherlab.fisher.tridiagonal import KroneckerTridiagonal
from fisherlab.likelihood import Categorical
from fisherlab.models import mlp
from fisherlab.optim import KFACMartens
from fisherlab.streams import generator
from fisherlab.studies.study import Part, Tables

K = TypeVar("K", bound=Kronecker)
SIDE, HIDDEN = 16, (20, 20, 20, 20, 20)
MIDDLE = slice(1, 5)  # layers: those from 20 units to 20
GOOD, MOST = 0.05, 60  # training error at which the net counts as partially trained, and the most steps
LAMBDA = 0.1  # at the start of its training; the paper does not tell
CHUNK = 2000  # cases at a time
POOL = 7  # rows, and columns, of which the figures show the mean
GAMMAS = (10.0, 1.0, 0.1, 0.01, 0.001)  # at which the inverses are compared too
COMPARED = (
    ("F", "F tilde"),
    ("F tilde, damped", "block-diagonal"),
    ("F tilde, damped", "block-tridiagonal"),
    ("F tilde, inverse", "block-diagonal, inverse"),
    ("F tilde, inverse", "block-tridiagonal, inverse"),
)
TABLES = ("matrices.csv.gz", "matrix_blocks.csv", "matrix_gamma.csv", "matrix_facts.csv")


@dataclass(frozen=True)
class Moments:
    """Expectations over cases and over the model's labels; L layers, I inputs with the bias, O outputs.

    Attributes:
        mean: E[a-bar], [L, I].
        a: E[a-bar a-bar'^T], [L, I, L, I].
        g: E[g g'^T], [L, O, L, O].
        fisher: E[a-bar g g'^T a-bar'^T], [L, I, O, L, I, O].
        centred: The same of a-bar - E[a-bar].
        third: E[(a-bar - E[a-bar]) g g'^T], [L, I, O, L, O].
    """

    mean: Tensor
    a: Tensor
    g: Tensor
    fisher: Tensor
    centred: Tensor
    third: Tensor


def part(settings: Mapping[str, Any]) -> Part:
    """Make the part of the study that compares matrices.

    Args:
        settings: The scale's.

    Returns:
        The part.
    """
    return Part("matrices", TABLES, lambda bar: _tables(settings, bar), settings=("dataset", "matrix_cases"))


def _tables(settings: Mapping[str, Any], bar: tqdm[Any]) -> Tables:
    split = load_dataset(settings["dataset"]).splits["train"]
    x = pictures(split.x[: settings["matrix_cases"]])
    model, facts = partially_trained(x, split.y[: len(x)])
    found = moments(model, x, bar)
    facts |= cumulants(found) | {"cases": len(x)}
    shown = with_differences(matrices(found, facts["gamma"]))
    pooled = pd.concat([_pooled(name, m) for name, m in shown.items()])
    by_gamma = [
        blocks(with_differences(matrices(found, gamma)), len(found.mean)).assign(gamma=gamma) for gamma in GAMMAS
    ]
    tables = [pooled, blocks(shown, len(found.mean)), pd.concat(by_gamma), pd.DataFrame([facts])]
    return dict(zip(TABLES, tables, strict=True))


def difference(one: str, other: str) -> str:
    """Name the difference of two matrices."""
    return f"{one} - {other}"


def with_differences(shown: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add the differences that the figures show."""
    return shown | {difference(one, other): shown[one] - shown[other] for one, other in COMPARED}


def pictures(x: Tensor) -> Tensor:
    """Resize square pictures to 16 x 16 pixels, by bilinear interpolation with anti-aliasing.

    Args:
        x: [B, side * side].

    Returns:
        float64 [B, 256].
    """
    side = math.isqrt(x.shape[-1])
    square = x.double().unflatten(-1, (1, side, side))
    return interpolate(square, size=(SIDE, SIDE), mode="bilinear", antialias=True).flatten(1)


def partially_trained(x: Tensor, y: Tensor) -> tuple[nn.Module, dict[str, Any]]:
    """Train 256-20-20-20-20-20-10 by full batches of K-FAC to 5 % training error.

    Args:
        x: [B, 256].
        y: Classes [B].

    Returns:
        The model, and how many steps it took, its error, and gamma then.
    """
    model = mlp(SIDE**2, 10, hidden=HIDDEN, activation="tanh", init="sparse", generator=generator(0, "init")).double()
    options: dict[str, Any] = {"damping_start": LAMBDA, "structure": "kronecker_tridiagonal", "average": None}
    optimizer = KFACMartens(model, "categorical", **options)
    error, steps = 1.0, 0
    while error > GOOD and steps < MOST:
        optimizer.step(x, y)
        steps += 1
        with torch.no_grad():
            error = float((model(x).argmax(-1) != y).double().mean())
    return model, {"steps": steps, "train_error": error, "gamma": float(optimizer.report["gamma"])}


def moments(model: nn.Module, x: Tensor, bar: tqdm[Any]) -> Moments:
    """Take all expectations, with the exact sum over labels.

    Args:
        model: Six layers.
        x: Cases.
        bar: Progress.

    Returns:
        The moments of the middle layers.
    """
    bar.reset(2 * -(-len(x) // CHUNK))

    def mean(f: Callable[[Tensor, Tensor], tuple[Tensor, ...]]) -> list[Tensor]:
        sums: list[Tensor] = []
        for a, g in _chunks(model, x):
            found = [m / len(x) for m in f(a, g)]
            sums = [s + m for s, m in zip(sums, found, strict=True)] if sums else found
            bar.update()
        return sums

    # The columns of the output Fisher's square root stand for the labels: index m.
    first, a, g = mean(
        lambda a, g: (a.sum(0), torch.einsum("nli,nkj->likj", a, a), torch.einsum("mnlo,mnkp->lokp", g, g))
    )

    def outer(a: Tensor, g: Tensor) -> Tensor:
        return torch.einsum("nli,mnlo->mnlio", a, g).flatten(0, 1).flatten(1)

    def second(a: Tensor, g: Tensor) -> tuple[Tensor, ...]:
        u, v = outer(a, g), outer(a - first, g)
        return u.mT @ u, v.mT @ v, v.mT @ g.flatten(0, 1).flatten(1)

    fisher, centred, third = mean(second)
    size = (*a.shape[:2], g.shape[1])
    return Moments(first, a, g, fisher.view(*size, *size), centred.view(*size, *size), third.view(*size, *g.shape[:2]))


def _chunks(model: nn.Module, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """a-bar [B, L, I] and g [M, B, L, O] of the middle layers."""
    capture, likelihood = Capture(model), Categorical()
    for part in x.split(CHUNK):
        stats = statistics(Kind.EXACT, capture(part), likelihood, part.new_zeros(len(part), dtype=torch.long), [])
        yield torch.stack([s.joined for s in stats.inputs[MIDDLE]], 1), torch.stack(stats.gradients[MIDDLE], 2)


def cumulants(m: Moments) -> dict[str, float]:
    """The error of F-tilde, and its bound by cumulants (Martens and Grosse 2015, Section 3.1).

    Entry by entry F - F-tilde = kappa(a, a', g, g') + E[a] kappa(a', g, g') + E[a'] kappa(a, g, g'), as E[g | x] = 0.

    Args:
        m: The moments.

    Returns:
        Sums over all entries: |F|, |F - F-tilde|, the bound; and the largest deviation from the identity.
    """
    error = m.fisher - _products(m.a, m.g)
    covariance = m.a - torch.einsum("li,kj->likj", m.mean, m.mean)
    fourth = m.centred - _products(covariance, m.g)
    third = torch.einsum("li,kjplo->liokjp", m.mean, m.third)
    other = third.permute(3, 4, 5, 0, 1, 2)
    return {
        "fisher": float(m.fisher.abs().sum()),
        "error": float(error.abs().sum()),
        "bound": float((fourth.abs() + third.abs() + other.abs()).sum()),
        "identity": float((error - fourth - third - other).abs().max() / m.fisher.abs().max()),
    }


def _products(a: Tensor, g: Tensor) -> Tensor:
    """A-bar_(l,k) (x) G_(l,k) for all pairs of layers, [L, I, O, L, I, O]."""
    return torch.einsum("likj,lokp->liokjp", a, g)


def matrices(m: Moments, gamma: float) -> dict[str, Tensor]:
    """Make the figures' matrices; all but the first two are damped by gamma, factored, on the diagonal blocks.

    Args:
        m: The moments.
        gamma: The damping of the factors.

    Returns:
        By name, [L * I * O, L * I * O] each.
    """
    layers, inputs, outputs = m.mean.shape[0], m.mean.shape[1], m.g.shape[1]
    tilde = _square(_products(m.a, m.g))
    structure, diagonal = factorised(m, gamma, KroneckerTridiagonal()), factorised(m, gamma, Kronecker())
    damped = _products(m.a, m.g)
    for i in range(layers):
        a, g = (root @ root.mT for root in structure.state()["prepared"][i])
        damped[i, :, :, i] = torch.einsum("ij,op->iojp", a, g)
    own = _square(damped)
    size = (layers, inputs, outputs)
    block_inverse = _columns(diagonal.solve, size)
    return {
        "F": _square(m.fisher),
        "F tilde": tilde,
        "F tilde, damped": own,
        "F tilde, inverse": torch.linalg.inv(own),
        "block-diagonal": torch.linalg.inv(block_inverse),
        "block-diagonal, inverse": block_inverse,
        "block-tridiagonal": _columns(structure.damped_matvec, size),
        "block-tridiagonal, inverse": _columns(structure.solve, size),
    }


def factorised(m: Moments, gamma: float, structure: K) -> K:
    """Give the moments to a structure that the optimizer uses.

    Args:
        m: The moments.
        gamma: The damping of its factors.
        structure: Empty.

    Returns:
        The structure, factorised.
    """
    layers = range(m.mean.shape[0])
    own = {"a": [m.a[i, :, i] for i in layers], "g": [m.g[i, :, i] for i in layers]}
    pairs = list(pairwise(layers))
    cross = {"cross": [[m.a[i, :, j], m.g[i, :, j]] for i, j in pairs]}
    structure.load({**own, **cross, "prepared": [], "links": [], "explicit": False})
    structure.refresh(torch.tensor(gamma**2, dtype=m.a.dtype))
    return structure


def _square(m: Tensor) -> Tensor:
    return m.flatten(3).flatten(0, 2)


def _columns(apply: Callable[[list[Tensor]], list[Tensor]], size: tuple[int, int, int]) -> Tensor:
    """A linear map of layers [O, I] as a matrix in the paper's order."""
    layers, inputs, outputs = size
    unit = torch.eye(layers * inputs * outputs, dtype=torch.float64).view(-1, layers, inputs, outputs).mT
    return torch.stack(apply([*unit.unbind(1)]), 1).mT.flatten(1).mT


def _pooled(name: str, m: Tensor) -> pd.DataFrame:
    """Mean |entry| of squares of a few rows and columns, to two digits: what a page can show."""
    n = len(m) // POOL
    mean = m.abs().view(n, POOL, n, POOL).mean((1, 3))
    return pd.DataFrame([[float(f"{v:.1e}") for v in row] for row in mean.tolist()]).assign(matrix=name)


def blocks(shown: Mapping[str, Tensor], layers: int) -> pd.DataFrame:
    """Mean and largest |entry| of each block.

    Args:
        shown: Matrices by name.
        layers: How many blocks they have each way.

    Returns:
        Columns matrix, row, column, mean, max.
    """
    rows = []
    for name, m in shown.items():
        n = len(m) // layers
        cut = m.abs().view(layers, n, layers, n)
        mean, most = cut.mean((1, 3)).tolist(), cut.amax((1, 3)).tolist()
        rows += [(name, i, j, mean[i][j], most[i][j]) for i in range(layers) for j in range(layers)]
    return pd.DataFrame(rows, columns=["matrix", "row", "column", "mean", "max"])
