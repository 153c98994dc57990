"""The learning rate of each method from one grid, then fresh seeds with a fresh split each."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from fisherlab.studies.study import Part, Tables, read_table
from fisherlab.studies.sun2017.settings import NAMES, TOLD, configured
from fisherlab.sweep.space import with_values

FIRST_SEED = 1000  # of the fresh seeds; the grid's begin at 0
LAST = 10  # epochs at the end over which the validation accuracy is averaged, to choose and to compare
COLUMNS = ["epoch", "step", "seconds", "objective", "train_loss", "train_error", "valid_error", "test_error"]
MOST = 20  # runs side by side


def grid_table(net: str, method: str) -> str:
    """Name the table of a method's grid."""
    return f"grid_{net}_{_plain(method)}.csv"


def curves_table(net: str, method: str) -> str:
    """Name the table of a method's curves on fresh seeds."""
    return f"curves_{net}_{_plain(method)}.csv.gz"


def _plain(method: str) -> str:
    return method.replace(", ", "_").replace(" ", "_")


def parts(net: str, method: str, settings: Mapping[str, Any], folder: Path) -> list[Part]:
    """Make the two parts of a method on a net.

    Args:
        net: A key of `NETS`.
        method: A key of `METHODS` or `VARIANTS`.
        settings: The scale's.
        folder: The study's.

    Returns:
        The grid, and the curves.
    """
    told = f"{TOLD[net]}, {NAMES.get(method, method)}"
    grid, curves = grid_table(net, method), curves_table(net, method)
    return [
        Part(f"{told}: grid", (grid,), partial(_grid, net, method, settings, folder)),
        Part(f"{told}: fresh seeds", (curves,), partial(_fresh, net, method, settings, folder), needs=(grid,)),
    ]


def chosen(folder: Path, net: str, method: str) -> float:
    """The grid's best learning rate: the highest mean validation accuracy over the last epochs and the seeds.

    Args:
        folder: The study's.
        net: A key of `NETS`.
        method: A key of `METHODS` or `VARIANTS`.

    Returns:
        The learning rate.

    Raises:
        RuntimeError: If every run diverged.
    """
    grid = read_table(folder / grid_table(net, method))
    errors = grid.groupby("lr")["valid_error"].agg(lambda e: e.mean(skipna=False)).dropna()
    if not len(errors):
        raise RuntimeError(f"every run of {method} on {net} diverged, at every learning rate of the grid")
    return float(errors.idxmin())


def _grid(net: str, method: str, settings: Mapping[str, Any], folder: Path, bar: tqdm[Any]) -> Tables:
    cfg = configured(net, method, settings["grid_epochs"], settings)
    cells = [{"seed": seed, "lr": lr} for lr in settings["rates"] for seed in range(settings["grid_seeds"])]
    runs = _train(cfg, cells, folder / "runs" / net / _plain(method) / "grid", bar)
    rows = [cell | _end(status, curve) for cell, (status, curve) in zip(cells, runs, strict=True)]
    return {grid_table(net, method): pd.DataFrame(rows)}


def _end(status: str, curve: Any) -> dict[str, Any]:
    """How a run ended; without numbers where it diverged."""
    if status != "finished":
        return {"status": status}
    last = curve.tail(LAST)
    means = {name: last[name].mean() for name in ("valid_error", "test_error")}
    return {"status": status, **means, "objective": curve["objective"].iloc[-1]}


def _fresh(net: str, method: str, settings: Mapping[str, Any], folder: Path, bar: tqdm[Any]) -> Tables:
    cfg = configured(net, method, settings["epochs"], settings)
    seeds = range(FIRST_SEED, FIRST_SEED + settings["seeds"])
    cells = [{"seed": seed, "lr": chosen(folder, net, method)} for seed in seeds]
    runs = _train(cfg, cells, folder / "runs" / net / _plain(method) / "fresh", bar)
    tables = [curve.assign(**cell, status=status) for cell, (status, curve) in zip(cells, runs, strict=True)]
    return {curves_table(net, method): pd.concat(tables)}


def _train(cfg: Any, cells: list[dict[str, Any]], home: Path, bar: tqdm[Any]) -> list[tuple[str, Any]]:
    """Train runs side by side; gives how each ended, and its evaluations."""
    from fisherlab.sweep.batch import make_job, train_jobs

    bar.reset(len(cells))
    jobs = [make_job(f"{cell['lr']:g}-{cell['seed']}", with_values(cfg, cell), cell) for cell in cells]
    with contextlib.redirect_stdout(io.StringIO()):
        record = train_jobs(home, jobs, MOST)
    bar.update(len(cells))
    found = []
    for one in jobs:
        path = record.run(one.name) / "metrics.csv"
        curve = read_table(path)[COLUMNS] if path.exists() else pd.DataFrame(columns=COLUMNS)
        found.append((record.status(one.name)["status"], curve))
    return found
