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
from fisherlab.studies.sun2017.timing import by_round

FIGURE = "Figure (slides 25, 26)"
SMALL = math.log10(1.05)  # the smallest interesting ratio
POINT = 1e-3  # the smallest interesting difference of accuracies
REACHED = (0.1, 0.2, 0.5, 1.0)  # of SGD's epochs, after which its objective is what the others are timed to
# Of each other method: what RNGD is to do, by epochs or seconds, and by validation accuracy, with the bounds. The paper
# has it clearly faster than SGD, and competitive with Adam or ahead: so no slower, and hardly less accurate.
FASTER = {"sgd": ("less", "fewer", SMALL), "adam": ("no more", "no more", -SMALL)}
BETTER = {
    "sgd": ("RNGD ends with a higher validation accuracy than SGD", "higher", 0.0),
    "adam": (
        "RNGD is competitive with Adam in validation accuracy, or ahead",
        f"at most {POINT:g} below",
        -POINT,
    ),
}
VARIED = {
    "rngd, batch start": "started from the first batch's statistics",
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
    return [*judged(epochs), *judged(seconds), *judged([_accuracy(found, other) for other in others])]


def _reaches(moment: int) -> str:
    return f"RNGD reaches SGD's objective of epoch {moment} (its worst seed's, times {FACTOR:g})"


def _epochs(found: Evidence, other: str, moment: int) -> Asked:
    _, fewer, bound = FASTER[other]
    theirs, own, told = found.epochs(other, moment), found.epochs("rngd", moment), found.bounds("sgd", other, "rngd")
    return Asked(
        f"{_reaches(moment)} in {fewer} epochs than {NAMES[other]}", FIGURE, found.setting(),
        "clearly fewer" if other == "sgd" else "competitive or ahead",
        f"to the objective {level_of(found.curves['sgd'], moment):.3g}: medians {own.median():.0f} and "
        f"{theirs.median():.0f} epochs{_censored(found, moment, other)}{told}",
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
    if found.cost is None or not {other, "rngd"} <= set(found.cost["method"]):
        return
    rounds = by_round(found.cost, found.net)
    less, _, bound = FASTER[other]
    told = found.bounds("sgd", other, "rngd")
    cost = np.log10(rounds["rngd"] / rounds[other])
    ratios = _ratios(found.epochs(other, moment), found.epochs("rngd", moment))
    effect = Effect(ratios, bound, [float(v) for v in cost])
    yield Asked(
        f"{_reaches(moment)} in {less} time than {NAMES[other]}", "beyond the paper",
        f"{found.setting()}; time of a step in single runs, {int(found.cost['threads'].iloc[0])} threads, this machine",
        less if other == "sgd" else "competitive or ahead",
        f"{10**effect.mean:.2f} times as fast, a step costing {10 ** cost.mean():.1f} of {NAMES[other]}'s"
        f"{_censored(found, moment, other)}{told}",
        effect, "log10 ratio of seconds, with the spread of the rounds of timing", not told,
    )  # fmt: skip


def _accuracy(found: Evidence, other: str) -> Asked:
    claim, expected, bound = BETTER[other]
    effect, told = _gain(found, "rngd", other, bound), found.bounds(other, "rngd")
    return Asked(
        claim, FIGURE, found.setting(), expected, f"by {effect.mean:+.4f}{found.lost('rngd', other)}{told}",
        effect, _last(found), not told,
    )  # fmt: skip


def _gain(found: Evidence, one: str, other: str, bound: float) -> Effect:
    return Effect([float(v) for v in accuracy(found.curves[one]) - accuracy(found.curves[other])], bound)


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
            effect, told = _gain(found, variant, "rngd", -POINT), found.bounds(variant, "rngd")
            family.append(Asked(
                f"RNGD {VARIED[variant]} is no worse in validation accuracy", "ours; the sheet leaves it open",
                f"{found.setting()}, from RNGD's best on", f"at most {POINT:g} below",
                f"by {effect.mean:+.4f}{found.lost(variant, 'rngd')}{told}", effect, _last(found), not told,
            ))  # fmt: skip
    return judged(family)
