"""The figures of Kunstner et al. (2019), from the study's tables; colours and line styles are the paper's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

STYLE = {"GD": ("tab:blue", "--"), "NGD": ("goldenrod", "-"), "EFGD": ("tab:red", "-.")}
TITLES = {"breast_cancer": "BreastCancer", "boston": "Boston", "a1a": "a1a", "wine": "Wine"}
VARIANTS = {"correct": "Correct model", "misspecified_a": "Misspecified (A)", "misspecified_b": "Misspecified (B)"}
# The factors are for visibility only.
DRAWN = {"GD": "gradient / 3", "NGD": "F$^{-1}$ gradient", "EFGD": "3 x EF$^{-1}$ gradient"}
FIGURE_3 = ("breast_cancer", "boston", "a1a")
SHOWN = {"a1a": 50}  # iterations that the paper's panel shows


def figures(folder: Path) -> dict[str, Figure]:
    """Draw every figure.

    Args:
        folder: The study's folder, with all tables.

    Returns:
        The figures by file name, without suffix.
    """
    settings = json.loads((folder / "study.json").read_text())["settings"]
    names = list(settings["problems"])
    first = [name for name in FIGURE_3 if name in names]
    rest = [name for name in names if name not in FIGURE_3]
    drawn = {
        "figure_1": _fields(folder),
        "figure_2": _quadratic(folder, "logistic"),
        "figure_3": _optimisation(folder, first),
        "figure_4": _quadratic(folder, "linear"),
        "figure_6": _starts(folder),
        "best_step_sizes": _grids(folder, names),
        "vanishing_residual": _nets(folder),
    }
    drawn |= {"figure_5": _optimisation(folder, rest)} if rest else {}
    return drawn


def _read(path: Path) -> Any:
    return pd.read_csv(path)


def _fields(folder: Path) -> Figure:
    """Figure 1: data, and the vector field of each method with paths to the optimum."""
    field, paths, data = (_read(folder / f"{name}.csv") for name in ("field", "paths", "field_data"))
    best = _read(folder / "field_optimum.csv").iloc[0]
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    left, *panels = figure.subplots(1, 4)
    left.plot(data["x"], data["y"], ".", ms=2, color="0.4")
    line = np.array([-1.0, 10.0])
    left.plot(line, best["bias"] + best["slope"] * line, color="k")
    left.set(title="Data and least-squares line", xlabel="x", ylabel="y", xlim=(-1, 10), ylim=(-2, 22))
    for ax, (method, part) in zip(panels, field.groupby("method", sort=False), strict=True):
        _contours(ax, part, "bias", "slope", 5)
        ax.quiver(
            part["bias"],
            part["slope"],
            part["d_bias"],
            part["d_slope"],
            color="0.35",
            angles="xy",
            scale=30,
            width=4e-3,
        )
        for _, path in paths[paths["method"] == method].groupby("start"):
            ax.plot(path["bias"], path["slope"], color=STYLE[str(method)][0], lw=1.8)
            ax.plot(*path.iloc[0][["bias", "slope"]], marker="h", color="k", ms=7)
        ax.plot(best["bias"], best["slope"], marker="*", color="k", ms=11)
        factor = {"GD": "gradient / 3", "NGD": "F$^{-1}$ gradient", "EFGD": "3 x EF$^{-1}$ gradient"}[str(method)]
        ax.set(title=f"{method}: minus {factor}", xlabel="bias", ylabel="slope", xlim=(-1.2, 5.2), ylim=(-1.2, 5.2))
    return figure


def _contours(ax: Axes, table: Any, x: str, y: str, levels: int) -> None:
    grid = table.pivot(index=y, columns=x, values="loss")
    ax.contour(grid.columns, grid.index, grid.to_numpy(), levels=levels, colors="0.75", linewidths=0.8)


def _quadratic(folder: Path, model: str) -> Figure:
    """Figures 2 and 4: the data, and the ellipses of Fisher and empirical Fisher around the optimum."""
    panels, data, loss = (_read(folder / f"quadratic{name}") for name in (".csv", "_data.csv.gz", "_loss.csv.gz"))
    figure = Figure(figsize=(10, 6.6), layout="constrained")
    grid = figure.subplots(2, 3)
    for (top, below), (variant, title) in zip(grid.T, VARIANTS.items(), strict=True):
        points, contour, panel = (t[(t["model"] == model) & (t["variant"] == variant)] for t in (data, loss, panels))
        _scatter(top, points, panel.iloc[0], model)
        top.set_title(title)
        _contours(below, contour, "theta_1", "theta_2", 4)
        _ellipses(below, panel.iloc[0])
        names = ("theta_1", "theta_2") if model == "logistic" else ("slope", "bias")
        below.set(xlabel=names[0], ylabel=names[1])
        below.set(xlim=_span(contour["theta_1"]), ylim=_span(contour["theta_2"]), box_aspect=1)
    fisher, ef = (Line2D([], [], color=STYLE[m][0], ls=STYLE[m][1]) for m in ("NGD", "EFGD"))
    labels = ["3-sigma ellipse of N F (F = Hessian)", "of N EF", "loss contours"]
    handles = [fisher, ef, Line2D([], [], color="0.75")]
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _scatter(ax: Axes, points: Any, panel: Any, model: str) -> None:
    if model == "logistic":
        for label, part in points.groupby("y"):
            ax.plot(part["first"], part["second"], ".", ms=2, label=f"class {label:g}")
        ax.set(xlim=(-9, 9), ylim=(-9, 9), xlabel="x_1", ylabel="x_2", box_aspect=1)
        ax.legend(fontsize=8, loc="upper left", markerscale=3)
        return
    ax.plot(points["first"], points["y"], ".", ms=2)
    line = np.array([points["first"].min(), points["first"].max()])
    ax.plot(line, panel["theta_1"] * line + panel["theta_2"], color="k")
    ax.set(xlabel="x", ylabel="y", box_aspect=1)


def _span(values: Any) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def _ellipses(ax: Axes, panel: Any) -> None:
    """{theta* + 3 (N M)^(-1/2) u, |u| = 1} for M = F and M = EF."""
    circle = np.stack([f(np.linspace(0, 2 * np.pi, 200)) for f in (np.cos, np.sin)])
    centre = np.array([[panel["theta_1"]], [panel["theta_2"]]])
    for name, method in (("fisher", "NGD"), ("ef", "EFGD")):
        m = panel[[f"{name}_11", f"{name}_12", f"{name}_12", f"{name}_22"]].to_numpy(dtype=float).reshape(2, 2)
        values, vectors = np.linalg.eigh(panel["n"] * m)
        ring = centre + 3 * vectors @ np.diag(values**-0.5) @ vectors.T @ circle
        colour, dashes = STYLE[method]
        ax.plot(*ring, color=colour, ls=dashes, lw=2)
    ax.plot(*centre, "k*")


def _optimisation(folder: Path, names: list[str]) -> Figure:
    """Figures 3 and 5: loss of every method at its best, and the cosine of both directions on EFGD's path."""
    figure = Figure(figsize=(3.4 * len(names) + 0.6, 5.4), layout="constrained")
    grid = figure.subplots(2, len(names), squeeze=False, sharex="col")
    for (top, below), name in zip(grid.T, names, strict=True):
        curves = _read(folder / f"curves_{name}.csv")
        chosen = _read(folder / f"selected_{name}.csv").set_index("method")
        curves = curves[curves["iteration"] <= SHOWN.get(name, 100)]
        for method, (colour, dashes) in STYLE.items():
            part, best = curves[curves["method"] == method], chosen.loc[method]
            label = f"{method}, gamma 1e{best['log_gamma']:g}"
            label += f", lambda 1e{best['log_lambda']:g}" if np.isfinite(best["log_lambda"]) else ""
            top.plot(part["iteration"], part["loss"], color=colour, ls=dashes, lw=2, label=label)
        top.set(yscale="log", title=TITLES.get(name, name))
        top.set_ylim(top=1.0) if name == "a1a" else None
        top.legend(fontsize=7)
        path = curves[curves["method"] == "EFGD"]
        below.axhline(0, color="0.8", lw=0.8)
        below.plot(path["iteration"], path["cosine"], color="k")
        below.set(ylim=(-1.05, 1.05), xlabel="iteration")
    grid[0, 0].set_ylabel("mean loss")
    grid[1, 0].set_ylabel("cosine of NGD and EFGD\ndirections on EFGD's path")
    return figure


def _starts(folder: Path) -> Figure:
    """Figure 6: Boston from starts at a multiple of the optimum."""
    starts = _read(folder / "starts.csv")
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    shades = {f: str(0.65 * f) for f in sorted(starts["factor"].unique())}
    for ax, method in zip(figure.subplots(1, 2, sharey=True), ("NGD", "EFGD"), strict=True):
        ax.axhline(starts["optimum"].iloc[0], color="tab:green", lw=1, ls=":", label="least squares")
        for factor, part in starts[starts["method"] == method].groupby("factor", sort=False):
            colour, dashes = STYLE[method]
            ax.plot(
                part["iteration"], part["loss"], color=colour, ls=dashes, alpha=1 - float(shades[factor]), lw=2,
                label=f"from {factor:g} theta*",
            )  # fmt: skip
        ax.set(yscale="log", title=f"Boston, {method}", xlabel="iteration")
        ax.legend(fontsize=8)
    figure.axes[0].set_ylabel("mean loss")
    return figure


def _grids(folder: Path, names: list[str]) -> Figure:
    """The last loss over step size and damping: where each method's best lies, problem by problem."""
    figure = Figure(figsize=(3.2 * len(names) + 1, 5.6), layout="constrained")
    axes = figure.subplots(2, len(names), squeeze=False, sharex=True, sharey=True)
    for column, name in zip(axes.T, names, strict=True):
        table, chosen = _read(folder / f"grid_{name}.csv.gz"), _read(folder / f"selected_{name}.csv")
        start = chosen["loss_0"].iloc[0]
        for ax, method in zip(column, ("NGD", "EFGD"), strict=True):
            part = table[(table["method"] == method) & (table["status"] == "finished")]
            grid = part.pivot(index="log_lambda", columns="log_gamma", values="loss").clip(upper=start)
            shown = np.log10(grid / start)
            mesh = ax.pcolormesh(grid.columns, grid.index, shown, vmin=-3, vmax=0, cmap="viridis_r")
            best = chosen[chosen["method"] == method].iloc[0]
            ax.plot(best["log_gamma"], best["log_lambda"], marker="*", ms=11, color="tab:red", mec="w")
            ax.set_title(f"{TITLES.get(name, name)}, {method}")
    for ax in axes[-1]:
        ax.set_xlabel("log10 step size gamma")
    for ax in axes[:, 0]:
        ax.set_ylabel("log10 damping lambda")
    figure.colorbar(mesh, ax=axes, label="log10 last loss / first loss (blank: stopped; star: best)")
    return figure


def _nets(folder: Path) -> Figure:
    """What becomes of EF, F and H as the residual vanishes, a thin line per seed."""
    nets = _read(folder / "nets.csv")
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    quantities = {
        "tr EF / tr F": (lambda t: t["trace_ef"] / t["trace_fisher"], "tab:red", "-."),
        "tr F / tr F at the start": (lambda t: t["trace_fisher"] / t["trace_fisher"].iloc[0], "goldenrod", "-"),
        "|| H - F || / || H ||": (lambda t: t["h_minus_f"], "k", "--"),
    }
    titles = {"gaussian": "Gaussian likelihood (regression)", "categorical": "softmax (classification)"}
    for ax, (likelihood, title) in zip(figure.subplots(1, 2, sharey=True), titles.items(), strict=True):
        part = nets[nets["likelihood"] == likelihood]
        for label, (quantity, colour, dashes) in quantities.items():
            for seed, run in part.sort_values("step").groupby("seed"):
                shown = label if seed == part["seed"].min() else None
                ax.plot(run["loss"], quantity(run), color=colour, ls=dashes, lw=1, alpha=0.7, label=shown)
        ax.set(xscale="log", yscale="log", title=title, xlabel="mean loss (training goes to the right)")
        ax.invert_xaxis()
    figure.axes[0].set_ylabel(f"ratio; wine, tanh net, {part['seed'].nunique()} seeds")
    figure.axes[0].legend(fontsize=8)
    return figure
