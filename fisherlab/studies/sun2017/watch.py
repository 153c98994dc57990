"""What lies beside the curves: zones, the cost of a step, and the relative Fisher of every layer during training."""

from __future__ import annotations

import itertools
import time
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
from fisherlab.studies.study import Part, Tables
from fisherlab.studies.sun2017.runs import chosen, grid_table
from fisherlab.studies.sun2017.settings import METHODS, TOLD, configured
from fisherlab.sweep.space import with_values

ZONES: Mapping[str, tuple[str, dict[str, float]]] = {
    "tanh": ("tanh", {}),
    "sigm": ("logistic", {}),
    "relu, omega 1": ("relu", {"omega": 1.0}),
    "relu, omega 0.3": ("relu", {"omega": 0.3}),
    "relu, omega 1, iota 0.2": ("relu", {"omega": 1.0, "iota": 0.2}),
    "elu": ("elu", {}),
}
STEPS = 20  # of a round of the timing
QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)


def parts(settings: Mapping[str, Any], folder: Path) -> list[Part]:
    """List them.

    Args:
        settings: The scale's.
        folder: The study's.

    Returns:
        The zones, the cost, and for each net the matrices that are watched.
    """
    found = [Part("zones", ("zones.csv",), _zones), Part("cost of a step", ("cost.csv",), partial(_cost, settings))]
    for net in settings["nets"]:
        make = partial(_watched, net, settings, folder)
        found.append(Part(f"{TOLD[net]}, matrices", (f"matrices_{net}.csv",), make, needs=(grid_table(net, "rngd"),)))
    return found


def _zones(bar: tqdm[Any]) -> Tables:
    del bar
    z = torch.linspace(-6, 6, 241, dtype=torch.float64)
    rows = [
        pd.DataFrame({"neuron": name, "z": z.numpy(), "nu": zone(activation, z, **options).numpy()})
        for name, (activation, options) in ZONES.items()
    ]
    return {"zones.csv": pd.concat(rows)}


def _cost(settings: Mapping[str, Any], bar: tqdm[Any]) -> Tables:
    """Time steps of single runs, all methods in turn; what recurs every 100 steps is counted with its share."""
    from fisherlab.training.setup import prepare, resolve

    runs = {
        (net, method): prepare(resolve(with_values(configured(net, method, 1, settings), {"lr": 1e-4})))
        for net in settings["nets"]
        for method in METHODS
    }
    for experiment in runs.values():
        _seconds(experiment, 1)  # which starts the averages
    bar.reset(settings["rounds"] + 1)
    rows = []
    for turn in range(settings["rounds"] + 1):
        order = list(runs.items())
        for (net, method), experiment in order[turn % len(order) :] + order[: turn % len(order)]:
            ms, refresh = _timed(experiment)
            if turn:  # the first warms up
                rows.append({"net": net, "method": method, "round": turn, "ms": ms, "refresh_ms": refresh})
        bar.update()
    return {"cost.csv": pd.DataFrame(rows).assign(threads=torch.get_num_threads())}


def _timed(experiment: Any) -> tuple[float, float]:
    """Milliseconds of a step without a factorisation, and what a factorisation adds."""
    pre = experiment.optimizer.preconditioner
    period = 1 if pre is None else pre.inverse_period
    if pre is not None:
        pre.step = 1  # where none is due for some steps
    seconds = _seconds(experiment, STEPS)
    if period == 1:
        return seconds * 1e3, 0.0
    pre.step = period
    return seconds * 1e3, max(0.0, _seconds(experiment, 1) - seconds) * 1e3


def _seconds(experiment: Any, steps: int) -> float:
    batches = [experiment.next_batch() for _ in range(steps)]
    began = time.perf_counter()
    for x, y in batches:
        experiment.optimizer.step(x, y)
    return (time.perf_counter() - began) / steps


def _watched(net: str, settings: Mapping[str, Any], folder: Path, bar: tqdm[Any]) -> Tables:
    """Train by RNGD; after every epoch take the layers' matrices over the same cases."""
    from fisherlab.training.setup import prepare, resolve

    values = {"lr": chosen(folder, net, "rngd")}
    experiment = prepare(resolve(with_values(configured(net, "rngd", settings["watch_epochs"], settings), values)))
    bar.reset(settings["watch_epochs"])
    x, _ = experiment.rows("train", slice(settings["watch_cases"]))
    steps, per_epoch = itertools.count(), experiment.steps // settings["watch_epochs"]
    first = before = _matrices(experiment, x)
    rows = _rows(0, first, first, first)
    for epoch in range(1, settings["watch_epochs"] + 1):
        for _ in range(per_epoch):
            experiment.optimizer.param_groups[0]["lr"] = values["lr"] * experiment.learning_rate(next(steps))
            experiment.optimizer.step(*experiment.next_batch())
        now = _matrices(experiment, x)
        rows += _rows(epoch, now, before, first)
        before = now
        bar.update()
    return {f"matrices_{net}.csv": pd.DataFrame(rows)}


@torch.no_grad()
def _matrices(experiment: Any, x: Tensor) -> list[Tensor]:
    """Each layer's relative Fisher, [units, n, n], or [1, n, n] where its units share one; as in evaluation."""
    model, pre = experiment.model.eval(), experiment.optimizer.preconditioner
    captured = experiment.optimizer.capture(x)
    stats = relative_statistics(captured, experiment.likelihood, pre.forms, pre.zone)
    model.train()
    found = []
    for inputs, g in zip(stats.inputs, stats.gradients, strict=True):
        a, nu = inputs.joined.flatten(0, -3).double(), g.square().sum(-3).flatten(0, -3).double()
        nu = nu[..., :1] if bool((nu == nu[..., :1]).all()) else nu
        found.append(torch.einsum("rbu,rbi,rbj->uij", nu, a, a) / a.shape[-2])
    return found


def _rows(epoch: int, now: list[Tensor], before: list[Tensor], first: list[Tensor]) -> list[dict[str, Any]]:
    rows = []
    for i, m in enumerate(now):
        values = torch.linalg.eigvalsh(m).clamp(min=0)
        row: dict[str, Any] = {"epoch": epoch, "layer": i + 1, "matrices": len(m), "size": m.shape[-1]}
        row["trace"] = float(values.sum(-1).mean())
        row |= {f"q{round(100 * q)}": float(np.quantile(values.mean(0).numpy(), q)) for q in QUANTILES}
        row["largest_share"] = float((values[:, -1] / values.sum(-1)).mean())
        for name, other in (("since_last", before[i]), ("since_start", first[i])):
            row[name] = float((m - other).norm() / other.norm())
        rows.append(row)
    return rows
