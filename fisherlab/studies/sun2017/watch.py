"""What the relative Fisher looks like: the effective learning zones, and every layer's matrices during training."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from fisherlab.fisher.relative import relative_statistics, zone
from fisherlab.models.normalise import held
from fisherlab.studies.study import Part, Tables
from fisherlab.studies.sun2017.runs import chosen, fresh_seeds, grid_table
from fisherlab.studies.sun2017.settings import TOLD, configured
from fisherlab.sweep.space import with_values

ZONES: Mapping[str, tuple[str, dict[str, float]]] = {
    "tanh": ("tanh", {}),
    "sigm": ("logistic", {}),
    "relu, omega 1": ("relu", {"omega": 1.0}),
    "relu, omega 0.3": ("relu", {"omega": 0.3}),
    "relu, omega 1, iota 0.2": ("relu", {"omega": 1.0, "iota": 0.2}),
    "elu": ("elu", {}),
}
QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)
SPECTRUM = ["trace", *(f"q{round(100 * q)}" for q in QUANTILES), "largest_share"]
CHANGES = ["since_last", "since_start", "other_cases"]
COLUMNS = ["seed", "epoch", "layer", "matrices", "size", *SPECTRUM, *CHANGES]


def matrices_table(net: str) -> str:
    """Name the table of a net's matrices."""
    return f"matrices_{net}.csv"


def zones() -> Part:
    """Make the part of the zones.

    Returns:
        It.
    """
    return Part("zones", ("zones.csv",), _zones)


def parts(net: str, settings: Mapping[str, Any], folder: Path) -> list[Part]:
    """Make the part of a net's matrices.

    Args:
        net: A key of `NETS`.
        settings: The scale's.
        folder: The study's.

    Returns:
        It; needs RNGD's learning rate.
    """
    make = partial(_watched, net, settings, folder)
    return [Part(f"{TOLD[net]}, matrices", (matrices_table(net),), make, needs=(grid_table(net, "rngd"),))]


def _zones(bar: tqdm[Any]) -> Tables:
    del bar
    z = torch.linspace(-6, 6, 241, dtype=torch.float64)
    rows = [
        pd.DataFrame({"neuron": name, "z": z.numpy(), "nu": zone(activation, z, **options).numpy()})
        for name, (activation, options) in ZONES.items()
    ]
    return {"zones.csv": pd.concat(rows)}


def _watched(net: str, settings: Mapping[str, Any], folder: Path, bar: tqdm[Any]) -> Tables:
    """Train by RNGD, all seeds side by side; after every epoch take the layers' matrices over the same cases.

    Over as many other cases they are taken too: by how much these differ is what the choice of the cases does.

    Returns:
        The table.
    """
    rate, epochs, cases = chosen(folder, net, "rngd"), settings["watch_epochs"], settings["watch_cases"]
    if rate is None:  # no learning rate by which it could be watched
        return {matrices_table(net): pd.DataFrame(columns=COLUMNS)}
    experiment = _group(net, settings, rate)
    bar.reset(epochs)
    own, other = (experiment.rows("train", slice(cases * i, cases * (i + 1)))[0] for i in (0, 1))
    steps, per_epoch = itertools.count(), experiment.steps // epochs
    first = before = _matrices(experiment, own)
    rows = _rows(settings, 0, first, first, first, _matrices(experiment, other))
    for epoch in range(1, epochs + 1):
        for _ in range(per_epoch):
            experiment.optimizer.param_groups[0]["lr"] = rate * experiment.learning_rate(next(steps))
            experiment.optimizer.step(*experiment.next_batch())
        now = _matrices(experiment, own)
        rows += _rows(settings, epoch, now, before, first, _matrices(experiment, other))
        before = now
        bar.update()
    return {matrices_table(net): pd.DataFrame(rows, columns=COLUMNS)}


def _group(net: str, settings: Mapping[str, Any], rate: float) -> Any:
    """The fresh seeds' runs as one program."""
    from fisherlab.training.setup import prepare, resolve

    cfg, seeds = configured(net, "rngd", settings["watch_epochs"], settings), fresh_seeds(settings)
    return prepare([resolve(with_values(cfg, {"lr": rate, "seed": seed})) for seed in seeds], (len(seeds), 1))


@torch.no_grad()
def _matrices(experiment: Any, x: Tensor) -> list[Tensor]:
    """Each layer's relative Fisher by run, [runs, units, n, n], or [runs, 1, n, n] where its units share one.

    Normalisation is by the cases' own mean and variance: its running averages set out from 0 and 1, and while they
    settle the matrices would move even if nothing were trained.

    Args:
        experiment: The group.
        x: Cases [runs, 1, B, in].

    Returns:
        A tensor per layer, float64.
    """
    pre = experiment.optimizer.preconditioner
    with held(experiment.model.train()):
        captured = experiment.optimizer.capture(x)
    stats = relative_statistics(captured, experiment.likelihood, pre.forms, pre.zone)
    found = []
    for inputs, g in zip(stats.inputs, stats.gradients, strict=True):
        a, nu = inputs.joined.flatten(0, -3).double(), g.square().sum(-3).flatten(0, -3).double()
        nu = nu[..., :1] if bool((nu == nu[..., :1]).all()) else nu
        products = [torch.einsum("bu,bi,bj->uij", *run) for run in zip(nu, a, a, strict=True)]
        found.append(torch.stack(products) / a.shape[-2])
    return found


def _rows(
    settings: Mapping[str, Any],
    epoch: int,
    now: list[Tensor],
    before: list[Tensor],
    first: list[Tensor],
    other: list[Tensor],
) -> list[dict[str, Any]]:
    rows = []
    for i, layer in enumerate(now):
        compared = zip(fresh_seeds(settings), layer, before[i], first[i], other[i], strict=True)
        for seed, m, last, start, apart in compared:
            changes = [float((m - o).norm() / by.norm()) for o, by in ((last, last), (start, start), (apart, m))]
            row = {"seed": seed, "epoch": epoch, "layer": i + 1, "matrices": len(m), "size": m.shape[-1]}
            rows.append(row | _spectrum(m) | dict(zip(CHANGES, changes, strict=True)))
    return rows


def _spectrum(m: Tensor) -> dict[str, float]:
    """Of a layer's matrices [units, n, n]; not numbers where a run has diverged."""
    if not m.isfinite().all():
        return dict.fromkeys(SPECTRUM, math.nan)
    values = torch.linalg.eigvalsh(m).clamp(min=0)
    quantiles = [float(np.quantile(values.mean(0).numpy(), q)) for q in QUANTILES]
    numbers = [float(values.sum(-1).mean()), *quantiles, float((values[:, -1] / values.sum(-1)).mean())]
    return dict(zip(SPECTRUM, numbers, strict=True))
