"""What a step of each method costs: single runs in turn, with the factorisations' share."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from fisherlab.studies.study import Part, Tables
from fisherlab.studies.sun2017.settings import RERATED, configured
from fisherlab.sweep.space import with_values

TABLE = "cost.csv"
STEPS = 20  # of a round
ON = ("dataset", "splits", "batch", "l2", "nets", "methods", "variants", "rounds")  # the settings that it depends on
QUIET = 0.1  # cores that other processes may keep busy where a measurement counts as one alone


def parts(settings: Mapping[str, Any]) -> list[Part]:
    """List the one part.

    Args:
        settings: The scale's.

    Returns:
        The cost of a step.
    """
    return [Part("cost of a step", (TABLE,), partial(_cost, settings), settings=ON)]


def _cost(settings: Mapping[str, Any], bar: tqdm[Any]) -> Tables:
    """Time steps of single runs, all methods in turn."""
    runs = _prepared(settings)
    bar.reset(settings["rounds"] + 1)
    rows, busy, began = [], _others(), time.perf_counter()
    for turn in range(settings["rounds"] + 1):
        order = list(runs.items())
        for (net, method), experiment in order[turn % len(order) :] + order[: turn % len(order)]:
            numbers = _timed(experiment)
            if turn:  # the first warms up
                rows.append({"net": net, "method": method, "round": turn, **numbers})
        bar.update()
    others = (_others() - busy) / (time.perf_counter() - began)
    return {TABLE: pd.DataFrame(rows).assign(threads=torch.get_num_threads(), others=round(others, 3))}


def _prepared(settings: Mapping[str, Any]) -> dict[tuple[str, str], Any]:
    """A run of every method on every net, all of them on one copy of the data."""
    from fisherlab.training.setup import prepare, resolve

    runs: dict[tuple[str, str], Any] = {}
    for net in settings["nets"]:
        variants = [v for v in settings["variants"] if v not in RERATED] if net == settings["nets"][0] else []
        for method in [*settings["methods"], *variants]:
            experiment = prepare(resolve(with_values(configured(net, method, 1, settings), {"lr": 1e-4})))
            experiment.datasets = next(iter(runs.values()), experiment).datasets  # one seed, so one split
            _seconds(experiment, 1)  # which starts the averages
            runs[net, method] = experiment
    return runs


def _others() -> float:
    """Seconds that the processors have spent on other processes; not a number where /proc does not tell."""
    try:
        with Path("/proc/stat").open() as file:
            user, nice, system = map(int, file.readline().split()[1:4])
    except (OSError, ValueError):
        return math.nan
    return (user + nice + system) / os.sysconf("SC_CLK_TCK") - time.process_time()


def _timed(experiment: Any) -> dict[str, float]:
    """Milliseconds of a step without a factorisation, what a factorisation adds, and in how many steps there is one."""
    pre = experiment.optimizer.preconditioner
    period = 1 if pre is None else pre.inverse_period
    if pre is not None:
        pre.step = 2 * period + 1  # where none is due for some steps
    seconds, refresh = _seconds(experiment, STEPS), 0.0
    if period > 1:
        pre.step = 3 * period - bool(pre.inverse_early)
        refresh = max(0.0, _seconds(experiment, 1) - seconds)
    return {"ms": seconds * 1e3, "refresh_ms": refresh * 1e3, "period": period}


def _seconds(experiment: Any, steps: int) -> float:
    batches = [experiment.next_batch() for _ in range(steps)]
    began = time.perf_counter()
    for x, y in batches:
        experiment.optimizer.step(x, y)
    return (time.perf_counter() - began) / steps


def by_round(cost: Any, net: str) -> Any:
    """Milliseconds of a step of every method, its share of the factorisations included.

    Args:
        cost: The table.
        net: A key of `NETS`.

    Returns:
        A row per round, a column per method.
    """
    own = cost[cost["net"] == net]
    return own.assign(whole=own["ms"] + own["refresh_ms"] / own["period"]).pivot(
        index="round", columns="method", values="whole"
    )


def alone_on_two_threads(cost: Any) -> bool:
    """Tell whether the bar on the cost of a step can be judged.

    Args:
        cost: The table.

    Returns:
        Whether it was measured with two threads, and other processes were idle.
    """
    return bool((cost["threads"] == 2).all() and (cost["others"] < QUIET).all())
