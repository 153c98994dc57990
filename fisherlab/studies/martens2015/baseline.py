"""The baseline: Nesterov's method with the schedule and grid of Sutskever et al. (2013), and the best of it run long.

The schedule mu_t = min(1 - 2^(-1 - log2(floor(t / 250) + 1)), mu_max) reaches 0.875 within the 1 000 updates of the
grid, so that all mu_max of 0.9 and above are one and the same run there: it is made once. Where it wins, each mu_max
that is another run later goes on to the end: within the cases of the K-FAC run (mu_t up to 0.991) 0.999, 0.995 and
0.99 are still one, to two decimals, 0.9 is not, and the grid cannot tell which is the best one. Nor can it tell which
learning rate is best at those momenta: the next best one goes on to the end too.
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
from fisherlab.studies.martens2015.problems import PROBLEMS, configured, data_of, label
from fisherlab.studies.martens2015.runs import MEASURES, Session, error, one_size, recorded, tables_of, trained
from fisherlab.studies.study import Part, Tables, read_table
from fisherlab.sweep.space import with_values

RATES = (0.05, 0.01, 0.005, 0.001, 0.0005, 0.0001)
MOMENTA = (0.999, 0.995, 0.99, 0.9, 0.0)
TOGETHER = 3  # settings of the grid side by side: more of them train slower each, the caches being small
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
        if "lr" not in won:
            return dict(zip(tables_of(name), _nothing(problem, "the grid has no best setting"), strict=True))
        values = {"lr": float(won["lr"]), "momentum": float(won["momentum"])}
        cfg = with_values(one_size(problem, "baseline", batch, settings), values)
        return trained(cfg, problem, name, folder / "runs" / name, bar)

    needs = tables_of(label(problem, "baseline", 0))
    return Part(f"{problem}, baseline, batch {batch}", tables_of(name), make, needs)


def momenta(largest: float, updates: int) -> tuple[float, ...]:
    """The momentum of each stage of 250 updates: settings with the same are as good as the same run.

    Args:
        largest: mu_max.
        updates: How many.

    Returns:
        One number per stage, to two decimals.
    """
    return tuple(round(min(scheduled_momentum(t), largest), 2) for t in range(0, updates, 250))


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

    one = PROBLEMS[problem]
    size = BatchSize(one.first_batch, data_of(problem)[1], settings["iterations"])
    cases = sum(size(step) for step in range(settings["iterations"]))
    return math.ceil(cases / one.baseline_batch / 100) * 100


def rivals(folder: Path, problem: str) -> str:
    """Tell how near the grid's next best setting came, of those that are another run there.

    Args:
        folder: The study's.
        problem: A key of `PROBLEMS`.

    Returns:
        In brackets; nothing where there is no grid, or nothing beside its best.
    """
    path = folder / GRID(problem)
    if not path.exists():
        return ""
    grid = read_table(path).dropna(subset="train_error").drop_duplicates(["lr", "same_as"]).sort_values("train_error")
    if len(grid) < 2:
        return ""
    best, other = (grid.iloc[i] for i in range(2))
    told = f"after {best['step']:.0f} updates of the grid lr {best['lr']:g}: {best['train_error']:.4g}"
    return f" ({told}, next lr {other['lr']:g}, mu_max {other['momentum']:g}: {other['train_error']:.4g})"


def _grid(problem: str, settings: Mapping[str, Any], folder: Path, bar: tqdm[Any]) -> Tables:
    """Each of the 30 settings for as many updates; which other one stands for it is told."""
    updates = settings["grid_updates"]
    stands = distinct(MOMENTA, updates)
    cells = [(lr, mu) for lr in RATES for mu in dict.fromkeys(stands.values())]
    cfg = _configured(problem, updates, updates)
    ends, _ = _train(cfg, cells, folder / "runs" / f"grid_{problem}", bar, TOGETHER)
    rows = []
    for lr in RATES:
        for mu in MOMENTA:
            rows.append({"lr": lr, "momentum": mu, "same_as": stands[mu], **ends[lr, stands[mu]]})
    return {GRID(problem): pd.DataFrame(rows)}


def _best(problem: str, settings: Mapping[str, Any], folder: Path, name: str, bar: tqdm[Any]) -> Tables:
    """The grid's best setting to the end, with those that were one with it only there, and the next learning rate."""
    grid = read_table(folder / GRID(problem))
    files = (*tables_of(name), f"finalists_{problem}.csv")
    if not grid["train_error"].notna().any():
        return dict(zip(files, (*_nothing(problem, "every setting of the grid diverged"), grid), strict=True))
    best = grid.sort_values("train_error").iloc[0]
    updates, home = length(problem, settings), folder / "runs" / name
    tied = grid[(grid["lr"] == best["lr"]) & (grid["same_as"] == best["same_as"])]["momentum"]
    stands = distinct(tuple(tied), updates)
    cells = [(float(best["lr"]), mu) for mu in dict.fromkeys(stands.values())]
    others = grid[(grid["lr"] != best["lr"]) & grid["train_error"].notna()].sort_values("train_error")
    cells += [(float(lr), float(mu)) for lr, mu in others[["lr", "momentum"]].to_numpy()[:1]]
    session = Session(home)
    try:
        session.note(now=True)
        # Alone each: figures against seconds are made from such runs.
        ends, homes = _train(_configured(problem, updates, settings["baseline_later"]), cells, home, bar, 1)
        won = min(cells, key=lambda cell: ends[cell].get("train_error", math.inf))
        first = _configured(problem, min(updates, settings["baseline_later"]), settings["baseline_every"])
        _, early = _train(first, [won], home.with_name(f"{name}_first"), bar, 1)
    finally:
        took = session.end()
    evaluations, steps = recorded(homes[won])
    same = {mu: " ".join(f"{own:g}" for own in tied if stands[own] == mu) for mu in stands.values()}
    finalists = pd.DataFrame([{"lr": lr, "momentum": mu, **ends[lr, mu]} for lr, mu in cells])
    finalists["stands_for"] = [same[mu] if lr == best["lr"] else f"{mu:g}" for lr, mu in cells]
    took |= {"data": data_of(problem)[0], "lr": won[0], "momentum": won[1], "status": ends[won]["status"]}
    took |= {"last_step": ends[won]["step"]}
    tables = (joined(recorded(early[won])[0], evaluations), steps.iloc[::10], pd.DataFrame([took]), finalists)
    return dict(zip(files, tables, strict=True))


def joined(early: pd.DataFrame, later: pd.DataFrame) -> pd.DataFrame:
    """Put evaluations of a run's beginning, made again to evaluate more often, before those of the run itself.

    Args:
        early: Up to a step at which both were evaluated.
        later: From the start to the end.

    Returns:
        One table; seconds of the beginning are scaled to agree where both were evaluated.
    """
    both = sorted(set(early["step"]) & set(later["step"]))
    more = early[~early["step"].isin(both)].copy()
    for clock in ("seconds", "cpu_seconds"):
        ends = [table.set_index("step")[clock][both[-1]] for table in (early, later)]
        more[clock] *= ends[1] / ends[0] if ends[0] > 0 else 1.0
    return pd.concat([more, later]).sort_values("step", ignore_index=True)


def _nothing(problem: str, why: str) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """The tables of a run for which there was no setting."""
    took = {"data": data_of(problem)[0], "status": "diverged", "message": why}
    return pd.DataFrame(columns=MEASURES), pd.DataFrame(columns=["step", "loss"]), pd.DataFrame([took])


def _configured(problem: str, updates: int, every: int) -> DictConfig:
    batch = PROBLEMS[problem].baseline_batch
    return configured(problem, "baseline", updates, every, f"batch_size={batch}", "keep=nothing")


def _train(
    cfg: DictConfig, cells: list[tuple[float, float]], home: Path, bar: tqdm[Any], most: int
) -> tuple[dict[tuple[float, float], dict[str, Any]], dict[tuple[float, float], Path]]:
    """Train settings, so many at most side by side; gives how each ended, and where it is."""
    from fisherlab.sweep.batch import make_job, train_jobs

    bar.reset(len(cells))
    values = {cell: {"lr": cell[0], "momentum": cell[1]} for cell in cells}
    jobs = {cell: make_job(f"{cell[0]:g}-{cell[1]:g}", with_values(cfg, v), v) for cell, v in values.items()}
    with contextlib.redirect_stdout(io.StringIO()):
        record = train_jobs(home, list(jobs.values()), most)
    ends, homes = {}, {}
    for cell, one in jobs.items():
        status, homes[cell] = record.status(one.name), record.run(one.name)
        if "traceback" in status:
            raise RuntimeError(f"the run in '{homes[cell]}' failed: {status.get('error')}")
        ends[cell] = {"status": status["status"], "step": status.get("step")}
        if status["status"] == "finished":
            last = recorded(homes[cell])[0].iloc[[-1]]
            ends[cell] |= {"train_error": float(error(last).iloc[0]), "train_loss": float(last["train_loss"].iloc[0])}
        bar.update()
    return ends, homes
