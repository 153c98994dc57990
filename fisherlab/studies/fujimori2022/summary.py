"""What each search came to: best trial, mean of the best, median, with bootstrap intervals over trials."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fisherlab.studies.fujimori2022.policy_verdicts import by_search
from fisherlab.studies.fujimori2022.settings import SETTINGS, SPACE
from fisherlab.studies.fujimori2022.tables import at_bounds, best_trials, trials_of
from fisherlab.studies.study import Tables, settings_of

RESAMPLES = 1000
SAMPLERS = ("tpe", "random")


def derived(folder: Path) -> Tables:
    """Summarise every search that there is.

    Args:
        folder: The study's.

    Returns:
        summary.csv: setting, sampler, damping (empty for SGD), trials, diverged (share), then best, mean_best (of the
        best third, 100 of 300) and median, each with `_low` and `_high`: a 95 % bootstrap interval over trials, which
        for TPE, whose trials are not independent, only describes; best_lr, best_momentum, and at_bound: the share of
        the best trials whose lr or momentum lies within 5 % of a bound; told: the setting in words; lr_low and
        lr_high: the range of learning rates. policy_searches.csv, where policies were searched: see `by_search`.
    """
    settings = settings_of(folder)
    rows = []
    for setting in SETTINGS:
        for sampler in SAMPLERS:
            if (trials := trials_of(folder, setting, sampler)) is None:
                continue
            for damping, one in trials.groupby("damping", dropna=False):
                count = max(1, round(len(one) * settings["best"] / settings["trials"]))
                row = {"setting": setting, "sampler": sampler, "damping": damping, **_row(one, count, setting)}
                rows.append(row | {"told": SETTINGS[setting].told, **_range(setting, damping)})
    searches = by_search(folder)
    return {"summary.csv": pd.DataFrame(rows)} | ({"policy_searches.csv": searches} if len(searches) else {})


def _range(setting: str, damping: float) -> dict[str, float]:
    """The range of learning rates."""
    factor = max(1.0, damping) if SETTINGS[setting].scaled and damping > 0 else 1.0
    return {f"lr_{end}": SPACE["lr"][end] * factor for end in ("low", "high")}


def _row(trials: Any, count: int, setting: str) -> dict[str, Any]:
    values = trials["value"].fillna(math.inf).to_numpy()  # a diverged trial is worse than any other
    quantities: dict[str, Callable[[np.ndarray], float]] = {
        "best": np.min,
        "mean_best": lambda v: float(np.sort(v)[:count].mean()),
        "median": np.median,
    }
    generator = np.random.default_rng(0)
    samples = values[generator.integers(len(values), size=(RESAMPLES, len(values)))]
    found: dict[str, Any] = {"trials": len(values), "diverged": float(np.isinf(values).mean())}
    for name, of in quantities.items():
        low, high = np.quantile([of(s) for s in samples], [0.025, 0.975], method="nearest")
        found |= {name: of(values), f"{name}_low": low, f"{name}_high": high}
    best = best_trials(trials, count)
    edges = at_bounds(best, setting)
    if len(best):
        found |= {"best_lr": best.iloc[0]["lr"], "best_momentum": best.iloc[0]["momentum"]}
    return found | {"at_bound": float((edges["lr"] | edges["momentum"]).mean())}
