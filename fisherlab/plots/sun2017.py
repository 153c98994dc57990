"""The figures of Sun and Nielsen (2017), from the study's tables; colours as theirs: SGD red, Adam green, RNGD blue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fisherlab.plots.beside import legend
from fisherlab.plots.ticks import plain
from fisherlab.studies.study import settings_of
from fisherlab.studies.sun2017.against import OTHERS
from fisherlab.studies.sun2017.cases import GROUPS, cases_of
from fisherlab.studies.sun2017.curves import curves_of
from fisherlab.studies.sun2017.runs import by_rate, grid_table
from fisherlab.studies.sun2017.settings import METHODS, NAMES, RERATED, TOLD, VARIANTS
from fisherlab.studies.sun2017.settled import settled_of
from fisherlab.studies.sun2017.timing import TABLE, by_round
from fisherlab.studies.sun2017.verdicts import ACCURACIES
from fisherlab.studies.sun2017.watch import LINEAR, UNITWISE, WATCHED, matrices_table

COLOURS = {"sgd": "tab:red", "adam": "tab:green", "rngd": "tab:blue", "kfac": "tab:purple", "efngd": "tab:brown"}
GRID = {"valid_error": "validation error", "objective": "training objective (nats, with L2)"}
LEAST = 1e-8  # of the largest eigenvalue: what is below is rounding
SINCE = "change of shape since the\n"
PANELS = (
    "eigenvalue: largest, 90 %\n(dashed), median (dotted)",
    f"{SINCE}start; other cases (dotted)",
    f"{SINCE}epoch watched before",
)
FORMS = {UNITWISE: "per unit", LINEAR: "linear form"}
COLOURS |= {"rngd, batch start": "tab:orange", "rngd, softmax": "tab:cyan", "rngd, by objective": "tab:olive"}


def figures(folder: Path) -> dict[str, Figure]:
    """Draw what has been run so far.

    Args:
        folder: The study's folder.

    Returns:
        The figures by file name, without suffix.
    """
    settings = settings_of(folder)
    drawn = _all_curves(folder, settings)
    own = [m for m in [*METHODS, *VARIANTS] if m not in RERATED]
    tried = [(n, m) for n in settings["nets"] for m in own if (folder / grid_table(n, m)).exists()]
    if tried:
        drawn["learning_rates"] = _grids(folder, settings["nets"], tried)
    if (folder / "zones.csv").exists():
        drawn["zones"] = _zones(pd.read_csv(folder / "zones.csv"))
    for method in WATCHED:
        watched = [net for net in settings["nets"] if (folder / matrices_table(net, method)).exists()]
        if watched:
            drawn[f"matrices_{method}"] = _matrices(folder, watched, method)
    if lagging := [n for n in settings["nets"] if any(settled_of(folder, n, m) is not None for m in METHODS)]:
        drawn["settled"] = _settled(folder, lagging)
    for net in settings["nets"]:
        if (weights := cases_of(folder, net)) is not None:
            drawn[f"cases_{net}"] = _cases(weights, net)
    return drawn


def _all_curves(folder: Path, settings: Mapping[str, Any]) -> dict[str, Figure]:
    """By epoch and by second the methods; by epoch RNGD's variants, beside it and SGD."""
    drawn = {}
    for net in settings["nets"]:
        found = {m: table for m in [*METHODS, *VARIANTS] if (table := curves_of(folder, net, m)) is not None}
        methods = {m: table for m, table in found.items() if m in METHODS}
        if methods:
            drawn[f"curves_{net}"] = _curves(net, methods, None)
        if methods and (folder / TABLE).exists():
            ms = by_round(pd.read_csv(folder / TABLE), net).median()
            steps = settings["splits"]["train"] // settings["batch"]
            timed = {m: table for m, table in methods.items() if m in ms}
            drawn[f"seconds_{net}"] = _curves(net, timed, {m: ms[m] * steps / 1e3 for m in timed})
        if any(m in found for m in VARIANTS):
            varied = {m: table for m, table in found.items() if m in ("sgd", "rngd", *VARIANTS)}
            drawn[f"variants_{net}"] = _curves(net, varied, None)
    return drawn


def _curves(net: str, found: dict[str, Any], seconds: dict[str, float] | None) -> Figure:
    """Training objective on the left, each run thin as theirs; validation accuracy on the right; means over seeds."""
    figure = Figure(figsize=(10.5, 4), layout="constrained")
    axes = list(figure.subplots(1, 2))
    for method, table in found.items():
        table = table.assign(accuracy=1 - table["valid_error"])
        scale = 1.0 if seconds is None else seconds[method]
        for axis, column in zip(axes, ("objective", "accuracy"), strict=True):
            # All seeds: where one has diverged, a mean of the others would be another method's.
            by = table.pivot(index="epoch", columns="seed", values=column).query("epoch > 0")
            mean, look = by.mean(axis=1, skipna=False), {"color": COLOURS[method]}
            axis.plot(by.index * scale, mean, label=_label(method, table), lw=1.4, **look)
            if column == "objective" or mean.isna().any():
                axis.plot(by.index * scale, by, lw=0.5, alpha=0.3, **look)
            sd = by.std(axis=1, skipna=False).fillna(0)
            if column == "accuracy":
                axis.fill_between(by.index * scale, mean - sd, mean + sd, alpha=0.15, lw=0, **look)
    told = "epoch" if seconds is None else "seconds (epochs times their measured time)"
    axes[0].set(xlabel=told, ylabel="training objective (nats, with L2)", yscale="log")
    axes[1].set(xlabel=told, ylabel="validation accuracy")
    for axis in axes if seconds else ():
        axis.set_xscale("log")
    _limits(axes, net, found)
    plain(axes[0], decades=2)
    seeds = max((table["seed"].nunique() for table in found.values()), default=0)
    figure.suptitle(f"{TOLD[net]}: means of {seeds} seeds, with each run (left) and SD (right)", fontsize="medium")
    legend(figure, axes)
    return figure


def _label(method: str, table: Any) -> str:
    """Its name, its learning rate, and how many of its runs diverged."""
    statuses = table.groupby("seed")["status"].first()
    lost, rates = int((statuses != "finished").sum()), table["lr"].dropna().unique()
    rate = f", learning rate {rates[0]:g}" if len(rates) else ""
    return NAMES[method] + rate + (f" ({lost} of {len(statuses)} diverged)" if lost else "")


def _limits(axes: list[Axes], net: str, found: dict[str, Any]) -> None:
    """Show what the paper's methods do, after an epoch on the left and from a tenth of the epochs on on the right.

    Another one that is far behind leaves the axis; the range of the paper's figure is shaded.
    """
    trained = {m: t[t["epoch"] > 0] for m, t in found.items()}
    theirs = [t for m, t in trained.items() if m not in OTHERS] or list(trained.values())
    tops = [t.groupby("seed")["objective"].first().median() for t in theirs]
    if np.isfinite(tops).all():
        axes[0].set_ylim(0.9 * min(t["objective"].min() for t in trained.values()), 1.2 * max(tops))
    starts = [1 - t[t["epoch"] >= t["epoch"].max() / 10]["valid_error"].quantile(0.95) for t in theirs]
    ends = [1 - t["valid_error"].quantile(0.02) for t in trained.values()]
    if np.isfinite([*starts, *ends]).all() and max(ends) > min(starts):
        axes[1].set_ylim(min(starts) - 0.002, max(ends) + 0.002)
    axes[1].axhspan(*ACCURACIES[net][0], color="0.93", zorder=0, label="range of the paper's figure")


def _grids(folder: Path, nets: list[str], grids: list[tuple[str, str]]) -> Figure:
    """Validation error and training objective against learning rate, means and each seed; a star marks the choice."""
    figure = Figure(figsize=(4.2 * len(nets) + 1.5, 6.4), layout="constrained")
    axes = figure.subplots(2, len(nets), squeeze=False, sharex=True, sharey="row")
    for net, method in grids:
        _grid(axes[:, nets.index(net)], pd.read_csv(folder / grid_table(net, method)), method)
    for axis, net in zip(axes[0], nets, strict=True):
        axis.set(xscale="log", yscale="log", title=TOLD[net], ylim=(None, 2.5))
    for axis in axes[1]:
        axis.set(yscale="log", xlabel="learning rate (x: a run diverged)")
    for axis, label in zip(axes[:, 0], GRID.values(), strict=True):
        axis.set_ylabel(f"{label},\nlast epochs of the grid")
        plain(axis, decades=2)
    figure.suptitle("star: the choice, by validation error", fontsize="medium")
    legend(figure, [axes[0][0]])
    return figure


def _grid(axes: Any, table: Any, method: str) -> None:
    """One method's lines in the two panels of a net."""
    look: dict[str, Any] = {"color": COLOURS[method]}
    best = by_rate(table).idxmin() if len(by_rate(table)) else None
    for axis, column in zip(axes, GRID, strict=True):
        by = by_rate(table, column)
        axis.plot(by.index, by, "-o", ms=4, label=NAMES[method], **look)
        axis.plot(table["lr"], table[column], ".", ms=2, **look)
        lost, height = sorted(set(table["lr"]) - set(by.index)), 0.98 - 0.025 * list(COLOURS).index(method)
        axis.plot(lost, [height] * len(lost), "x", ms=4, transform=axis.get_xaxis_transform(), **look)
        if best is not None:
            axis.plot(best, by[best], "*", ms=13, mec="k", mew=0.5, **look)


def _zones(table: Any) -> Figure:
    """The effective learning zones: nu against the pre-activation."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axis = figure.subplots()
    for i, (name, part) in enumerate(table.groupby("neuron", sort=False)):
        axis.plot(part["z"], part["nu"], color=f"C{i}", ls=("-", "--", "-.")[i % 3], label=name)
    axis.set(xlabel=r"pre-activation $w^\top \tilde x$", ylabel=r"$\nu$")
    legend(figure, [axis], "neuron")
    return figure


def _settled(folder: Path, nets: list[str]) -> Figure:
    """Validation accuracy at the watched epochs: by moving averages (dotted), by the training set's statistics."""
    figure = Figure(figsize=(5.5 * len(nets) + 1.5, 3.8), layout="constrained")
    for axis, net in zip(figure.subplots(1, len(nets), squeeze=False).flat, nets, strict=True):
        found = {m: (curves_of(folder, net, m), settled_of(folder, net, m)) for m in METHODS}
        there = {m: pair for m, pair in found.items() if all(table is not None for table in pair)}
        drawn = {m: _settled_one(axis, m, *pair) for m, pair in there.items()}
        ends = {m: pair for m, pair in drawn.items() if np.isfinite(pair).all()}  # not of diverged runs alone
        theirs = [low for m, (low, _) in ends.items() if m not in OTHERS]
        axis.set(title=TOLD[net], xlabel="epoch", ylabel="validation accuracy (SD shaded)", xscale="log")
        if theirs:  # another one that is far behind leaves the axis
            axis.set_ylim(min(theirs) - 0.002, max(high for _, high in ends.values()) + 0.002)
        _ticks(axis, settings_of(folder)["watch_epochs"])
    figure.suptitle("normalised by the training set's statistics; dotted: by moving averages", fontsize="medium")
    legend(figure, list(figure.axes))
    return figure


def _settled_one(axis: Axes, method: str, curves: Any, table: Any) -> tuple[float, float]:
    """One method's two lines; the least accuracy of its runs, and the highest."""
    look: dict[str, Any] = {"color": COLOURS[method]}
    tables = table, curves.assign(epoch=curves["epoch"].round(6))
    # All seeds, as in the curves: not the mean of those that did not diverge.
    clean, lagging = (1 - t.pivot(index="epoch", columns="seed", values="valid_error") for t in tables)
    mean, sd = clean.mean(axis=1, skipna=False), clean.std(axis=1, skipna=False).fillna(0)
    axis.plot(mean, "-o", ms=4, label=_label(method, curves), **look)
    axis.fill_between(mean.index, mean - sd, mean + sd, alpha=0.15, lw=0, **look)
    axis.plot(lagging.reindex(mean.index).mean(axis=1, skipna=False), ":", **look)
    return float(clean.min(axis=None)), float(clean.max(axis=None))


def _cases(table: Any, net: str) -> Figure:
    """What right and wrong cases weigh in EF-NGD's step, their squared gradients, and the wrong ones' parts."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    axes, own = list(figure.subplots(1, 3)), COLOURS["efngd"]
    told = ("weight of a case in the step (mean)\n1: as in the gradient", "squared gradient of a case (median)")
    for axis, what, label in zip(axes, ("weight", "square"), told, strict=False):
        for of, style in zip(GROUPS, ("-", "--"), strict=True):
            _seeds(axis, table, f"{what}_{of}", f"{of} cases", {"color": own, "ls": style})
        axis.set_ylabel(label)
    for what, colour, style in (("gradient", "0.4", "-."), ("step", own, "--")):
        _seeds(axes[2], table, f"of_{what}", f"of the {what}", {"color": colour, "ls": style})
    axes[2].set(ylabel="wrong cases' part", ylim=(0, 1))
    axes[1].set_yscale("log")
    for axis in axes:
        axis.set_xscale("symlog", linthresh=1, linscale=0.3)
        axis.set(xlabel="epoch", xlim=(-0.1, None))
        _ticks(axis, sorted(table["epoch"].unique()), fontsize="small")
        axis.legend(fontsize="small")
    figure.suptitle(f"{TOLD[net]}, {NAMES['efngd']}: means over seeds, and each seed", fontsize="medium")
    return figure


def _seeds(axis: Axes, table: Any, column: str, label: str, look: dict[str, Any]) -> None:
    """A column by epoch: the mean of all seeds, and each one."""
    by = table.pivot(index="epoch", columns="seed", values=column)
    axis.plot(by, lw=0.5, alpha=0.3, **look)
    axis.plot(by.mean(axis=1, skipna=False), marker="o", ms=4, label=label, **look)


def _ticks(axis: Axes, epochs: Sequence[float], **look: Any) -> None:
    """Where the runs were watched, and nowhere else."""
    axis.set_xticks(epochs, [f"{epoch:g}" for epoch in epochs], **look)
    axis.minorticks_off()


def _matrices(folder: Path, nets: list[str], method: str) -> Figure:
    """Every layer's relative Fisher by epoch, means over seeds: its eigenvalues, and how much its shape has moved."""
    figure = Figure(figsize=(4.6 * len(nets) + 2.6, 7.5), layout="constrained")
    axes = figure.subplots(3, len(nets), squeeze=False, sharex="col", sharey="row")
    for column, net in zip(axes.T, nets, strict=True):
        table: Any = pd.read_csv(folder / matrices_table(net, method))
        for i, ((layer, form), part) in enumerate(table.groupby(["layer", "form"])):
            label = f"layer {layer} ({FORMS.get(form, form)})"
            _layer(column, layer, part.drop(columns="form"), {"color": f"C{i}"}, label)
        column[0].set(title=f"{TOLD[net]}, {NAMES[method]}", yscale="log")
        epochs = sorted(table["epoch"].unique())
        column[2].set(xlabel="epoch", yscale="log")
        column[2].set_xscale("symlog", linthresh=1, linscale=0.3)
        column[2].set_xlim(-0.3, 1.2 * max(epochs, default=1))
        _ticks(column[2], epochs, fontsize="small")
    axes[0, 0].set_ylim(bottom=LEAST * axes[0, 0].get_ylim()[1])
    for axis, label in zip(axes[:, 0], PANELS, strict=True):
        axis.set_ylabel(label)
    plain(axes[0, 0])
    plain(axes[2, 0], decades=2)
    legend(figure, [axes[0][0]])
    return figure


def _layer(axes: Any, layer: int, part: Any, look: dict[str, Any], label: str) -> None:
    """One layer's lines in the three panels of a net; means of all seeds, none where a run had diverged."""
    mean = part.groupby("epoch").agg(lambda v: v.mean(skipna=False))
    axes[0].plot(mean["q100"], marker=".", label=label, **look)
    axes[0].plot(mean["q90"], ls="--", lw=1, **look)
    axes[0].plot(mean["q50"], ls=":", **look)
    after = mean[mean.index > 0]
    axes[1].plot(after["shape_other_cases"], ls=":", **look)
    if layer == 1:  # its inputs are the data: its linear form stands still
        return
    for axis, column in zip(axes[1:], ("shape_since_start", "shape_since_last"), strict=True):
        axis.plot(after[column], marker=".", **look)
        axis.plot(
            part[part["epoch"] > 0].pivot(index="epoch", columns="seed", values=column), lw=0.4, alpha=0.3, **look
        )
