"""The paper's claims on the curves, the cost of a step, and the matrices."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fisherlab.studies.judge import LEAST, Effect, holds, verdicts
from fisherlab.studies.study import Claim, read_table, settings_of
from fisherlab.studies.sun2017.runs import LAST, chosen, curves_table
from fisherlab.studies.sun2017.settings import NAMES, TOLD

RANGES = {"plain": (0.966, 0.977), "bna": (0.970, 0.978)}  # axis limits of the figures
SMALL = math.log10(1.05)  # the smallest interesting ratio
POINT = 1e-3  # the smallest interesting difference of accuracies
MOVES = 0.1  # relative change of a matrix that counts as moving
STEPS = 8  # most SGD steps that one RNGD step may cost: the project's own bar


def claims(folder: Path) -> list[Claim]:
    """Judge by the tables that there are.

    Args:
        folder: The study's folder.

    Returns:
        The claims, net by net.
    """
    settings = settings_of(folder)
    found = []
    for net in settings["nets"]:
        curves = {m: table for m in settings["methods"] if (table := curves_of(folder, net, m)) is not None}
        at_bound = {m: _at_bound(folder, net, m, settings["rates"]) for m in curves}
        found += list(_ranges(net, curves, folder.name == "paper"))
        if {"sgd", "rngd"} <= curves.keys():
            found += list(_against_sgd(net, curves, at_bound))
        if {"adam", "rngd"} <= curves.keys():
            found.append(_against_adam(net, curves, at_bound))
        if (folder / f"matrices_{net}.csv").exists():
            found += list(_moving(net, read_table(folder / f"matrices_{net}.csv")))
        if (folder / "cost.csv").exists():
            found += list(_cost(net, read_table(folder / "cost.csv"), settings, curves, at_bound))
    return found


def curves_of(folder: Path, net: str, method: str) -> Any | None:
    """Read a method's curves on fresh seeds.

    Args:
        folder: The study's.
        net: A key of `NETS`.
        method: A key of `METHODS` or `VARIANTS`.

    Returns:
        The table; None where it is not there.
    """
    path = folder / curves_table(net, method)
    return read_table(path) if path.exists() else None


def _at_bound(folder: Path, net: str, method: str, rates: Sequence[float]) -> str:
    """Names the best learning rate where it is an end of the grid."""
    best = chosen(folder, net, method)
    return (
        f"; {NAMES[method]}'s learning rate {best:g} is an end of the grid" if best in (min(rates), max(rates)) else ""
    )


def _unless(bounds: str, verdict: str) -> str:
    return "inconclusive" if bounds else verdict


def accuracy(curves: Any, column: str = "valid_error") -> Any:
    """The mean accuracy over the last epochs.

    Args:
        curves: Of one method.
        column: valid_error or test_error.

    Returns:
        By seed; NaN where a run diverged.
    """
    ended = curves["status"] == "finished"
    last = curves[curves["epoch"] > curves["epoch"].max() - LAST]
    return (1 - last[column]).where(ended).groupby(last["seed"]).agg(lambda a: a.mean(skipna=False))


def _setting(net: str, curves: Any) -> str:
    epochs, seeds = round(curves["epoch"].max()), curves["seed"].nunique()
    return f"{TOLD[net]}, {epochs} epochs, {seeds} seeds with a split each"


def _ranges(net: str, curves: dict[str, Any], decisive: bool) -> Iterator[Claim]:
    low, high = RANGES[net]
    for method in ("sgd", "adam", "rngd"):
        if method not in curves:
            continue
        valid, test = accuracy(curves[method]), accuracy(curves[method], "test_error")
        effect = Effect(list(valid))
        inside, outside = low <= effect.interval[0] and effect.interval[1] <= high, _apart(effect.interval, low, high)
        decided = "reproduced" if inside else "contradicted" if outside else "inconclusive"
        yield Claim(
            f"{NAMES[method]}'s validation accuracy lies in the figure's range", "Figure (slides 25, 26)",
            _setting(net, curves[method]), f"{low} to {high}",
            f"{valid.mean():.4f}, test {test.mean():.4f}; mean of the last {LAST} epochs", len(valid),
            effect.told.partition(", against")[0], decided if decisive and len(valid) >= LEAST else "inconclusive",
        )  # fmt: skip


def _apart(interval: tuple[float, float], low: float, high: float) -> bool:
    return interval[1] < low or interval[0] > high


def epochs_to(curves: Any, level: float) -> Any:
    """The first epoch, by seed, at whose end the objective is at most a level.

    Args:
        curves: Of one method.
        level: Of the objective.

    Returns:
        Epochs; infinity where never.
    """
    there = curves[curves["objective"] <= level].groupby("seed")["epoch"].min()
    return there.reindex(sorted(curves["seed"].unique())).fillna(math.inf)


def _level(curves: dict[str, Any]) -> float:
    """An objective that SGD reaches with every seed."""
    return 1.02 * float(curves["sgd"].groupby("seed")["objective"].min().max())


def _against_sgd(net: str, curves: dict[str, Any], bounds: dict[str, str]) -> Iterator[Claim]:
    level, told = _level(curves), bounds["sgd"] + bounds["rngd"]
    sgd, rngd = epochs_to(curves["sgd"], level), epochs_to(curves["rngd"], level)
    ratios = np.log10(sgd / rngd.clip(lower=0.5))
    effects = [Effect(list(ratios), SMALL), Effect(list(accuracy(curves["rngd"]) - accuracy(curves["sgd"])), 0.0)]
    first, second = verdicts(effects)
    yield Claim(
        "RNGD reaches a low cost in fewer epochs than SGD", "Figure (slides 25, 26)", _setting(net, curves["rngd"]),
        "clearly fewer",
        f"to the objective {level:.3g}: {rngd.median():.0f} against {sgd.median():.0f} epochs (medians)" + told,
        len(ratios), f"log10 ratio: {effects[0].told}", _unless(told, first),
    )  # fmt: skip
    gain = np.mean(effects[1].values)
    yield Claim(
        "RNGD ends with a higher validation accuracy than SGD", "Figure (slides 25, 26)",
        _setting(net, curves["rngd"]), "higher", f"by {gain:+.4f}" + told, len(ratios), effects[1].told,
        _unless(told, second),
    )  # fmt: skip


def _against_adam(net: str, curves: dict[str, Any], bounds: dict[str, str]) -> Claim:
    effect = Effect(list(accuracy(curves["rngd"]) - accuracy(curves["adam"])), -POINT)
    told = bounds["adam"] + bounds["rngd"]
    return Claim(
        "RNGD is competitive with Adam in validation accuracy, or ahead", "Figure (slides 25, 26)",
        _setting(net, curves["rngd"]), f"at most {POINT:g} below", f"by {np.mean(effect.values):+.4f}" + told,
        len(effect.values), effect.told, _unless(told, verdicts([effect])[0]),
    )  # fmt: skip


def _moving(net: str, table: Any) -> Iterator[Claim]:
    """The hidden layers; the first layer's inputs are the data, and its matrix cannot move."""
    after = table[table["epoch"] > 0]
    for layer, part in after.groupby("layer"):
        if layer == 1:
            continue
        start, last = part["since_start"].iloc[-1], part.set_index("epoch")["since_last"]
        yield Claim(
            f"the geometry of layer {layer} moves while it is trained", "Section 5",
            f"{TOLD[net]}, RNGD, seed 0, {int(part['epoch'].max())} epochs, the same cases each time",
            "its relative Fisher evolves",
            f"its matrices moved by {start:.2f} of the norm since the start; by {last.iloc[0]:.2f} in the first epoch, "
            f"{last.iloc[-1]:.3f} in the last",
            1, f"one run; reproduced above {MOVES:g} since the start", holds(start > MOVES),
        )  # fmt: skip


def milliseconds(cost: Any, settings: dict[str, Any]) -> Any:
    """A step of every method, its share of the factorisations included.

    Args:
        cost: The table cost.csv.
        settings: The scale's, whose epochs tell how many steps share a factorisation.

    Returns:
        Medians over rounds, by net and method.
    """
    per_epoch = settings["splits"]["train"] // settings["batch"]
    return (cost["ms"] + cost["refresh_ms"] / min(100, per_epoch)).groupby([cost["net"], cost["method"]]).median()


def _cost(
    net: str, cost: Any, settings: dict[str, Any], curves: dict[str, Any], bounds: dict[str, str]
) -> Iterator[Claim]:
    ms = milliseconds(cost, settings)[net]
    ratio, threads = ms["rngd"] / ms["sgd"], int(cost["threads"].iloc[0])
    setting = f"{TOLD[net]}, batch {settings['batch']}, {threads} threads, single runs"
    yield Claim(
        "an epoch of RNGD costs more than one of SGD", "Section 6", setting, f"more; here at most {STEPS} times",
        f"{ratio:.1f} times: {ms['rngd']:.2f} ms a step, SGD {ms['sgd']:.2f}, Adam {ms['adam']:.2f}", len(cost) // 10,
        "medians of rounds in turn", holds(ratio > 1),
    )  # fmt: skip
    if not {"sgd", "rngd"} <= curves.keys():
        return
    level, told = _level(curves), bounds["sgd"] + bounds["rngd"]
    times = [epochs_to(curves[m], level) * ms[m] for m in ("sgd", "rngd")]
    effect = Effect(list(np.log10(times[0] / times[1])), SMALL)
    yield Claim(
        "RNGD reaches a low cost in less time than SGD", "beyond the paper", setting, "less",
        f"to the objective {level:.3g}: {10 ** np.mean(effect.values):.2f} times faster" + told, len(effect.values),
        f"log10 ratio: {effect.told}", _unless(told, verdicts([effect])[0]),
    )  # fmt: skip


def last_epochs(folder: Path, settings: dict[str, Any]) -> pd.DataFrame:
    """Sum up: each method's accuracies over the last epochs.

    Args:
        folder: The study's.
        settings: The scale's.

    Returns:
        A row per net and method: learning rate, accuracies with their SD over seeds, objective.
    """
    rows = []
    for net in settings["nets"]:
        for method in [*settings["methods"], *settings["variants"]]:
            curves = curves_of(folder, net, method)
            if curves is None:
                continue
            row: dict[str, Any] = {"net": net, "method": method, "lr": chosen(folder, net, method)}
            for split in ("valid", "test"):
                values = accuracy(curves, f"{split}_error")
                row |= {f"{split}_accuracy": values.mean(), f"{split}_sd": values.std(), "seeds": values.count()}
            rows.append(row | {"objective": curves.groupby("seed")["objective"].last().mean()})
    return pd.DataFrame(rows)
