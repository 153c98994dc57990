"""Beyond the paper: damping policies under the same budget, each with independent searches and fresh seeds."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from omegaconf import DictConfig
from tqdm import tqdm

from fisherlab.config import compose, job
from fisherlab.studies.fujimori2022.reruns import FIRST_SEED
from fisherlab.studies.fujimori2022.searches import PARALLEL, run_to
from fisherlab.studies.fujimori2022.settings import BASE, KFAC, SPACE
from fisherlab.studies.study import Part, Tables, gathered
from fisherlab.sweep.space import read_space, with_values

RANGE = {"low": 1e-5, "high": 1e2, "log": True}
NONE = "no trial finished"
HELD_OUT = (2000, 2001, 2002)  # seeds on which a search's winner is chosen among its best trials
TIMED, ROUNDS = 10, 30  # steps of a round, and rounds, of the cost of a policy
TRIALS, ENDS = "trials_policies_{}.csv.gz".format, "reruns_policies_{}.csv".format  # tables of a net


@dataclass(frozen=True)
class Policy:
    """A damping policy, and what of it is searched.

    Attributes:
        overrides: That choose it, with values which the search replaces.
        space: What is searched beside learning rate, momentum and end of the linear decay.
    """

    overrides: tuple[str, ...]
    space: Mapping[str, Any]


def _named(name: str, *ends: str) -> tuple[str, ...]:
    return (f"damping={name}", *(f"optimizer.{end}=1.0" for end in ends))


BOTH = {"optimizer": {"damping_start": RANGE, "damping_end": RANGE}}
POLICIES: Mapping[str, Policy] = {
    "constant": Policy(("damping=1.0",), {"damping": RANGE}),
    "linear": Policy(_named("linear", "damping_start", "damping_end"), BOTH),
    "exponential": Policy(_named("exponential", "damping_start", "damping_end"), BOTH),
    "lm": Policy(_named("lm", "damping_start", "damping_end"), BOTH),
    "settling": Policy(_named("settling", "damping_start", "damping_end"), BOTH),
}
NETS: Mapping[str, tuple[str, ...]] = {
    "deep_linear": ("model=deep_linear",),
    "mlp": ("model=mlp",),
    "autoencoder": ("model=autoencoder", "optimizer.damping_mode=factored"),  # whose eigenbases would cost too much
}


def parts(settings: Mapping[str, Any], folder: Path) -> list[Part]:
    """List the parts of the comparison.

    Args:
        settings: The scale's.
        folder: The study's.

    Returns:
        One part for each net, and the cost of a policy.
    """
    nets = [(net, settings["policy_trials"], settings["policy_searches"]) for net in settings["policy_nets"]]
    nets += [("autoencoder", settings["autoencoder_trials"], 1)] if settings["autoencoder_trials"] else []
    found = [_part(net, trials, searches, settings, folder) for net, trials, searches in nets]
    return [*found, Part("cost of policies", ("policy_cost.csv",), partial(_cost, settings))] if found else []


def configured(net: str, policy: str, settings: Mapping[str, Any]) -> DictConfig:
    """Compose the training of a net under a policy.

    Args:
        net: A key of `NETS`.
        policy: A key of `POLICIES`.
        settings: The scale's.

    Returns:
        The config, not resolved.
    """
    scale = [f"dataset={settings['dataset']}", f"steps={settings['steps']}", "histogram_steps=[]"]
    # The net comes last: it may choose the damping mode.
    chosen = [*BASE, *KFAC, *POLICIES[policy].overrides, *NETS[net], *scale, f"threads={torch.get_num_threads()}"]
    return job(compose(list({text.partition("=")[0]: text for text in chosen}.values())))


def _part(net: str, trials: int, searches: int, settings: Mapping[str, Any], folder: Path) -> Part:
    every = [(policy, search) for policy in POLICIES for search in range(searches)]
    pieces = {f"{p} {s}": partial(_searched, net, p, s, trials, settings, folder) for p, s in every}
    tables = (TRIALS(net), ENDS(net))
    return Part(f"policies, {net}", tables, partial(gathered, tables, pieces.values()), pieces=pieces)


def _searched(
    net: str, policy: str, search: int, trials: int, settings: Mapping[str, Any], folder: Path, bar: tqdm[Any]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One search of a policy, or what is left of it, and its winner on fresh seeds."""
    home, own = (folder / what / "policies" / net / policy / str(search) for what in ("searches", "reruns"))
    found, finalists = _search(net, policy, search, trials, settings, home, bar)
    rerun = _rerun(net, policy, _winner(net, policy, finalists, settings, own / "finalists"), settings, own)
    return found.assign(policy=policy, search=search), rerun.assign(policy=policy, search=search)


def _search(
    net: str, policy: str, number: int, trials: int, settings: Mapping[str, Any], home: Path, bar: tqdm[Any]
) -> tuple[pd.DataFrame, list[dict[str, float]]]:
    """Search, or go on; gives the trials, and the numbers of the best that finished."""
    from fisherlab.sweep.search import Search
    from fisherlab.sweep.trials import trials_table

    cfg = configured(net, policy, settings)
    space = read_space({**SPACE, **POLICIES[policy].space}, cfg)
    parallel = PARALLEL if net != "autoencoder" else PARALLEL // 5
    search = Search(cfg, space, home, sampler_seed=number, parallel=parallel)
    run_to(search, trials, bar)
    complete = sorted((t for t in search.trials if t.state.name == "COMPLETE"), key=lambda t: t.value)
    count = settings["policy_finalists"] if net != "autoencoder" else 1
    return trials_table(search).drop(columns=["message"]), [t.params for t in complete[:count]]


def _winner(
    net: str, policy: str, finalists: list[dict[str, float]], settings: Mapping[str, Any], home: Path
) -> dict[str, float] | None:
    """The finalist that diverges on the fewest held-out seeds, and of those the one with the lowest loss."""
    # A search has but one seed: its best trial may lie so close to what diverges that it does on most others.
    if len(finalists) < 2:
        return finalists[0] if finalists else None
    ends = _trained(net, policy, finalists, HELD_OUT, settings, home)
    ranked = ends.assign(lost=ends["status"] != "finished", log=np.log(ends["train_loss"].astype(float)))
    best = ranked.groupby("finalist")[["lost", "log"]].mean().sort_values(["lost", "log"])
    return finalists[int(best.index[0])]


def _rerun(
    net: str, policy: str, best: dict[str, float] | None, settings: Mapping[str, Any], home: Path
) -> pd.DataFrame:
    """Train the winner on fresh seeds; a search of which every trial diverged has none, and counts so."""
    seeds = range(FIRST_SEED, FIRST_SEED + (settings["seeds"] if net != "autoencoder" else min(5, settings["seeds"])))
    if best is None:
        return pd.DataFrame([{"seed": seed, "status": NONE, "train_loss": None} for seed in seeds])
    return _trained(net, policy, [best], seeds, settings, home).drop(columns="finalist")


def _trained(
    net: str,
    policy: str,
    finalists: Sequence[Mapping[str, float]],
    seeds: Sequence[int],
    settings: Mapping[str, Any],
    home: Path,
) -> pd.DataFrame:
    """Train configurations on some seeds, all of them side by side."""
    from fisherlab.sweep.batch import make_job, train_jobs

    cfg = configured(net, policy, settings)
    runs = [(i, seed, {**one, "seed": seed}) for i, one in enumerate(finalists) for seed in seeds]
    jobs = [make_job(f"{i}-{seed}", with_values(cfg, values), values) for i, seed, values in runs]
    with contextlib.redirect_stdout(io.StringIO()):
        record = train_jobs(home, jobs, PARALLEL if net != "autoencoder" else PARALLEL // 5)
    rows = []
    for (i, seed, _), one in zip(runs, jobs, strict=True):
        end = record.status(one.name)
        loss = end["final"]["train_loss"] if end["status"] == "finished" else None
        ended = {"seed": seed, "status": end["status"], "train_loss": loss}
        rows.append({"finalist": i, **ended, **finalists[i]})
    return pd.DataFrame(rows)


def _cost(settings: Mapping[str, Any], bar: tqdm[Any]) -> Tables:
    """Time the steps of one run under each policy, interleaved; in processor time, which neighbours disturb less."""
    from fisherlab.training.setup import prepare, resolve

    experiments = {p: prepare(resolve(configured("deep_linear", p, settings))) for p in POLICIES}
    bar.reset(ROUNDS)
    rows = []
    for turn in range(ROUNDS + 1):
        order = list(experiments.items())
        for policy, experiment in order[turn % len(order) :] + order[: turn % len(order)]:  # nobody is always first
            began = time.process_time()
            for _ in range(TIMED):
                experiment.optimizer.step(*experiment.next_batch())
            if turn:  # the first warms up
                rows.append({"policy": policy, "round": turn, "ms": (time.process_time() - began) / TIMED * 1e3})
        bar.update()
    return {"policy_cost.csv": pd.DataFrame(rows).assign(threads=torch.get_num_threads())}
