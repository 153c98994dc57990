"""The figures of Fujimori et al. (2022), from the study's tables; pink is damping 1e0, as in the paper."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fisherlab.plots.beside import histogram_grid, legend

COLOURS = {
    -5: "tab:green", -4: "tab:blue", -3: "tab:cyan", -2: "tab:purple", -1: "tab:orange", 0: "deeppink", 1: "tab:brown",
    2: "0.55",
}  # fmt: skip
LABELS = [*(f"$10^{{{decade}}}$" for decade in COLOURS), "SGD"]
HIGHEST = 10  # loss that is drawn: one blow-up would leave no room for the others
FIGURE_1 = (-4, 0, 1)  # decades of the paper's Figure 1


def figures(folder: Path) -> dict[str, Figure]:
    """Draw what has been searched so far.

    Args:
        folder: The study's folder.

    Returns:
        The figures by file name, without suffix.
    """
    settings = json.loads((folder / "study.json").read_text())["settings"]
    summary = _read(folder / "summary.csv")
    told = dict(zip(summary["setting"], summary["told"], strict=True))
    searched = {s: title for s, title in told.items() if (folder / f"trials_{s}_tpe.csv.gz").exists()}
    drawn = {
        "figure_2": _curves(folder, searched),
        "loss_against_damping": _losses(summary),
        "best_learning_rate": _rates(folder, searched, summary),
        "diverged": _diverged(summary),
    }
    whole = [s for s in searched if s in settings["settings"]]
    drawn |= {f"figure_1_{s}": _histograms(folder, s, told[s], settings["dampings"]) for s in whole}
    rerun = {s: title for s, title in searched.items() if (folder / f"gradients_{s}.csv.gz").exists()}
    drawn |= {"squared_gradients": _gradients(folder, rerun)} if rerun else {}
    drawn |= {"cosine_to_gradient": _cosines(folder)} if (folder / "cosines.csv.gz").exists() else {}
    compared = sorted(path for path in folder.glob("reruns_policies_*.csv"))
    drawn |= {"damping_policies": _policies(compared)} if compared else {}
    if (folder / "policy_searches.csv").exists():
        drawn["policies_by_last_damping"] = _last_dampings(_read(folder / "policy_searches.csv"))
    return drawn


def _read(path: Path) -> Any:
    return pd.read_csv(path)


def _style(damping: float) -> dict[str, Any]:
    """Line of a damping; not a number is SGD."""
    if math.isnan(damping):
        return {"color": "k", "ls": "--", "label": "SGD"}
    decade = round(math.log10(damping))
    return {"color": COLOURS[decade], "label": f"$10^{{{decade}}}$", "lw": 2.2 if decade == 0 else 1.3}


def _panels(titles: list[str], width: float = 3.4, height: float = 3.0, **shared: Any) -> tuple[Figure, list[Axes]]:
    columns = min(3, len(titles))
    rows = -(-len(titles) // columns)
    figure = Figure(figsize=(width * columns + 2.2, height * rows), layout="constrained")  # the legend beside them
    axes = list(figure.subplots(rows, columns, squeeze=False, **shared).flat)
    for axis in axes[len(titles) :]:
        axis.set_axis_off()
    for axis, title in zip(axes, titles, strict=False):
        axis.set_title(textwrap.fill(title, 30), fontsize="medium")
    return figure, axes


def _label(axes: list[Axes], x: str, y: str) -> None:
    """Label panels that share their axes: the lowest of each column, and the first of each row."""
    shown = [axis for axis in axes if axis.axison]
    columns = min(3, len(shown))
    for i, axis in enumerate(shown):
        lowest, first = i + columns >= len(shown), i % columns == 0
        axis.set(xlabel=x if lowest else "", ylabel=y if first else "")
        axis.tick_params(which="both", labelbottom=lowest, labelleft=first)


def _by_damping(table: Any) -> Iterator[tuple[float, Any]]:
    for damping, part in table.groupby("damping", dropna=False):
        yield float(damping), part


def _curves(folder: Path, searched: dict[str, str]) -> Figure:
    """Figure 2: training loss of the best trials by step, their mean and the span of their middle 80 %."""
    figure, axes = _panels(list(searched.values()), sharey=True, sharex=True)
    for axis, setting in zip(axes, searched, strict=False):
        for damping, part in _by_damping(_read(folder / f"curves_{setting}_tpe.csv.gz")):
            smooth = part[["mean", "q10", "q90"]].rolling(11, center=True, min_periods=1).mean()
            axis.plot(part["step"], smooth["mean"], **_style(damping))
            axis.fill_between(
                part["step"], smooth["q10"], smooth["q90"], color=_style(damping)["color"], alpha=0.12, lw=0
            )
        axis.set(yscale="log")
    axes[0].set_ylim(top=min(HIGHEST, axes[0].get_ylim()[1]))
    _label(axes, "iteration", f"mini-batch loss (nats, cut at {HIGHEST})")
    legend(figure, axes, "damping\n(mean of the best\nthird, middle 80 %)", LABELS)
    return figure


def _losses(summary: Any) -> Figure:
    """Last training loss against damping: best trial, mean of the best third, median; SGD as lines."""
    settings = dict(zip(summary["setting"], summary["told"], strict=True))
    figure, axes = _panels(list(settings.values()), sharey=True, sharex=True)
    for axis, setting in zip(axes, settings, strict=False):
        for sampler, ls, marker in (("tpe", "-", "o"), ("random", ":", "s")):
            rows = summary[(summary["setting"] == setting) & (summary["sampler"] == sampler)]
            for what, colour, told in (
                ("best", "deeppink", "best trial"),
                ("mean_best", "tab:blue", "mean of the best third"),
                ("median", "0.5", "median"),
            ):
                kfac, sgd = rows[rows["damping"].notna()], rows[rows["damping"].isna()]
                if len(kfac):
                    label = f"{told}, {'TPE' if sampler == 'tpe' else 'random trials'}"
                    axis.plot(kfac["damping"], kfac[what], ls + marker, color=colour, ms=4, label=label)
                if sampler == "random" and len(kfac):
                    axis.fill_between(
                        kfac["damping"], kfac[f"{what}_low"], kfac[f"{what}_high"], color=colour, alpha=0.15
                    )
                if sampler == "tpe" and len(sgd) and set(sgd["trials"]) == set(kfac["trials"]):  # the same budget
                    axis.axhline(sgd[what].iloc[0], color=colour, ls="--", lw=0.9, label=f"{told}, SGD")
        axis.set(xscale="log", yscale="log")
    _label(axes, "damping", "last training loss (nats)")
    note = "no median where half of the trials diverged, no mean of the best third where more than two thirds did"
    figure.supxlabel(note, fontsize="small", color="0.4")
    legend(figure, axes)
    return figure


def _rates(folder: Path, searched: dict[str, str], summary: Any) -> Figure:
    """Learning rates of the best third of the trials against damping; the winner's is marked."""
    figure, axes = _panels(list(searched.values()), sharey=True, sharex=True)
    for axis, setting in zip(axes, searched, strict=False):
        trials = _read(folder / f"trials_{setting}_tpe.csv.gz").dropna(subset=["damping"])
        for damping, part in _by_damping(trials):
            best = part.dropna(subset=["value"]).sort_values("value").head(max(1, len(part) // 3))
            if not len(best):
                continue
            axis.plot(np.full(len(best), damping), best["lr"], ".", color=_style(damping)["color"], alpha=0.3, ms=4)
            axis.plot(damping, best["lr"].iloc[0], "*", color=_style(damping)["color"], ms=11, mec="k", mew=0.5)
        bounds = summary[(summary["setting"] == setting) & summary["damping"].notna()].groupby("damping")
        for end in ("lr_low", "lr_high"):
            axis.plot(bounds[end].first(), color="0.6", lw=0.8, ls="--")
        axis.set(xscale="log", yscale="log")
    _label(axes, "damping", "learning rate (star: best trial)")
    return figure


def _diverged(summary: Any) -> Figure:
    """Share of trials that diverged against damping, by setting; random trials dotted, as in the other figures."""
    figure = Figure(figsize=(8.2, 3.8), layout="constrained")
    axis = figure.subplots()
    settings, colours = list(dict.fromkeys(summary["told"])), [*mpl.color_sequences["tab10"], "k"]
    for (told, sampler), part in summary.groupby(["told", "sampler"], sort=False):
        kfac, i = part[part["damping"].notna()], settings.index(told)
        ls, name = (":", "random trials") if sampler == "random" else ("-", "TPE")
        look: dict[str, Any] = {"color": colours[i % 11], "marker": "osD^v<>Pp*h"[i % 11], "ls": ls, "ms": 4}
        axis.plot(kfac["damping"], kfac["diverged"], label=f"{told}, {name}", **look)
    axis.axhline(0.5, color="0.6", lw=0.8, ls="--")
    axis.set(xscale="log", ylim=(-0.02, 1.02), xlabel="damping", ylabel="share of trials that diverged")
    figure.legend(loc="outside right center", frameon=False, fontsize="small")
    return figure


def _histograms(folder: Path, setting: str, told: str, dampings: list[float]) -> Figure:
    """Figure 1: squared gradient entries, columns iterations, rows layers, all of the best trials together."""
    table = _read(folder / f"histogram_{setting}_tpe.csv.gz")
    shown = [d for d in dampings if round(math.log10(d)) in FIGURE_1]
    most = table.groupby("damping")["trials"].transform("max")
    table = table[table["damping"].isin(shown) & (table["trials"] == most)]
    by = dict(iter(table.groupby("damping")))
    if not by:
        return Figure(figsize=(4, 1))  # none of these dampings has a trial that finished
    figure = histogram_grid(by, {damping: _style(float(damping)) for damping in by}, "damping")
    trials = ", ".join(f"{damping:g}: {int(part['trials'].iloc[0])}" for damping, part in by.items())
    figure.suptitle(f"{told}; the best trials of each damping ({trials})", fontsize="medium")
    return figure


def _gradients(folder: Path, rerun: dict[str, str]) -> Figure:
    """Mean squared gradient of each damping's best configuration by iteration, mean and SD over fresh seeds."""
    figure, axes = _panels(list(rerun.values()), sharey=True, sharex=True)
    for axis, setting in zip(axes, rerun, strict=False):
        table = _read(folder / f"gradients_{setting}.csv.gz")
        own = table[(table["rank"] == 0) & (table["layer"] == "all") & (table["when"] == "step")]
        for damping, part in _by_damping(own):
            by = part.groupby("at")["log10"]
            axis.errorbar(by.mean().index, by.mean(), by.std(), capsize=2, **_style(damping))
    _label(axes, "iteration", "log10 squared gradient norm")
    legend(figure, axes, "damping", LABELS)
    return figure


def _cosines(folder: Path) -> Figure:
    """Cosine of the natural gradient to the gradient along each damping's best configuration."""
    figure = Figure(figsize=(5.6, 3.4), layout="constrained")
    axis = figure.subplots()
    for damping, part in _by_damping(_read(folder / "cosines.csv.gz")):
        by = part.groupby("step")["cosine"]
        axis.plot(by.mean().index, by.mean(), **_style(damping))
        axis.fill_between(by.mean().index, by.min(), by.max(), color=_style(damping)["color"], alpha=0.15, lw=0)
    axis.set(xlabel="iteration", ylabel="cosine to the gradient", ylim=(-0.05, 1.05))
    legend(figure, [axis], "damping", LABELS)
    return figure


def _policies(tables: list[Path]) -> Figure:
    """Last training loss of each policy's best trial: a point per fresh seed, a bar at their geometric mean."""
    figure, axes = _panels([path.name.removeprefix("reruns_policies_").removesuffix(".csv") for path in tables])
    for axis, path in zip(axes, tables, strict=False):
        ends = _read(path)
        names = list(dict.fromkeys(ends["policy"]))
        for (policy, search), part in ends.groupby(["policy", "search"]):
            at = names.index(policy) + 0.22 * (search - ends["search"].max() / 2)
            colour, losses = f"C{search}", part["train_loss"].dropna()
            axis.plot(np.full(len(losses), at), losses, ".", color=colour, alpha=0.6, ms=5)
            if len(losses):
                mean = np.exp(np.log(losses).mean())
                axis.plot([at - 0.08, at + 0.08], [mean] * 2, color=colour, lw=2, label=f"{search}")
            if len(losses) < len(part):
                told = f"{len(part) - len(losses)} diverged"
                axis.text(at, 0.98, told, rotation=90, ha="center", va="top", transform=axis.get_xaxis_transform())
        axis.set_xticks(range(len(names)), names, rotation=30)
        _log_losses(axis)
        low, high = axis.get_ylim()
        axis.set_ylim(low, high * (high / low) ** (0.4 if axis.texts else 0))  # room for what diverged
    legend(figure, axes, "search")
    return figure


def _last_dampings(searches: Any) -> Figure:
    """Last training loss of each search's winner against the damping it comes down to: mean and SD over fresh seeds."""
    names, nets = list(dict.fromkeys(searches["policy"])), list(dict.fromkeys(searches["net"]))
    figure, axes = _panels(nets)
    for axis, net in zip(axes, nets, strict=False):
        for policy, own in searches[searches["net"] == net].groupby("policy"):
            i, (loss, factor) = names.index(policy), (own["loss"], np.exp(own["sd"].fillna(0.0)))
            look: dict[str, Any] = {"color": f"C{i}", "marker": "osD^v"[i % 5], "ms": 5, "ls": "", "label": policy}
            axis.errorbar(own["last"], loss, [loss - loss / factor, loss * factor - loss], capsize=2, **look)
        axis.set(xscale="log", xlabel="damping at the end (lm, settling:\nthe least allowed)")
        _log_losses(axis)
    legend(figure, axes, "policy")
    return figure


def _log_losses(axis: Axes) -> None:
    """Losses within a decade or two, which plain numbers tell better than powers of ten."""
    axis.set(yscale="log", ylabel="last training loss (nats)")
    axis.yaxis.set_major_formatter("{x:.3g}")
    axis.yaxis.set_minor_formatter("{x:.3g}")
