"""What the relative Fisher looks like: the effective learning zones, and every layer's matrices during training.

A matrix that grows or shrinks as a whole only scales the learning rate: beside the change of a matrix there is that of
its shape, of the matrix over its trace.
"""

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

from fisherlab.fisher.relative import relative_statistics, softmax_layer, zone
from fisherlab.models.dense import Dense
from fisherlab.models.normalise import held
from fisherlab.studies.study import Part, Tables
from fisherlab.studies.sun2017.settings import table_name

ZONES: Mapping[str, tuple[str, dict[str, float]]] = {
    "tanh": ("tanh", {}),
    "sigm": ("logistic", {}),
    "relu, omega 1": ("relu", {"omega": 1.0}),
    "relu, omega 0.3": ("relu", {"omega": 0.3}),
    "relu, omega 1, iota 0.2": ("relu", {"omega": 1.0, "iota": 0.2}),
    "elu": ("elu", {}),
}
QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)
SPECTRUM = ["trace", *(f"q{round(100 * q)}" for q in QUANTILES), "largest_share", "effective_rank"]
CHANGES = ["since_last", "since_start", "other_cases"]
SHAPES = [f"shape_{name}" for name in CHANGES]
COLUMNS = ["seed", "epoch", "layer", "form", "matrices", "size", *SPECTRUM, *CHANGES, *SHAPES]
UNITWISE, LINEAR, SOFTMAX = "a matrix per unit", "E[x x^T], the linear form", "the softmax RFIM"
WATCHED = ("sgd", "adam", "rngd")  # the paper's methods: RNGD's geometry, and what training alone does to it


def matrices_table(net: str, method: str) -> str:
    """Name the table of a net's matrices along a method's runs."""
    return f"{table_name('matrices', net, method)}.csv"


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


Taken = Mapping[tuple[int, str], Tensor]


def watched(settings: Mapping[str, Any], runs: Mapping[int, tuple[DictConfig, Path]]) -> pd.DataFrame:
    """Take the layers' matrices along runs, each time over the same cases.

    Over as many other cases they are taken too: by how much these differ is what the choice of the cases does.

    Args:
        settings: The scale's.
        runs: By seed, RNGD's config, whose forms the matrices have, and the folder where a run of any method left its
            weights at `steps_of`.

    Returns:
        A row per seed, epoch, layer and form; not numbers from where a run has diverged.
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
                now = apart = {key: m * math.nan for key, m in first.items()}
            rows += _rows(seed, epoch, now, before, first, apart)
            before = now
    return pd.DataFrame(rows, columns=COLUMNS)


@torch.no_grad()
def _matrices(experiment: Any, x: Tensor) -> dict[tuple[int, str], Tensor]:
    """Each layer's relative Fisher, [units, n, n], or [1, n, n] where its units share one; the last one's in two forms.

    Normalisation is by the cases' own mean and variance: its running averages set out from 0 and 1, and while they
    settle the matrices would move even if nothing were trained.

    Args:
        experiment: Of one run.
        x: Cases [1, 1, B, in].

    Returns:
        Float64 tensors, by layer (from 1 on) and form.
    """
    pre = experiment.optimizer.preconditioner
    with held(experiment.model.train()):
        captured = experiment.optimizer.capture(x)
    stats = relative_statistics(captured, experiment.likelihood, pre.forms, pre.zone)
    found = {}
    for i, (inputs, g) in enumerate(zip(stats.inputs, stats.gradients, strict=True)):
        a, nu = (t.flatten(0, -2).double() for t in (inputs.joined, g.square().sum(-3)))
        form = LINEAR if pre.forms[i].activation == "linear" else UNITWISE
        nu = nu[..., :1] if form == LINEAR else nu
        found[i + 1, form] = torch.einsum("bu,bi,bj->uij", nu, a, a) / len(a)
    last = [m for m in experiment.model.modules() if isinstance(m, Dense)][-1]
    assert last.bias is not None
    w = torch.cat([last.weight, last.bias.unsqueeze(-1)], -1).double()
    a = stats.inputs[-1].joined.flatten(0, -2).double()
    return found | {(len(found), SOFTMAX): softmax_layer(a, w.reshape(w.shape[-2:])).unsqueeze(0)}


def _rows(seed: int, epoch: int, now: Taken, before: Taken, first: Taken, other: Taken) -> list[dict[str, Any]]:
    rows = []
    for (layer, form), m in now.items():
        others = [taken[layer, form] for taken in (before, first, other)]
        row = {"seed": seed, "epoch": epoch, "layer": layer, "form": form, "matrices": len(m), "size": m.shape[-1]}
        row |= _spectrum(m) | dict(zip(CHANGES, _apart(m, *others), strict=True))
        rows.append(row | dict(zip(SHAPES, _apart(*map(_shape, (m, *others))), strict=True)))
    return rows


def _apart(m: Tensor, last: Tensor, start: Tensor, other: Tensor) -> list[float]:
    """The norms of what sets matrices [units, n, n] apart from others, of all units at once."""
    return [float((m - o).norm() / by.norm()) for o, by in ((last, last), (start, start), (other, m))]


def _shape(m: Tensor) -> Tensor:
    return m / m.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]


def _spectrum(m: Tensor) -> dict[str, float]:
    """Of a layer's matrices [units, n, n]; not numbers where a run has diverged."""
    if not m.isfinite().all():
        return dict.fromkeys(SPECTRUM, math.nan)
    values = torch.linalg.eigvalsh(m).clamp(min=0)
    quantiles = [float(np.quantile(values.mean(0).numpy(), q)) for q in QUANTILES]
    trace = values.sum(-1)
    shares = [float(v.mean()) for v in (values[:, -1] / trace, trace.square() / values.square().sum(-1))]
    numbers = [float(trace.mean()), *quantiles, *shares]
    return dict(zip(SPECTRUM, numbers, strict=True))
