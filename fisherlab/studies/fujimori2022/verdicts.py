"""The paper's claims, each under every setting that was searched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from fisherlab.studies.fujimori2022.fresh import Case, equal, fresh_claims
from fisherlab.studies.fujimori2022.reruns import ENDS, GRADIENTS
from fisherlab.studies.fujimori2022.searches import tables_of
from fisherlab.studies.fujimori2022.settings import SETTINGS, SPACE
from fisherlab.studies.fujimori2022.tables import at_bounds, best_trials, trials_of, with_base
from fisherlab.studies.judge import LEAST, Effect, holds
from fisherlab.studies.study import Claim, read_table, settings_of


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
        if "tpe" in trials and (case := _case(folder, setting, trials["tpe"], settings)) is not None:
            found += fresh_claims(case)
    return [*found, *_against_sgd(folder, settings), *_side_by_side(folder)]


def _case(folder: Path, setting: str, trials: Any, settings: Mapping[str, Any]) -> Case | None:
    """What is known of a setting; None where its best trials were not trained again yet."""
    ends, gradients = (with_base(folder, table(setting), table("base"), setting) for table in (ENDS, GRADIENTS))
    if ends is None or gradients is None:
        return None
    own = read_table(folder / tables_of(setting, "tpe")[0])
    budget = int(own.groupby("damping", dropna=False).size().min())
    told = f"{SETTINGS[setting].told}; {budget} TPE trials each"
    edges, small = at_bounds(best_trials(trials, 1), setting), setting in settings["small"]
    dampings = set(own["damping"].dropna())
    return Case(setting, told, trials, ends, gradients, edges, dampings, settings["moments"], small)


def _stability(trials: Mapping[str, Any], setting: str) -> Iterator[Claim]:
    """1e-5 is unstable: more than half of its trials diverge."""
    # TPE keeps away from what diverges, so its share is a lower bound: it can show instability, not the contrary.
    sampler = "random" if "random" in trials else "tpe"
    table = trials[sampler]
    least = table["damping"].min()
    if not SETTINGS[setting].dampings([least]):
        return  # its trials are the base setting's
    state = table.loc[table["damping"] == least, "state"]
    diverged, n = int((state == "pruned").sum()), len(state)
    low, high = stats.binomtest(diverged, n).proportion_ci(method="wilson")
    verdict = "reproduced" if low > 0.5 else "contradicted" if high < 0.5 and sampler == "random" else "inconclusive"
    yield Claim(
        f"damping {least:g} is unstable: more than half of its trials diverge",
        "Section 4, Figure 2",
        f"{SETTINGS[setting].told}; {n} {sampler} trials, learning rates from {SPACE['lr']['low']:g}",
        "share above 0.5",
        f"{diverged} of {n}",
        n,
        f"95 % Wilson interval [{low:.2f}, {high:.2f}]" + ("" if sampler == "random" else "; TPE avoids what diverges"),
        verdict if n >= LEAST else "inconclusive",
    )


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
            f"over every fourth step, and {len(least)} seeds",
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


def _side_by_side(folder: Path) -> Iterator[Claim]:
    """How much longer the trials of a search take one after another; measured on a sample."""
    if not (folder / "alone.csv").exists():
        return
    table = read_table(folder / "alone.csv")
    alone, beside = table[table["side_by_side"] == 1]["seconds"], table[table["side_by_side"] > 1].iloc[0]
    ratio = alone.median() / beside["seconds"]
    yield Claim(
        "trials one after another take longer than side by side",
        "ours",
        f"{beside['side_by_side']:.0f} side by side against {len(alone)} alone, {beside['threads']:.0f} thread, beside "
        "other work; set-up and files included",
        "ratio of the seconds per trial above 1",
        f"{ratio:.2f}",
        len(alone),
        f"seconds alone {', '.join(f'{s:.1f}' for s in alone)} (their median counts), side by side "
        f"{beside['seconds']:.2f}",
        holds(bool(ratio > 1), decisive=False),
    )
