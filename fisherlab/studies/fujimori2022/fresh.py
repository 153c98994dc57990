"""What the best trials do on fresh seeds: loss, survival, plateau, squared gradients, each under every setting.

A seed's value is a mean over a search's best configurations, of the runs that finished: a loss says nothing of a run
that has none. How many diverged is a claim of its own, and where more than a tenth did, what the others did decides
nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fisherlab.studies.fujimori2022.reruns import LEVELS
from fisherlab.studies.fujimori2022.settings import SETTINGS
from fisherlab.studies.judge import LEAST, Effect, holds, verdicts
from fisherlab.studies.study import Claim

SMALLEST = math.log10(1.05)  # smallest interesting ratio of training losses, of steps, or of squared gradients
RATIO = f"log10 ratio above log10 1.05 = {SMALLEST:.4f}"
MISSING = 0.1  # share of runs without a value, above which the others decide nothing
FEWER = 0.05  # smallest interesting difference of shares
PAPER_BEST = 1.0
ESCAPED = 1.0  # loss, of the LEVELS, at which the plateau counts as left


@dataclass(frozen=True)
class Case:
    """What is known of a setting.

    Attributes:
        setting: Its name.
        told: In words, with the budget of its searches.
        trials: Of all dampings, by TPE.
        ends: How the fresh runs ended, `damping` not a number for SGD.
        gradients: Their squared gradients, and the steps at which losses are reached.
        edges: Whether the best trial of a damping lies at a bound.
        own: The dampings that were searched under this setting; the others are the base setting's.
        moments: Steps at which squared gradients are compared.
        small: Whether its searches were smaller than SGD's.
    """

    setting: str
    told: str
    trials: Any
    ends: Any
    gradients: Any
    edges: Any
    own: set[float]
    moments: Sequence[float]
    small: bool

    def others(self) -> list[float]:
        """The dampings beside 1e0 whose best trials were trained again, where either is this setting's own."""
        found = sorted(self.ends["damping"].dropna().unique())
        if PAPER_BEST not in found:
            return []
        return [d for d in found if d != PAPER_BEST and {d, PAPER_BEST} & self.own]

    def bounds(self, *dampings: float, keys: Sequence[str] = ("lr", "momentum")) -> str:
        """Which of the best trials lie at a bound of what was searched."""
        at = self.edges[self.edges["damping"].isin(dampings)]
        told = [f"{d:g}: {key}" for key in keys for d in at.loc[at[key], "damping"]]
        return f"; best trial at a bound: {', '.join(told)}" if told else ""


@dataclass(frozen=True)
class Paired:
    """A quantity by seed and damping, of the runs that have one.

    Attributes:
        by: Rows are seeds, columns dampings ("sgd" for SGD); means over the configurations.
        missing: Share of the runs without a value, by damping.
        told: How many, in words, by damping.
    """

    by: Any
    missing: Mapping[Any, float]
    told: Mapping[Any, str]

    def ratio(self, one: Any, other: Any) -> Effect:
        """log10 of one damping's values over another's, by seed."""
        both = {one, other} <= set(self.by.columns)
        return Effect((self.by[one] - self.by[other]).dropna().tolist() if both else [], SMALLEST)

    def lost(self, *methods: Any) -> str:
        """Of which so many runs have no value that the others decide nothing."""
        told = ", ".join(f"{_name(m)}: {self.told[m]}" for m in methods if self.missing.get(m, 0))
        return f"; runs without: {told}" if told else ""

    def decides(self, *methods: Any) -> bool:
        """Whether enough runs of all have a value."""
        return all(self.missing.get(m, 0) <= MISSING for m in methods)


def _name(method: Any) -> str:
    return "SGD" if method == "sgd" else f"{method:g}"


def paired(runs: Any) -> Paired:
    """Tabulate a quantity.

    Args:
        runs: One row per run: damping (not a number for SGD), seed, and `log`, not a number where it has none.

    Returns:
        By seed and damping.
    """
    named = runs.assign(method=[("sgd" if math.isnan(d) else d) for d in runs["damping"]])
    none = named["log"].isna().groupby(named["method"])
    told = {m: f"{count} of {len(group)}" for (m, count), (_, group) in zip(none.sum().items(), none, strict=True)}
    return Paired(named.pivot_table(index="seed", columns="method", values="log"), none.mean().to_dict(), told)


def losses(ends: Any) -> Paired:
    """Tabulate log10 of the last training losses of the runs that finished.

    Args:
        ends: How the fresh runs ended.

    Returns:
        By seed and damping.
    """
    return paired(ends.assign(log=np.log10(ends["train_loss"]).where(ends["status"] == "finished")))


@dataclass(frozen=True)
class Compared:
    """A claim that a quantity is larger at one damping than at another.

    Attributes:
        claim: In words.
        source: Where the paper has it.
        expected: In words.
        found: The quantity.
        above: The damping at which it is claimed to be larger.
        below: The other.
    """

    claim: str
    source: str
    expected: str
    found: Paired
    above: float
    below: float


def _judged(case: Case, family: Sequence[Compared]) -> Iterator[Claim]:
    """Judge claims that are made together; a bound, or too many runs without a value, decide nothing."""
    effects = [one.found.ratio(one.above, one.below) for one in family]
    for one, effect, verdict in zip(family, effects, verdicts(effects), strict=True):
        both = sorted((one.above, one.below))
        bound = case.bounds(*both)
        yield Claim(
            one.claim,
            one.source,
            case.told,
            one.expected,
            _measured(effect, bound, one.found.lost(*both)),
            len(effect.values),
            effect.told if effect.values else "none",
            verdict if not bound and one.found.decides(*both) else "inconclusive",
        )


def _measured(effect: Effect, *notes: str) -> str:
    return (f"log10 ratio {effect.mean:.3f}" if effect.values else "not reached by both") + "".join(notes)


def fresh_claims(case: Case) -> Iterator[Claim]:
    """Judge a setting by its fresh runs.

    Args:
        case: The setting.

    Yields:
        The claims.
    """
    yield from _best_damping(case)
    yield from _survival(case)
    yield from _escape(case)
    yield from _gradients(case)
    if not case.small:  # the same number of trials for both, or no comparison
        yield from _slow(case)


def _best_damping(case: Case) -> Iterator[Claim]:
    """1e0 is best: its loss against that of every other damping, paired by seed."""
    finished = case.trials.dropna(subset=["damping"]).groupby("damping")["value"].count()
    if not finished.get(PAPER_BEST, 0):
        return
    claim = "damping 1e0 ends with a lower training loss than {:g}".format
    where = ("Figure 2, Section 4", case.told, f"{RATIO}, of the runs that finished")
    for other in finished.index[finished == 0]:
        if {other, PAPER_BEST} & case.own:
            n = int((case.trials["damping"] == other).sum())
            verdict = holds(True) if n >= LEAST else "inconclusive"
            yield Claim(claim(other), *where, f"no trial of {other:g} finished", n, "every trial diverged", verdict)
    found = losses(case.ends)
    yield from _judged(
        case, [Compared(claim(d), where[0], where[2], found, above=d, below=PAPER_BEST) for d in case.others()]
    )


def _survival(case: Case) -> Iterator[Claim]:
    """Small dampings are unstable: of their best trials more diverge on fresh seeds than of 1e0's."""
    lost = (case.ends["status"] != "finished").astype(float)
    by = case.ends.assign(lost=lost).pivot_table(index="seed", columns="damping", values="lost")
    others = [d for d in case.others() if d < PAPER_BEST]
    effects = [Effect((by[d] - by[PAPER_BEST]).tolist(), FEWER) for d in others]
    for other, effect, verdict in zip(others, effects, verdicts(effects), strict=True):
        if not by[[other, PAPER_BEST]].to_numpy().any():
            continue
        bound = case.bounds(other, PAPER_BEST)  # what lies beyond it might hold
        yield Claim(
            f"on fresh seeds more of the best trials of damping {other:g} diverge than of 1e0",
            "Section 4, of 1e-5; ours on fresh seeds",
            case.told,
            f"shares differ by more than {FEWER}",
            f"{by[other].mean():.2f} against {by[PAPER_BEST].mean():.2f}{bound}",
            len(effect.values),
            effect.told,
            "inconclusive" if bound else verdict,
        )


def _escape(case: Case) -> Iterator[Claim]:
    """1e0 leaves the plateau first: the step at which the loss is reached, against that of every other damping."""
    reached = case.gradients[(case.gradients["when"] == "loss") & np.isclose(case.gradients["at"], ESCAPED)]
    steps = reached.loc[reached["layer"] == "all", ["damping", "rank", "seed", "step"]].rename(columns={"step": "at"})
    runs = case.ends[case.ends["damping"].notna()].merge(steps, how="left")
    # A run that ends on the plateau left it at the last step at the earliest; one that diverged tells nothing of it.
    runs["log"] = np.log10(runs["at"].fillna(runs["step"].where(runs["status"] == "finished")))
    found, claim = paired(runs), "damping 1e0 leaves the plateau sooner than {:g}".format
    source = f"Section 4, Figure 2; loss {ESCAPED:g} chosen after seeing the curves"
    expected = f"{RATIO}, of the steps to loss {ESCAPED:g}"
    yield from _judged(
        case, [Compared(claim(d), source, expected, found, above=d, below=PAPER_BEST) for d in case.others()]
    )


def _gradients(case: Case) -> Iterator[Claim]:
    """Larger damping: larger squared gradients early; smaller damping: larger ones late; at equal step, equal loss."""
    dampings = sorted(set(case.trials["damping"].dropna()))
    small, large = (min(dampings, key=lambda d: abs(math.log10(d) - decade)) for decade in (-4, 1))
    # The paper's pair that is farthest apart; and 1e0 for the larger one, which no bound of the search holds back.
    pairs = [p for p in dict.fromkeys([(small, large), (small, PAPER_BEST)]) if p[0] != p[1] and {*p} & case.own]
    moments = [("step", case.moments[0]), ("step", case.moments[-1]), ("loss", LEVELS[0]), ("loss", LEVELS[-1])]
    table = case.gradients[case.gradients["layer"] == "all"]
    every = case.ends.loc[case.ends["damping"].notna(), ["damping", "rank", "seed"]]
    tables = {at: paired(every.merge(_at(table, *at), how="left").rename(columns={"log10": "log"})) for at in moments}
    family = []
    for pair in pairs:
        for i, (when, at) in enumerate(moments):
            phase, (below, above) = (("early", pair), ("late", pair[::-1]))[i % 2]
            claim = f"{phase}, damping {above:g} has larger squared gradients than {below:g}, at equal {when}"
            expected = f"{RATIO} at {when} {at:g}"
            family.append(Compared(claim, "Section 4, Figure 1", expected, tables[when, at], above, below))
    yield from _judged(case, family)


def _at(table: Any, when: str, at: float) -> Any:
    rows = table[(table["when"] == when) & np.isclose(table["at"], at)]
    return rows[["damping", "rank", "seed", "log10"]]


def _slow(case: Case) -> Iterator[Claim]:
    """1e2 is slow only because the range of learning rates ends at 1: with a range that scales it equals SGD."""
    largest, found = max(case.own, default=0.0), losses(case.ends)
    if largest <= PAPER_BEST or not {largest, "sgd"} <= set(found.by.columns):
        return
    scaled = SETTINGS[case.setting].scaled
    ratio = found.ratio(largest, "sgd")
    effect = Effect(ratio.values, 0.0 if scaled else SMALLEST)
    # That the learning rate is at its bound is what is claimed, but of the range that scales.
    told = case.bounds(largest) if scaled else case.bounds(largest, keys=["momentum"])
    decided = not told and found.decides(largest, "sgd")
    verdict = equal(effect) if scaled else verdicts([effect])[0]
    yield Claim(
        f"damping {largest:g} ends {'like' if scaled else 'with a higher training loss than'} SGD",
        "Section 4, Figure 2",
        case.told,
        "|log10 ratio| below log10 1.05: slow only because learning rates are capped" if scaled else RATIO,
        _measured(effect, case.bounds(largest), found.lost(largest, "sgd")),
        len(effect.values),
        effect.told,
        verdict if decided else "inconclusive",
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
