"""The figure of a search, from `trials.csv` and `importances.csv`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fisherlab.files import replace


def draw_search(folder: Path, objective: str) -> Path:
    """Draw `search.png`: the objective by trial, against each searched number, and what matters.

    Args:
        folder: A search's folder.
        objective: What the values are, for the labels.

    Returns:
        The file.
    """
    trials: Any = pd.read_csv(folder / "trials.csv")
    space: dict[str, list[Any]] = json.loads((folder / "search.json").read_text())["space"]
    path = folder / "importances.csv"
    importances: Any = pd.read_csv(path) if path.exists() else None
    panels = 1 + len(space) + (importances is not None)
    figure = Figure(figsize=(3.3 * panels, 3.2), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, panels))
    _history(axes[0], trials, objective)
    for axis, (key, (low, high, log)) in zip(axes[1:], space.items(), strict=False):
        _slice(axis, trials, key, (low, high), log)
    if importances is not None:
        bars = axes[-1].barh(importances["key"], importances["importance"], color="0.75")
        axes[-1].bar_label(bars, importances["key"], padding=-3, fontsize="small", label_type="edge")
        axes[-1].set_yticks([])
        axes[-1].invert_yaxis()
        axes[-1].set(title="importance", xlabel="share of the objective's variance", xlim=(0, 1))
    replace(folder / "search.png", lambda temporary: figure.savefig(temporary, dpi=120))
    return folder / "search.png"


def _history(axis: Axes, trials: Any, objective: str) -> None:
    complete, pruned = (trials[trials["state"] == state] for state in ("complete", "pruned"))
    axis.plot(complete["number"], complete["value"], ".", color="tab:blue", alpha=0.6, label="trial")
    axis.step(complete["number"], complete["value"].cummin(), color="tab:red", where="post", label="best so far")
    _log_y(axis, complete["value"])
    _crosses(axis, pruned["number"])
    axis.set(title=f"{len(trials)} trials", xlabel="trial", ylabel=objective.replace("_", " "))
    axis.legend(fontsize="small")


def _slice(axis: Axes, trials: Any, key: str, bounds: tuple[float, float], log: bool) -> None:
    """The objective against one number; the later a trial, the darker."""
    complete, pruned = (trials[trials["state"] == state] for state in ("complete", "pruned"))
    axis.scatter(complete[key], complete["value"], c=complete["number"], cmap="Blues", s=12, edgecolors="0.6", lw=0.3)
    _log_y(axis, complete["value"])
    _crosses(axis, pruned[key])
    axis.set(title=key, xlabel=key, xscale="log" if log else "linear", xlim=bounds)


def _crosses(axis: Axes, positions: Any) -> None:
    """What diverged, at the upper edge; an empty line that is not clipped would upset the layout."""
    if len(positions):
        top = np.full(len(positions), axis.get_ylim()[1])
        axis.plot(positions, top, "x", color="0.5", ms=4, clip_on=False, label="diverged")


def _log_y(axis: Axes, values: Any) -> None:
    if (values > 0).all():
        axis.set_yscale("log")
