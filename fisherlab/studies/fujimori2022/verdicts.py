"""The paper's claims, each under every setting that was searched: verdicts rest on fresh seeds of the best trials.

A seed's loss is the mean logarithm over a search's best configurations; one that diverged counts as chance, ln 10.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from fisherlab.studies.fujimori2022.reruns import ENDS, GRADIENTS, LEVELS
from fisherlab.studies.fujimori2022.searches import tables_of
from fisherlab.studies.fujimori2022.settings import SETTINGS, SPACE
from fisherlab.studies.judge import LEAST, Effect, holds, verdicts
from fisherlab.studies.study import Claim, read_table, settings_of

SMALLEST = math.log10(1.05)  # smallest interesting ratio of training losses, or of squared gradients
EDGE = 0.05  # part of the range that counts as being at its bound
PAPER_BEST = 1.0
CHANCE = math.log10(math.log(10))  # log10 of the loss of a guess; what a diverged run is given
ESCAPED = 1.0  # loss, of the LEVELS, at which the plateau counts as left
RATIO = f"log10 ratio above log10 1.05 = {SMALLEST:.4f}"


def claims(folder: Path) -> list[Claim]:
    """Judge by what was searched so far.

    Args:
        folder: The study's folder.

    Returns:
        The claims, by setting.
    """
    settings = settings_of(folder)
    found: list[Claim] = []
    for setting in dict.fromkeys([*settings["settings"], *settings["small"]]):
        trials = {s: t for s in ("tpe", "random") if (t := trials_of(folder, setting, s)) is not None}
        found += _stability(trials, setting) if trials else []
        ends, gradients = (with_base(folder, table(setting), table("base"), setting) for table in (ENDS, GRADIENTS))
        if "tpe" in trials and ends is not None and gradients is not None:
            own = set(read_table(folder / tables_of(setting, "tpe")[0])["damping"].dropna())
            losses = log_losses(ends)
            edges = at_bounds(best_trials(trials["tpe"], 1), setting)
            found += _best_damping(losses, trials["tpe"], edges, own, setting)
            found += _escape(ends, gradients, edges, own, setting)
            found += _gradients(gradients, edges, own, settings, setting)
            # The same number of trials for both, or no comparison.
            found += _slow(losses, edges, own, setting) if setting not in settings["small"] else []
    return [*found, *_against_sgd(folder, settings)]


def trials_of(folder: Path, setting: str, sampler: str) -> Any | None:
    """Read the trials of a setting.

    Args:
        folder: The study's.
        setting: Its name.
        sampler: tpe or random.

    Returns:
        The table; None where it was not searched.
    """
    return with_base(folder, tables_of(setting, sampler)[0], tables_of("base", sampler)[0], setting)


def with_base(folder: Path, table: str, base: str, setting: str) -> Any | None:
    """Read a table of a setting; what it has in common with the base setting is its own too.

    Args:
        folder: The study's.
        table: The setting's table.
        base: The same of the base setting.
        setting: Its name.

    Returns:
        The rows of all dampings, NaN for SGD; None where there is no such table yet.
    """
    if not (folder / table).exists():
        return None
    own = read_table(folder / table)
    if setting == "base" or not (folder / base).exists():
        return own
    common = read_table(folder / base)
    shared = common["damping"].isna() if not SETTINGS[setting].scaled else ~common["damping"].isin(own["damping"])
    if own["damping"].isna().any():  # an SGD of its own
        shared &= common["damping"].notna()
    return pd.concat([common[shared], own])


def best_trials(trials: Any, count: int) -> Any:
    """Choose the best trials of each damping.

    Args:
        trials: Of any dampings, NaN for SGD.
        count: How many of each.

    Returns:
        They, the best first.
    """
    return trials.dropna(subset=["value"]).sort_values("value").groupby("damping", dropna=False).head(count)


def at_bounds(best: Any, setting: str) -> Any:
    """Tell which trials lie within 5 % of a bound of learning rate or momentum.

    Args:
        best: Trials.
        setting: Their setting's name.

    Returns:
        A table: damping, lr, momentum (true at a bound; momentum 0 is no bound that could be moved).
    """
    low, high = (math.log10(SPACE["lr"][end]) for end in ("low", "high"))
    shift = np.log10(best["damping"].clip(lower=1.0).fillna(1.0)) if SETTINGS[setting].scaled else 0.0
    lr = (np.log10(best["lr"]) - shift - low) / (high - low)
    momentum = best["momentum"] / SPACE["momentum"]["high"]
    outside = (lr < EDGE) | (lr > 1 - EDGE)
    return pd.DataFrame({"damping": best["damping"], "lr": outside, "momentum": momentum > 1 - EDGE})


def log_losses(ends: Any) -> Any:
    """Tabulate the reruns.

    Args:
        ends: How they ended, `damping` not a number for SGD.

    Returns:
        Mean log10 of the last training loss over a damping's configurations, by seed; columns are dampings and "sgd".
        In its `attrs`, how many runs of each column diverged.
    """
    method = ends["damping"].map(lambda d: "sgd" if math.isnan(d) else d)
    log = np.log10(ends["train_loss"]).where(ends["status"] == "finished").fillna(CHANCE).clip(upper=CHANCE)
    table = ends.assign(method=method, log=log).pivot_table(index="seed", columns="method", values="log")
    table.attrs["diverged"] = (ends["status"] != "finished").groupby(method).sum().to_dict()
    return table


def _told(losses: Any, *methods: Any) -> str:
    """Of which methods some fresh runs diverged."""
    diverged = losses.attrs["diverged"]
    parts = [f"{_name(m)}: {diverged[m]}" for m in methods if diverged.get(m)]
    return f"; fresh runs that diverged, counted as ln 10: {', '.join(parts)}" if parts else ""


def _name(method: Any) -> str:
    return "SGD" if method == "sgd" else f"{method:g}"


def _bounds(edges: Any, *dampings: float) -> str:
    """Which of the best trials lie at a bound of what was searched."""
    at = edges[edges["damping"].isin(dampings)]
    told = [f"{d:g}: {key}" for key in ("lr", "momentum") for d in at.loc[at[key], "damping"]]
    return f"; best trial at a bound: {', '.join(told)}" if told else ""


def _best_damping(losses: Any, trials: Any, edges: Any, own: set[float], setting: str) -> Iterator[Claim]:
    """1e0 is best: its loss against that of every other damping, paired by seed."""
    finished = trials.dropna(subset=["damping"]).groupby("damping")["value"].count()
    others = [d for d in finished.index if d != PAPER_BEST and ({d, PAPER_BEST} & own)]
    if not finished.get(PAPER_BEST, 0):
        return
    rerun = [d for d in others if finished[d]]
    effects = [Effect((losses[d] - losses[PAPER_BEST]).tolist(), SMALLEST) for d in rerun]
    decided = dict(zip(rerun, zip(effects, verdicts(effects), strict=True), strict=True))
    for other in others:
        claim = f"damping 1e0 ends with a lower training loss than {other:g}"
        where = ("Figure 2, Section 4", SETTINGS[setting].told, RATIO)
        if other not in decided:
            n = int((trials["damping"] == other).sum())
            verdict = "reproduced" if n >= LEAST else "inconclusive"
            yield Claim(claim, *where, f"no trial of {other:g} finished", n, "every trial diverged", verdict)
            continue
        effect, verdict = decided[other]
        bound = _bounds(edges, PAPER_BEST, other)
        told = f"log10 ratio {np.mean(effect.values):.3f}{bound}{_told(losses, PAPER_BEST, other)}"
        yield Claim(claim, *where, told, len(effect.values), effect.told, "inconclusive" if bound else verdict)


def _escape(ends: Any, gradients: Any, edges: Any, own: set[float], setting: str) -> Iterator[Claim]:
    """1e0 leaves the plateau first: the step at which the loss is reached, against that of every other damping."""
    reached = gradients[(gradients["when"] == "loss") & np.isclose(gradients["at"], ESCAPED)]
    reached = reached.loc[reached["layer"] == "all", ["damping", "rank", "seed", "step"]]
    runs = ends.loc[ends["damping"].notna(), ["damping", "rank", "seed"]].merge(reached, how="left")
    never = runs["step"].isna().groupby(runs["damping"]).sum()
    by = runs.assign(log=np.log10(runs["step"].fillna(ends["step"].max())))
    by = by.pivot_table(index="seed", columns="damping", values="log")
    others = [d for d in by.columns if d != PAPER_BEST and ({d, PAPER_BEST} & own)] if PAPER_BEST in by else []
    effects = [Effect((by[d] - by[PAPER_BEST]).tolist(), SMALLEST) for d in others]
    for other, effect, verdict in zip(others, effects, verdicts(effects), strict=True):
        bound = _bounds(edges, PAPER_BEST, other)
        missing = ", ".join(f"{d:g}: {never[d]}" for d in (PAPER_BEST, other) if never[d])
        told = f"log10 ratio {np.mean(effect.values):.3f}{bound}"
        yield Claim(
            f"damping 1e0 leaves the plateau sooner than {other:g}",
            f"Section 4, Figure 2; loss {ESCAPED:g} chosen after seeing the curves",
            SETTINGS[setting].told,
            f"{RATIO}, of the steps to loss {ESCAPED:g}",
            told + (f"; runs that never arrive, counted as at the last step: {missing}" if missing else ""),
            len(effect.values),
            effect.told,
            "inconclusive" if bound else verdict,
        )


def _stability(trials: Mapping[str, Any], setting: str) -> Iterator[Claim]:
    """1e-5 is unstable: more than half of its trials diverge."""
    # TPE keeps away from what diverges, so its share is a lower bound: it can show instability, not the contrary.
    sampler = "random" if "random" in trials else "tpe"
    table = trials[sampler]
    least = table["damping"].min()
    state = table.loc[table["damping"] == least, "state"]
    diverged, n = int((state == "pruned").sum()), len(state)
    low, high = stats.binomtest(diverged, n).proportion_ci(method="wilson")
    verdict = "reproduced" if low > 0.5 else "contradicted" if high < 0.5 and sampler == "random" else "inconclusive"
    yield Claim(
        f"damping {least:g} is unstable: more than half of its trials diverge",
        "Section 4, Figure 2",
        f"{SETTINGS[setting].told}; {n} {sampler} trials",
        "share above 0.5",
        f"{diverged} of {n}",
        n,
        f"95 % Wilson interval [{low:.2f}, {high:.2f}]" + ("" if sampler == "random" else "; TPE avoids what diverges"),
        verdict if n >= LEAST else "inconclusive",
    )


def _gradients(
    gradients: Any, edges: Any, own: set[float], settings: Mapping[str, Any], setting: str
) -> Iterator[Claim]:
    """Larger damping: larger squared gradients early; smaller damping: larger ones late; at equal step, equal loss."""
    small, large = _pair(settings["dampings"])
    if not {small, large} & own:
        return
    table = gradients[gradients["layer"] == "all"]
    first, last = settings["moments"][0], settings["moments"][-1]
    cases: list[tuple[str, float, str, float, float]] = [
        ("step", first, "early", large, small),
        ("step", last, "late", small, large),
        ("loss", LEVELS[0], "early", large, small),
        ("loss", LEVELS[-1], "late", small, large),
    ]
    effects = []
    for when, at, _, larger, smaller in cases:
        rows = table[(table["when"] == when) & np.isclose(table["at"], at)]
        by = rows.pivot_table(index="seed", columns="damping", values="log10")
        both = {larger, smaller} <= set(by.columns)
        effects.append(Effect((by[larger] - by[smaller]).dropna().tolist() if both else [], SMALLEST))
    bound = _bounds(edges, small, large)
    for (when, at, phase, larger, smaller), effect, verdict in zip(cases, effects, verdicts(effects), strict=True):
        yield Claim(
            f"{phase}, damping {larger:g} has larger squared gradients than {smaller:g}, at equal {when}",
            "Section 4, Figure 1",
            SETTINGS[setting].told,
            f"{RATIO} at {when} {at:g}",
            (f"log10 ratio {np.mean(effect.values):.3f}" if effect.values else "not reached by both") + bound,
            len(effect.values),
            effect.told if effect.values else "none",
            "inconclusive" if bound else verdict,
        )


def _pair(dampings: Sequence[float]) -> tuple[float, float]:
    """The dampings of the paper's Figure 1 that are farthest apart: 1e-4 and 1e1."""
    return min(dampings, key=lambda d: abs(math.log10(d) + 4)), min(dampings, key=lambda d: abs(math.log10(d) - 1))


def _slow(losses: Any, edges: Any, own: set[float], setting: str) -> Iterator[Claim]:
    """1e2 is slow only because the range of learning rates ends at 1: with a range that scales it equals SGD."""
    largest = max(own, default=0.0)
    if largest <= PAPER_BEST or not {largest, "sgd"} <= set(losses.columns):
        return
    scaled = SETTINGS[setting].scaled
    effect = Effect((losses[largest] - losses["sgd"]).tolist(), 0.0 if scaled else SMALLEST)
    told = f"log10 ratio {np.mean(effect.values):.3f}{_bounds(edges, largest)}{_told(losses, largest, 'sgd')}"
    yield Claim(
        f"damping {largest:g} ends {'like' if scaled else 'with a higher training loss than'} SGD",
        "Section 4, Figure 2",
        SETTINGS[setting].told,
        "|log10 ratio| below log10 1.05: slow only because learning rates are capped" if scaled else RATIO,
        told,
        len(effect.values),
        effect.told,
        equal(effect) if scaled else verdicts([effect])[0],
    )


def equal(effect: Effect) -> str:
    """Judge the claim that there is no effect: the interval inside, or outside, of the smallest interesting one.

    Args:
        effect: Measured against 0.

    Returns:
        The verdict.
    """
    low, high = effect.interval
    inside, outside = low > -SMALLEST and high < SMALLEST, low > SMALLEST or high < -SMALLEST
    return holds(inside) if len(effect.values) >= LEAST and (inside or outside) else "inconclusive"


def _against_sgd(folder: Path, settings: Mapping[str, Any]) -> Iterator[Claim]:
    """1e2 equals SGD with lr / 100: in direction, and in its last loss."""
    if not (folder / "sgd.csv").exists():
        return
    largest = max(settings["dampings"])
    cosines, twins = read_table(folder / "cosines.csv.gz"), read_table(folder / "sgd.csv")
    least = cosines[cosines["damping"] == largest].groupby("seed")["cosine"].min()
    if len(least):
        yield Claim(
            f"damping {largest:g} points along the gradient",
            "Section 4",
            SETTINGS["base"].told,
            "cosine above 0.99 throughout",
            f"least cosine {least.min():.5f}",
            len(least),
            f"over all steps and {len(least)} seeds",
            holds(bool(least.min() > 0.99)),
        )
    twins = twins[np.isclose(twins["damping"], largest)].dropna(subset=["train_loss"])
    losses = np.log10(twins.pivot_table(index="seed", columns="method", values="train_loss"))
    if {"K-FAC", "SGD"} <= set(losses.columns):
        effect = Effect((losses["K-FAC"] - losses["SGD"]).dropna().tolist(), 0.0)
        yield Claim(
            f"damping {largest:g} ends as SGD with its learning rate over {largest:g}",
            "Section 4",
            SETTINGS["base"].told,
            "|log10 ratio of the last training losses| below log10 1.05",
            f"log10 ratio {np.mean(effect.values):.4f}",
            len(effect.values),
            effect.told,
            equal(effect),
        )
