"""Two measurements beside the searches: large dampings against SGD, and trials one after another."""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from omegaconf import OmegaConf
from torch import Tensor
from tqdm import tqdm

from fisherlab.studies.fujimori2022.reruns import FIRST_SEED, KEYS
from fisherlab.studies.fujimori2022.searches import PARALLEL, tables_of
from fisherlab.studies.fujimori2022.settings import configured
from fisherlab.studies.study import Tables, read_table
from fisherlab.sweep.space import with_values

EVERY = 4  # steps between cosines
SAMPLE = 3  # trials that are timed alone


def cosines(settings: Mapping[str, Any], folder: Path, bar: tqdm[Any]) -> Tables:
    """Follow each damping's best configuration: how far does the natural gradient point from the gradient?

    Args:
        settings: The scale's.
        folder: The study's, with the base setting's trials.
        bar: Progress.

    Returns:
        cosines.csv.gz: damping, seed, step, cosine. sgd.csv: the largest damping's best configuration and SGD at the
        learning rate over the damping, each by seed.
    """
    trials = read_table(folder / tables_of("base", "tpe")[0]).dropna(subset=["value", "damping"])
    best = trials.sort_values("value").groupby("damping").head(1).sort_values("damping")
    bar.reset(len(best) + 1)
    found = []
    for trial in best.to_dict("records"):
        found.append(_follow(trial, settings).assign(damping=trial["damping"]))
        bar.update()
    twins = _twins(best.to_dict("records")[-1], settings, folder / "reruns" / "sgd")
    bar.update()
    return {"cosines.csv.gz": pd.concat(found), "sgd.csv": twins}


def _values(trial: Mapping[str, Any]) -> dict[str, float]:
    return {key: trial[key] for key in KEYS}


def _follow(trial: Mapping[str, Any], settings: Mapping[str, Any]) -> pd.DataFrame:
    from fisherlab.training.setup import prepare, resolve

    cfg = configured("base", trial["damping"], settings, torch.get_num_threads())
    seeds = range(FIRST_SEED, FIRST_SEED + settings["seeds"])
    cfgs = [resolve(with_values(cfg, {"seed": seed, **_values(trial)})) for seed in seeds]
    experiment = prepare(cfgs, (len(cfgs), 1))
    structure, kept = experiment.optimizer.preconditioner.structure, list[Tensor]()
    solve = structure.solve_mean

    def watched(gradient: Any, extra: Any = None) -> list[Tensor]:
        direction: list[Tensor] = solve(gradient, extra)
        kept[:] = [_cosine(direction, gradient.layers)]
        return direction

    structure.solve_mean = watched
    rows, base = [], experiment.optimizer.param_groups[0]["lr"]
    for step in range(1, experiment.steps + 1):
        experiment.optimizer.param_groups[0]["lr"] = base * experiment.learning_rate(step - 1)
        experiment.optimizer.step(*experiment.next_batch())
        if step % EVERY == 1:
            found = kept[0].flatten().tolist()
            rows += [{"seed": s, "step": step, "cosine": c} for s, c in zip(seeds, found, strict=True)]
    return pd.DataFrame(rows)


def _cosine(u: list[Tensor], v: list[Tensor]) -> Tensor:
    def inner(a: list[Tensor], b: list[Tensor]) -> Tensor:
        return torch.stack([(x.double() * y.double()).sum((-2, -1)) for x, y in zip(a, b, strict=True)]).sum(0)

    return inner(u, v) / (inner(u, u) * inner(v, v)).sqrt()


def _twins(trial: Mapping[str, Any], settings: Mapping[str, Any], home: Path) -> pd.DataFrame:
    """K-FAC at a damping, and SGD at lr / damping, each with the same momentum and decay."""
    from fisherlab.sweep.batch import make_job, train_jobs

    threads, rows, jobs = torch.get_num_threads(), [], []
    for method, damping, factor in (("K-FAC", trial["damping"], 1.0), ("SGD", None, 1 / trial["damping"])):
        cfg = configured("base", damping, settings, threads)
        for seed in range(FIRST_SEED, FIRST_SEED + settings["seeds"]):
            values = {"seed": seed, **_values(trial), "lr": trial["lr"] * factor}
            jobs.append(make_job(f"{method}-{seed}", with_values(cfg, values), values))
            rows.append({"method": method, "damping": trial["damping"], **values})
    with contextlib.redirect_stdout(io.StringIO()):
        record = train_jobs(home, jobs)
    ends = [record.status(job.name) for job in jobs]
    losses = [end["final"]["train_loss"] if end["status"] == "finished" else None for end in ends]
    return pd.DataFrame(rows).assign(train_loss=pd.Series(losses, dtype=float))


def one_after_another(settings: Mapping[str, Any], folder: Path, bar: tqdm[Any]) -> Tables:
    """Time trials side by side, and some of the same alone, set-up and files included.

    Args:
        settings: The scale's.
        folder: The study's, with the base setting's trials.
        bar: Progress.

    Returns:
        alone.csv: what (alone, or how many side by side), and seconds per trial.
    """
    from fisherlab.sweep.batch import make_job, train_jobs
    from fisherlab.training.run import train

    trials = read_table(folder / tables_of("base", "tpe")[0])
    trials = trials[(trials["damping"] == _middle(settings)) & (trials["state"] == "complete")].head(PARALLEL)
    cfg = configured("base", _middle(settings), settings, torch.get_num_threads())
    jobs = [make_job(str(i), with_values(cfg, _values(t)), _values(t)) for i, t in enumerate(trials.to_dict("records"))]
    bar.reset(1 + SAMPLE)
    rows = []
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        began = time.perf_counter()
        train_jobs(Path(scratch) / "together", jobs)
        rows.append({"side_by_side": len(jobs), "seconds": (time.perf_counter() - began) / len(jobs)})
        for job in jobs[:SAMPLE]:
            bar.update()
            began = time.perf_counter()
            train(OmegaConf.create(job.config), Path(scratch) / job.name)
            rows.append({"side_by_side": 1, "seconds": time.perf_counter() - began})
    return {"alone.csv": pd.DataFrame(rows).assign(threads=torch.get_num_threads())}


def _middle(settings: Mapping[str, Any]) -> float:
    """The damping that the paper finds best."""
    return min(settings["dampings"], key=lambda damping: abs(damping - 1.0))
