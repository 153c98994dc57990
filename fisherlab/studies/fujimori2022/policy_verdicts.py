"""Beyond the paper: do damping policies do better than a constant? By fresh seeds, and by independent searches."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fisherlab.studies.fujimori2022.policies import ENDS, NETS, NONE
from fisherlab.studies.fujimori2022.verdicts import CHANCE, RATIO, SMALLEST, at_bounds
from fisherlab.studies.judge import LEAST, Effect, verdicts
from fisherlab.studies.study import Claim, read_table

COST = math.log10(1.05)
# The loss of a guess, which a diverged run is given: of a class; of each of the autoencoder's pixels, black or white.
GUESSES = {"autoencoder": ("784 ln 2", math.log10(784 * math.log(2)))}


def policy_claims(folder: Path) -> Iterator[Claim]:
    """Judge each policy against the constant damping under the same budget, and what the one of ours costs.

    Args:
        folder: The study's folder.

    Yields:
        The claims.
    """
    for net in NETS:
        if (folder / ENDS(net)).exists():
            yield from _against_constant(read_table(folder / ENDS(net)), net)
    if (folder / "policy_cost.csv").exists():
        cost = read_table(folder / "policy_cost.csv").pivot(index="round", columns="policy", values="ms")
        # Claimed: the logarithm of the ratio is below that of 1.05.
        effect = Effect((np.log10(cost["constant"]) - np.log10(cost["settling"])).tolist(), -COST)
        yield Claim(
            "damping policy settling costs less than 5 % of a step",
            "beyond the paper",
            "deep linear net, one run",
            "ratio of the times of a step below 1.05",
            f"median ratio {(cost['settling'] / cost['constant']).median():.3f}",
            len(cost),
            effect.told + " (log10 of constant over settling, by round)",
            verdicts([effect])[0],
        )


def _against_constant(ends: Any, net: str) -> Iterator[Claim]:
    guess, chance = GUESSES.get(net, ("ln 10", CHANCE))
    ends["log"] = np.log10(ends["train_loss"]).fillna(chance).clip(upper=chance)
    by = ends.pivot_table(index="seed", columns="policy", values="log")  # a mean over the searches
    searches = ends.groupby(["policy", "search"])["log"].mean().unstack()
    others = [p for p in by.columns if p != "constant"]
    effects = [Effect((by["constant"] - by[p]).tolist(), SMALLEST) for p in others]
    for policy, effect, verdict in zip(others, effects, verdicts(effects), strict=True):
        spread = (searches.loc["constant"] - searches.loc[policy]).round(3).tolist()
        bound = _at_bound(ends[ends["policy"].isin(["constant", policy])])
        # Searches are independent too: the seeds' interval says nothing of them, so all must lie on the same side.
        agree = all(s > SMALLEST for s in spread) or all(s < SMALLEST for s in spread)
        failed = int((ends.loc[ends["policy"] == policy, "status"] != "finished").sum())
        told = f"log10 ratio {np.mean(effect.values):.3f}; by search {spread}{bound}"
        told += f"; {failed} fresh runs diverged, counted as {guess}" if failed else ""
        none = ends.loc[(ends["policy"] == policy) & (ends["status"] == NONE), "search"].nunique()
        told += f"; in {none} searches every trial diverged" if none else ""
        told += f"; fewer than {LEAST} seeds decide nothing" if len(effect.values) < LEAST else ""
        yield Claim(
            f"damping policy {policy} ends with a lower training loss than a constant",
            "beyond the paper",
            f"{net}, the same search budget; {_chosen(ends[ends['policy'] == policy])}",
            f"{RATIO}, in every search",
            told,
            len(effect.values),
            effect.told,
            verdict if agree and not bound else "inconclusive",
        )


def _at_bound(ends: Any) -> str:
    """Which winners' learning rate or momentum lies within 5 % of a bound."""
    edges = at_bounds(ends.assign(damping=1.0), "base")
    at = ends[edges["lr"] | edges["momentum"]]
    told = sorted({f"{p} {s}" for p, s in zip(at["policy"], at["search"], strict=True)})
    return f"; winner at a bound: {', '.join(told)}" if told else ""


def _chosen(ends: Any) -> str:
    """What the winners chose."""
    keys = [k for k in ("optimizer.damping_start", "optimizer.damping_end") if k in ends and ends[k].notna().any()]
    winners = ends.drop_duplicates("search")
    return ", ".join(f"{k.split('_')[1]} {' '.join(f'{v:.2g}' for v in winners[k])}" for k in keys) or "winners"
