"""One search for each damping: its trials, the curves of the best, and their squared gradient entries."""

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

from fisherlab.studies.fujimori2022.settings import SETTINGS, configured, space
from fisherlab.studies.study import Part, gathered, read_table

PARALLEL = 20
BINS = ["step", "layer", "bin_left", "bin_right"]


def tables_of(setting: str, sampler: str) -> list[str]:
    """Name the tables of a setting's searches: trials, curves, histograms."""
    return [f"{what}_{setting}_{sampler}.csv.gz" for what in ("trials", "curves", "histogram")]


def part(setting: str, sampler: str, count: int, settings: Mapping[str, Any], folder: Path) -> Part:
    """Make the part of a study that searches under one setting.

    Args:
        setting: Its name.
        sampler: tpe or random.
        count: Trials of each search.
        settings: The scale's.
        folder: The study's.

    Returns:
        The part.
    """
    dampings = dampings_of(setting, settings)
    pieces = {name(d): partial(_search, setting, sampler, count, d, settings, folder) for d in dampings}
    tables = tuple(tables_of(setting, sampler))
    return Part(f"{setting}, {sampler}", tables, partial(gathered, tables, pieces.values()), pieces=pieces)


def dampings_of(setting: str, settings: Mapping[str, Any]) -> list[float | None]:
    """List what is searched under a setting: dampings, and None for SGD where it is not the base setting's."""
    chosen = SETTINGS[setting]
    sgd = [None] if setting == "base" or chosen.net else []  # SGD knows nothing of the other choices
    return [*chosen.dampings(settings["dampings"]), *sgd]


def place(folder: Path, setting: str, sampler: str, damping: float | None) -> Path:
    """Where a search lies, below the study's folder; not committed."""
    return folder / "searches" / setting / sampler / name(damping)


def name(damping: float | None) -> str:
    """Write a damping; None, or not a number, is SGD."""
    return "sgd" if damping is None or math.isnan(damping) else f"{damping:g}"


def _search(
    setting: str,
    sampler: str,
    count: int,
    damping: float | None,
    settings: Mapping[str, Any],
    folder: Path,
    bar: tqdm[Any],
) -> tuple[pd.DataFrame, ...]:
    """Search at one damping, or go on with it; gives its trials, and the curves and histograms of the best."""
    from fisherlab.sweep.search import Search
    from fisherlab.sweep.trials import trials_table

    cfg = configured(setting, damping, settings, torch.get_num_threads())
    home = place(folder, setting, sampler, damping)
    search = Search(cfg, space(setting, damping, cfg), home, sampler=sampler, parallel=PARALLEL)
    run_to(search, count, bar)
    trials: Any = trials_table(search)
    trials = trials[trials["state"].isin(["complete", "pruned"])].drop(columns=["message"]).head(count)
    most = max(1, round(count * settings["best"] / settings["trials"]))
    best = trials.sort_values("value").dropna(subset=["value"]).head(most)
    runs = [home / run for run in best["run"]]
    tables = (trials, _curves(runs), _histogram(runs))
    return tuple(table.assign(damping=math.nan if damping is None else damping) for table in tables)


def run_to(search: Any, count: int, bar: tqdm[Any]) -> None:
    """Run a search, or go on with it, without a word of its own.

    Args:
        search: A `Search`.
        count: Trials that it has in the end.
        bar: Counts them.
    """
    bar.reset(count)
    with contextlib.redirect_stdout(io.StringIO()):
        search.run(count, lambda: _advance(bar, _ended(search)))
    _advance(bar, count)


def _advance(bar: tqdm[Any], to: float) -> None:
    bar.update(to - bar.n)


def _ended(search: Any) -> int:
    return sum(t.state.name in ("COMPLETE", "PRUNED") for t in search.trials)


def _curves(runs: list[Path]) -> pd.DataFrame:
    """Training loss of the mini-batch by step: mean and spread over runs."""
    losses = pd.concat([read_table(run / "steps.csv")[["step", "loss"]] for run in runs] or [_none("step", "loss")])
    found = losses.groupby("step")["loss"]
    columns = {"mean": found.mean(), "sd": found.std(), "n": found.count()}
    quantiles = {f"q{round(100 * q)}": found.quantile(q) for q in (0.1, 0.5, 0.9)}
    return pd.DataFrame({**columns, **quantiles}).reset_index()


def _histogram(runs: list[Path]) -> pd.DataFrame:
    """Squared gradient entries: of the best run, and of all of them together."""
    found = []
    for pooled in sorted({1, len(runs)} & {*range(1, len(runs) + 1)}):
        counted = pd.concat([read_table(run / "gradient_histogram.csv") for run in runs[:pooled]])
        total: Any = counted.groupby(BINS, sort=False, as_index=False)["count"].sum()
        found.append(total[total["count"] > 0].assign(trials=pooled))
    return pd.concat(found) if found else _none(*BINS, "count", "trials")


def _none(*columns: str) -> pd.DataFrame:
    return pd.DataFrame({column: np.empty(0) for column in columns})
