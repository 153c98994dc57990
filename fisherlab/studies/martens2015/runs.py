"""One training run of the study: what it recorded, how fast it was, how much memory it took."""

from __future__ import annotations

import contextlib
import io
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from omegaconf import DictConfig
from tqdm import tqdm

from fisherlab.files import write_json
from fisherlab.studies.martens2015.problems import configured, data_of, growing, label
from fisherlab.studies.memory import forget_peak, peak
from fisherlab.studies.study import Part, Tables, read_table

MATRIX, REPEATS = 2000, 5  # of the machine's own rate
TIMED, TIMED_THREADS, TIMED_EVERY = "two_threads", 2, 100  # name, threads, and steps between its evaluations
MEASURES = ["step", "examples", "seconds", "train_loss", "train_error", "test_error", "average_error", "objective"]
MEASURES += ["cpu_seconds"]
RECIPE = ["step", "loss", "damping", "rho", "alpha", "mu", "model_change", "gamma", "untied"]


def tables_of(name: str) -> tuple[str, ...]:
    """Name a run's tables: evaluations, steps, and what it took."""
    return f"evaluations_{name}.csv", f"steps_{name}.csv.gz", f"took_{name}.csv"


def part(told: str, problem: str, name: str, cfg: DictConfig, folder: Path) -> Part:
    """Make the part of the study that trains one run.

    Args:
        told: The part's name.
        problem: A key of `PROBLEMS`.
        name: Of its tables, see `label`.
        cfg: The run's config.
        folder: The study's.

    Returns:
        The part.
    """
    return Part(told, tables_of(name), partial(trained, cfg, problem, name, folder / "runs" / name))


def grown(
    problem: str, method: str, seed: int, settings: Mapping[str, Any], folder: Path, stop: int | None = None
) -> Part:
    """A run with the growing batch.

    Args:
        problem: A key of `PROBLEMS`.
        method: A key of `METHODS`.
        seed: Of everything random.
        settings: The scale's.
        folder: The study's.
        stop: Steps, where fewer than the batch grows in.

    Returns:
        The part.
    """
    steps = stop or settings["iterations"]
    more = [*growing(problem, settings["iterations"]), f"seed={seed}"]
    # The first run is gone on with: Figure 7 looks at its last iteration.
    more += ["keep=all"] if not seed and stop is None else ["keep=nothing"]
    cfg = configured(problem, method, steps, settings["every"], *more)
    told = f"{problem}, {method}, seed {seed}" + (f" to iteration {stop}" if stop else "")
    return part(told, problem, label(problem, method, seed), cfg, folder)


def timed(problem: str, method: str, settings: Mapping[str, Any], folder: Path) -> Part:
    """The first run once more, on two threads: what it takes where nothing runs beside it.

    Args:
        problem: A key of `PROBLEMS`.
        method: A key of `METHODS`.
        settings: The scale's.
        folder: The study's.

    Returns:
        The part.
    """
    steps = settings["iterations"]
    more = [*growing(problem, steps), f"threads={TIMED_THREADS}", "keep=nothing"]
    cfg, name = configured(problem, method, steps, min(TIMED_EVERY, steps), *more), label(problem, method, TIMED)
    made = part(f"{problem}, {method}, two threads", problem, name, cfg, folder)
    return replace(made, make=partial(_on_threads, TIMED_THREADS, made.make))


def _on_threads(threads: int, make: Callable[[tqdm[Any]], Tables], bar: tqdm[Any]) -> Tables:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return make(bar)
    finally:
        torch.set_num_threads(before)


def fixed(problem: str, method: str, batch: int, settings: Mapping[str, Any], folder: Path) -> Part:
    """A run with batches of one size.

    Args:
        problem: A key of `PROBLEMS`.
        method: A key of `METHODS`.
        batch: Cases of a batch.
        settings: The scale's.
        folder: The study's.

    Returns:
        The part.
    """
    cfg = one_size(problem, method, batch, settings)
    name = label(problem, method, "batch", batch)
    return part(f"{problem}, {method}, batch {batch}", problem, name, cfg, folder)


def one_size(problem: str, method: str, batch: int, settings: Mapping[str, Any]) -> DictConfig:
    """Compose a run with batches of one size; the arguments are those of `fixed`."""
    more = [f"batch_size={batch}", "keep=nothing"]
    # As the baseline's: iteration 200 is the authors' for the growing batch.
    more += [] if method == "baseline" else ["optimizer.average_from=0"]
    steps = settings["fixed_updates"] if method == "baseline" else math.ceil(settings["fixed_cases"] / batch)
    return configured(problem, method, steps, max(1, round(steps / settings["fixed_evaluations"])), *more)


def trained(cfg: DictConfig, problem: str, name: str, home: Path, bar: tqdm[Any]) -> Tables:
    """Train a run, or go on with it; that it diverged, or that a solve failed, is an outcome.

    Args:
        cfg: Its config.
        problem: A key of `PROBLEMS`.
        name: Of its tables.
        home: Its directory.
        bar: Progress.

    Returns:
        Its tables.

    Raises:
        RuntimeError: If it failed by an error.
        KeyboardInterrupt: If it was asked to stop.
    """
    from fisherlab.training.run import resume, status_of, train

    bar.reset(cfg.steps)
    session = Session(home)

    def watch(trainer: Any) -> None:
        bar.update(trainer.step - bar.n)
        session.note()

    if not unsolved(status_of(home)):  # trained again, it would fail again
        with contextlib.redirect_stdout(io.StringIO()):
            begun = (home / "config.yaml").exists()
            result = resume(home, watch=watch) if begun else train(cfg, home, watch=watch)
        if result.status == "interrupted":
            session.note(now=True)
            raise KeyboardInterrupt
        if result.status == "failed" and not unsolved(status_of(home)):
            raise RuntimeError(f"the run in '{home}' failed: {status_of(home).get('error', 'the disk may be full')}")
    took = session.end() | {"data": data_of(problem)[0]} | how_it_ended(status_of(home))
    return dict(zip(tables_of(name), (*recorded(home), pd.DataFrame([took])), strict=True))


def unsolved(status: Mapping[str, Any]) -> bool:
    """Whether a run failed because a matrix could not be factorised, not by an error, which leaves its traceback.

    Args:
        status: Its status.json.

    Returns:
        False also for one that has not failed.
    """
    return status.get("status") == "failed" and "traceback" not in status


def how_it_ended(status: Mapping[str, Any]) -> dict[str, Any]:
    """What of a run's status.json goes into the tables.

    Args:
        status: It.

    Returns:
        finished, diverged or failed; the last step; why, in one line, where there is something to tell.
    """
    return {
        "status": status["status"],
        "last_step": status.get("step"),
        "message": status.get("error", status.get("message")),
    }


def recorded(run: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read what a run recorded.

    Args:
        run: Its directory.

    Returns:
        Its evaluations, and its steps, without the columns that are empty.
    """
    found = []
    for table, columns in (("metrics.csv", MEASURES), ("steps.csv", RECIPE)):
        rows = read_table(run / table)
        found.append(rows[[c for c in columns if c in rows and rows[c].notna().any()]])
    return found[0], found[1]


def error(evaluations: Any) -> Any:
    """The paper's measure: the training error of the iterate or of the averaged iterates, whichever is less."""
    both = [c for c in ("train_error", "average_error") if c in evaluations]
    return evaluations[both].min(axis=1)


class Session:
    """What the machine and a run took, over all sessions in which it was trained: each is kept beside the run.

    Args:
        home: The run's directory, which may not exist yet.
    """

    def __init__(self, home: Path) -> None:
        self.path = home.with_name(f"{home.name}.sessions.json")
        self.earlier: list[dict[str, Any]] = json.loads(self.path.read_text())["sessions"] if self.path.exists() else []
        forget_peak()
        self._began, self._noted = (time.perf_counter(), time.process_time()), -math.inf
        self.rate = product_rate()

    def note(self, *, now: bool = False) -> None:
        """Write down how it stands: a session may be killed.

        Args:
            now: Whether to do so even if that was done within the last ten seconds.
        """
        clock = time.perf_counter()
        if not now and clock - self._noted < 10:
            return
        self._noted = clock
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, {"sessions": [*self.earlier, self._own()]})

    def _own(self) -> dict[str, Any]:
        spent = time.perf_counter() - self._began[0], time.process_time() - self._began[1]
        return {"product_rate": self.rate, "peak_gib": peak(), "seconds": spent[0], "cpu_seconds": spent[1]}

    def end(self) -> dict[str, Any]:
        """Measure the machine again, and sum up.

        Returns:
            The best rate of products and the most memory of all sessions, and their time with all that it went to.
        """
        self.rate = max(self.rate, product_rate())
        self.note(now=True)
        every = pd.DataFrame([*self.earlier, self._own()])
        told = {"product_rate": every["product_rate"].max(), "threads": torch.get_num_threads()}
        told |= {"peak_gib": every["peak_gib"].astype(float).max(), "sessions": len(every)}
        return told | {f"{key}_in_all": round(every[key].sum(), 1) for key in ("seconds", "cpu_seconds")}


def product_rate() -> float:
    """Measure the machine: float32 matrix products with the threads that are set.

    Returns:
        GFLOP per processor second, the best of a few.
    """
    a = torch.rand(MATRIX, MATRIX)
    seconds = []
    for _ in range(REPEATS):
        began = time.process_time()  # elapsed time would count what else runs
        a @ a
        seconds.append(time.process_time() - began)
    return round(2 * MATRIX**3 / min(seconds) / 1e9, 2)
