"""Claims that set RNGD against SGD and Adam, per epoch and per second, and its variants against it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fisherlab.studies.asked import Asked, judged
from fisherlab.studies.judge import Effect
from fisherlab.studies.study import Claim
from fisherlab.studies.sun2017.curves import (
    FACTOR,
    accuracy,
    at_bound,
    averaged,
    epochs_to,
    level_of,
    setting,
    unfinished,
)
from fisherlab.studies.sun2017.settings import NAMES, VARIANTS
from fisherlab.studies.sun2017.settled import settled_accuracy
from fisherlab.studies.sun2017.timing import by_round

FIGURE = "Figure (slides 25, 26)"
SMALL = math.log10(1.05)  # the smallest interesting ratio
POINT = 1e-3  # the smallest interesting difference of accuracies
REACHED = (0.1, 0.2, 0.5, 1.0)  # of SGD's epochs, after which its objective is what the others are timed to
# Of each other method: what RNGD is to do, by epochs or seconds, and by validation accuracy, with the bounds. The paper
# has it clearly faster than SGD, and competitive with Adam or ahead: so no slower, and hardly less accurate. That it
# ends with a higher accuracy than SGD is not known to be its claim: the figure is read by ranges only.
FASTER = {"sgd": ("less", "fewer", SMALL), "adam": ("no more", "no more", -SMALL)}
BETTER = {
    "sgd": ("RNGD ends with a higher validation accuracy than SGD", "ours", f"by more than {POINT:g}", POINT),
    "adam": (
        "RNGD is competitive with Adam in validation accuracy, or ahead",
        FIGURE,
        f"at most {POINT:g} below",
        -POINT,
    ),
}
VARIED = {
    "rngd, batch start": "started from the first batch's statistics, of which its inverse is for 100 steps,",
    "rngd, softmax": "with the softmax RFIM of the last layer (the theory; the authors' code has the linear form)",
}


@dataclass(frozen=True)
class Evidence:
    """What there is of a net.

    Attributes:
        folder: The study's.
        net: A key of `NETS`.
        settings: The scale's.
        curves: By method, a table each; RNGD's is among them.
        cost: The table of the cost of a step; None where it is not there.
    """

    folder: Path
    net: str
    settings: Mapping[str, Any]
    curves: Mapping[str, Any]
    cost: Any | None

    def setting(self) -> str:
        """Under which conditions."""
        return setting(self.net, self.settings, self.curves["rngd"])

    def bounds(self, *methods: str) -> str:
        """Which of the methods' learning rates are ends of their grids."""
        return "".join(at_bound(self.folder, self.net, m) for m in dict.fromkeys(methods))

    def ratios(self, other: str) -> Any | None:
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

    def epochs(self, method: str, moment: int) -> Any:
        """Epochs by seed to what SGD has reached at a moment; NaN where there is nothing."""
        return epochs_to(self.curves[method], level_of(self.curves["sgd"], moment), self.settings["epochs"])


def against_others(found: Evidence) -> list[Claim]:
    """Judge RNGD against SGD and Adam.

    Args:
        found: Of a net.

    Returns:
        The claims: those by epochs, by seconds and by accuracy, a family each.
    """
    others = [other for other in FASTER if other in found.curves]
    timed = [(other, moment) for other in others for moment in found.moments] if "sgd" in found.curves else []
    epochs = [_epochs(found, other, moment) for other, moment in timed]
    seconds = [one for other, moment in timed for one in _seconds(found, other, moment)]
    return [*judged(epochs), *judged(seconds), *judged([one for other in others for one in _accuracies(found, other)])]


def _reaches(moment: int) -> str:
    return f"RNGD reaches SGD's objective of epoch {moment} (its median seed's, times {FACTOR:g})"


def _epochs(found: Evidence, other: str, moment: int) -> Asked:
    _, fewer, bound = FASTER[other]
    theirs, own, told = found.epochs(other, moment), found.epochs("rngd", moment), found.bounds("sgd", other, "rngd")
    return Asked(
        f"{_reaches(moment)} in {fewer} epochs than {NAMES[other]}", FIGURE, found.setting(),
        "clearly fewer" if other == "sgd" else "competitive or ahead",
        f"to the objective {level_of(found.curves['sgd'], moment):.3g}: medians {own.median():.1f} and "
        f"{theirs.median():.1f} epochs{_censored(found, moment, other)}{told}",
        Effect(_ratios(theirs, own), bound), "log10 ratio of epochs", not told,
    )  # fmt: skip


def _ratios(theirs: Any, own: Any) -> list[float]:
    return [float(v) for v in np.log10(theirs.clip(lower=0.5) / own.clip(lower=0.5))]


def _censored(found: Evidence, moment: int, other: str) -> str:
    """Tells of runs that count as if they had got there one epoch after their last."""
    last = found.settings["epochs"]
    never = {m: int((found.epochs(m, moment) > last).sum()) for m in ("rngd", other)}
    told = [f"{count} runs of {NAMES[m]}" for m, count in never.items() if count]
    return f"; never, counted as epoch {last + 1}: {', '.join(told)}" if told else ""


def _seconds(found: Evidence, other: str, moment: int) -> Iterator[Asked]:
    cost = found.ratios(other)
    if cost is None:
        return
    less, _, bound = FASTER[other]
    told = found.bounds("sgd", other, "rngd")
    ratios = _ratios(found.epochs(other, moment), found.epochs("rngd", moment))
    effect = Effect(ratios, bound, [float(v) for v in cost])
    yield Asked(
        f"{_reaches(moment)} in {less} time than {NAMES[other]}", "beyond the paper",
        f"{found.setting()}; {found.timed()}",
        less if other == "sgd" else "competitive or ahead",
        f"{10**effect.mean:.2f} times as fast, a step costing {10 ** cost.mean():.1f} of {NAMES[other]}'s"
        f"{_censored(found, moment, other)}{told}",
        effect, "log10 ratio of seconds, with the spread of the rounds of timing", not told,
    )  # fmt: skip


def _accuracies(found: Evidence, other: str) -> Iterator[Asked]:
    """At the end; at equal time; and without what the moving averages of a normalisation lag behind."""
    own, theirs = found.curves["rngd"], accuracy(found.curves[other])
    yield _better(found, other, "", found.setting(), _last(found), accuracy(own) - theirs)
    epochs, cost = found.settings["epochs"], found.ratios(other)
    if cost is not None and (spent := min(epochs, int(epochs / 10 ** float(cost.mean())))):
        way, told = f", stopped after the time of {NAMES[other]}'s {epochs} epochs", f"; RNGD's {spent} epochs"
        yield _better(
            found, other, way, f"{found.setting()}; {found.timed()}", _last(found) + told,
            accuracy(own, last=spent) - theirs,
        )  # fmt: skip
    clean = [settled_accuracy(found.folder, found.net, m) for m in ("rngd", other)]
    if clean[0] is not None and clean[1] is not None:
        way = ", normalised by the training set's statistics"
        yield _better(found, other, way, found.setting(), "difference by seed, last epoch", clean[0] - clean[1])


def _better(found: Evidence, other: str, way: str, setting: str, told: str, gain: Any) -> Asked:
    claim, source, expected, bound = BETTER[other]
    effect, bounds = Effect([float(v) for v in gain], bound), found.bounds(other, "rngd")
    measured = f"by {effect.mean:+.4f}{found.lost('rngd', other)}{bounds}"
    return Asked(f"{claim}{way}", "ours" if way else source, setting, expected, measured, effect, told, not bounds)


def _last(found: Evidence) -> str:
    return f"difference by seed, mean of the last {averaged(found.settings)} epochs"


def variants(found: Evidence) -> list[Claim]:
    """Judge the variants against RNGD.

    Args:
        found: Of a net, with the variants' curves that there are.

    Returns:
        The claims, one family.
    """
    family = []
    for variant in VARIANTS:
        if variant in found.curves:
            gain = accuracy(found.curves[variant]) - accuracy(found.curves["rngd"])
            effect, told = Effect([float(v) for v in gain], -POINT), found.bounds(variant, "rngd")
            family.append(Asked(
                f"RNGD {VARIED[variant]} is no worse in validation accuracy", "ours; the sheet leaves it open",
                f"{found.setting()}, from RNGD's best on", f"at most {POINT:g} below",
                f"by {effect.mean:+.4f}{found.lost(variant, 'rngd')}{told}", effect, _last(found), not told,
            ))  # fmt: skip
    return judged(family)
