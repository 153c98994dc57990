"""The best configurations of each search, trained again on fresh seeds: claims rest on these."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from fisherlab.studies.fujimori2022.searches import dampings_of, name, tables_of
from fisherlab.studies.fujimori2022.settings import configured
from fisherlab.studies.study import Part, gathered, read_table
from fisherlab.sweep.space import with_values

FIRST_SEED = 1000  # searches use seed 0
KEYS = ("lr", "momentum", "lr_schedule.end_fraction")
LEVELS = (2.0, 1.5, 1.0, 0.5)  # losses at which gradients are compared, whenever they are reached
ENDS, GRADIENTS = "reruns_{}.csv".format, "gradients_{}.csv.gz".format  # tables of a setting
WINDOW = 11  # steps over which a loss, or a squared gradient, is averaged


def part(setting: str, settings: Mapping[str, Any], folder: Path) -> Part:
    """Make the part of a study that trains a setting's best configurations again.

    Args:
        setting: Its name.
        settings: The scale's.
        folder: The study's, with the setting's trials.

    Returns:
        The part.
    """
    tables = (ENDS(setting), GRADIENTS(setting))
    pieces = {name(d): partial(_best, setting, d, settings, folder) for d in dampings_of(setting, settings)}
    make = partial(gathered, tables, pieces.values())
    return Part(f"{setting}, fresh seeds", tables, make, needs=tuple(tables_of(setting, "tpe")), pieces=pieces)


def _best(
    setting: str, damping: float | None, settings: Mapping[str, Any], folder: Path, bar: tqdm[Any]
) -> tuple[pd.DataFrame, ...] | None:
    """Train the best configurations at a damping; None where no trial finished."""
    trials = read_table(folder / tables_of(setting, "tpe")[0])
    own = trials[trials["damping"].isna() if damping is None else trials["damping"] == damping]
    best = own.dropna(subset=["value"]).sort_values("value").head(settings["reruns"])
    if not len(best):
        return None
    bar.reset(1)
    found = _rerun(setting, damping, best, settings, folder / "reruns" / setting / name(damping))
    bar.update()
    return tuple(table.assign(damping=math.nan if damping is None else damping) for table in found)


def _rerun(
    setting: str, damping: float | None, best: Any, settings: Mapping[str, Any], home: Path
) -> tuple[pd.DataFrame, pd.DataFrame]:
    from fisherlab.sweep.batch import make_job, train_jobs

    cfg = with_values(configured(setting, damping, settings, torch.get_num_threads()), {"record_norms": True})
    rows, jobs = [], []
    for seed in range(FIRST_SEED, FIRST_SEED + settings["seeds"]):
        for rank, trial in enumerate(best.to_dict("records")):
            values = {"seed": seed, **{key: trial[key] for key in KEYS}}
            jobs.append(make_job(f"{rank}-{seed}", with_values(cfg, values), values))
            rows.append({"rank": rank, "trial": trial["number"], **values})
    with contextlib.redirect_stdout(io.StringIO()):
        record = train_jobs(home, jobs)
    ends = [record.status(job.name) for job in jobs]
    for row, end in zip(rows, ends, strict=True):
        metrics = {k: v for k, v in end.get("final", {}).items() if k.endswith(("_loss", "_error"))}
        row |= {"status": end["status"], "step": end.get("step"), **(metrics if end["status"] == "finished" else {})}
    gradients = [
        _gradients(record.run(job.name), settings["moments"]).assign(rank=row["rank"], seed=row["seed"])
        for job, row in zip(jobs, rows, strict=True)
        if (record.run(job.name) / "steps.csv").exists()
    ]
    return pd.DataFrame(rows), pd.concat(gradients)


def _gradients(run: Path, moments: list[int]) -> pd.DataFrame:
    """The typical squared gradient entry, as a decimal logarithm: at given steps, and when the loss reaches levels."""
    steps = read_table(run / "steps.csv").set_index("step")
    loss = steps["loss"].rolling(WINDOW, center=True, min_periods=1).mean()
    square = np.log10(steps["grad_norm"].clip(lower=1e-30).pow(2)).rolling(WINDOW, center=True, min_periods=1).mean()
    rows = [{"when": "step", "at": m, "step": m, "layer": "all", "log10": square.get(m)} for m in moments]
    for level in LEVELS:
        reached = loss.index[loss <= level]
        at = reached[0] if len(reached) else None
        log10 = square[at] if at is not None else math.nan
        rows.append({"when": "loss", "at": level, "step": at, "layer": "all", "log10": log10})
    return pd.DataFrame([*rows, *_by_layer(run / "gradient_histogram.csv")])


def _by_layer(path: Path) -> list[dict[str, Any]]:
    """The median squared entry of each layer at the steps that were counted, to half a bin."""
    if not path.exists():
        return []
    rows = []
    for (step, layer), bins in read_table(path).groupby(["step", "layer"], sort=False):
        below = bins["count"].cumsum().to_numpy()
        middle = bins.iloc[int(np.searchsorted(below, below[-1] / 2))]
        centre = float(np.log10(middle["bin_right"])) - 0.25
        rows.append({"when": "step", "at": step, "step": step, "layer": layer, "log10": centre})
    return rows
