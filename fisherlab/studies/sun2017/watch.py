"""What the relative Fisher looks like: the effective learning zones, and every layer's matrices during training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from omegaconf import DictConfig
from torch import Tensor
from tqdm import tqdm

from fisherlab.fisher.relative import relative_statistics, zone
from fisherlab.models.normalise import held
from fisherlab.studies.study import Part, Tables

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
    return Part("zones", ("zones.csv",), _zones, settings=())


def steps_of(settings: Mapping[str, Any]) -> dict[int, int]:
    """Tell at which steps the matrices are watched.

    Args:
        settings: The scale's.

    Returns:
        Steps by epoch.
    """
    per_epoch = settings["splits"]["train"] // settings["batch"]
    return {epoch: epoch * per_epoch for epoch in sorted(settings["watch_epochs"])}


def _zones(bar: tqdm[Any]) -> Tables:
    del bar
    z = torch.linspace(-6, 6, 241, dtype=torch.float64)
    rows = [
        pd.DataFrame({"neuron": name, "z": z.numpy(), "nu": zone(activation, z, **options).numpy()})
        for name, (activation, options) in ZONES.items()
    ]
    return {"zones.csv": pd.concat(rows)}


def watched(settings: Mapping[str, Any], runs: Mapping[int, tuple[DictConfig, Path]]) -> pd.DataFrame:
    """Take the layers' matrices along runs, each time over the same cases.

    Over as many other cases they are taken too: by how much these differ is what the choice of the cases does.

    Args:
        settings: The scale's.
        runs: By seed, the config and the folder where the run left its weights at `steps_of`.

    Returns:
        A row per seed, epoch and layer; not numbers from where a run has diverged.
    """
    from fisherlab.training.compare import checkpoints, load
    from fisherlab.training.setup import prepare, resolve

    cases, rows = settings["watch_cases"], []
    for seed, (cfg, folder) in runs.items():
        experiment, kept = prepare(resolve(cfg)), checkpoints(folder)
        own, other = (experiment.rows("train", slice(cases * i, cases * (i + 1)))[0] for i in (0, 1))
        first = before = _matrices(experiment, own)
        rows += _rows(seed, 0, first, first, first, _matrices(experiment, other))
        for epoch, step in steps_of(settings).items():
            if step in kept:
                load(experiment.model, kept[step])
                now, apart = _matrices(experiment, own), _matrices(experiment, other)
            else:
                now = apart = [m * math.nan for m in first]
            rows += _rows(seed, epoch, now, before, first, apart)
            before = now
    return pd.DataFrame(rows, columns=COLUMNS)


@torch.no_grad()
def _matrices(experiment: Any, x: Tensor) -> list[Tensor]:
    """Each layer's relative Fisher, [units, n, n], or [1, n, n] where its units share one.

    Normalisation is by the cases' own mean and variance: its running averages set out from 0 and 1, and while they
    settle the matrices would move even if nothing were trained.

    Args:
        experiment: Of one run.
        x: Cases [1, 1, B, in].

    Returns:
        A tensor per layer, float64.
    """
    pre = experiment.optimizer.preconditioner
    with held(experiment.model.train()):
        captured = experiment.optimizer.capture(x)
    stats = relative_statistics(captured, experiment.likelihood, pre.forms, pre.zone)
    found = []
    for inputs, g in zip(stats.inputs, stats.gradients, strict=True):
        a, nu = (t.flatten(0, -2).double() for t in (inputs.joined, g.square().sum(-3)))
        nu = nu[..., :1] if bool((nu == nu[..., :1]).all()) else nu
        found.append(torch.einsum("bu,bi,bj->uij", nu, a, a) / len(a))
    return found


def _rows(
    seed: int, epoch: int, now: list[Tensor], before: list[Tensor], first: list[Tensor], other: list[Tensor]
) -> list[dict[str, Any]]:
    rows = []
    for i, (m, last, start, apart) in enumerate(zip(now, before, first, other, strict=True)):
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
