"""The figures of Martens and Grosse (2015), from the study's tables; stars are the authors' own run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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
from fisherlab.studies.martens2015.tables import data_name, evaluations, processor, steps

TRI, DIAGONAL, NO_MOMENTUM, BASELINE = METHODS
LOOK: dict[str, dict[str, Any]] = {
    TRI: {"color": "tab:blue", "ls": "-"},
    DIAGONAL: {"color": "tab:green", "ls": "--"},
    NO_MOMENTUM: {"color": "tab:orange", "ls": "-."},
    BASELINE: {"color": "0.35", "ls": ":"},
}
ERROR = "training error (squared, per case)"
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
        drawn["figure_10"] = _runs(folder, made, batch, "cpu_seconds", f"{processor(folder)},\nof training")
        drawn["figure_11"] = _runs(folder, made, batch, "step", "iteration")
        drawn["cases"] = _runs(folder, made, batch, "examples", "training cases processed")
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
        for method, run in ((TRI, tri), (DIAGONAL, diagonal)):
            if run is not None and column in run:
                values = (-run[column] if column == "model_change" else run[column]).dropna()
                axis.plot(values.index, values, label=method, lw=1.1, **LOOK[method])
        axis.set(ylabel=name, yscale=scale)
    axes[2].set_ylim(-0.2, 2)
    if problem == "mnist":
        axes[0].plot([6], [116.07], "k*", ms=10, label="authors' log")
        axes[1].plot([20, 40], [12.247] * 2, "k*", ms=10)
    for axis in axes[3:]:
        axis.set_xlabel("iteration")
    figure.suptitle(f"{problem}, growing batch, seed 0", **SMALL)
    legend(figure, axes)
    return figure


def _curve(axis: Axes, run: Any | None, x: str, method: str, **look: Any) -> None:
    if run is None:
        return
    rows = run[run[x] > 0]
    axis.plot(rows[x], rows["error"], **(LOOK[method] | {"label": method, "lw": 1.4} | look))


def _runs(folder: Path, problems: list[str], batch: int, x: str, told: str) -> Figure:
    """Figures 10 and 11: error of all methods, a row per problem; on the right the part that K-FAC needs."""
    figure = Figure(figsize=(10.5, 3.3 * len(problems)), layout="constrained")
    axes = figure.subplots(len(problems), 2, squeeze=False)
    for (left, right), problem in zip(axes, problems, strict=True):
        for axis in (left, right):
            for method in (BASELINE, DIAGONAL, TRI):
                _curve(axis, evaluations(folder, problem, method, 0), x, method)
            without = evaluations(folder, problem, NO_MOMENTUM, "batch", batch)
            _curve(axis, without, x, NO_MOMENTUM, label=f"{NO_MOMENTUM} (batches of {batch})")
            official = {k: v for k, v in PROBLEMS[problem].official.items() if k}
            if x == "step" and official:
                axis.plot(
                    list(official), list(official.values()), "k*", ms=10, label="authors' log (block-tridiagonal)"
                )
            axis.set(yscale="log", xlabel=told)
            plain(axis, decades=3)
        tri = evaluations(folder, problem, TRI, 0)
        assert tri is not None
        name = data_name(folder, problem)
        left.set(xscale="log", ylabel=ERROR)
        left.set_title(f"{name}, seed 0", **SMALL)
        right.set_xlim(0, 1.05 * tri[x].iloc[-1])
        right.set_title(f"{name}, as far as K-FAC goes", **SMALL)
    legend(figure, list(axes.flat))
    return figure


def _seeds(folder: Path, problem: str, settings: dict[str, Any]) -> Figure:
    """The runs over seeds, and where one more would lie, beside the authors' numbers: training and test error."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    panels = (
        ("train_error", "training", PROBLEMS[problem].official),
        ("test_error", "test", PROBLEMS[problem].official_test),
    )
    for axis, (column, which, official) in zip(axes, panels, strict=True):
        for method in (DIAGONAL, TRI):
            found = [evaluations(folder, problem, method, seed) for seed in range(settings["early_seeds"])]
            runs = [run.assign(error=run[column]) for run in found if run is not None]
            for i, run in enumerate(runs):
                look = LOOK[method] | {"lw": 0.8, "label": None if i else method}
                axis.plot(run["step"], run["error"], **look)  # from iteration 0 on, where the authors' log begins
            if method == TRI:
                _interval(axis, [run.set_index("step")["error"] for run in runs], LOOK[method]["color"])
        if official:
            axis.plot(list(official), list(official.values()), "k*", ms=10, label="authors' log (block-tridiagonal)")
        axis.set(yscale="log", xlabel="iteration", title=f"{problem}, growing batch, {which}")
        plain(axis, decades=3)
    axes[0].set_ylabel("error of the iterate (squared, per case)")
    legend(figure, list(axes))
    return figure


def _interval(axis: Axes, runs: list[Any], colour: Any) -> None:
    """Where one more run would lie, wherever three or more have been evaluated."""
    errors = pd.concat(runs, axis=1)
    enough = errors[errors.notna().sum(axis=1) >= 3]
    if len(enough):
        bounds = [prediction(row.dropna().tolist()) for _, row in enough.iterrows()]
        low, high = zip(*bounds, strict=True)
        told = f"95 % prediction interval, {TRI}"
        axis.fill_between(enough.index, low, high, label=told, color=colour, alpha=0.2, lw=0)


def _batches(folder: Path, problem: str, sizes: list[int]) -> Figure:
    """Figure 9: error against iterations and against cases, for batches of several sizes; zoomed below."""
    figure = Figure(figsize=(10.5, 7), layout="constrained")
    axes = figure.subplots(2, 2)
    for column, (x, told) in enumerate((("step", "iteration"), ("examples", "cases processed"))):
        found: list[Any] = []
        for method in (BASELINE, NO_MOMENTUM, TRI):
            for i, size in enumerate(sizes):
                run = evaluations(folder, problem, method, "batch", size)
                share = 1 - 0.6 * (len(sizes) - 1 - i) / max(1, len(sizes) - 1)
                found += [] if run is None else [run]
                for axis in axes[:, column]:
                    _curve(axis, run, x, method, alpha=share, label=f"{method}, m = {size}")
        # The later half of the iterations, and the cases that all sizes process.
        least = min(float(run[x].iloc[-1]) for run in found)
        _zoom(axes[1, column], found, x, (0.5 * least if x == "step" else 0.1 * least, least))
        axes[0, column].set(yscale="log", xlabel=told)
        plain(axes[0, column], decades=3)
        axes[1, column].set_xlabel(f"{told} (zoomed)")
    for axis in axes[:, 0]:
        axis.set_ylabel(ERROR)
    figure.suptitle(f"{data_name(folder, problem)}: darker is the larger batch m", **SMALL)
    legend(figure, list(axes.flat))
    return figure


def _zoom(axis: Axes, runs: list[Any], x: str, limits: tuple[float, float]) -> None:
    """Show a range of an axis, as high as the runs' errors in it."""
    inside = pd.concat([run.loc[run[x].between(*limits), "error"] for run in runs])
    axis.set(yscale="log", xlim=limits)
    plain(axis)
    if len(inside):
        axis.set_ylim(0.9 * inside.min(), 1.1 * inside.max())
