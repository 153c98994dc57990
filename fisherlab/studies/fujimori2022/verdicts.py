"""The paper's claims, each under every setting that was searched: verdicts rest on fresh seeds of the best trials."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from fisherlab.studies.fujimori2022.policies import ENDS as ENDS_OF_POLICIES
from fisherlab.studies.fujimori2022.policies import NETS
from fisherlab.studies.fujimori2022.reruns import ENDS, GRADIENTS, LEVELS
from fisherlab.studies.fujimori2022.searches import tables_of
from fisherlab.studies.fujimori2022.settings import SETTINGS, SPACE
from fisherlab.studies.judge import LEAST, Effect, holds, verdicts
from fisherlab.studies.study import RECORD, Claim, read_table

SMALLEST = math.log10(1.05)  # smallest interesting ratio of training losses, or of squared gradients
EDGE = 0.05  # part of the range that counts as being at its bound
EARLY, LATE = 0, -1  # which of the moments
PAPER_BEST = 1.0


def claims(folder: Path) -> list[Claim]:
    """Judge by what was searched so far.

    Args:
        folder: The study's folder.

    Returns:
        The claims, by setting.
    """
    settings = json.loads((folder / RECORD).read_text())["settings"]
    found: list[Claim] = []
    for setting in dict.fromkeys([*settings["settings"], *settings["small"]]):
        trials = {s: t for s in ("tpe", "random") if (t := trials_of(folder, setting, s)) is not None}
        if trials:
            found += _stability(trials, setting)
        ends, gradients = (with_base(folder, table(setting), table("base"), setting) for table in (ENDS, GRADIENTS))
        if "tpe" in trials and ends is not None and gradients is not None:
            edges = at_bounds(best_trials(trials["tpe"], 1), setting)
            found += _best_damping(ends, edges, setting)
            found += _hopeless(trials["tpe"], setting)
            found += _gradients(gradients, settings, setting)
            found += _slow(ends, edges, setting)
    return [*found, *_against_sgd(folder, settings), *_policies(folder)]


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


def _log_losses(ends: Any) -> Any:
    """Decimal logarithm of the last training loss of the best configuration, by seed and damping (NaN is SGD)."""
    return np.log10(ends[ends["rank"] == 0].pivot_table(index="seed", columns="damping", values="train_loss"))


def _bounds(edges: Any, *dampings: float) -> str:
    """Which winners lie at a bound."""
    at = edges[edges["damping"].isin(dampings)]
    told = [f"{d:g}: {key}" for key in ("lr", "momentum") for d in at.loc[at[key], "damping"]]
    return f"; at a bound of the search: {', '.join(told)}" if told else ""


def _best_damping(ends: Any, edges: Any, setting: str) -> Iterator[Claim]:
    """1e0 is best: its loss against that of every other damping, paired by seed."""
    losses = _log_losses(ends)
    if PAPER_BEST not in losses:
        return
    others = [d for d in losses.columns if d != PAPER_BEST]
    effects = [Effect((losses[d] - losses[PAPER_BEST]).dropna().tolist(), SMALLEST) for d in others]
    for other, effect, verdict in zip(others, effects, verdicts(effects), strict=True):
        # What decides is the loser: at a bound of its range it might do better beyond.
        bound = _bounds(edges, other if verdict == "reproduced" else PAPER_BEST)
        yield Claim(
            f"damping 1e0 ends with a lower training loss than {other:g}",
            "Figure 2, Section 4",
            SETTINGS[setting].told,
            "log10 ratio above log10 1.05",
            f"log10 ratio {np.mean(effect.values):.3f}{bound}",
            len(effect.values),
            effect.told,
            "inconclusive" if bound else verdict,
        )


def _hopeless(trials: Any, setting: str) -> Iterator[Claim]:
    """1e0 is better than a damping of which no trial finished."""
    finished = trials.dropna(subset=["damping"]).groupby("damping")["value"].count()
    for other in finished.index[finished == 0]:
        yield Claim(
            f"damping 1e0 ends with a lower training loss than {other:g}",
            "Figure 2, Section 4",
            SETTINGS[setting].told,
            "log10 ratio above log10 1.05",
            f"no trial of {other:g} finished",
            int((trials["damping"] == other).sum()),
            "every trial diverged",
            holds(finished.get(PAPER_BEST, 0) > 0),
        )


def _stability(trials: Mapping[str, Any], setting: str) -> Iterator[Claim]:
    """1e-5 is unstable: more than half of its trials diverge; independent random trials decide where there are any."""
    sampler = "random" if "random" in trials else "tpe"
    table = trials[sampler]
    least = table["damping"].min()
    state = table.loc[table["damping"] == least, "state"]
    diverged, n = int((state == "pruned").sum()), len(state)
    low, high = stats.binomtest(diverged, n).proportion_ci(method="wilson")
    verdict = "reproduced" if low > 0.5 else "contradicted" if high < 0.5 else "inconclusive"
    yield Claim(
        f"damping {least:g} is unstable: more than half of its trials diverge",
        "Section 4, Figure 2",
        f"{SETTINGS[setting].told}; {sampler} trials",
        "share above 0.5",
        f"{diverged} of {n}",
        n,
        f"95 % Wilson interval [{low:.2f}, {high:.2f}]" + ("" if sampler == "random" else " (trials not independent)"),
        verdict if sampler == "random" or verdict == "contradicted" else "inconclusive",
    )


def _gradients(gradients: Any, settings: Mapping[str, Any], setting: str) -> Iterator[Claim]:
    """Larger damping: larger squared gradients early; smaller damping: larger ones late; at equal step, equal loss."""
    own = gradients[(gradients["rank"] == 0) & (gradients["layer"] == "all")]
    small, large = _pair(settings["dampings"])
    moments = settings["moments"]
    cases = [("step", moments[EARLY], "early", large, small), ("step", moments[LATE], "late", small, large)]
    cases += [("loss", LEVELS[0], "early", large, small), ("loss", LEVELS[-1], "late", small, large)]
    effects = []
    for when, at, _, larger, smaller in cases:
        rows = own[(own["when"] == when) & np.isclose(own["at"], at)]
        by = rows.pivot_table(index="seed", columns="damping", values="log10")
        both = {larger, smaller} <= set(by.columns)
        effects.append(Effect((by[larger] - by[smaller]).dropna().tolist() if both else [], SMALLEST))
    for (when, at, phase, larger, smaller), effect, verdict in zip(cases, effects, verdicts(effects), strict=True):
        yield Claim(
            f"{phase}, damping {larger:g} has larger squared gradients than {smaller:g}, at equal {when}",
            "Section 4, Figure 1",
            SETTINGS[setting].told,
            f"log10 ratio above log10 1.05 at {when} {at:g}",
            f"log10 ratio {np.mean(effect.values) if effect.values else math.nan:.3f}",
            len(effect.values),
            effect.told if effect.values else "not reached by both",
            verdict,
        )


def _pair(dampings: list[float]) -> tuple[float, float]:
    """The dampings of the paper's Figure 1 that are farthest apart: 1e-4 and 1e1."""
    return min(dampings, key=lambda d: abs(math.log10(d) + 4)), min(dampings, key=lambda d: abs(math.log10(d) - 1))


def _slow(ends: Any, edges: Any, setting: str) -> Iterator[Claim]:
    """1e2 is slow: against SGD, whose step it takes at lr / 100."""
    losses = _log_losses_with_sgd(ends)
    largest = max((c for c in losses.columns if c != "sgd"), default=None)
    if largest is None or "sgd" not in losses:
        return
    effect = Effect((losses[largest] - losses["sgd"]).dropna().tolist(), SMALLEST)
    bound = _bounds(edges, largest)
    scaled = SETTINGS[setting].scaled
    verdict = verdicts([effect])[0]
    yield Claim(
        f"damping {largest:g} ends with a higher training loss than SGD",
        "Section 4, Figure 2",
        SETTINGS[setting].told,
        "log10 ratio above log10 1.05" + (": not where the range is scaled" if scaled else ""),
        f"log10 ratio {np.mean(effect.values):.3f}{bound}",
        len(effect.values),
        effect.told,
        verdict,
    )


def _log_losses_with_sgd(ends: Any) -> Any:
    own = ends[ends["rank"] == 0]
    own = own.assign(method=own["damping"].map(lambda d: "sgd" if math.isnan(d) else d))
    return np.log10(own.pivot_table(index="seed", columns="method", values="train_loss"))


def _against_sgd(folder: Path, settings: Mapping[str, Any]) -> Iterator[Claim]:
    """1e2 equals SGD with lr / 100: in direction, and in its last loss."""
    if not (folder / "sgd.csv").exists():
        return
    cosines, twins = read_table(folder / "cosines.csv.gz"), read_table(folder / "sgd.csv")
    largest = max(settings["dampings"])
    least = cosines[cosines["damping"] == largest].groupby("seed")["cosine"].min()
    n = len(least)
    yield Claim(
        f"damping {largest:g} points along the gradient",
        "Section 4",
        SETTINGS["base"].told,
        "cosine above 0.99 throughout",
        f"least cosine {least.min():.5f}",
        n,
        f"over all steps and {n} seeds",
        holds(least.min() > 0.99),
    )
    losses = np.log10(twins.pivot_table(index="seed", columns="method", values="train_loss"))
    effect = Effect((losses["K-FAC"] - losses["SGD"]).dropna().tolist(), 0.0)
    low, high = effect.interval
    inside = low > -SMALLEST and high < SMALLEST
    outside = low > SMALLEST or high < -SMALLEST
    yield Claim(
        f"damping {largest:g} ends as SGD with its learning rate over {largest:g}",
        "Section 4",
        SETTINGS["base"].told,
        "|log10 ratio of the last training losses| below log10 1.05",
        f"log10 ratio {np.mean(effect.values):.4f}",
        len(effect.values),
        effect.told,
        "inconclusive" if len(effect.values) < LEAST or not (inside or outside) else holds(inside),
    )


def _policies(folder: Path) -> Iterator[Claim]:
    """Beyond the paper: each policy against the constant damping, under the same budget."""
    for net in NETS:
        path = folder / ENDS_OF_POLICIES(net)
        if not path.exists():
            continue
        ends = read_table(path)
        ends["log"] = np.log10(ends["train_loss"].fillna(math.inf))
        by = ends.pivot_table(index="seed", columns="policy", values="log")  # a mean over the searches
        searches = ends.groupby(["policy", "search"])["log"].mean().unstack()
        others = [p for p in by.columns if p != "constant"]
        effects = [Effect((by["constant"] - by[p]).dropna().tolist(), SMALLEST) for p in others]
        for policy, effect, verdict in zip(others, effects, verdicts(effects), strict=True):
            spread = (searches.loc["constant"] - searches.loc[policy]).round(3).tolist()
            yield Claim(
                f"damping policy {policy} ends with a lower training loss than a constant",
                "beyond the paper",
                f"{net}, the same search budget",
                "log10 ratio above log10 1.05",
                f"log10 ratio {np.mean(effect.values):.3f}; by search {spread}",
                len(effect.values),
                effect.told,
                verdict,
            )
    if (folder / "policy_cost.csv").exists():
        cost = read_table(folder / "policy_cost.csv").pivot(index="round", columns="policy", values="ms")
        ratio = (cost["settling"] / cost["constant"]).median()
        yield Claim(
            "damping policy settling costs less than 5 % of a step",
            "beyond the paper",
            "deep linear net, one run",
            "ratio of the times of a step below 1.05",
            f"median ratio {ratio:.3f}",
            len(cost),
            "quartiles " + ", ".join(f"{q:.3f}" for q in (cost["settling"] / cost["constant"]).quantile([0.25, 0.75])),
            holds(bool(ratio < 1.05)),
        )
