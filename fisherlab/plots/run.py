"""The figures of one run directory, from its tables."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from fisherlab.files import replace

STYLE = {"train": ("tab:blue", "-"), "valid": ("tab:green", "-."), "test": ("tab:orange", "--")}


def draw_run(folder: Path) -> list[Path]:
    """Draw `curves.png` and, where there are histograms, `gradient_histogram.png`.

    Args:
        folder: A run directory.

    Returns:
        The files written.
    """
    written = []
    if (folder / "metrics.csv").exists():
        written.append(
            _save(draw_curves(_read(folder / "metrics.csv"), _read(folder / "steps.csv")), folder / "curves.png")
        )
    if (folder / "gradient_histogram.csv").exists():
        figure = draw_histogram(_read(folder / "gradient_histogram.csv"))
        written.append(_save(figure, folder / "gradient_histogram.png"))
    return written


def _read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path) if path.exists() else pd.DataFrame()


def _save(figure: Figure, path: Path) -> Path:
    replace(path, lambda temporary: figure.savefig(temporary, dpi=120))
    return path


def draw_curves(metrics: pd.DataFrame, steps: pd.DataFrame) -> Figure:
    """Draw loss and error by step, and the norms of gradient and update.

    Args:
        metrics: `metrics.csv`.
        steps: `steps.csv`; may be empty.

    Returns:
        The figure.
    """
    norms = not steps.empty and bool(steps["grad_norm"].notna().any())
    panels = 3 if norms else 2
    figure = Figure(figsize=(4.2 * panels, 3.4), layout="constrained")
    axes = figure.subplots(1, panels)
    if not steps.empty:
        axes[0].plot(steps["step"], steps["loss"], color="0.8", lw=0.6, label="mini-batch", zorder=0)
    _splits(axes[0], metrics, "loss", "mean nll (nats per example)")
    _splits(axes[1], metrics, "error", "error")
    if norms:
        axes[2].plot(steps["step"], steps["grad_norm"], lw=0.7, label="gradient")
        axes[2].plot(steps["step"], steps["update_norm"], lw=0.7, label="update")
        _log_if_wide(axes[2], steps[["grad_norm", "update_norm"]].to_numpy(dtype=float))
        axes[2].set(xlabel="step", ylabel="Euclidean norm")
        axes[2].legend(frameon=False, fontsize=8)
    return figure


def _splits(axis: Axes, metrics: pd.DataFrame, quantity: str, label: str) -> None:
    shown = [split for split in STYLE if metrics[f"{split}_{quantity}"].notna().any()]
    for split in shown:
        colour, line = STYLE[split]
        axis.plot(metrics["step"], metrics[f"{split}_{quantity}"], color=colour, ls=line, marker=".", ms=4, label=split)
    _log_if_wide(axis, metrics[[f"{s}_{quantity}" for s in shown]].to_numpy(dtype=float))
    axis.set(xlabel="step", ylabel=label)
    axis.legend(frameon=False, fontsize=8)


def _log_if_wide(axis: Axes, values: np.ndarray) -> None:
    """A log axis where positive values span more than a factor of 5."""
    finite = values[np.isfinite(values)]
    if finite.size and finite.min() > 0 and finite.max() > 5 * finite.min():
        axis.set_yscale("log")


def draw_histogram(table: pd.DataFrame) -> Figure:
    """Draw squared gradient entries in the layout of Fujimori et al. (2022), Figure 1: layers down, iterations across.

    Args:
        table: `gradient_histogram.csv`.

    Returns:
        The figure.
    """
    layers, steps = list(dict.fromkeys(table["layer"])), sorted(table["step"].unique())
    figure = Figure(figsize=(2.0 * len(steps) + 0.8, 1.3 * len(layers) + 0.8), layout="constrained")
    grid = figure.subplots(len(layers), len(steps), sharex=True, sharey="row", squeeze=False)
    occupied = table[table["count"] > 0]
    # The first bin starts at zero, which a log axis cannot show: give it the width of its neighbours.
    left = occupied["bin_left"].where(occupied["bin_left"] > 0, occupied["bin_right"] / np.sqrt(10))
    low, high = float(left.min()), float(occupied["bin_right"].max())
    colour = mpl.color_sequences["tab10"][0]
    for row, layer in enumerate(layers):
        for column, step in enumerate(steps):
            part = occupied[(occupied["layer"] == layer) & (occupied["step"] == step)]
            axis, start = grid[row][column], left.loc[part.index]
            axis.bar(start, part["count"], width=part["bin_right"] - start, align="edge", color=colour)
            axis.set_xscale("log")
            axis.set_xlim(low, high)
            axis.xaxis.set_major_locator(LogLocator(numticks=6))
            axis.tick_params(labelsize=7)
            if row == 0:
                axis.set_title(f"iteration {step}", fontsize=9)
        grid[row][0].set_ylabel(layer, fontsize=8)
    figure.supxlabel("squared gradient entry (the leftmost bar holds zeros and all that is smaller)", fontsize=9)
    figure.supylabel("number of entries", fontsize=9)
    return figure
