"""The learning rate of each method from one grid, then fresh seeds with a fresh split each."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from fisherlab.studies.study import Part, Tables, read_table
from fisherlab.studies.sun2017.cases import cases, cases_table
from fisherlab.studies.sun2017.settings import NAMES, NETS, RERATED, TOLD, VARIANTS, configured, table_name
from fisherlab.studies.sun2017.settled import settled, settled_table
from fisherlab.studies.sun2017.watch import WATCHED, matrices_table, steps_of, watched
from fisherlab.sweep.space import with_values

FIRST_SEED = 1000  # of the fresh seeds; the grid's begin at 0
LAST = 10  # epochs at the end over which the validation accuracy is averaged, to choose and to compare
COLUMNS = ["epoch", "step", "seconds", "objective", "train_loss", "train_error", "valid_loss", "valid_error"]
COLUMNS += ["test_loss", "test_error"]
NOTHING = dict.fromkeys([*COLUMNS, "batch_loss"], math.nan)  # the row of a run that left none
NOTHING |= {"epoch": 0.0, "step": 0}
ENDS = ("valid_error", "test_error")
MOST = 20  # runs side by side
NEIGHBOURS = 3  # learning rates of a variant's grid at first, around RNGD's best


def rated_by(method: str) -> tuple[str, str]:
    """Tell by whose grid, and by which column of it, a method's learning rate is chosen."""
    return RERATED.get(method, (method, "valid_error"))


def grid_table(net: str, method: str) -> str:
    """Name the table of the grid that a method's learning rate is chosen from."""
    return f"{table_name('grid', net, rated_by(method)[0])}.csv"


def grid_curves_table(net: str, method: str) -> str:
    """Name the table of the curves from which a method's grid was summed up."""
    return f"{table_name('grid_curves', net, method)}.csv.gz"


def curves_table(net: str, method: str) -> str:
    """Name the table of a method's curves on fresh seeds."""
    return f"{table_name('curves', net, method)}.csv.gz"


def parts(net: str, method: str, settings: Mapping[str, Any], folder: Path) -> list[Part]:
    """Make the two parts of a method on a net.

    Args:
        net: A key of `NETS`.
        method: A key of `METHODS` or `VARIANTS`.
        settings: The scale's.
        folder: The study's.

    Returns:
        The curves, which take longer, with what is taken from the weights along them; and the grid that they need,
        where it is the method's own. A variant's grid needs RNGD's.
    """
    told, along = f"{TOLD[net]}, {NAMES[method]}", tuple(name for name, _ in _along(net, method))
    grid, before = grid_table(net, method), (grid_table(net, "rngd"),) if method in VARIANTS else ()
    leaves, summed = (curves_table(net, method), *along), (grid, grid_curves_table(net, method))
    fresh = Part(f"{told}: fresh seeds", leaves, partial(_fresh, net, method, settings, folder), needs=(grid,))
    if method in RERATED:
        return [fresh]
    return [fresh, Part(f"{told}: grid", summed, partial(_grid, net, method, settings, folder), needs=before)]


def _along(net: str, method: str) -> list[tuple[str, Callable[..., pd.DataFrame]]]:
    """What is taken from the weights along the runs: the tables' names, and what makes them; git does not keep runs."""
    found = [(matrices_table(net, method), watched)] if method in WATCHED else []
    found += [(settled_table(net, method), settled)] if NETS[net] else []
    return found + ([(cases_table(net, method), cases)] if method == "efngd" and not NETS[net] else [])


def by_rate(grid: Any, column: str = "valid_error") -> Any:
    """The validation error by which a learning rate is chosen, or another column.

    Args:
        grid: A method's table.
        column: Of it.

    Returns:
        Its mean over the last epochs and the seeds, by learning rate; without those of which a run diverged.
    """
    return grid.groupby("lr")[column].agg(lambda e: e.mean(skipna=False)).dropna()


def chosen(folder: Path, net: str, method: str) -> float | None:
    """The grid's best learning rate.

    Args:
        folder: The study's.
        net: A key of `NETS`.
        method: A key of `METHODS` or `VARIANTS`.

    Returns:
        It; None where every one diverged.
    """
    errors = by_rate(read_table(folder / grid_table(net, method)), rated_by(method)[1])
    return float(errors.idxmin()) if len(errors) else None


def at_the_end(curve: Any, over: float = LAST) -> Any:
    """Take the evaluations that are averaged.

    Args:
        curve: Of a run, or of several equally long ones.
        over: How many epochs.

    Returns:
        Those of the last epochs; never that of the untrained net.
    """
    return curve[curve["epoch"] > max(0, curve["epoch"].max() - over)]


def _grid(net: str, method: str, settings: Mapping[str, Any], folder: Path, bar: tqdm[Any]) -> Tables:
    """All learning rates; of a variant those next to RNGD's best, and further ones until its best is no end of them."""
    cfg = configured(net, method, settings["grid_epochs"], settings)
    home, rates = folder / "runs" / table_name("grid", net, method), sorted(settings["rates"], reverse=True)
    tried = _window(rates, chosen(folder, net, "rngd")) if method in VARIANTS else range(len(rates))
    while True:
        cells = [{"seed": seed, "lr": rates[i]} for i in tried for seed in range(settings["grid_seeds"])]
        runs = _train(cfg, cells, home, bar)
        rows = [cell | _end(run) for cell, run in zip(cells, runs, strict=True)]
        table = pd.DataFrame(rows, columns=["seed", "lr", "status", *ENDS, "objective"])
        wider = _wider(tried, rates, by_rate(table))
        if wider == tried:
            return {grid_table(net, method): table, grid_curves_table(net, method): _joined(cells, runs)}
        tried = wider


def _window(rates: list[float], best: float | None) -> range:
    """The places of a learning rate and its neighbours."""
    if best is None:
        return range(0)
    middle = min(range(len(rates)), key=lambda i: abs(rates[i] - best))  # a table may round its last digit
    first = min(max(middle - NEIGHBOURS // 2, 0), max(len(rates) - NEIGHBOURS, 0))
    return range(first, min(first + NEIGHBOURS, len(rates)))


def _wider(tried: range, rates: list[float], errors: Any) -> range:
    """One place more on the side where the best learning rate is an end; towards smaller ones if all diverged."""
    if not len(tried):
        return tried
    best = rates.index(errors.idxmin()) if len(errors) else tried.stop - 1
    first = max(tried.start - 1, 0) if best == tried.start else tried.start
    return range(first, min(tried.stop + 1, len(rates)) if best == tried.stop - 1 else tried.stop)


def _end(run: Trained) -> dict[str, Any]:
    """How a run ended; not a number where it diverged."""
    if run.status != "finished":
        return {"status": run.status, **dict.fromkeys((*ENDS, "objective"), math.nan)}
    return {"status": run.status} | {name: at_the_end(run.curve)[name].mean() for name in (*ENDS, "objective")}


def _fresh(net: str, method: str, settings: Mapping[str, Any], folder: Path, bar: tqdm[Any]) -> Tables:
    cfg, rate = configured(net, method, settings["epochs"], settings), chosen(folder, net, method)
    cfg.checkpoints = list(steps_of(settings).values())
    cells: list[dict[str, Any]] = [{"seed": FIRST_SEED + i, "lr": rate} for i in range(settings["seeds"])]
    home = folder / "runs" / table_name("fresh", net, method)
    if rate is None:  # an outcome of the method, not an error of the study
        runs = [Trained("diverged", pd.DataFrame([NOTHING]), home)] * len(cells)
    else:
        runs = _train(cfg, cells, home, bar)
    # The matrices are taken in the form of RNGD's config; seeds and splits are the same for all methods.
    seen = configured(net, "rngd", settings["epochs"], settings) if method in WATCHED else cfg
    there = zip(cells, runs, strict=True) if rate is not None else ()
    paths = {cell["seed"]: (with_values(seen, cell), run.folder) for cell, run in there}
    found = {curves_table(net, method): _joined(cells, runs)}
    return found | {name: make(settings, paths) for name, make in _along(net, method)}


def _joined(cells: list[dict[str, Any]], runs: list[Trained]) -> pd.DataFrame:
    """The runs' curves one below the other, each with its seed, learning rate and status."""
    tables = [run.curve.assign(**cell, status=run.status) for cell, run in zip(cells, runs, strict=True)]
    return pd.concat(tables) if tables else pd.DataFrame(columns=[*NOTHING, "seed", "lr", "status"])


@dataclass(frozen=True)
class Trained:
    """A run that has ended.

    Attributes:
        status: How.
        curve: Its evaluations: a row at least, so that a run which ended before the first one is still counted.
        folder: Where it is.
    """

    status: str
    curve: Any
    folder: Path


def _train(cfg: Any, cells: list[dict[str, Any]], home: Path, bar: tqdm[Any]) -> list[Trained]:
    """Train runs side by side, those that are not there yet."""
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
        run = record.run(one.name)
        found.append(Trained(record.status(one.name)["status"], _curve(run), run))
    return found


def _curve(run: Path) -> Any:
    """A run's evaluations, each with the mean loss of the batches since the one before: the loss while it trains."""
    path = run / "metrics.csv"
    curve = read_table(path)[COLUMNS] if path.exists() else pd.DataFrame()
    if not len(curve):
        return pd.DataFrame([NOTHING])
    steps = read_table(run / "steps.csv")
    since = steps["loss"].groupby(np.searchsorted(curve["step"], steps["step"])).mean()
    return curve.assign(batch_loss=since.reindex(range(len(curve))).to_numpy())
