"""The figure of `fisherlab compare`: Fisher against empirical Fisher along a training path, with controls."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fisherlab.files import replace

# By control: how it is called, and its colour.
CONTROLS = {
    "fisher": ("Fisher F", "goldenrod"),
    "ef": ("empirical Fisher EF", "tab:red"),
    "mc": ("null: F of one sampled label", "0.5"),
    "kfac": ("K-FAC of F", "tab:blue"),
    "kfac_ef": ("K-FAC of EF (against K-FAC of F)", "tab:purple"),
}
BATCHES = {"same": "-", "independent": ":"}


def draw_fisher(folder: Path) -> Path:
    """Draw `fisher.png` from `fisher.csv`.

    Args:
        folder: A run directory.

    Returns:
        The file written.
    """
    figure = draw(pd.read_csv(folder / "fisher.csv"))
    path = folder / "fisher.png"
    replace(path, lambda temporary: figure.savefig(temporary, dpi=120))
    return path


def draw(table: Any) -> Figure:
    """Draw directions above, matrices and steps below.

    Args:
        table: `fisher.csv`.

    Returns:
        The figure.
    """
    whole = table[table["layer"] == "all"]
    dampings = sorted(whole["lambda"].unique())
    columns = max(3, len(dampings))
    figure = Figure(figsize=(4 * columns + 2.4, 7), layout="constrained")
    grid = figure.subplots(2, columns, squeeze=False)
    for ax in grid[0, len(dampings) :]:
        ax.set_visible(False)
    for ax, damping in zip(grid[0], dampings, strict=False):
        _cosines(ax, whole[whole["lambda"] == damping])
        ax.set_title(f"directions against NGD's, lambda = {damping:g}")
    grid[0, 0].set_ylabel("cosine")
    _traces(grid[1, 0], whole)
    _distances(grid[1, 1], whole)
    middle = dampings[len(dampings) // 2]
    _decreases(grid[1, 2], whole[whole["lambda"] == middle], middle)
    for ax in grid[1, 3:]:
        ax.set_visible(False)
    for ax in grid.flat:
        ax.set_xscale("symlog", linthresh=1)
        ax.set_xlim(left=-0.1)
        ax.set_xlabel("step")
    lines = [Line2D([], [], color=colour) for _, colour in CONTROLS.values()]
    styles = [Line2D([], [], color="k", ls=dashes) for dashes in BATCHES.values()]
    names = [name for name, _ in CONTROLS.values()]
    names += ["curvature from the gradient's batch", "curvature from another batch"]
    figure.legend(lines + styles, names, loc="outside right upper", frameon=False, fontsize=9)
    return figure


def _pick(table: Any, control: str, batch: str = "same", match: str = "equal") -> Any:
    chosen = (table["control"] == control) & (table["batch"] == batch) & (table["match"] == match)
    return table[chosen].sort_values("step")


def _cosines(ax: Axes, table: Any) -> None:
    ax.axhline(0, color="0.85", lw=0.8)
    for batch, dashes in BATCHES.items():
        for control in list(CONTROLS)[1:]:
            part = _pick(table, control, batch)
            ax.plot(part["step"], part["cosine"], color=CONTROLS[control][1], ls=dashes, marker="o", ms=3)
    ax.set_ylim(-1.05, 1.05)


def _once(table: Any, control: str) -> Any:
    """One row per step of what does not depend on the damping."""
    return _pick(table, control).drop_duplicates("step")


def _traces(ax: Axes, whole: Any) -> None:
    part = _once(whole, "ef")
    ax.plot(
        part["step"], part["trace_ef"] / part["trace_fisher"], color="tab:red", marker="o", ms=3, label="tr EF / tr F"
    )
    mc = _once(whole, "mc")
    ratio = mc["trace_control"] / mc["trace_fisher"]
    ax.plot(mc["step"], ratio, color="0.5", marker="o", ms=3, label="the same of the null")
    ax.plot(
        part["step"], part["residual"] / part["residual"].iloc[0], color="k", ls="--", label="residual / first residual"
    )
    ax.set(yscale="log", title="size of EF")
    ax.legend(fontsize=8)


def _distances(ax: Axes, whole: Any) -> None:
    for control in ("ef", "mc", "kfac"):
        part = _once(whole, control)
        ax.plot(part["step"], part["distance"], color=CONTROLS[control][1], marker="o", ms=3)
        ax.plot(part["step"], part["distance_scaled"], color=CONTROLS[control][1], ls="-.")
    part = _once(whole, "fisher")
    ax.plot(part["step"], part["hessian_distance"], color="k", ls="--")
    _key(ax, {"||F - M|| / ||F||": "-", "at M's best scale": "-.", "||H - F|| / ||H||": "--"})
    ax.set(yscale="log", title="distance of the matrices")


def _decreases(ax: Axes, table: Any, damping: float) -> None:
    for control, (_, colour) in CONTROLS.items():
        part = _pick(table, control)
        ax.plot(part["step"], part["line_decrease"], color=colour, marker="o", ms=3)
        ax.plot(part["step"], part["predicted"], color=colour, ls="-.")
    _key(ax, {"measured, best of a line search": "-", "predicted by F": "-."})
    ax.set_yscale("log")
    ax.set(title=f"decrease of the batch's loss (nats),\none step along it, lambda = {damping:g}")


def _key(ax: Axes, styles: dict[str, str]) -> None:
    handles: Sequence[Line2D] = [Line2D([], [], color="k", ls=dashes) for dashes in styles.values()]
    ax.legend(handles, list(styles), fontsize=8)
