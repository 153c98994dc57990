"""The baseline: Nesterov's method with the schedule and grid of Sutskever et al. (2013), and the best of it run long.

The schedule mu_t = min(1 - 2^(-1 - log2(floor(t / 250) + 1)), mu_max) reaches 0.875 within the 1 000 updates of the
grid, so that all mu_max of 0.9 and above are one and the same run there: it is made once, and where it wins, every
mu_max that differs later goes on to the end.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig
from tqdm import tqdm

from fisherlab.optim.presets import scheduled_momentum
from fisherlab.studies.martens2015.problems import PROBLEMS, configured, label
from fisherlab.studies.martens2015.runs import error, one_size, product_rate, recorded, tables_of, trained
from fisherlab.studies.study import Part, Tables, read_table
from fisherlab.sweep.space import with_values

RATES = (0.05, 0.01, 0.005, 0.001, 0.0005, 0.0001)
MOMENTA = (0.999, 0.995, 0.99, 0.9, 0.0)
GRID = "grid_{}.csv".format


def parts(problem: str, settings: Mapping[str, Any], folder: Path) -> list[Part]:
    """Make the two parts of a problem's baseline.

    Args:
        problem: A key of `PROBLEMS`.
        settings: The scale's.
        folder: The study's.

    Returns:
        The grid, and its best to the end.
    """
    name = label(problem, "baseline", 0)
    return [
        Part(f"{problem}, baseline's grid", (GRID(problem),), partial(_grid, problem, settings, folder)),
        Part(
            f"{problem}, baseline",
            (*tables_of(name), f"finalists_{problem}.csv"),
            partial(_best, problem, settings, folder, name),
            needs=(GRID(problem),),
        ),
    ]


def fixed(problem: str, batch: int, settings: Mapping[str, Any], folder: Path) -> Part:
    """Make the part that trains the grid's best setting with batches of another size.

    Args:
        problem: A key of `PROBLEMS`.
        batch: Cases of a batch.
        settings: The scale's.
        folder: The study's.

    Returns:
        The part.
    """
    name = label(problem, "baseline", "batch", batch)

    def make(bar: tqdm[Any]) -> Tables:
        won = read_table(folder / tables_of(label(problem, "baseline", 0))[2]).iloc[0]
        values = {"lr": float(won["lr"]), "momentum": float(won["momentum"])}
        cfg = with_values(one_size(problem, "baseline", batch, settings), values)
        return trained(cfg, name, folder / "runs" / name, bar)

    needs = tables_of(label(problem, "baseline", 0))
    return Part(f"{problem}, baseline, batch {batch}", tables_of(name), make, needs)


def momenta(largest: float, updates: int) -> tuple[float, ...]:
    """The momentum of each stage of 250 updates: settings with the same are the same run.

    Args:
        largest: mu_max.
        updates: How many.

    Returns:
        One number per stage.
    """
    return tuple(min(scheduled_momentum(t), largest) for t in range(0, updates, 250))


def distinct(largest: tuple[float, ...], updates: int) -> dict[float, float]:
    """Which mu_max stands for each: the first one with the same schedule.

    Args:
        largest: mu_max.
        updates: How many.

    Returns:
        The representative of each.
    """
    first: dict[tuple[float, ...], float] = {}
    return {mu: first.setdefault(momenta(mu, updates), mu) for mu in largest}


def length(problem: str, settings: Mapping[str, Any]) -> int:
    """Updates that take as many cases as the run with the growing batch, rounded up to hundreds.

    Args:
        problem: A key of `PROBLEMS`.
        settings: The scale's.

    Returns:
        How many.
    """
    from fisherlab.training.schedule import BatchSize
    from fisherlab.training.setup import prepare, resolve

    one = PROBLEMS[problem]
    examples = len(prepare(resolve(configured(problem, "baseline", 1, 1))).dataset.splits["train"])
    size = BatchSize(one.first_batch, examples, settings["iterations"])
    cases = sum(size(step) for step in range(settings["iterations"]))
    return math.ceil(cases / one.baseline_batch / 100) * 100


def _grid(problem: str, settings: Mapping[str, Any], folder: Path, bar: tqdm[Any]) -> Tables:
    """Each of the 30 settings for as many updates; which other one stands for it is told."""
    updates = settings["grid_updates"]
    stands = distinct(MOMENTA, updates)
    cells = [(lr, mu) for lr in RATES for mu in dict.fromkeys(stands.values())]
    cfg = _configured(problem, updates, updates)
    ends, _ = _train(cfg, cells, folder / "runs" / f"grid_{problem}", bar)
    rows = []
    for lr in RATES:
        for mu in MOMENTA:
            rows.append({"lr": lr, "momentum": mu, "same_as": stands[mu], **ends[lr, stands[mu]]})
    return {GRID(problem): pd.DataFrame(rows)}


def _best(problem: str, settings: Mapping[str, Any], folder: Path, name: str, bar: tqdm[Any]) -> Tables:
    """The grid's best setting to the end, and those that were one with it there."""
    grid = read_table(folder / GRID(problem))
    if not grid["train_error"].notna().any():
        raise RuntimeError(f"all {len(grid)} settings of {problem}'s baseline diverged: there is no best one")
    best = grid.sort_values("train_error").iloc[0]
    updates = length(problem, settings)
    tied = grid[(grid["lr"] == best["lr"]) & (grid["same_as"] == best["same_as"])]["momentum"]
    cells = [(float(best["lr"]), mu) for mu in dict.fromkeys(distinct(tuple(tied), updates).values())]
    rates = [product_rate()]
    ends, homes = _train(_configured(problem, updates, settings["baseline_every"]), cells, folder / "runs" / name, bar)
    rates.append(product_rate())
    won = min(cells, key=lambda cell: ends[cell].get("train_error", math.inf))
    evaluations, steps = recorded(homes[won])
    finalists = pd.DataFrame([{"lr": lr, "momentum": mu, **ends[lr, mu]} for lr, mu in cells])
    took = {"product_rate": max(rates), "side_by_side": len(cells), "status": ends[won]["status"]}
    tables = (evaluations, steps.iloc[::10], pd.DataFrame([took | {"lr": won[0], "momentum": won[1]}]), finalists)
    return dict(zip((*tables_of(name), f"finalists_{problem}.csv"), tables, strict=True))


def _configured(problem: str, updates: int, every: int) -> DictConfig:
    batch = PROBLEMS[problem].baseline_batch
    return configured(problem, "baseline", updates, every, f"batch_size={batch}", "keep=nothing")


def _train(
    cfg: DictConfig, cells: list[tuple[float, float]], home: Path, bar: tqdm[Any]
) -> tuple[dict[tuple[float, float], dict[str, Any]], dict[tuple[float, float], Path]]:
    """Train settings side by side; gives how each ended, and where it is."""
    from fisherlab.sweep.batch import make_job, train_jobs

    bar.reset(len(cells))
    values = {cell: {"lr": cell[0], "momentum": cell[1]} for cell in cells}
    jobs = {cell: make_job(f"{cell[0]:g}-{cell[1]:g}", with_values(cfg, v), v) for cell, v in values.items()}
    with contextlib.redirect_stdout(io.StringIO()):
        record = train_jobs(home, list(jobs.values()))
    ends, homes = {}, {}
    for cell, one in jobs.items():
        status, homes[cell] = record.status(one.name), record.run(one.name)
        ends[cell] = {"status": status["status"], "step": status.get("step")}
        if status["status"] == "finished":
            last = recorded(homes[cell])[0].iloc[[-1]]
            ends[cell] |= {"train_error": float(error(last).iloc[0]), "train_loss": float(last["train_loss"].iloc[0])}
        bar.update()
    return ends, homes
