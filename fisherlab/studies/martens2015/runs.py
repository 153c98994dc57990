"""One training run of the study: what it recorded, how fast it was, how much memory it took."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from omegaconf import DictConfig
from tqdm import tqdm

from fisherlab.studies.martens2015.problems import configured, growing, label
from fisherlab.studies.memory import forget_peak, peak
from fisherlab.studies.study import Part, Tables, read_table

MATRIX, REPEATS = 2000, 5  # of the machine's own rate
OPERATIONS = "operations_{}.csv".format
MEASURES = ["step", "examples", "seconds", "train_loss", "train_error", "test_error", "average_error", "objective"]
RECIPE = ["step", "loss", "damping", "rho", "alpha", "mu", "model_change", "gamma"]


def tables_of(name: str) -> tuple[str, ...]:
    """Name a run's tables: evaluations, steps, and what it took."""
    return f"evaluations_{name}.csv", f"steps_{name}.csv.gz", f"took_{name}.csv"


def part(told: str, name: str, cfg: DictConfig, folder: Path) -> Part:
    """Make the part of the study that trains one run.

    Args:
        told: The part's name.
        name: Of its tables, see `label`.
        cfg: The run's config.
        folder: The study's.

    Returns:
        The part.
    """
    return Part(told, tables_of(name), partial(trained, cfg, name, folder / "runs" / name))


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
    return part(told, label(problem, method, seed), cfg, folder)


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
    return part(f"{problem}, {method}, batch {batch}", label(problem, method, "batch", batch), cfg, folder)


def one_size(problem: str, method: str, batch: int, settings: Mapping[str, Any]) -> DictConfig:
    """Compose a run with batches of one size; the arguments are those of `fixed`."""
    more = [f"batch_size={batch}", "keep=nothing"]
    return configured(problem, method, settings["fixed_iterations"], settings["every"], *more)


def trained(cfg: DictConfig, name: str, home: Path, bar: tqdm[Any]) -> Tables:
    """Train a run, or go on with it.

    Args:
        cfg: Its config.
        name: Of its tables.
        home: Its directory.
        bar: Progress.

    Returns:
        Its tables.

    Raises:
        RuntimeError: If it failed.
        KeyboardInterrupt: If it was asked to stop.
    """
    from fisherlab.training.run import resume, train

    bar.reset(cfg.steps)

    def watch(trainer: Any) -> None:
        bar.update(trainer.step - bar.n)

    forget_peak()
    rates = [product_rate()]
    with contextlib.redirect_stdout(io.StringIO()):
        begun = (home / "config.yaml").exists()
        result = resume(home, watch=watch) if begun else train(cfg, home, watch=watch)
    rates.append(product_rate())
    if result.status == "interrupted":
        raise KeyboardInterrupt
    if result.status == "failed":
        raise RuntimeError(f"the run in '{home}' failed: see its status.json")
    took = {"product_rate": max(rates), "threads": torch.get_num_threads(), "peak_gib": peak(), "status": result.status}
    return dict(zip(tables_of(name), (*recorded(home), pd.DataFrame([took])), strict=True))


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


def product_rate() -> float:
    """Measure the machine: float32 matrix products with the threads that are set.

    Returns:
        GFLOP/s, the best of a few.
    """
    a = torch.rand(MATRIX, MATRIX)
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - began)
    return round(2 * MATRIX**3 / min(seconds) / 1e9, 2)


def operations(problem: str, methods: Sequence[str], settings: Mapping[str, Any], bar: tqdm[Any]) -> Tables:
    """Count the operations of products in steps of a method, per case and per step.

    Twenty steps hold everything that recurs (T_1, T_2, T_3), the first three aside; two batch sizes tell what grows
    with the batch. Factorisations are not counted.

    Args:
        problem: A key of `PROBLEMS`.
        methods: Keys of `METHODS`.
        settings: The scale's.
        bar: Progress.

    Returns:
        operations_PROBLEM.csv: method, giga-operations per case and per step.
    """
    bar.reset(len(methods) * 2)
    rows = []
    for method in methods:
        counts = {}
        for batch in (160, 320):
            counts[batch] = _count(problem, method, batch)
            bar.update()
        per_case = (counts[320] - counts[160]) / 160
        rows.append({"method": method, "per_case": per_case, "per_step": counts[160] - 160 * per_case})
    return {OPERATIONS(problem): pd.DataFrame(rows)}


def _count(problem: str, method: str, batch: int) -> float:
    """Giga-operations of a step, the mean of twenty."""
    from torch.utils.flop_counter import FlopCounterMode

    from fisherlab.training.setup import prepare, resolve

    experiment = prepare(resolve(configured(problem, method, 40, 40, f"batch_size={batch}")))
    for _ in range(20):
        experiment.optimizer.step(*experiment.next_batch())
    with FlopCounterMode(display=False) as counter:
        for _ in range(20):
            experiment.optimizer.step(*experiment.next_batch())
    return counter.get_total_flops() / 20 / 1e9
