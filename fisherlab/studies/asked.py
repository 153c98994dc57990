"""Claims about numbers that were measured once per seed, judged as a family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fisherlab.studies.judge import Effect, verdicts
from fisherlab.studies.study import Claim


@dataclass(frozen=True)
class Asked:
    """A claim before its family is judged.

    Attributes:
        claim: In words.
        source: Where the paper says it.
        setting: Under which it was measured.
        expected: What the paper leads to expect.
        measured: The numbers.
        effect: One number per seed, above 0 where the claim holds.
        told: What that number is.
        decisive: Whether it can be decided at all: not where a best hyper-parameter lies on a bound of its search.
    """

    claim: str
    source: str
    setting: str
    expected: str
    measured: str
    effect: Effect
    told: str
    decisive: bool = True


def judged(family: Sequence[Asked]) -> list[Claim]:
    """Judge claims together.

    Args:
        family: With Holm's correction among them.

    Returns:
        The claims.
    """
    given = verdicts([one.effect for one in family])
    return [
        Claim(
            one.claim, one.source, one.setting, one.expected, one.measured,
            len(one.effect.values), f"{one.told}: {one.effect.told}", verdict if one.decisive else "inconclusive",
        )
        for one, verdict in zip(family, given, strict=True)
    ]  # fmt: skip


def below(values: Sequence[float], bar: float) -> Effect:
    """The effect of being below a bar, by the logarithm: what spreads over seeds is a factor.

    Args:
        values: One per seed.
        bar: The bar.

    Returns:
        log(bar / value).
    """
    with np.errstate(divide="ignore"):
        return Effect(np.log(bar / np.asarray(values, float)).tolist())


def numbers(values: Sequence[float]) -> str:
    """Tell a sample.

    Args:
        values: One per seed.

    Returns:
        The median, and the range.
    """
    v = np.asarray(values, float)
    return f"median {np.median(v):.3g} [{v.min():.3g}, {v.max():.3g}]"
