"""From numbers to verdicts: tolerances for what is deterministic, intervals over seeds for what is not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEAST = 10  # fresh seeds, below which nothing stochastic is decided
LEVEL = 0.05


def within(measured: float, expected: float, tolerance: float, *, decisive: bool = True) -> str:
    """Judge a deterministic number.

    Args:
        measured: What was found.
        expected: What the paper says.
        tolerance: Largest relative deviation.
        decisive: Whether a deviation contradicts (the paper's own protocol), or is only inconclusive.

    Returns:
        The verdict.
    """
    if abs(measured - expected) <= tolerance * abs(expected):
        return "reproduced"
    return "contradicted" if decisive else "inconclusive"


def holds(condition: bool, *, decisive: bool = True) -> str:
    """Judge a deterministic statement.

    Args:
        condition: Whether it is so.
        decisive: As `within`.

    Returns:
        The verdict.
    """
    return "reproduced" if condition else "contradicted" if decisive else "inconclusive"


@dataclass(frozen=True)
class Effect:
    """An effect measured once per seed, claimed to be above a bound.

    Attributes:
        values: One per seed (paired differences, log ratios).
        bound: The smallest interesting effect: at most this counts as none.
        less: Measured apart from the seeds (rounds of a timing): their mean is taken off, with its own uncertainty.
    """

    values: Sequence[float]
    bound: float = 0.0
    less: Sequence[float] = ()

    @property
    def mean(self) -> float:
        """The effect's mean."""
        means = [v[0] if np.ptp(v) == 0 else np.mean(v) for v in (self.values, self.less) if len(v)]
        return float(means[0] - sum(means[1:]))

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % t interval of the mean; Welch's where something is taken off."""
        error, freedom = self._spread
        if math.isinf(error):
            return (-math.inf, math.inf)
        if not error:
            return (self.mean, self.mean)
        half = float(stats.t.ppf(1 - LEVEL / 2, freedom)) * error
        return self.mean - half, self.mean + half

    @property
    def p(self) -> float:
        """Two-sided p value of the mean being the bound."""
        error, freedom = self._spread
        away = math.nan if math.isinf(error) else self.mean - self.bound
        if not math.isfinite(away):
            return 1.0  # nothing can be said of a single value, or of one that is not finite
        return float(2 * stats.t.sf(abs(away) / error, freedom)) if error else float(away == 0)

    @property
    def _spread(self) -> tuple[float, float]:
        """Standard error of the mean, and its degrees of freedom (Welch and Satterthwaite)."""
        if len(self.values) < 2 or len(self.less) == 1:
            return math.inf, 1.0
        samples = [np.asarray(v, float) for v in (self.values, self.less) if len(v)]
        # Not the variance of equal numbers, which rounds to more than 0.
        squares = [v.var(ddof=1) / len(v) if np.ptp(v) else 0.0 for v in samples]
        total = sum(squares)
        parts = sum(s**2 / (len(v) - 1) for s, v in zip(squares, samples, strict=True))
        return math.sqrt(total), total**2 / parts if parts else 1.0

    @property
    def told(self) -> str:
        """Mean, SD and interval, for a claim's columns."""
        if len(self.values) < 2:
            return f"one value, no interval, against {self.bound:.3g}"
        low, high = self.interval
        sd = np.std(self.values, ddof=1)
        apart = f" and {np.std(self.less, ddof=1):.3g} of {len(self.less)} rounds" if len(self.less) > 1 else ""
        return f"SD {sd:.3g}{apart}, 95 % t interval [{low:.3g}, {high:.3g}], against {self.bound:.3g}"


def between(effect: Effect, least: float, most: float) -> str:
    """Judge a mean that is claimed to lie between two bounds.

    Args:
        effect: One value per seed.
        least: The lower bound.
        most: The upper one.

    Returns:
        By where the interval lies: within them, beside them, or neither; inconclusive below 10 seeds.
    """
    low, high = effect.interval
    if len(effect.values) < LEAST or not (math.isfinite(low) and math.isfinite(high)):
        return "inconclusive"
    if least <= low and high <= most:
        return "reproduced"
    return "contradicted" if high < least or low > most else "inconclusive"


def verdicts(family: Sequence[Effect]) -> list[str]:
    """Judge a family of effects: interval beyond the bound, and Holm's correction of the p values.

    Args:
        family: The effects that are claimed together.

    Returns:
        One verdict each; inconclusive below 10 seeds.
    """
    adjusted, worst = [1.0] * len(family), 0.0
    for rank, i in enumerate(sorted(range(len(family)), key=lambda i: family[i].p)):
        worst = max(worst, min(1.0, family[i].p * (len(family) - rank)))
        adjusted[i] = worst
    found = []
    for effect, p in zip(family, adjusted, strict=True):
        low, high = effect.interval
        decided = len(effect.values) >= LEAST and p <= LEVEL
        side = "reproduced" if low > effect.bound else "contradicted" if high < effect.bound else "inconclusive"
        found.append(side if decided else "inconclusive")
    return found


def prediction(values: Sequence[float]) -> tuple[float, float]:
    """Where one more run would lie, with 95 % probability, were logarithms normal.

    Args:
        values: Of independent runs.

    Returns:
        The interval.
    """
    logs = np.log(values)
    half = stats.t.ppf(1 - LEVEL / 2, len(logs) - 1) * logs.std(ddof=1) * math.sqrt(1 + 1 / len(logs))
    return math.exp(logs.mean() - half), math.exp(logs.mean() + half)
