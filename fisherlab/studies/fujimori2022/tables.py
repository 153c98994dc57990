"""The tables of the searches, and of their best trials on fresh seeds, as the verdicts and the summary read them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fisherlab.studies.fujimori2022.searches import tables_of
from fisherlab.studies.fujimori2022.settings import SETTINGS, SPACE
from fisherlab.studies.study import read_table

EDGE = 0.05  # part of the range that counts as being at its bound


def trials_of(folder: Path, setting: str, sampler: str) -> Any | None:
    """Read the trials of a setting.

    Args:
        folder: The study's.
        setting: Its name.
        sampler: tpe or random.

    Returns:
        The table; None where it was not searched.
    """
    return with_base(folder, tables_of(setting, sampler)[0], tables_of("base", sampler)[0], setting)


def with_base(folder: Path, table: str, base: str, setting: str) -> Any | None:
    """Read a table of a setting; what it has in common with the base setting is its own too.

    Args:
        folder: The study's.
        table: The setting's table.
        base: The same of the base setting.
        setting: Its name.

    Returns:
        The rows of all dampings, NaN for SGD; None where there is no such table yet.
    """
    if not (folder / table).exists():
        return None
    own = read_table(folder / table)
    if setting == "base" or not (folder / base).exists():
        return own
    common = read_table(folder / base)
    shared = common["damping"].isna() if not SETTINGS[setting].scaled else ~common["damping"].isin(own["damping"])
    if own["damping"].isna().any():  # an SGD of its own
        shared &= common["damping"].notna()
    return pd.concat([common[shared], own])


def best_trials(trials: Any, count: int) -> Any:
    """Choose the best trials of each damping.

    Args:
        trials: Of any dampings, NaN for SGD.
        count: How many of each.

    Returns:
        They, the best first.
    """
    return trials.dropna(subset=["value"]).sort_values("value").groupby("damping", dropna=False).head(count)


def at_bounds(best: Any, setting: str) -> Any:
    """Tell which trials lie within 5 % of a bound of learning rate or momentum.

    Args:
        best: Trials.
        setting: Their setting's name.

    Returns:
        A table: damping, lr, momentum (true at a bound; momentum 0 is no bound that could be moved).
    """
    low, high = (math.log10(SPACE["lr"][end]) for end in ("low", "high"))
    shift = np.log10(best["damping"].clip(lower=1.0).fillna(1.0)) if SETTINGS[setting].scaled else 0.0
    lr = (np.log10(best["lr"]) - shift - low) / (high - low)
    momentum = best["momentum"] / SPACE["momentum"]["high"]
    outside = (lr < EDGE) | (lr > 1 - EDGE)
    return pd.DataFrame({"damping": best["damping"], "lr": outside, "momentum": momentum > 1 - EDGE})
