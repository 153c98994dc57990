"""The figures of Karakida and Osawa (2020) as the sheet numbers them, and two of ours, from the study's tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fisherlab.plots.beside import legend
from fisherlab.plots.karakida2020_beyond import beyond
from fisherlab.plots.karakida2020_look import LOOK, NAMES, band, look, sizes_on
from fisherlab.studies.karakida2020 import dynamics, gap, isotropy, unitwise
from fisherlab.studies.karakida2020.tables import found, slopes, widths
from fisherlab.studies.study import settings_of

SHOWN = ("gd", "layer", "kfac", "unit", "diagonal")  # the whole and the tridiagonal Fisher look like the layer-wise one
FLOOR = 1e-32  # rounding
ROUNDING = 1e-7  # below, an isotropy error is that of float64 solves


def figures(folder: Path) -> dict[str, Figure]:
    """Draw what has been run so far.

    Args:
        folder: The study's folder.

    Returns:
        The figures by file name, without suffix.
    """
    settings, drawn = settings_of(folder), dict[str, Figure]()
    runs, outputs = found(folder, dynamics.TABLE), found(folder, dynamics.OUTPUTS)
    if runs is not None and outputs is not None:
        drawn["figure_1"] = _training(runs, settings)
        drawn["figure_2"] = _test(runs, outputs, settings)
    if (table := found(folder, isotropy.TABLE)) is not None:
        drawn["figure_3"] = _matrices(found(folder, isotropy.MATRICES), found(folder, isotropy.SPECTRA), settings)
        drawn["isotropy"] = _isotropy(table, settings)
    if (table := found(folder, unitwise.TABLE)) is not None:
        drawn["figure_4"] = _unitwise(table)
    left, kernels = (widths(folder, name) for name in (gap.GAP, gap.KERNELS))
    if left is not None and kernels is not None:
        drawn["width"] = _width(left, kernels)
    return drawn | beyond(folder, settings)


def _training(table: Any, settings: dict[str, Any]) -> Figure:
    """Figure 1: training loss by step, markers measured, lines theory."""
    figure = Figure(figsize=(10.5, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    start = table[table["step"] == 0].groupby(["seed", "variant", "factor"])["train_loss"].first()
    keys = list(zip(table["seed"], table["variant"], table["factor"], strict=True))
    shares = table.assign(share=table["train_loss"] / start.loc[keys].to_numpy())
    for column in ("theory", "flow"):
        shares[f"share_{column}"] = shares[f"train_loss_{column}"] / start.loc[keys].to_numpy()
    for axis, factor in ((left, settings["slow"]), (right, 1.0)):
        rows = shares[shares["factor"] == factor]
        for i, (variant, own) in enumerate(_by_variant(rows)):
            band(axis, own, "step", "share", variant, shift=0.04 * (i - 3), ls="none")
            if variant in ("gd", "unit", "diagonal"):
                theory = own.groupby("step")["share_theory"].median().clip(lower=FLOOR)
                axis.plot(theory.index, theory, lw=1, color=LOOK[variant]["color"], ls=LOOK[variant]["ls"])
            if variant == "gd":
                flow = own.groupby("step")["share_flow"].median()
                axis.plot(flow.index, flow, lw=0.8, color="tab:cyan", label="gradient flow (released code)", zorder=0)
    steps = np.arange(settings["slow_steps"] + 1)
    left.plot(steps, (1 - settings["slow"]) ** (2 * steps), "k-", lw=1, label="theory (1 - αη)$^{2t}$", zorder=0)
    left.set(yscale="log", xlabel="step t", ylabel="training loss / loss at the start")
    left.set_title(f"η = {settings['slow']:g}/α", fontsize="medium")
    right.set(yscale="log", xlabel="step t", xticks=range(settings["steps"] + 1))
    right.set_title(
        "η = 1/α: theory leaves nothing after one step\n(but for the coloured lines: S as it began)", fontsize="medium"
    )
    figure.suptitle(
        f"width {settings['width']}, {settings['seeds']} seeds: median, bars from least to most", fontsize="medium"
    )
    legend(figure, [left, right])
    return figure


def _by_variant(table: Any) -> list[tuple[str, Any]]:
    return [(variant, table[table["variant"] == variant]) for variant in NAMES if (table["variant"] == variant).any()]


def _test(table: Any, outputs: Any, settings: dict[str, Any]) -> Figure:
    """Figure 2: test loss by step, and what sets the variants apart at the test inputs."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    slow = table[table["factor"] == settings["slow"]]
    for i, (variant, own) in enumerate(_by_variant(slow)):
        band(left, own, "step", "test_loss", variant, shift=0.05 * (i - 2), ls="none")
        for column, width in (("test_loss_theory", 1.2), ("test_loss_limit", 0.6)):
            if own[column].notna().any():
                theory = own.groupby("step")[column].median()
                left.plot(theory.index, theory, color=LOOK[variant]["color"], ls=LOOK[variant]["ls"], lw=width)
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.set(xlabel="step", ylabel="test loss", yscale="log")
    left.set_title(
        f"η = {settings['slow']:g}/α; lines: theory,\nthin: with kernels of infinite width", fontsize="medium"
    )
    first = outputs[outputs["seed"] == 0]
    whole = first[first["variant"] == "exact"].set_index("example")
    for variant, own in _by_variant(first):
        own = own.set_index("example")
        middle.plot(own["theory"], own["measured"], **look(variant, ls="none", ms=4, alpha=0.7))
        if variant in ("layer", "tridiagonal"):  # K-FAC is far off, as the middle shows
            moved = [own[name] - whole[name] for name in ("theory", "measured")]
            right.plot(*moved, **look(variant, ls="none", ms=4, alpha=0.7))
    _diagonal(middle, "predicted f(x')", "measured f(x')", f"test inputs, {settings['steps']} steps at η = 1/α, seed 0")
    _diagonal(
        right,
        "predicted difference",
        "measured difference",
        "what sets these two apart\nfrom the whole Fisher",
    )
    legend(figure, [left, middle])
    return figure


def _diagonal(axis: Axes, x: str, y: str, title: str) -> None:
    low, high = axis.dataLim.intervalx
    axis.plot([low, high], [low, high], color="0.6", lw=0.8, zorder=0)
    axis.set(xlabel=x, ylabel=y)
    axis.set_title(title, fontsize="medium")


def _matrices(matrices: Any, spectra: Any, settings: dict[str, Any]) -> Figure:
    """Figure 3: S over its mean diagonal, and its eigenvalues."""
    shown = [variant for variant in SHOWN if (matrices["variant"] == variant).any()]
    figure = Figure(figsize=(2.2 * len(shown), 5.4), layout="constrained")
    grid = figure.add_gridspec(2, len(shown), height_ratios=[1, 1.25])
    for i, variant in enumerate(shown):
        axis = figure.add_subplot(grid[0, i])
        own = matrices[matrices["variant"] == variant].drop(columns="variant").to_numpy(float)
        drawn = axis.imshow(own, vmin=-1, vmax=1, cmap="RdBu_r", interpolation="nearest")
        axis.set_title(NAMES[variant], fontsize="medium")
        axis.set(xticks=[], yticks=[])
    figure.colorbar(drawn, ax=figure.axes, shrink=0.8, label="S / mean diagonal")
    axis = figure.add_subplot(grid[1, :])
    for variant, own in _by_variant(spectra):
        axis.plot(own["rank"], own["value"].clip(lower=1e-5), **look(variant, ms=3, markevery=7))
    axis.set(yscale="log", xlabel="rank", ylabel="eigenvalue of S / mean")
    top = max(settings["widths"])
    half = len(matrices[matrices["variant"] == shown[0]]) // 2
    figure.suptitle(
        f"S = J G$^{{-1}}$ Jᵀ / N at width {top}, seed 0; above, {half} examples of each class", fontsize="medium"
    )
    legend(figure, [axis])
    return figure


def _isotropy(table: Any, settings: dict[str, Any]) -> Figure:
    """Isotropy error along width, depth and damping."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    axes = list(figure.subplots(1, 3, sharey=True))
    middle = settings["middle_width"]
    panels = (
        ("width", "width", "width M", f"L = {settings['layers']}"),
        ("layers", "layers", "layers L", f"width {middle}"),
        ("damping", "rho", "ρ / mean eigenvalue of a block", f"width {middle}, L = {settings['layers']}"),
    )
    for axis, (name, x, told, title) in zip(axes, panels, strict=True):
        rows = table[table["axis"] == name]
        for variant, own in _by_variant(rows):
            band(axis, own.assign(isotropy=own["isotropy"].clip(lower=ROUNDING)), x, "isotropy", variant)
        axis.set(xlabel=told, yscale="log", xscale="linear" if name == "layers" else "log")
        axis.set_title(title, fontsize="medium")
    axes[0].axhline(0.02, color="0.7", lw=0.8, ls=":")
    axes[0].set_ylabel(f"isotropy error ‖S - (tr S/N) I‖ / ‖S‖\n(drawn at {ROUNDING:g} where it is below)")
    sizes_on(axes[0], settings["widths"])
    axes[1].set_xticks(sorted(table[table["axis"] == "layers"]["layers"].unique()))
    legend(figure, axes)
    return figure


def _unitwise(table: Any) -> Figure:
    """Figure 4: unit-wise blocks against rho."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    axes = list(figure.subplots(1, 3))
    table = table.assign(speed=table["alpha"] / table["alpha_theory"])
    sizes = sorted(table["width"].unique())
    panels = (
        ("isotropy", "isotropy error of S"),
        ("left", "loss left after one step at η = N / tr S"),
        ("speed", "α / (γ(L-1)M + 1)"),
    )
    for axis, (column, told) in zip(axes, panels, strict=True):
        for (scale, width), own in table.groupby(["scale", "width"]):
            median = own.groupby("rho")[column].median()
            style = {"color": f"C{sizes.index(width)}", "ls": "-" if scale == "relative" else "--"}
            marker = "o" if scale == "relative" else "x"
            axis.plot(median.index, median, marker=marker, ms=4, lw=1.2, label=f"width {width}, {scale} ρ", **style)
        axis.set(xscale="log", yscale="linear" if column == "speed" else "log", xlabel="ρ", ylabel=told)
    figure.suptitle(
        f"unit-wise; ρ in units of the mean eigenvalue of each block (relative), or of all blocks at width {sizes[0]} "
        "(absolute)", fontsize="medium",
    )  # fmt: skip
    legend(figure, axes)
    return figure


def _width(left: Any, kernels: Any) -> Figure:
    """What one step leaves, and the kernels' distance from infinite width, by width."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    axes = list(figure.subplots(1, 3))
    own = left[left["network"] == "relu"]
    for variant, rows in _by_variant(own):
        slope = np.median(slopes(rows, "left", 256))
        band(axes[0], rows, "width", "left", variant, label=f"{NAMES[variant]}, slope {slope:.2f}")
    axes[0].set(xscale="log", yscale="log", xlabel="width M", ylabel="loss left after one step at η = 1/α")
    axes[0].set_ylim(top=1e6)  # room for the legend
    axes[0].set_title("relu, no biases", fontsize="medium")
    axes[0].legend(frameon=False, fontsize="small", loc="upper right")
    for i, (network, rows) in enumerate(left.groupby("network", sort=False)):
        style = {"color": f"C{i}", "marker": "osD^v*"[i % 6], "ms": 4, "lw": 1.2}
        for variant, ls in (("exact", "-"), ("kfac", ":")):
            median = rows[rows["variant"] == variant].groupby("width")["left"].median()
            axes[1].plot(median.index, median, ls=ls, label=network if variant == "exact" else None, **style)
        total = kernels[(kernels["network"] == network) & (kernels["kernel"] == "total")]
        median = total[total["examples"] == "train"].groupby("width")["distance"].median()
        axes[2].plot(median.index, median, label=network, **style)
    axes[1].set(xscale="log", yscale="log", xlabel="width M", ylim=(None, 10))
    axes[1].set_title("the whole Fisher (solid),\nK-FAC (dotted)", fontsize="medium")
    sizes = np.array(sorted(kernels["width"].unique()), float)
    axes[2].plot(sizes, 2.5 * sizes**-0.5, "k--", lw=0.8, label="slope -1/2")
    axes[2].set(xscale="log", yscale="log", xlabel="width M", ylabel="‖Θ - Θ(∞)‖ / ‖Θ(∞)‖")
    axes[2].set_title("the kernel's distance from\nthat of infinite width", fontsize="medium")
    for axis in axes:
        sizes_on(axis, sizes)
    legend(figure, axes[1:], "inputs of norm 1 for relu,\nof norm √M$_0$ for the others")
    return figure
