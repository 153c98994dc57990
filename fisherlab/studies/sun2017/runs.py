"""The learning rate of each method from one grid, then fresh seeds with a fresh split each."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from fisherlab.studies.study import Part, Tables, read_table
from fisherlab.studies.sun2017.settings import NAMES, TOLD, VARIANTS, configured
from fisherlab.sweep.space import with_values

FIRST_SEED = 1000  # of the fresh seeds; the grid's begin at 0
LAST = 10  # epochs at the end over which the validation accuracy is averaged, to choose and to compare
COLUMNS = ["epoch", "step", "seconds", "objective", "train_loss", "train_error", "valid_error", "test_error"]
NOTHING = dict.fromkeys(COLUMNS, math.nan) | {"epoch": 0.0, "step": 0}  # the row of a run that left none
ENDS = ("valid_error", "test_error")
MOST = 20  # runs side by side
NEIGHBOURS = 3  # learning rates of a variant's grid, around RNGD's best


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
        The curves, which take longer, and the grid that they need; a variant's grid needs RNGD's.
    """
    told = f"{TOLD[net]}, {NAMES[method]}"
    grid, curves = grid_table(net, method), curves_table(net, method)
    before = (grid_table(net, "rngd"),) if method in VARIANTS else ()
    return [
        Part(f"{told}: fresh seeds", (curves,), partial(_fresh, net, method, settings, folder), needs=(grid,)),
        Part(f"{told}: grid", (grid,), partial(_grid, net, method, settings, folder), needs=before),
    ]


def by_rate(grid: Any) -> Any:
    """The validation error by which a learning rate is chosen.

    Args:
        grid: A method's table.

    Returns:
        Its mean over the last epochs and the seeds, by learning rate; without those of which a run diverged.
    """
    return grid.groupby("lr")["valid_error"].agg(lambda e: e.mean(skipna=False)).dropna()


def chosen(folder: Path, net: str, method: str) -> float | None:
    """The grid's best learning rate.

    Args:
        folder: The study's.
        net: A key of `NETS`.
        method: A key of `METHODS` or `VARIANTS`.

    Returns:
        It; None where every one diverged.
    """
    errors = by_rate(read_table(folder / grid_table(net, method)))
    return float(errors.idxmin()) if len(errors) else None


def at_the_end(curve: Any) -> Any:
    """Take the evaluations that are averaged.

    Args:
        curve: Of a run, or of several equally long ones.

    Returns:
        Those of the last epochs; never that of the untrained net.
    """
    return curve[curve["epoch"] > max(0, curve["epoch"].max() - LAST)]


def _rates(net: str, method: str, settings: Mapping[str, Any], folder: Path) -> list[float]:
    """The grid: all learning rates, or for a variant those next to RNGD's best."""
    rates = sorted(settings["rates"], reverse=True)
    if method not in VARIANTS:
        return rates
    best = chosen(folder, net, "rngd")
    if best is None:
        return []
    first = min(max(rates.index(best) - NEIGHBOURS // 2, 0), max(len(rates) - NEIGHBOURS, 0))
    return rates[first : first + NEIGHBOURS]


def _grid(net: str, method: str, settings: Mapping[str, Any], folder: Path, bar: tqdm[Any]) -> Tables:
    cfg = configured(net, method, settings["grid_epochs"], settings)
    rates = _rates(net, method, settings, folder)
    cells = [{"seed": seed, "lr": lr} for lr in rates for seed in range(settings["grid_seeds"])]
    runs = _train(cfg, cells, folder / "runs" / net / _plain(method) / "grid", bar)
    rows = [cell | _end(status, curve) for cell, (status, curve) in zip(cells, runs, strict=True)]
    return {grid_table(net, method): pd.DataFrame(rows, columns=["seed", "lr", "status", *ENDS, "objective"])}


def _end(status: str, curve: Any) -> dict[str, Any]:
    """How a run ended; not a number where it diverged."""
    if status != "finished":
        return {"status": status, **dict.fromkeys((*ENDS, "objective"), math.nan)}
    means = {name: at_the_end(curve)[name].mean() for name in ENDS}
    return {"status": status, **means, "objective": curve["objective"].iloc[-1]}


def _fresh(net: str, method: str, settings: Mapping[str, Any], folder: Path, bar: tqdm[Any]) -> Tables:
    cfg, rate = configured(net, method, settings["epochs"], settings), chosen(folder, net, method)
    cells = [{"seed": seed, "lr": rate} for seed in fresh_seeds(settings)]
    if rate is None:  # an outcome of the method, not an error of the study
        runs = [("diverged", pd.DataFrame(columns=COLUMNS))] * len(cells)
    else:
        runs = _train(cfg, cells, folder / "runs" / net / _plain(method) / "fresh", bar)
    tables = [_curve(curve).assign(**cell, status=status) for cell, (status, curve) in zip(cells, runs, strict=True)]
    return {curves_table(net, method): pd.concat(tables)}


def fresh_seeds(settings: Mapping[str, Any]) -> range:
    """List the seeds that were no part of the grid.

    Args:
        settings: The scale's.

    Returns:
        They.
    """
    return range(FIRST_SEED, FIRST_SEED + settings["seeds"])


def _curve(curve: Any) -> Any:
    """A row at least, so that a run which ended before its first evaluation is still counted."""
    return curve if len(curve) else pd.DataFrame([NOTHING])


def _train(cfg: Any, cells: list[dict[str, Any]], home: Path, bar: tqdm[Any]) -> list[tuple[str, Any]]:
    """Train runs side by side; gives how each ended, and its evaluations."""
    from fisherlab.sweep.batch import make_job, train_jobs

    if not cells:
        return []
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
