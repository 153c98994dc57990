"""The paper's claims on the curves, the cost of a step, and the matrices."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fisherlab.models.normalise import DECAY
from fisherlab.studies.asked import Asked, judged
from fisherlab.studies.judge import Effect, between, holds
from fisherlab.studies.study import RECORD, Claim, read_table, settings_of
from fisherlab.studies.sun2017 import timing
from fisherlab.studies.sun2017.against import FIGURE, POINT, SMALL, Evidence, against_others, variants
from fisherlab.studies.sun2017.cases import cases_of
from fisherlab.studies.sun2017.curves import accuracy, averaged, curves_of, ending, setting, unfinished
from fisherlab.studies.sun2017.runs import by_rate, chosen, grid_table, rated_by
from fisherlab.studies.sun2017.settings import NAMES, TOLD
from fisherlab.studies.sun2017.settled import settled_accuracy
from fisherlab.studies.sun2017.watch import matrices_table

# Axis limits of the figures, and what the authors' plot script has commented out: beside those of the sheet a wider
# pair of accuracies, by its remark perhaps of 100 epochs. Between the two nothing is decided.
ACCURACIES = {"plain": ((0.966, 0.977), (0.965, 0.978)), "bna": ((0.970, 0.978), (0.97, 0.979))}
COSTS = {"plain": ((0.09, 0.4),) * 2, "bna": ((0.03, 0.5),) * 2}
MOVED, TIMES = 0.1, 2  # of its norm, and of what other cases change: more than both counts as moving
SMALLER = 2  # times at least: what counts as less
STEPS = 8  # most SGD steps that one RNGD step may cost: the project's own bar
HOURS = 8  # the same, of computing on two cores for the whole study


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
        found += list(_lags(folder, net, curves, settings))
        if (folder / matrices_table(net, "rngd")).exists():
            found += judged(list(_moving(net, read_table(folder / matrices_table(net, "rngd")), settings)))
        if (weights := cases_of(folder, net)) is not None:
            found += judged([_weighed(net, weights, settings)])
        if cost is not None and {"sgd", "rngd"} <= set(cost["method"]):
            found += judged(list(_cost(net, cost, settings)))
    return found + list(_whole(folder))


def _ranges(net: str, curves: Mapping[str, Any], settings: Mapping[str, Any], decisive: bool) -> Iterator[Claim]:
    for method in ("sgd", "adam", "rngd"):
        if method not in curves:
            continue
        told = f"; mean of the last {averaged(settings)} epochs{unfinished(net, method, curves[method])}"
        valid, test = (accuracy(curves[method], split) for split in ("valid", "test"))
        cost = ending(curves[method], "objective")
        for name, source, values, ranges, measured in (
            ("validation accuracy", FIGURE, valid, ACCURACIES, f"{_mean(valid):.4f}, test {_mean(test):.4f}"),
            (
                "training cost",
                f"{FIGURE}, limits of the axis in the authors' script: a check of the range alone",
                cost,
                COSTS,
                f"{_mean(cost):.3f} nats, with L2",
            ),
        ):
            effect, (known, wider) = Effect([float(v) for v in values]), ranges[net]
            inside = between(effect, *known)
            if inside == "contradicted" and between(effect, *wider) != "contradicted":
                inside = "inconclusive"
            yield Claim(
                f"{NAMES[method]}'s {name} ends in the figure's range", source,
                setting(net, settings, curves[method]), f"{known[0]} to {known[1]}", measured + told, len(values),
                f"{effect.told.partition(', against')[0]}; each range judged alone",
                inside if decisive else "inconclusive",
            )  # fmt: skip


def _mean(values: Any) -> float:
    return float(values.mean(skipna=False))


def _lags(folder: Path, net: str, curves: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[Claim]:
    """What evaluating by moving averages does to the accuracies."""
    last = max(settings["watch_epochs"])
    for method, table in curves.items():
        clean = settled_accuracy(folder, net, method)
        if clean is None:
            continue
        gain = clean - (1 - table[table["epoch"].round(6) == last].set_index("seed")["valid_error"])
        effect, test = Effect([float(v) for v in gain]), settled_accuracy(folder, net, method, "test")
        yield Claim(
            f"{NAMES[method]}'s validation accuracy is that by the training set's statistics", "ours",
            f"{setting(net, settings, table)}; moving averages of decay {DECAY}, as the authors evaluate",
            f"within {POINT:g} at epoch {last}",
            f"{_mean(clean):.4f} by the training set's, test {_mean(test):.4f}: by {effect.mean:+.4f} more",
            len(gain), effect.told.partition(", against")[0], between(effect, -POINT, POINT),
        )  # fmt: skip


def _moving(net: str, table: Any, settings: Mapping[str, Any]) -> Iterator[Asked]:
    """The layers behind the first, whose inputs are the data: its matrix cannot move. By shape, for size is a rate."""
    epochs = sorted(table["epoch"].unique())
    spans = [("while it is trained", "since_start", 0)]
    spans += [(f"still, from epoch {epochs[-2]} to {epochs[-1]}", "since_last", epochs[-2])] if len(epochs) > 2 else []
    last = table[(table["epoch"] == table["epoch"].max()) & (table["layer"] > 1)]
    for (layer, form), part in last.groupby(["layer", "form"]):
        for told, column, since in spans:
            bar = (TIMES * part["shape_other_cases"]).clip(lower=MOVED)
            effect = Effect([float(v) for v in part[f"shape_{column}"] - bar])
            median = part.median(numeric_only=True)
            yield Asked(
                f"the geometry of layer {layer} moves {told}", "Section 5",
                f"{TOLD[net]}, RNGD, {len(part)} seeds, {form} over the same {settings['watch_cases']} cases, "
                "normalised by their own statistics; matrices over their traces",
                f"its relative Fisher changes by more than {MOVED} of its norm, and {TIMES} times what as many other "
                "cases change",
                f"by {median[f'shape_{column}']:.3f} of its norm since epoch {since} (other cases "
                f"{median['shape_other_cases']:.3f}); not over the trace, by {median[column]:.3f}; medians",
                effect, f"change less {MOVED}, or {TIMES} times the other cases' where that is more",
            )  # fmt: skip


def _weighed(net: str, table: Any, settings: Mapping[str, Any]) -> Asked:
    """What EF-NGD's step makes of wrong cases, at the last epoch."""
    last = table[table["epoch"] == table["epoch"].max()]
    mean, lost = last.mean(skipna=False), int(last["of_step"].isna().sum())
    told = f"; {lost} runs diverged" if lost else ""
    return Asked(
        f"{NAMES['efngd']}: cases that are classified wrongly are a smaller part of its step than of the gradient",
        "ours", f"{TOLD[net]}, {len(last)} seeds, epoch {last['epoch'].iloc[0]:g}, {settings['watch_cases']} training "
        f"cases in batches of {settings['batch']}; parts of the sum of the cases' lengths in it",
        f"at most 1/{SMALLER} of it",
        f"{mean['of_step']:.1%} of the step, {mean['of_gradient']:.1%} of the gradient; {mean['wrong']:.1%} are wrong, "
        f"of weight {mean['weight_wrong']:.3f}, right ones {mean['weight_right']:.3f}; squared gradients "
        f"{mean['square_wrong']:.3g} and {mean['square_right']:.3g}, medians of cases{told}",
        Effect([float(v) for v in last["of_gradient"] / SMALLER - last["of_step"]]),
        f"1/{SMALLER} of the part of the gradient, less that of the step",
    )  # fmt: skip


def _cost(net: str, cost: Any, settings: Mapping[str, Any]) -> Iterator[Asked]:
    rounds = timing.by_round(cost, net)
    logs = [float(v) for v in np.log10(rounds["rngd"] / rounds["sgd"])]
    threads, others = int(cost["threads"].iloc[0]), cost["others"].iloc[0]
    where = (
        f"{TOLD[net]}, batch {settings['batch']}, {threads} threads, others keep {others:.1f} cores busy, single runs"
    )
    ms = "; ".join(f"{NAMES[m]}: {v:.2f}" for m, v in rounds.median().items())
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


def _whole(folder: Path) -> Iterator[Claim]:
    """Once all parts are there, and at the scale that the bar is meant for."""
    record = json.loads((folder / RECORD).read_text())
    if folder.name != "paper" or set(record.get("planned", [None])) - set(record["parts"]):
        return
    parts = record["parts"].values()
    spent = [part["cpu_seconds"] / 3600 for part in parts]
    hours, wall = max(sum(spent) / 2, *spent), sum(part["seconds"] for part in parts) / 7200
    devices = ", ".join(sorted({str(part.get("device_name")) for part in parts}))
    yield Claim(
        f"the whole study takes at most {HOURS} hours of computing on two cores", "ours",
        f"{len(spent)} parts, {devices}", f"at most {HOURS}",
        f"{hours:.1f} h: half of the processor time of all parts, at least the longest one's; half of their time "
        f"by the clock, with whatever else the machine did: {wall:.1f} h", 1,
        "one measurement; what killed processes had spent is not counted", holds(hours <= HOURS),
    )  # fmt: skip


def _runner_up(folder: Path, net: str, method: str) -> dict[str, float]:
    """The grid's second learning rate, and by how much it is worse in that by which the best one was chosen."""
    errors = by_rate(read_table(folder / grid_table(net, method)), rated_by(method)[1]).sort_values()
    rate, behind = (errors.index[1], errors.iloc[1] - errors.iloc[0]) if len(errors) > 1 else (math.nan, math.nan)
    return {"next_lr": float(rate), "next_error_more": float(behind)}


def last_epochs(folder: Path, settings: Mapping[str, Any]) -> pd.DataFrame:
    """Sum up: each method's accuracies over the last epochs.

    Args:
        folder: The study's.
        settings: The scale's.

    Returns:
        A row per net and method: learning rate, the grid's next one with how much worse it is, accuracies with
        their SD over seeds, objective, all means of the last epochs; not numbers where a run did not finish.
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
            row |= _runner_up(folder, net, method)
            for split in ("valid", "test"):
                values = accuracy(curves, split)
                row |= {f"{split}_accuracy": _mean(values), f"{split}_sd": values.std(skipna=False)}
            rows.append(row | {"objective": _mean(ending(curves, "objective"))})
    return pd.DataFrame(rows)
