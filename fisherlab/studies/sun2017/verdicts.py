"""The paper's claims on the curves, the cost of a step, and the matrices."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fisherlab.studies.asked import Asked, judged
from fisherlab.studies.judge import LEAST, Effect
from fisherlab.studies.study import Claim, read_table, settings_of
from fisherlab.studies.sun2017 import timing
from fisherlab.studies.sun2017.against import FIGURE, SMALL, Evidence, against_others, variants
from fisherlab.studies.sun2017.curves import accuracy, averaged, curves_of, setting, unfinished
from fisherlab.studies.sun2017.runs import chosen
from fisherlab.studies.sun2017.settings import NAMES, TOLD
from fisherlab.studies.sun2017.watch import matrices_table

RANGES = {"plain": (0.966, 0.977), "bna": (0.970, 0.978)}  # axis limits of the figures
TIMES = 2  # of what other cases change: more counts as moving
STEPS = 8  # most SGD steps that one RNGD step may cost: the project's own bar


def claims(folder: Path) -> list[Claim]:
    """Judge by the tables that there are.

    Args:
        folder: The study's folder.

    Returns:
        The claims, net by net.
    """
    settings = settings_of(folder)
    cost = read_table(folder / timing.TABLE) if (folder / timing.TABLE).exists() else None
    found: list[Claim] = []
    for net in settings["nets"]:
        methods = [*settings["methods"], *settings["variants"]]
        curves = {m: table for m in methods if (table := curves_of(folder, net, m)) is not None}
        found += list(_ranges(net, curves, settings, folder.name == "paper"))
        if "rngd" in curves:
            evidence = Evidence(folder, net, settings, curves, cost)
            found += against_others(evidence) + variants(evidence)
        if (folder / matrices_table(net)).exists():
            found += judged(list(_moving(net, read_table(folder / matrices_table(net)), settings)))
        if cost is not None and {"sgd", "rngd"} <= set(cost["method"]):
            found += judged(list(_cost(net, cost, settings)))
    return found


def _ranges(net: str, curves: Mapping[str, Any], settings: Mapping[str, Any], decisive: bool) -> Iterator[Claim]:
    low, high = RANGES[net]
    for method in ("sgd", "adam", "rngd"):
        if method not in curves:
            continue
        valid, test = (accuracy(curves[method], f"{split}_error") for split in ("valid", "test"))
        effect = Effect([float(v) for v in valid])
        inside, outside = low <= effect.interval[0] and effect.interval[1] <= high, _apart(effect.interval, low, high)
        decided = "reproduced" if inside else "contradicted" if outside else "inconclusive"
        yield Claim(
            f"{NAMES[method]}'s validation accuracy lies in the figure's range", FIGURE,
            setting(net, settings, curves[method]), f"{low} to {high}",
            f"{effect.mean:.4f}, test {test.mean(skipna=False):.4f}; mean of the last {averaged(settings)} epochs"
            + unfinished(net, method, curves[method]), len(valid),
            effect.told.partition(", against")[0], decided if decisive and len(valid) >= LEAST else "inconclusive",
        )  # fmt: skip


def _apart(interval: tuple[float, float], low: float, high: float) -> bool:
    return interval[1] < low or interval[0] > high


def _moving(net: str, table: Any, settings: Mapping[str, Any]) -> Iterator[Asked]:
    """The layers behind the first, whose inputs are the data: its matrix cannot move."""
    last = table[table["epoch"] == table["epoch"].max()]
    for layer, part in last.groupby("layer"):
        if layer == 1:
            continue
        effect = Effect([float(v) for v in part["since_start"] - TIMES * part["other_cases"]])
        median = part[["since_start", "other_cases", "since_last"]].median()
        form = "one matrix E[x x^T], the linear form" if part["matrices"].iloc[0] == 1 else "a matrix per unit"
        yield Asked(
            f"the geometry of layer {layer} moves while it is trained", "Section 5",
            f"{TOLD[net]}, RNGD, {len(part)} seeds, {int(part['epoch'].max())} epochs, {form} over the same "
            f"{settings['watch_cases']} cases, normalised by their own statistics",
            f"its relative Fisher changes by more than {TIMES} times what as many other cases change",
            f"by {median['since_start']:.3f} of its norm since the start (other cases {median['other_cases']:.3f}), "
            f"in the last epoch by {median['since_last']:.3f}; medians",
            effect, f"change less {TIMES} times the other cases'",
        )  # fmt: skip


def _cost(net: str, cost: Any, settings: Mapping[str, Any]) -> Iterator[Asked]:
    rounds = timing.by_round(cost, net)
    logs = [float(v) for v in np.log10(rounds["rngd"] / rounds["sgd"])]
    threads, others = int(cost["threads"].iloc[0]), cost["others"].iloc[0]
    where = (
        f"{TOLD[net]}, batch {settings['batch']}, {threads} threads, others keep {others:.1f} cores busy, single runs"
    )
    ms = ", ".join(f"{NAMES[m].partition(',')[0]} {v:.2f}" for m, v in rounds.median().items())
    measured = f"{10 ** np.median(logs):.1f} times (ms a step: {ms})"
    yield Asked(
        "an epoch of RNGD costs more than one of SGD", "Section 6", where, "more", measured,
        Effect(logs, SMALL), "log10 ratio by round",
    )  # fmt: skip
    apart = "" if timing.alone_on_two_threads(cost) else "; not judged, for it is to be measured alone on 2 threads"
    yield Asked(
        f"a step of RNGD costs at most {STEPS} of SGD", "ours", where, f"at most {STEPS}", measured + apart,
        Effect([math.log10(STEPS) - v for v in logs]), f"log10 of {STEPS} over the ratio, by round", not apart,
    )  # fmt: skip


def last_epochs(folder: Path, settings: Mapping[str, Any]) -> pd.DataFrame:
    """Sum up: each method's accuracies over the last epochs.

    Args:
        folder: The study's.
        settings: The scale's.

    Returns:
        A row per net and method: learning rate, accuracies with their SD over seeds, objective; not numbers where a run
        did not finish.
    """
    rows = []
    for net in settings["nets"]:
        for method in [*settings["methods"], *settings["variants"]]:
            curves = curves_of(folder, net, method)
            if curves is None:
                continue
            ended = (curves.groupby("seed")["status"].first() == "finished").sum()
            row: dict[str, Any] = {"net": net, "method": method, "lr": chosen(folder, net, method)}
            row |= {"seeds": curves["seed"].nunique(), "finished": int(ended)}
            for split in ("valid", "test"):
                values = accuracy(curves, f"{split}_error")
                row |= {f"{split}_accuracy": values.mean(skipna=False), f"{split}_sd": values.std(skipna=False)}
            objective = curves["objective"].where(curves["status"] == "finished").groupby(curves["seed"]).tail(1)
            rows.append(row | {"objective": objective.mean(skipna=False)})
    return pd.DataFrame(rows)
