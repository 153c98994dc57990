"""Beyond the paper: do damping policies do better than a constant? By fresh seeds, and by independent searches."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from fisherlab.studies.fujimori2022.fresh import FEWER, MISSING, RATIO, SMALLEST
from fisherlab.studies.fujimori2022.policies import ENDS, NETS, NONE, RANGE, TRIALS
from fisherlab.studies.fujimori2022.tables import EDGE, at_bounds
from fisherlab.studies.judge import LEAST, LEVEL, Effect, verdicts
from fisherlab.studies.study import Claim, read_table

COST = math.log10(1.05)
DAMPINGS = ("damping", "optimizer.damping_start", "optimizer.damping_end")


def policy_claims(folder: Path) -> Iterator[Claim]:
    """Judge each policy against the constant damping under the same budget, and what the one of ours costs.

    Args:
        folder: The study's folder.

    Yields:
        The claims.
    """
    for net in NETS:
        if (folder / ENDS(net)).exists():
            trials = read_table(folder / TRIALS(net)).groupby(["policy", "search"]).size()
            budget = f"{trials.groupby('policy').size().min()} searches of {trials.min()} trials each"
            yield from _against_constant(read_table(folder / ENDS(net)), net, budget)
    if any((folder / ENDS(net)).exists() for net in NETS):
        yield from _by_last_damping(folder)
    if (folder / "policy_cost.csv").exists():
        cost = read_table(folder / "policy_cost.csv").pivot(index="round", columns="policy", values="ms")
        # Claimed: the logarithm of the ratio is below that of 1.05. Schedules cost nothing.
        ruled = ("lm", "settling")
        effects = [Effect((np.log10(cost["constant"]) - np.log10(cost[p])).tolist(), -COST) for p in ruled]
        for policy, effect, verdict in zip(ruled, effects, verdicts(effects), strict=True):
            yield Claim(
                f"damping policy {policy} costs less than 5 % of a step",
                "beyond the paper",
                "deep linear net, one run",
                "ratio of the times of a step below 1.05",
                f"median ratio {(cost[policy] / cost['constant']).median():.3f}",
                len(cost),
                f"{effect.told} (log10 of constant over {policy}, by round)",
                verdict,
            )


def _against_constant(ends: Any, net: str, budget: str) -> Iterator[Claim]:
    """Each policy: its loss where both finished, and how many of its fresh runs diverge; all searches must agree."""
    ends = ends.assign(log=np.log10(ends["train_loss"]), lost=(ends["status"] != "finished").astype(float))
    others = [p for p in sorted(set(ends["policy"])) if p != "constant"]
    for column, claim, bound, expected in (
        ("log", "ends with a lower training loss than a constant", SMALLEST, f"{RATIO}, in every search"),
        ("lost", "diverges on fewer fresh seeds than a constant", FEWER, f"shares differ by more than {FEWER}, so too"),
    ):
        by = ends.pivot_table(index=["search", "seed"], columns="policy", values=column)
        apart = {p: by["constant"] - by[p] if {p, "constant"} <= set(by) else by.iloc[:0, 0] for p in others}
        effects = [Effect(apart[p].groupby("seed").mean().dropna().tolist(), bound) for p in others]
        for policy, effect, verdict in zip(others, effects, verdicts(effects), strict=True):
            two = ends[ends["policy"].isin(["constant", policy])]
            if column == "lost" and not two["lost"].any():
                continue
            spread = apart[policy].groupby("search").mean()
            # Searches are independent too: the seeds' interval says nothing of them, so all must lie on the same side.
            agree = bool((spread > bound).all() or (spread < bound).all())
            lost = two.groupby("policy")["lost"].mean()
            decided = agree and not _at_bound(two) and (column == "lost" or lost.max() <= MISSING)
            nothing = column == "log" and lost[policy] == 1
            verdict = verdict if decided else "inconclusive"
            yield Claim(
                f"damping policy {policy} {claim}",
                "beyond the paper",
                f"{net}, {budget}; {_chosen(ends[ends['policy'] == policy])}",
                expected,
                _told(effect, spread, two, policy, column),
                len(effect.values),
                effect.told if effect.values else "none",
                "contradicted" if nothing and len(two["seed"].unique()) >= LEAST else verdict,
            )


def by_search(folder: Path) -> Any:
    """Sum up the fresh runs of each search of a policy.

    Args:
        folder: The study's folder.

    Returns:
        net, policy, search; last: the lambda to which its winner comes down (of lm and settling the least that it may
        have); loss: the geometric mean of the last training losses; sd of their natural logarithms; lost: the share of
        runs without; at_bound: whether lr, momentum or a damping of the winner is.
    """
    rows = []
    for net in (net for net in NETS if (folder / ENDS(net)).exists()):
        ends = read_table(folder / ENDS(net))
        last = [ends[key] for key in ("optimizer.damping_end", "damping") if key in ends]
        ends = ends.assign(last=last[0].fillna(last[-1]) if last else math.nan, log=np.log(ends["train_loss"]))
        for (policy, search), own in ends.groupby(["policy", "search"], sort=False):
            loss = {"loss": math.exp(own["log"].mean()), "sd": own["log"].std(), "lost": own["log"].isna().mean()}
            row = {"net": net, "policy": policy, "search": search, "last": own["last"].iloc[0], **loss}
            rows.append(row | {"at_bound": bool(_at_bound(own))})
    return pd.DataFrame(rows)


def _by_last_damping(folder: Path) -> Iterator[Claim]:
    """What sets searches apart, whatever their policy: the damping that each came down to."""
    nets = [(net, own.dropna(subset=["last", "loss"])) for net, own in by_search(folder).groupby("net", sort=False)]
    asked = [(n, own) for n, own in nets if len(own) >= LEAST and min(own["last"].nunique(), own["loss"].nunique()) > 1]
    for net, own in asked:
        rank = float(stats.spearmanr(own["last"], own["loss"]).statistic)
        # Fisher's z, whose variance for ranks is 1.06 / (n - 3) (Fieller, Hartley and Pearson 1957); Bonferroni.
        half = stats.norm.isf(LEVEL / 2 / len(asked)) * math.sqrt(1.06 / (len(own) - 3))
        low, high = (math.tanh(math.atanh(min(max(rank, -0.999), 0.999)) + side * half) for side in (-1, 1))
        kept = own["at_bound"].any() or own["lost"].mean() > MISSING
        verdict = "inconclusive" if kept else "reproduced" if low > 0 else "contradicted" if high < 0 else None
        told = f"; winners at a bound: {int(own['at_bound'].sum())}" if own["at_bound"].any() else ""
        told += f"; share of fresh runs that diverged {own['lost'].mean():.2f}" if own["lost"].any() else ""
        yield Claim(
            "the lower the damping that a search's winner comes down to, the lower its loss, whatever the policy",
            "beyond the paper; asked after seeing that searches differ",
            f"{net}, searches of all policies; of lm and settling, the least damping that they may have",
            "rank correlation over searches above 0",
            f"Spearman's rho {rank:.2f}{told}",
            len(own),
            f"{100 * (1 - LEVEL / len(asked)):.3g} % interval [{low:.2f}, {high:.2f}] by Fisher's z",
            verdict or "inconclusive",
        )


def _told(effect: Effect, spread: Any, two: Any, policy: str, column: str) -> str:
    """What was measured, and what keeps it from deciding."""
    what = "log10 ratio" if column == "log" else "difference of shares"
    told = f"{what} {effect.mean:.3f}; by search {spread.round(3).tolist()}" if effect.values else "no run of both"
    told += _at_bound(two)
    lost = {p: f"{int(own.sum())} of {len(own)}" for p, own in two.groupby("policy")["lost"]}
    told += f"; fresh runs that diverged: constant {lost['constant']}, {policy} {lost[policy]}"
    none = two.loc[two["status"] == NONE].groupby("policy")["search"].nunique()
    told += "".join(f"; {p}: every trial diverged in {count} searches" for p, count in none.items())
    seeds = two["seed"].nunique()
    return told + (f"; fewer than {LEAST} seeds decide nothing" if seeds < LEAST else "")


def _at_bound(ends: Any) -> str:
    """Which winners' learning rate, momentum or damping lies within 5 % of a bound."""
    edges = at_bounds(ends.assign(damping=1.0), "base")
    outside = edges["lr"] | edges["momentum"]
    low, high = np.log10([RANGE["low"], RANGE["high"]])
    for key in DAMPINGS:
        if key in ends:
            place = (np.log10(ends[key].astype(float)) - low) / (high - low)
            outside |= (place < EDGE) | (place > 1 - EDGE)
    at = ends[outside]
    told = sorted({f"{p} {s}" for p, s in zip(at["policy"], at["search"], strict=True)})
    return f"; winner at a bound: {', '.join(told)}" if told else ""


def _chosen(ends: Any) -> str:
    """What the winners chose."""
    keys = [k for k in DAMPINGS if k in ends and ends[k].notna().any()]
    winners = ends.drop_duplicates("search")
    told = [f"{k.removeprefix('optimizer.')} {' '.join(f'{v:.2g}' for v in winners[k])}" for k in keys]
    return ", ".join(told) or "no winner"
