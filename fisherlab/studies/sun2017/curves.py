"""Reading the curves on fresh seeds: accuracies at an epoch, epochs to a level; every seed counts, diverged or not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from fisherlab.studies.crossing import crossing
from fisherlab.studies.study import read_table
from fisherlab.studies.sun2017.runs import LAST, at_the_end, chosen, curves_table, grid_table
from fisherlab.studies.sun2017.settings import NAMES, TOLD

FACTOR = 1.02  # of what SGD has reached: the level that all are to reach
SMOOTHED = 5  # epochs of the running median by which levels are set and reached: else the noisier of two methods, which
# swings further below its own mean, would seem the faster one
# What the authors do otherwise, where it bears on the numbers: see conf/study/sun2017.yaml.
KEPT = {"plain": "", "bna": ", biases kept behind normalisation"}


def curves_of(folder: Path, net: str, method: str) -> Any | None:
    """Read a method's curves on fresh seeds.

    Args:
        folder: The study's.
        net: A key of `NETS`.
        method: A key of `METHODS` or `VARIANTS`.

    Returns:
        The table; None where it is not there.
    """
    path = folder / curves_table(net, method)
    return read_table(path) if path.exists() else None


def ending(curves: Any, column: str, last: float = math.inf, over: float = LAST) -> Any:
    """A mean over the last epochs.

    Args:
        curves: Of one method.
        column: What is averaged.
        last: The epoch that counts as the last one.
        over: How many epochs.

    Returns:
        By seed, all of them; NaN where a run did not finish.
    """
    there = at_the_end(curves[(curves["status"] == "finished") & (curves["epoch"] <= last)], over)
    means = there.groupby("seed")[column].agg(lambda v: v.mean(skipna=False))
    return means.reindex(sorted(curves["seed"].unique())).astype(float)


def accuracy(curves: Any, split: str = "valid", last: float = math.inf, over: float = LAST) -> Any:
    """The mean accuracy over the last epochs.

    Args:
        curves: Of one method.
        split: valid or test.
        last: The epoch that counts as the last one.
        over: How many epochs.

    Returns:
        As `ending`.
    """
    return 1 - ending(curves, f"{split}_error", last, over)


def averaged(settings: Mapping[str, Any]) -> int:
    """Tell over how many epochs `ending` takes the mean.

    Args:
        settings: The scale's.

    Returns:
        As many as there are, at most `LAST`.
    """
    return min(LAST, int(settings["epochs"]))


def smooth(curves: Any, column: str) -> Any:
    """Take the noise of single epochs off curves.

    Args:
        curves: Of one method.
        column: Of them.

    Returns:
        Running medians, a row per epoch, a column per seed; the values themselves at the first and the last epochs,
        where a window is cut; NaN where a run did not finish.
    """
    ended = curves[column].where(curves["status"] == "finished")
    table = curves.assign(epoch=curves["epoch"].round(6), value=ended)
    wide = table.pivot(index="epoch", columns="seed", values="value").dropna(how="all")
    return wide.rolling(SMOOTHED, center=True).median().fillna(wide)


def level_of(sgd: Any, epoch: int) -> float:
    """A level to which all methods are timed: the median of what SGD's seeds have at an epoch, and a little.

    Args:
        sgd: SGD's curves, smooth.
        epoch: Of SGD.

    Returns:
        The level; NaN where no seed finished.
    """
    return FACTOR * float(sgd.loc[epoch].median()) if epoch in sgd.index else math.nan


def epochs_to(curves: Any, level: float, last: int) -> Any:
    """When, by seed, a curve falls to a level: between the ends of two epochs by its logarithm.

    Args:
        curves: Of one method, smooth.
        level: The level.
        last: The last epoch of a run.

    Returns:
        Epochs; a run that never got there, or diverged, counts as one that did in the epoch after the last. NaN where
        there is no level.
    """
    found = {seed: crossing(values, curves.index, level) for seed, values in curves.items()}
    epochs = pd.Series({seed: last + 1.0 if at is None else at for seed, at in found.items()}, dtype=float)
    return epochs if math.isfinite(level) else epochs * math.nan


def setting(net: str, settings: Mapping[str, Any], curves: Any) -> str:
    """Tell under which conditions curves were made.

    Args:
        net: A key of `NETS`.
        settings: The scale's.
        curves: Of a method.

    Returns:
        For a claim.
    """
    return (
        f"{TOLD[net]}{KEPT[net]}, {settings['epochs']} epochs, {curves['seed'].nunique()} seeds, each with a split of "
        "its own of the same images, constant learning rate, the best of a grid on "
        f"{settings['grid_seeds']} seeds over {settings['grid_epochs']} epochs"
    )


def unfinished(net: str, method: str, curves: Any) -> str:
    """Tell of runs that diverged.

    Args:
        net: A key of `NETS`.
        method: A key of `METHODS` or `VARIANTS`.
        curves: Of it.

    Returns:
        For a claim; nothing where all finished.
    """
    seeds = curves.groupby("seed")["status"].first()
    lost = int((seeds != "finished").sum())
    return f"; {lost} of {len(seeds)} runs of {NAMES[method]} on {TOLD[net]} did not finish" if lost else ""


def at_bound(folder: Path, net: str, method: str) -> str:
    """Tell where a best learning rate is an end of its grid.

    Args:
        folder: The study's.
        net: A key of `NETS`.
        method: A key of `METHODS` or `VARIANTS`.

    Returns:
        For a claim, which is then undecided; nothing where it lies within.
    """
    best, rates = chosen(folder, net, method), read_table(folder / grid_table(net, method))["lr"]
    if best is None or best not in (rates.min(), rates.max()):
        return ""
    return f"; {NAMES[method]}'s learning rate {best:g} is an end of its grid"
