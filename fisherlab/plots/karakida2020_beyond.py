"""Figures of what happens beyond the theory of Karakida and Osawa (2020)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fisherlab.plots.beside import legend
from fisherlab.plots.karakida2020_look import LOOK, NAMES, band, look, sizes_on
from fisherlab.studies.karakida2020 import cross_entropy, empirical, gap, minibatch
from fisherlab.studies.karakida2020.tables import found, widths


def beyond(folder: Path, settings: dict[str, Any]) -> dict[str, Figure]:
    """Draw what has been run so far.

    Args:
        folder: The study's folder.
        settings: The scale's.

    Returns:
        The figures by file name, without suffix.
    """
    drawn: dict[str, Figure] = {}
    entropy, left = found(folder, cross_entropy.TABLE), widths(folder, gap.GAP)
    if entropy is not None and left is not None:
        drawn["cross_entropy_and_features"] = _cross_entropy(entropy, left, settings)
    if (table := found(folder, minibatch.TABLE)) is not None:
        drawn["minibatches"] = _batches(table, settings)
    along, runs = found(folder, empirical.ALONG), found(folder, empirical.RUNS)
    if along is not None and runs is not None:
        drawn["empirical_fisher"] = _empirical(along, runs, settings)
    return drawn


def _cross_entropy(table: Any, left: Any, settings: dict[str, Any]) -> Figure:
    """Cross-entropy by step against its recursion; and the kernel's change by width."""
    figure = Figure(figsize=(10.5, 4.2), layout="constrained")
    one, two = figure.subplots(1, 2)
    for i, variant in enumerate(v for v in NAMES if (table["variant"] == v).any()):
        own = table[table["variant"] == variant]
        band(one, own, "step", "loss", variant, shift=0.05 * (i - 2), ls="none")
        theory = own.groupby("step")["loss_theory"].median()
        one.plot(theory.index, theory, lw=1, color=LOOK[variant]["color"], ls=LOOK[variant]["ls"])
    one.xaxis.set_major_locator(MaxNLocator(integer=True))
    one.set(yscale="log", xlabel="step", ylabel="cross-entropy, training (nats)")
    one.set_title(f"η = 1/α, width {settings['width']}; lines: f ← f - αη (p - y) / (p(1 - p))", fontsize="medium")
    own = left[left["network"] == "relu"]
    for variant in (v for v in NAMES if (own["variant"] == v).any()):
        band(two, own[own["variant"] == variant], "width", "kernel_change", variant)
    two.axhline(0.1, color="0.7", lw=0.8, ls=":")
    two.set(xscale="log", yscale="log", xlabel="width M", ylabel="‖Θ after - Θ before‖ / ‖Θ before‖", ylim=(None, 20))
    two.set_title(
        "feature learning: the kernel's change in one step\nof the squared loss at η = 1/α", fontsize="medium"
    )
    sizes_on(two, sorted(own["width"].unique()))
    legend(figure, [one, two])
    return figure


def _batches(table: Any, settings: dict[str, Any]) -> Figure:
    """Loss by epoch for each batch size."""
    shown = [v for v in NAMES if (table["variant"] == v).any()]
    figure = Figure(figsize=(2.8 * len(shown), 3.9), layout="constrained")
    axes = list(figure.subplots(1, len(shown), sharey=True))
    sizes = sorted(table["batch"].unique(), reverse=True)
    for axis, variant in zip(axes, shown, strict=True):
        for i, batch in enumerate(sizes):
            own = table[(table["variant"] == variant) & (table["batch"] == batch)]
            middle = own.groupby("epoch")[["loss", "loss_frozen"]].median()
            steps = middle.index.to_numpy() * -(-settings["examples"] // batch)
            closed = float(middle["loss"].iloc[0]) * (1 - settings["slow"]) ** (2.0 * steps)
            axis.plot(
                middle.index,
                middle["loss"],
                "osD^"[i % 4],
                ms=5,
                mfc="none",
                color=f"C{i}",
                label=f"batches of {batch}",
            )
            axis.plot(
                middle.index,
                middle["loss_frozen"],
                "-",
                lw=1.1,
                color=f"C{i}",
                label="S as it began" if not i else None,
            )
            axis.plot(middle.index, closed, ":", lw=1.1, color=f"C{i}", label="(1 - αη)$^{2t}$" if not i else None)
        axis.set(yscale="log", xlabel="epoch")
        axis.set_title(NAMES[variant], fontsize="medium")
    axes[0].set_ylabel("training loss, all examples (median)")
    axes[0].set_ylim(bottom=float(table["loss_frozen"].min()) / 30)
    figure.suptitle(
        f"mini-batches, η = {settings['slow']:g}/α of the batch, width {settings['middle_width']}", fontsize="medium"
    )
    legend(figure, axes)
    return figure


def _empirical(along: Any, runs: Any, settings: dict[str, Any]) -> Figure:
    """Isotropy of the empirical Fisher along both paths, and its losses."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    one, two, three = figure.subplots(1, 3)
    for kind, fill in (("empirical", None), ("Fisher", "full")):
        for variant in (v for v in NAMES if (along["variant"] == v).any()):
            style = look(variant, ms=5, alpha=1.0 if kind == "empirical" else 0.35)
            style |= {"label": NAMES[variant] if kind == "empirical" else None}
            own = along[(along["variant"] == variant) & (along["kind"] == kind)]
            drawn = [(one, own, "isotropy")]
            own = runs[(runs["variant"] == variant) & (runs["kind"] == kind)]
            drawn += [(two, own, "isotropy"), (three, own, "loss")] if len(own) else []
            for axis, rows, column in drawn:
                middle = rows.groupby("step")[column].median()
                axis.plot(middle.index, middle, **style | ({"mfc": style["color"]} if fill else {}))
    one.set_title("along the path of the whole Fisher", fontsize="medium")
    two.set_title("each along its own path", fontsize="medium")
    for axis in (one, two):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set(ylim=(-0.03, 1.03), xlabel="step", ylabel="isotropy error of J G$^{-1}$ Jᵀ / N")
    three.xaxis.set_major_locator(MaxNLocator(integer=True))
    three.set(yscale="log", xlabel="step", ylabel="training loss (median)")
    three.set_title(f"first steps of {settings['empirical_rate']:g}/α in the mean", fontsize="medium")
    figure.suptitle(
        f"empirical Fisher (open) and Fisher (filled, faint), width {settings['middle_width']}", fontsize="medium"
    )
    legend(figure, [one])
    return figure
