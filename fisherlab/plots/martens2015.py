"""The figures of Martens and Grosse (2015), from the study's tables; stars are the authors' own run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fisherlab.plots.beside import legend
from fisherlab.plots.martens2015_matrices import matrix_figures
from fisherlab.plots.ticks import plain
from fisherlab.studies.judge import prediction
from fisherlab.studies.martens2015 import invariance
from fisherlab.studies.martens2015.gamma import TABLE as GAMMA
from fisherlab.studies.martens2015.problems import METHODS, PROBLEMS
from fisherlab.studies.martens2015.runs import MATRIX
from fisherlab.studies.martens2015.tables import at, data_name, evaluations, processor, steps, took

TRI, DIAGONAL, NO_MOMENTUM, BASELINE = METHODS
LOOK: dict[str, dict[str, Any]] = {
    TRI: {"color": "tab:blue", "ls": "-"},
    DIAGONAL: {"color": "tab:green", "ls": "--"},
    NO_MOMENTUM: {"color": "tab:orange", "ls": "-."},
    BASELINE: {"color": "0.35", "ls": ":"},
}
ERROR = "training error (squared, per case)"
PALE: dict[str, Any] = {"lw": 3, "alpha": 0.4, "ls": "-", "label": DIAGONAL}
WHICH = {"train_error": "training", "test_error": "test"}
INTERVAL = "95 % prediction interval of one more run, block-tridiagonal"
FEW = 3  # runs, of fewer no interval is drawn
SMALL: dict[str, Any] = {"fontsize": "medium"}


def figures(folder: Path) -> dict[str, Figure]:
    """Draw what has been run so far.

    Args:
        folder: The study's folder.

    Returns:
        The figures by file name, without suffix.
    """
    settings = json.loads((folder / "study.json").read_text())["settings"]
    problems, first = settings["problems"], settings["problems"][0]
    drawn = matrix_figures(folder)
    if (folder / invariance.TABLE).exists():
        drawn["invariance"] = _invariance(pd.read_csv(folder / invariance.TABLE))
    if (folder / GAMMA(first)).exists():
        drawn["figure_7"] = _gamma(pd.read_csv(folder / GAMMA(first)), first)
    if (tri := steps(folder, first, TRI, 0)) is not None:
        drawn["recipe"] = _recipe(tri, steps(folder, first, DIAGONAL, 0), first)
    made = [p for p in problems if evaluations(folder, p, TRI, 0) is not None]
    if made:
        batch = settings["no_momentum_batch"]
        drawn["figure_10"] = _runs(folder, made, batch, "cpu_seconds")
        drawn["figure_11"] = _runs(folder, made, batch, "step")
        drawn["cases"] = _runs(folder, made, batch, "examples")
    if first in made:
        drawn["seeds"] = _seeds(folder, first, settings)
    if evaluations(folder, first, TRI, "batch", settings["fixed_batches"][0]) is not None:
        drawn["figure_9"] = _batches(folder, first, settings["fixed_batches"])
    return drawn


def _invariance(table: Any) -> Figure:
    """Section 10: both paths in the plane in which the first moves most, and how far they are apart by step."""
    methods = list(invariance.METHODS)
    figure = Figure(figsize=(3.1 * len(methods), 5.6), layout="constrained")
    axes = figure.subplots(2, len(methods), squeeze=False)
    for column, method in enumerate(methods):
        own = table[table["method"] == method]
        path = own[own["change"] == "affine"]
        above, below = axes[0][column], axes[1][column]
        above.plot(path["u_original"], path["v_original"], "-o", color="tab:blue", ms=6, mfc="none", label="original")
        for change, marker, colour in (("affine", "x", "tab:red"), ("logistic", "+", "k")):
            part = own[own["change"] == change]
            told = "random affine maps" if change == "affine" else "logistic units"
            above.plot(part["u_transformed"], part["v_transformed"], marker, color=colour, ms=6, label=told)
            below.plot(part["step"], part["apart"].clip(lower=1e-17), f"-{marker}", color=colour, ms=4)
        above.set_title(method.replace(", ", ",\n"), **SMALL)
        above.set(xlabel="first direction of the outputs", ylabel="second direction" if not column else "")
        below.set(xlabel="step", yscale="log", ylim=(1e-17, 10))
    axes[1][0].set_ylabel("largest difference of outputs\n(share of the way)")
    legend(figure, [axes[0][0]], "the same net as")
    return figure


def _gamma(table: Any, problem: str) -> Figure:
    """Figure 7: improvement of the objective by one step against gamma."""
    figure = Figure(figsize=(6.2, 3.6), layout="constrained")
    axis = figure.subplots()
    styles = {
        "rescaled, momentum": ("tab:blue", "-o"),
        "rescaled": ("tab:orange", "-.s"),
        "not rescaled": ("0.4", ":^"),
    }
    for step, (colour, line) in styles.items():
        own = table[table["step"] == step]
        axis.plot(own["gamma"], own["improvement"], line, color=colour, ms=4, label=step)
    axis.axhline(0, color="0.7", lw=0.8)
    axis.axvline(table["used"].iloc[0], color="0.7", lw=0.8, ls="--")
    best = float(table["improvement"].max())
    axis.set(xscale="log", xlabel="gamma (dashed: in use)", ylabel="improvement h(θ) - h(θ + δ), nats")
    axis.set_ylim(-best, 1.15 * best)
    axis.set_title(f"{problem}, one step after iteration {int(table['iteration'].iloc[0])}", **SMALL)
    legend(figure, [axis])
    return figure


def _recipe(tri: Any, diagonal: Any | None, problem: str) -> Figure:
    """What the recipe chose at every step: lambda, gamma, alpha, mu, rho, M(delta)."""
    figure = Figure(figsize=(10, 5.2), layout="constrained")
    panels = (
        ("damping", "lambda", "log"), ("gamma", "gamma", "log"), ("rho", "reduction ratio rho", "linear"),
        ("alpha", "alpha", "log"), ("mu", "mu", "linear"), ("model_change", "-M(delta), nats", "log"),
    )  # fmt: skip
    axes = list(figure.subplots(2, 3, sharex=True).flat)
    for axis, (column, name, scale) in zip(axes, panels, strict=True):
        # Where they agree, the wide pale line is seen on both sides of the thin one.
        for run, look in ((diagonal, LOOK[DIAGONAL] | PALE), (tri, LOOK[TRI] | {"lw": 0.9, "label": TRI})):
            if run is not None and column in run:
                values = (-run[column] if column == "model_change" else run[column]).dropna()
                axis.plot(values.index, values, **look)
        axis.set(ylabel=name, yscale=scale)
    axes[2].set_ylim(-0.2, 2)
    if problem == "mnist":
        axes[0].plot([6], [116.07], "k*", ms=10, label="authors' log (lambda: set by iteration 5, used in 6)")
        axes[1].plot([20, 40], [12.247] * 2, "k*", ms=10)
    for axis in axes[3:]:
        axis.set_xlabel("iteration")
    figure.suptitle(f"{problem}, growing batch, seed 0", **SMALL)
    legend(figure, axes, columns=3)
    return figure


def _curve(axis: Axes, run: Any | None, x: str, method: str, **look: Any) -> None:
    if run is None:
        return
    rows = run[run[x] > 0]
    axis.plot(rows[x], rows["error"], **(LOOK[method] | {"label": method, "lw": 1.4} | look))


def _runs(folder: Path, problems: list[str], batch: int, x: str) -> Figure:
    """Figures 10 and 11: error of all methods, a row per problem; on the right the part that K-FAC needs."""
    figure = Figure(figsize=(9, 3.6 * len(problems) + 0.6), layout="constrained")
    axes = figure.subplots(len(problems), 2, squeeze=False)
    names = {BASELINE: (0,), DIAGONAL: (0,), TRI: (0,), NO_MOMENTUM: ("batch", batch)}
    for (left, right), problem in zip(axes, problems, strict=True):
        runs: dict[str, Any] = {m: evaluations(folder, problem, m, *rest) for m, rest in names.items()}
        for axis in (left, right):
            _methods(axis, runs, x, batch, PROBLEMS[problem].official)
            axis.set(yscale="log", xlabel=_across(folder, problem, x))
            plain(axis, decades=3)
        machine = _machine([took(folder, problem, m, *rest) for m, rest in names.items()]) if x == "cpu_seconds" else ""
        left.set(xscale="log", ylabel=ERROR)
        left.set_title(f"{data_name(folder, problem)}, seed 0{machine}", **SMALL)
        right.set_xlim(0, 1.05 * runs[TRI][x].iloc[-1])
        right.set_title(f"{data_name(folder, problem)}, as far as K-FAC goes", **SMALL)
    legend(figure, list(axes.flat), columns=2)
    return figure


def _machine(runs: list[dict[str, Any]]) -> str:
    """How fast it was: problems may have run on different processors."""
    rates = [run["product_rate"] for run in runs if "product_rate" in run]
    return f"\n({MATRIX} x {MATRIX} products: {np.median(rates):.0f} GFLOP/s)" if rates else ""


def _across(folder: Path, problem: str, x: str) -> str:
    """Name an axis; an iteration is not as many cases in all methods."""
    return {
        "cpu_seconds": f"{processor(folder)}, of training",
        "step": f"iteration (the baseline's: of {PROBLEMS[problem].baseline_batch} cases)",
        "examples": "training cases processed",
    }[x]


def _methods(axis: Axes, runs: dict[str, Any], x: str, batch: int, official: Mapping[int, float]) -> None:
    """The curves of a panel, a dot per evaluation: what is straight between two of them is no measurement."""
    told = {BASELINE: "", NO_MOMENTUM: f" (batches of {batch})"}
    for method, run in runs.items():
        _curve(axis, run, x, method, label=method + told.get(method, " (growing batch)"), marker="o", ms=2)
    if x == "step":
        _log(axis, {step: value for step, value in official.items() if step})


def _log(axis: Axes, official: Mapping[int, float]) -> None:
    if official:
        axis.plot(list(official), list(official.values()), "k*", ms=10, label="authors' log (block-tridiagonal)")


def _seeds(folder: Path, problem: str, settings: dict[str, Any]) -> Figure:
    """The runs over seeds, training and test error, and where one more would lie; both by the authors' numbers."""
    logs = {"train_error": PROBLEMS[problem].official, "test_error": PROBLEMS[problem].official_test}
    compared = any(logs.values())
    figure = Figure(figsize=(12 if compared else 8, 4.4), layout="constrained")
    axes = list(figure.subplots(1, 2 + compared))
    axes[1].sharey(axes[0])
    runs: dict[str, list[Any]] = {}
    for method in (DIAGONAL, TRI):
        found = [evaluations(folder, problem, method, seed) for seed in range(settings["early_seeds"])]
        runs[method] = [run for run in found if run is not None]
    for axis, (column, log) in zip(axes, logs.items(), strict=False):
        _errors(axis, runs, column)
        _log(axis, log)
        axis.set_title(f"{problem}, growing batch, {WHICH[column]}", **SMALL)
    axes[0].set_ylabel("error of the iterate (squared, per case)")
    if compared:
        _ratios(axes[2], runs[TRI], logs)
    legend(figure, axes, columns=2)
    return figure


def _errors(axis: Axes, runs: dict[str, list[Any]], column: str) -> None:
    for method, own in runs.items():
        for run in own:  # from iteration 0 on, where the authors' log begins
            axis.plot(run["step"], run[column], **LOOK[method], lw=0.8, label=method)
    _interval(axis, [run.set_index("step")[column] for run in runs[TRI]], LOOK[TRI]["color"])
    axis.set(yscale="log", xlabel="iteration")
    plain(axis, decades=3)


def _interval(axis: Axes, runs: list[Any], colour: Any) -> None:
    """Where one more run would lie: a band of its own wherever it rests on more or fewer runs."""
    errors = pd.concat(runs, axis=1)
    counts = errors.notna().sum(axis=1)
    bands = (counts != counts.shift()).cumsum()
    for _, part in errors[counts >= FEW].groupby(bands):
        low, high = zip(*(prediction(row.dropna().tolist()) for _, row in part.iterrows()), strict=True)
        axis.fill_between(part.index, low, high, label=INTERVAL, color=colour, alpha=0.2, lw=0)


def _ratios(axis: Axes, runs: list[Any], logs: Mapping[str, Mapping[int, float]]) -> None:
    """Each seed's error by the log's, wherever the log has one after the start."""
    colour = LOOK[TRI]["color"]
    ticks: list[str] = []
    for column, step, value in ((c, step, value) for c, log in logs.items() for step, value in log.items() if step):
        found = [error / value for run in runs if (error := at(run, step, column)) is not None]
        across = len(ticks) + np.linspace(-0.2, 0.2, len(found))
        axis.plot(across, found, "o", color=colour, ms=4, label=f"{TRI}, one seed")
        if len(found) >= FEW:
            low, high = prediction(found)
            axis.bar(len(ticks), high - low, 0.7, low, color=colour, alpha=0.2, lw=0, label=INTERVAL)
        ticks.append(f"{WHICH[column]},\n{step}\n(n = {len(found)})")
    axis.use_sticky_edges = False  # of the bars
    axis.axhline(1, color="k", lw=0.8)
    axis.set_xticks(range(len(ticks)), ticks)
    axis.set_ylabel("error / that of the authors' log")
    axis.set_title("at the log's iterations", **SMALL)


def _batches(folder: Path, problem: str, sizes: list[int]) -> Figure:
    """Figure 9: error against iterations and against cases, for batches of several sizes; K-FAC zoomed below."""
    figure = Figure(figsize=(9.8, 8), layout="constrained")
    axes = figure.subplots(2, 2)
    for column, (x, told) in enumerate((("step", "iteration"), ("examples", "cases processed"))):
        found: list[Any] = []
        for method in (BASELINE, NO_MOMENTUM, TRI):
            for i, size in enumerate(sizes):
                run = evaluations(folder, problem, method, "batch", size)
                share = 1 - 0.6 * (len(sizes) - 1 - i) / max(1, len(sizes) - 1)
                found += [run] if run is not None and method != BASELINE else []  # it would squeeze the others
                for axis in axes[:, column]:
                    _curve(axis, run, x, method, alpha=share, label=f"{method}, m = {size}")
        least = min(float(run[x].iloc[-1]) for run in found)
        _zoom(axes[1, column], found, x, (0.5 * least, least))  # the later half of what all sizes of K-FAC reach
        axes[0, column].set(yscale="log", xlabel=told)
        plain(axes[0, column], decades=3)
        axes[1, column].set_xlabel(f"{told} (zoomed on K-FAC)")
    for axis in axes[:, 0]:
        axis.set_ylabel(ERROR)
    figure.suptitle(f"{data_name(folder, problem)}: darker is the larger batch m", **SMALL)
    legend(figure, list(axes.flat), columns=3)
    return figure


def _zoom(axis: Axes, runs: list[Any], x: str, limits: tuple[float, float]) -> None:
    """Show a range of an axis, as high as the runs' errors in it."""
    inside = pd.concat([run.loc[run[x].between(*limits), "error"] for run in runs])
    axis.set(yscale="log", xlim=limits)
    plain(axis)
    if len(inside):
        axis.set_ylim(0.9 * inside.min(), 1.1 * inside.max())
