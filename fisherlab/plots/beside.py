"""Runs laid beside each other: their learning curves, and their squared gradient entries in one grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from omegaconf import OmegaConf

from fisherlab.files import replace

LINES = ("-", "--", "-.", ":")
SILENT = ("results", "threads", "device", "debug", "figures", "keep", "checkpoint_every", "record_norms", "optimizer")
LABELLED = 3  # keys of a label
RARE = 5e-3  # share of a layer's entries below which a bin bounds no axis


def draw_beside(runs: Sequence[Path], to: Path) -> list[Path]:
    """Draw several runs' curves and, where they have them, gradient histograms, as PNG and PDF.

    Args:
        runs: Run directories.
        to: Folder of the figures.

    Returns:
        The files written.
    """
    names = labels(runs)
    found = {"curves": _curves(runs, names)}
    counted = [(name, run) for name, run in zip(names, runs, strict=True) if (run / "gradient_histogram.csv").exists()]
    if counted:
        tables: list[Any] = [pd.read_csv(run / "gradient_histogram.csv") for _, run in counted]
        styles = {name: style(names.index(name)) for name, _ in counted}
        found["gradient_histogram"] = histogram_grid(
            dict(zip(styles, tables, strict=True)), {name: s | {"label": name} for name, s in styles.items()}
        )
    to.mkdir(parents=True, exist_ok=True)
    written = [to / f"{title}{suffix}" for title in found for suffix in (".png", ".pdf")]
    for path in written:
        replace(path, partial(found[path.stem].savefig, dpi=200))
    return written


def style(i: int) -> dict[str, Any]:
    """Colour and line of the i-th run: told apart in grey print too."""
    return {"color": mpl.color_sequences["tab10"][i % 10], "ls": LINES[i % len(LINES)], "lw": 1.3}


def labels(runs: Sequence[Path]) -> list[str]:
    """Name runs by the keys of their configs in which they differ; by their folders where they do not.

    Args:
        runs: Run directories.

    Returns:
        One name each, no two equal.
    """
    configs = [_flat(OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))) for run in runs]
    keys = [k for k in dict.fromkeys(k for c in configs for k in c) if len({str(c.get(k)) for c in configs}) > 1]
    shown = [k for k in keys if k.partition(".")[0] not in SILENT][:LABELLED]
    if any("optimizer._target_" in k for k in keys):
        shown = ["optimizer._target_", *shown][:LABELLED]
    told = [", ".join(f"{_short(k)} {_value(k, c[k])}" for k in shown if k in c) for c in configs]
    return [t if t and told.count(t) == 1 else f"{t} {run.name}".strip() for t, run in zip(told, runs, strict=True)]


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict):
        return {prefix[:-1]: node}
    return {k: v for name, inside in node.items() for k, v in _flat(inside, f"{prefix}{name}.").items()}


def _short(key: str) -> str:
    """The last part of a dotted key; of a class, whose it is."""
    return key.removesuffix("._target_").rpartition(".")[2]


def _value(key: str, value: Any) -> str:
    return str(value).rpartition(".")[2] if key.endswith("_target_") else str(value)


def _curves(runs: Sequence[Path], names: Sequence[str]) -> Figure:
    """Mini-batch loss, smoothed, and the evaluations, by step."""
    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, (run, name) in enumerate(zip(runs, names, strict=True)):
        steps: Any = pd.read_csv(run / "steps.csv")
        metrics: Any = pd.read_csv(run / "metrics.csv")
        width = max(1, len(steps) // 50)
        left.plot(
            steps["step"], steps["loss"].rolling(width, center=True, min_periods=1).mean(), label=name, **style(i)
        )
        right.plot(metrics["step"], metrics["train_loss"], marker=".", **style(i))
    left.set(xlabel="step", ylabel="mini-batch loss (nats, running mean)", yscale="log")
    right.set(xlabel="step", ylabel="training loss (nats per example)", yscale="log")
    figure.legend(loc="outside lower center", ncols=min(3, len(names)), frameon=False)
    return figure


def histogram_grid(
    tables: Mapping[Any, Any], styles: Mapping[Any, Mapping[str, Any]], title: str | None = None
) -> Figure:
    """Draw squared gradient entries in the layout of Fujimori et al. (2022), Figure 1: layers down, iterations across.

    Args:
        tables: By series, with the columns of `gradient_histogram.csv`.
        styles: By series, keyword arguments of its line.
        title: Of the legend.

    Returns:
        The figure: share of a layer's entries per bin, what is zero left out.
    """
    first = next(iter(tables.values()))
    steps, layers = sorted({s for t in tables.values() for s in t["step"]}), list(dict.fromkeys(first["layer"]))
    figure = Figure(figsize=(1.25 * len(steps) + 1.2, 0.95 * len(layers) + 0.9), layout="constrained")
    grid = figure.subplots(len(layers), len(steps), squeeze=False, sharex=True, sharey=True)
    for series, table in tables.items():
        for (step, layer), part in table.groupby(["step", "layer"]):
            if layer in layers:
                bins = part.sort_values("bin_right")
                share = (bins["count"] / bins["count"].sum())[bins["bin_left"] > 0]  # without what is zero
                edges = bins["bin_right"][share.index]
                # The line as a sum over bins would have it, edge by edge; empty bins may be left out of the table.
                grid[layers.index(layer)][steps.index(step)].step(edges, share, where="pre", **styles[series])
    grid[0][0].set_xscale("log")
    counts = [t[t["bin_left"] > 0].groupby(["layer", "bin_right"])["count"].sum() for t in tables.values()]
    shown = [edge for c in counts for _, edge in c.index[c / c.groupby("layer").transform("sum") > RARE]]
    grid[0][0].set_xlim(min(shown) / 10, max(shown) * 10)
    grid[0][0].xaxis.set_major_locator(LogLocator(numticks=4))
    for axis in grid.flat:
        axis.tick_params(labelsize=6)
    for axis, step in zip(grid[0], steps, strict=True):
        axis.set_title(f"iteration {int(step)}", fontsize=8)
    for axis, layer in zip(grid[:, 0], layers, strict=True):
        axis.set_ylabel(layer, fontsize=7)
    figure.supxlabel("squared gradient entry", fontsize=9)
    figure.supylabel("share of a layer's entries per half decade", fontsize=9)
    legend(figure, list(grid.flat), title)
    return figure


def legend(
    figure: Figure, axes: Sequence[Any], title: str | None = None, order: Sequence[str] = (), columns: int = 0
) -> None:
    """One legend for all panels, on the right or below them, each label once.

    Args:
        figure: The figure.
        axes: Its panels.
        title: Of the legend.
        order: Labels that come first, in this order; the others follow as they are met.
        columns: Of a legend below the panels; 0 for one on the right.
    """
    place: Any = "outside lower center" if columns else "outside right center"
    found = {name: h for axis in axes for h, name in zip(*axis.get_legend_handles_labels(), strict=True)}
    found = {name: found[name] for name in [*(n for n in order if n in found), *found]}
    figure.legend(found.values(), found.keys(), loc=place, title=title, ncols=columns or 1, frameon=False)
