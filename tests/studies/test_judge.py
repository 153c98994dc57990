"""Verdicts: tolerances, intervals, Holm's correction."""

import numpy as np
import pytest

from fisherlab.studies.judge import Effect, holds, verdicts, within
from fisherlab.studies.study import Claim


def test_a_deterministic_number():
    assert within(1.009, 1.0, 0.01) == "reproduced"
    assert within(1.02, 1.0, 0.01) == "contradicted"
    assert within(1.02, 1.0, 0.01, decisive=False) == "inconclusive"
    assert within(-1.0, 1.0, 0.01) == "contradicted"
    assert within(float("nan"), 1.0, 0.01) == "contradicted"


def test_a_deterministic_statement():
    assert [holds(True), holds(False), holds(False, decisive=False)] == ["reproduced", "contradicted", "inconclusive"]


def spread(mean: float, n: int = 10) -> list[float]:
    noise = np.random.RandomState(0).randn(n)
    return (mean + 0.1 * (noise - noise.mean())).tolist()


def test_an_effect_is_judged_by_its_interval():
    above, below, near = Effect(spread(1.0), 0.5), Effect(spread(0.1), 0.5), Effect(spread(0.5), 0.5)
    assert verdicts([above, below, near]) == ["reproduced", "contradicted", "inconclusive"]


def test_nothing_is_decided_below_ten_seeds():
    assert verdicts([Effect(spread(1.0, 9), 0.5)]) == ["inconclusive"]
    assert verdicts([Effect([1.0], 0.5)]) == ["inconclusive"]


def test_holm_takes_back_what_is_weak_in_a_large_family():
    weak = Effect(spread(0.05, 20))
    assert 0.01 < weak.p < 0.05
    assert verdicts([weak]) == ["reproduced"]
    assert verdicts([weak] * 10) == ["inconclusive"] * 10


def test_a_verdict_is_one_of_three():
    with pytest.raises(ValueError, match="expected one of reproduced"):
        Claim("c", "s", "s", "e", "m", 1, "u", "perhaps")
