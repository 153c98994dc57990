"""Claims that set RNGD against the other methods, per epoch and per second, and its variants against it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fisherlab.studies.asked import Asked, judged
from fisherlab.studies.judge import Effect
from fisherlab.studies.study import Claim
from fisherlab.studies.sun2017.curves import (
    FACTOR,
    SMOOTHED,
    accuracy,
    at_bound,
    averaged,
    ending,
    epochs_to,
    level_of,
    setting,
    smooth,
    unfinished,
)
from fisherlab.studies.sun2017.settings import NAMES, RERATED, VARIANTS
from fisherlab.studies.sun2017.settled import settled_accuracy
from fisherlab.studies.sun2017.timing import by_round

FIGURE = "Figure (slides 25, 26)"
SMALL = math.log10(1.05)  # the smallest interesting ratio
POINT = 1e-3  # the smallest interesting difference of accuracies
REACHED = (0.1, 0.2, 0.5, 1.0)  # of SGD's epochs, after which its objective is what the others are timed to
# What RNGD is to be beside another method: claim, expected, bound. The paper has it clearly faster than SGD, and
# competitive with Adam or ahead: so no slower, and hardly less accurate. That it ends with a higher accuracy than SGD
# is not known to be its claim: the figure is read by ranges only. Of methods not in the paper, the same as of Adam.
AHEAD = {
    "epochs": ("in fewer epochs than {}", "clearly fewer", SMALL),
    "seconds": ("in less time than {}", "less", SMALL),
    "accuracy": ("RNGD ends with a higher validation accuracy than {}", f"by more than {POINT:g}", POINT),
}
LEVEL = {
    "epochs": ("in no more epochs than {}", "competitive or ahead", -SMALL),
    "seconds": ("in no more time than {}", "competitive or ahead", -SMALL),
    "accuracy": (
        "RNGD is competitive with {} in validation accuracy, or ahead",
        f"at most {POINT:g} below",
        -POINT,
    ),
}
PAPERS, OTHERS = {"sgd": AHEAD, "adam": LEVEL}, {"kfac": LEVEL, "efngd": LEVEL}
RIVALS = PAPERS | OTHERS
MEASURES = {  # in which levels are set: the objective has L2, which may hide who fits better; the others have not
    "objective": "objective",
    "train_loss": "training loss without L2",
    "batch_loss": "mean loss of an epoch's batches",  # as the weights move, and by the batches' own statistics
}
VARIED = {
    "rngd, batch start": "started from the first batch's statistics, with a factorisation in each of 100 steps,",
    "rngd, softmax": "with the softmax RFIM of the last layer (the theory; the authors' code has the linear form)",
    "rngd, by objective": "at the learning rate of the grid's lowest training objective",
}
OWN = {"rngd": "RNGD"} | {variant: f"RNGD {told}" for variant, told in VARIED.items()}


@dataclass(frozen=True)
class Evidence:
    """What there is of a net.

    Attributes:
        folder: The study's.
        net: A key of `NETS`.
        settings: The scale's.
        curves: By method, a table each; RNGD's is among them.
        cost: The table of the cost of a step; None where it is not there.
        own: Which of the methods is held against the others: RNGD, or a variant of it.
    """

    folder: Path
    net: str
    settings: Mapping[str, Any]
    curves: Mapping[str, Any]
    cost: Any | None
    own: str = "rngd"

    def setting(self) -> str:
        """Under which conditions."""
        return setting(self.net, self.settings, self.curves[self.own])

    def bounds(self, *methods: str) -> str:
        """Which of the methods' learning rates, its own among them, are ends of their grids."""
        return "".join(at_bound(self.folder, self.net, m) for m in dict.fromkeys((*methods, self.own)))

    def costs(self, other: str) -> Any | None:
        """What a step of RNGD costs of another method's, log10 by round; None where it was not timed."""
        if self.cost is None or not {other, "rngd"} <= set(self.cost["method"]):
            return None
        rounds = by_round(self.cost, self.net)
        return np.log10(rounds["rngd"] / rounds[other])

    def timed(self) -> str:
        """How a step was timed."""
        assert self.cost is not None
        threads = int(self.cost["threads"].iloc[0])
        return f"time of a step in single runs of one session, {threads} threads, this machine"

    def lost(self, *methods: str) -> str:
        """Which of the methods' runs did not finish."""
        return "".join(unfinished(self.net, m, self.curves[m]) for m in methods)

    @property
    def moments(self) -> list[int]:
        """The epochs of SGD whose objectives the others are timed to."""
        return sorted({max(1, round(share * self.settings["epochs"])) for share in REACHED})

    @cached_property
    def smoothed(self) -> dict[tuple[str, str], Any]:
        """Each method's curves without the noise of single epochs, by column."""
        return {(m, column): smooth(table, column) for m, table in self.curves.items() for column in MEASURES}

    def level(self, moment: int, column: str) -> float:
        """What SGD has reached at a moment."""
        return level_of(self.smoothed["sgd", column], moment)

    def epochs(self, method: str, moment: int, column: str = "objective") -> Any:
        """Epochs by seed to what SGD has reached at a moment; NaN where there is nothing."""
        return epochs_to(self.smoothed[method, column], self.level(moment, column), self.settings["epochs"])

    def never(self, method: str, moment: int, column: str = "objective") -> Any:
        """Whether by seed it never gets there."""
        return self.epochs(method, moment, column) > self.settings["epochs"]

    def neither(self, other: str, moment: int, column: str = "objective") -> Any:
        """Whether by seed neither it nor another method ever gets there."""
        return self.never(self.own, moment, column) & self.never(other, moment, column)

    def ratios(self, other: str, moment: int, column: str, bound: float) -> list[float]:
        """Another method's epochs to a level over its own, log10 by seed, for a claim with a bound."""
        own, theirs = (self.epochs(m, moment, column).clip(lower=0.5) for m in (self.own, other))
        found = np.log10(theirs / own)
        # Where the other never got there it may be more, where its own did not, less: if that may be on the other side
        # of the bound, it says nothing, and counts as the bound.
        found = found.mask(self.never(other, moment, column), found.clip(lower=bound))
        return [float(v) for v in found.mask(self.never(self.own, moment, column), found.clip(upper=bound))]


def against_others(found: Evidence) -> list[Claim]:
    """Judge RNGD against SGD and Adam, and more briefly against the methods that are not in the paper.

    Args:
        found: Of a net.

    Returns:
        The claims: those by epochs to levels of each measure, by seconds and by accuracy, a family each.
    """
    claims: list[Claim] = []
    for rivals, moments in ((PAPERS, found.moments), (OTHERS, found.moments[-1:])):
        others = [other for other in rivals if other in found.curves]
        timed = [(other, moment) for other in others for moment in moments] if "sgd" in found.curves else []
        for column in MEASURES:
            claims += judged([_epochs(found, other, moment, column) for other, moment in timed])
        claims += judged([one for other, moment in timed for one in _seconds(found, other, moment)])
        claims += judged([one for other in others for one in _accuracies(found, other)])
    return claims


def _told(other: str) -> str:
    return NAMES[other].replace(", ", " at ")


def _reaches(own: str, moment: int, column: str = "objective") -> str:
    return f"{OWN[own]} reaches SGD's {MEASURES[column]} of epoch {moment} (its median seed's, times {FACTOR:g})"


def _epochs(found: Evidence, other: str, moment: int, column: str) -> Asked:
    way, expected, bound = RIVALS[other]["epochs"]
    arrived = {m: found.epochs(m, moment, column).median() for m in (found.own, other, "sgd")}
    told = found.bounds("sgd", other)
    when = ", ".join(f"{NAMES[m].partition(',')[0]} {epochs:.1f}" for m, epochs in arrived.items())
    return Asked(
        f"{_reaches(found.own, moment, column)} {way.format(_told(other))}", _source(found.own, other, column),
        found.setting(), expected,
        f"to {found.level(moment, column):.3g}, median epochs: {when}"
        f"{_never(found, moment, other, column)}{told}",
        Effect(found.ratios(other, moment, column, bound), bound),
        f"log10 ratio of epochs, curves by running medians of {SMOOTHED} epochs", not told,
    )  # fmt: skip


def _source(own: str, other: str, column: str) -> str:
    drawn = own == "rngd" and other in PAPERS and column == "objective"
    return FIGURE if drawn else "beyond the paper"


def _never(found: Evidence, moment: int, other: str, column: str = "objective") -> str:
    """Tells of runs that count as if they had got there one epoch after their last, at most up to a claim's bound."""
    never = {m: found.never(m, moment, column) for m in (found.own, other)}
    told = ", ".join(f"{runs.sum()} runs of {NAMES[m]}" for m, runs in never.items() if runs.any())
    both = int(found.neither(other, moment, column).sum())
    undecided = f"; of {both} seeds neither, which says nothing" if both else ""
    return f"; never, counted as epoch {found.settings['epochs'] + 1}: {told}{undecided}" if told else ""


def _seconds(found: Evidence, other: str, moment: int) -> Iterator[Asked]:
    cost = found.costs(other)
    if cost is None:
        return
    (way, expected, bound), told = RIVALS[other]["seconds"], found.bounds("sgd", other)
    ratios = found.ratios(other, moment, "objective", bound + float(cost.mean()))
    effect = Effect(ratios, bound, [float(v) for v in cost])
    known = not found.neither(other, moment).all()  # else the ratio is the bound's
    speed = f"{10**effect.mean:.2f} times as fast" if known else "no ratio of times"
    yield Asked(
        f"{_reaches(found.own, moment)} {way.format(_told(other))}", "beyond the paper",
        f"{found.setting()}; {found.timed()}", expected,
        f"{speed}, a step costing {10 ** cost.mean():.1f} of {NAMES[other]}'s"
        f"{_never(found, moment, other)}{told}",
        effect, "log10 ratio of seconds, with the spread of the rounds of timing", not told,
    )  # fmt: skip


def _accuracies(found: Evidence, other: str) -> Iterator[Asked]:
    """At the end; at equal time; and without what the moving averages of a normalisation lag behind."""
    own, theirs = found.curves["rngd"], accuracy(found.curves[other])
    yield _better(found, other, "", found.setting(), _last(found), accuracy(own) - theirs)
    epochs, cost = found.settings["epochs"], found.costs(other)
    if cost is not None and (spent := min(epochs, int(epochs / 10 ** float(cost.mean())))):
        over = averaged(found.settings) * spent / epochs  # the same share of its time as of the other's
        way, told = f", stopped after the time of {_told(other)}'s {epochs} epochs", f"; RNGD's {spent} epochs"
        yield _better(
            found, other, way, f"{found.setting()}; {found.timed()}", f"{_last(found)}{told}, the last {over:.1f}",
            accuracy(own, last=spent, over=over) - theirs,
        )  # fmt: skip
    clean = [settled_accuracy(found.folder, found.net, m) for m in ("rngd", other)]
    if clean[0] is not None and clean[1] is not None:
        way = ", normalised by the training set's statistics"
        yield _better(found, other, way, found.setting(), "difference by seed, last epoch", clean[0] - clean[1])


def _better(found: Evidence, other: str, way: str, setting: str, told: str, gain: Any) -> Asked:
    claim, expected, bound = RIVALS[other]["accuracy"]
    effect, bounds = Effect([float(v) for v in gain], bound), found.bounds(other)
    source = FIGURE if other == "adam" and not way else "ours"
    return Asked(
        f"{claim.format(_told(other))}{way}", source, setting, expected,
        f"by {effect.mean:+.4f}{found.lost('rngd', other)}{bounds}", effect, told, not bounds,
    )  # fmt: skip


def _last(found: Evidence) -> str:
    return f"difference by seed, mean of the last {averaged(found.settings)} epochs"


def variants(found: Evidence) -> list[Claim]:
    """Judge the variants against RNGD.

    Args:
        found: Of a net, with the variants' curves that there are.

    Returns:
        The claims: beside RNGD one family, by epochs beside SGD one of each variant.
    """
    there = [variant for variant in VARIANTS if variant in found.curves]
    claims = judged([one for variant in there for one in _varied(found, variant)])
    for own in there if "sgd" in found.curves else ():
        claims += judged([_epochs(replace(found, own=own), "sgd", moment, "objective") for moment in found.moments])
    return claims


def _varied(found: Evidence, variant: str) -> Iterator[Asked]:
    """By accuracy, and by the training objective, which a choice by validation error does not look at."""
    own, curves, bounds = found.curves["rngd"], found.curves[variant], found.bounds(variant)
    rest = ("ours; the sheet leaves it open", found.setting() + ("" if variant in RERATED else ", from RNGD's best on"))
    told = f"{found.lost(variant, 'rngd')}{bounds}"
    gain = Effect([float(v) for v in accuracy(curves) - accuracy(own)], -POINT)
    yield Asked(
        f"{OWN[variant]} is no worse in validation accuracy", *rest, f"at most {POINT:g} below",
        f"by {gain.mean:+.4f}{told}", gain, _last(found), not bounds,
    )  # fmt: skip
    ends = [ending(table, "objective") for table in (own, curves)]
    less = Effect([float(v) for v in np.log10(ends[0] / ends[1])], -SMALL)
    yield Asked(
        f"{OWN[variant]} ends with no higher a training objective", *rest, f"at most {10**SMALL - 1:.0%} above",
        f"{ends[1].mean(skipna=False):.4f} nats, RNGD {ends[0].mean(skipna=False):.4f}{told}", less,
        f"log10 ratio by seed, mean of the last {averaged(found.settings)} epochs", not bounds,
    )  # fmt: skip
