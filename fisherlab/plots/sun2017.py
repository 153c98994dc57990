"""The figures of Sun and Nielsen (2017), from the study's tables; colours as theirs: SGD red, Adam green, RNGD blue."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fisherlab.plots.beside import legend
from fisherlab.studies.sun2017.runs import grid_table
from fisherlab.studies.sun2017.settings import METHODS, NAMES, TOLD
from fisherlab.studies.sun2017.verdicts import curves_of, milliseconds

COLOURS = {"sgd": "tab:red", "adam": "tab:green", "rngd": "tab:blue", "kfac": "tab:purple", "efngd": "tab:brown"}


def figures(folder: Path) -> dict[str, Figure]:
    """Draw what has been run so far.

    Args:
        folder: The study's folder.

    Returns:
        The figures by file name, without suffix.
    """
    settings = json.loads((folder / "study.json").read_text())["settings"]
    drawn = {}
    for net in settings["nets"]:
        found = {m: table for m in METHODS if (table := curves_of(folder, net, m)) is not None}
        if found:
            drawn[f"curves_{net}"] = _curves(net, found, None)
        if found and (folder / "cost.csv").exists():
            ms = milliseconds(pd.read_csv(folder / "cost.csv"), settings)[net]
            steps = settings["splits"]["train"] // settings["batch"]
            drawn[f"seconds_{net}"] = _curves(net, found, {m: v * steps / 1e3 for m, v in ms.items()})
    if grids := [(n, m) for n in settings["nets"] for m in METHODS if (folder / grid_table(n, m)).exists()]:
        drawn["learning_rates"] = _grids(folder, settings["nets"], grids)
    if (folder / "zones.csv").exists():
        drawn["zones"] = _zones(pd.read_csv(folder / "zones.csv"))
    watched = [net for net in settings["nets"] if (folder / f"matrices_{net}.csv").exists()]
    if watched:
        drawn["matrices"] = _matrices(folder, watched)
    for figure in drawn.values():
        figure.text(0.995, 0.003, f"scale {folder.name}", ha="right", va="bottom", fontsize=7, color="0.5")
    return drawn


def _curves(net: str, found: dict[str, Any], seconds: dict[str, float] | None) -> Figure:
    """Training objective on the left, validation accuracy on the right: mean and SD over seeds, by epoch or second."""
    figure = Figure(figsize=(10.5, 4), layout="constrained")
    axes = list(figure.subplots(1, 2))
    for method, table in found.items():
        table = table[table["epoch"] > 0].assign(accuracy=1 - table["valid_error"])
        scale = 1.0 if seconds is None else seconds[method]
        for axis, column in zip(axes, ("objective", "accuracy"), strict=True):
            by = table.groupby("epoch")[column]
            x, mean, sd = by.mean().index * scale, by.mean(), by.std().fillna(0)
            axis.plot(x, mean, color=COLOURS[method], label=NAMES[method], lw=1.4)
            axis.fill_between(x, mean - sd, mean + sd, color=COLOURS[method], alpha=0.15, lw=0)
    told = "epoch" if seconds is None else "seconds of training (epochs times measured seconds)"
    axes[0].set(xlabel=told, ylabel="training objective (nats, with L2)", yscale="log")
    axes[1].set(xlabel=told, ylabel="validation accuracy")
    _from_above(axes[1], found)
    seeds = max(table["seed"].nunique() for table in found.values())
    figure.suptitle(f"{TOLD[net]}: mean and SD of {seeds} seeds", fontsize="medium")
    legend(figure, axes)
    return figure


def _from_above(axis: Axes, found: dict[str, Any]) -> None:
    """Show the accuracies from where the methods are after a tenth of the epochs."""
    starts = [1 - t[t["epoch"] >= t["epoch"].max() / 10]["valid_error"].quantile(0.95) for t in found.values()]
    ends = [1 - t["valid_error"].min() for t in found.values()]
    if np.isfinite(starts).all() and max(ends) > min(starts):
        axis.set_ylim(min(starts) - 0.002, max(ends) + 0.002)


def _grids(folder: Path, nets: list[str], grids: list[tuple[str, str]]) -> Figure:
    """Validation error against learning rate; a star marks the choice."""
    figure = Figure(figsize=(4.2 * len(nets) + 1.5, 3.6), layout="constrained")
    axes = list(figure.subplots(1, len(nets), squeeze=False, sharey=True).flat)
    for net, method in grids:
        axis, table = axes[nets.index(net)], pd.read_csv(folder / grid_table(net, method))
        by = table.groupby("lr")["valid_error"].agg(lambda e: e.mean(skipna=False)).dropna()
        axis.plot(by.index, by, "-o", color=COLOURS[method], ms=4, label=NAMES[method])
        if len(by):
            axis.plot(by.idxmin(), by.min(), "*", color=COLOURS[method], ms=13, mec="k", mew=0.5)
    for axis, net in zip(axes, nets, strict=True):
        axis.set(xscale="log", yscale="log", xlabel="learning rate", title=TOLD[net])
    axes[0].set_ylabel("validation error, last epochs of the grid")
    legend(figure, axes)
    return figure


def _zones(table: Any) -> Figure:
    """The effective learning zones: nu against the pre-activation."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axis = figure.subplots()
    for i, (name, part) in enumerate(table.groupby("neuron", sort=False)):
        axis.plot(part["z"], part["nu"], color=f"C{i}", ls=("-", "--", "-.")[i % 3], label=name)
    axis.set(xlabel=r"pre-activation $w^\top \tilde x$", ylabel=r"$\nu$")
    legend(figure, [axis], "neuron")
    return figure


def _matrices(folder: Path, nets: list[str]) -> Figure:
    """Every layer's relative Fisher by epoch: its eigenvalues, and how much it has moved."""
    figure = Figure(figsize=(4.2 * len(nets) + 1.8, 7.5), layout="constrained")
    axes = figure.subplots(3, len(nets), squeeze=False, sharex="col")
    for column, net in enumerate(nets):
        table: Any = pd.read_csv(folder / f"matrices_{net}.csv")
        for layer, part in table.groupby("layer"):
            kind = "one matrix" if part["matrices"].iloc[0] == 1 else f"{part['matrices'].iloc[0]} matrices"
            look: dict[str, Any] = {"color": f"C{layer - 1}", "label": f"layer {layer} ({kind})"}
            axes[0][column].plot(part["epoch"], part["q100"], **look)
            axes[0][column].plot(part["epoch"], part["q50"], ls=":", color=look["color"])
            after = part[part["epoch"] > 0]
            axes[1][column].plot(after["epoch"], after["since_start"], **look)
            axes[2][column].plot(after["epoch"], after["since_last"], **look)
        axes[0][column].set(title=f"{TOLD[net]}, RNGD", yscale="log")
        axes[2][column].set(xlabel="epoch", yscale="log")
    for axis, told in zip(
        axes[:, 0], ("eigenvalue: largest, median (dotted)", "change since the start", "change since the last epoch"),
        strict=True,
    ):  # fmt: skip
        axis.set_ylabel(told)
    legend(figure, [axes[0][0]])
    return figure
