"""Verdicts: tolerances, intervals, Holm's correction."""

import numpy as np
import pytest
from scipy import stats

from fisherlab.studies.asked import Asked, judged
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


@pytest.mark.parametrize("values", [spread(0.3), spread(-2.0, 25), [0.1, 0.4]])
def test_the_interval_and_the_p_value_are_student_s(values):
    test = stats.ttest_1samp(values, 0.2)
    assert Effect(values, 0.2).p == pytest.approx(test.pvalue, rel=1e-9)
    assert Effect(values, 0.2).interval == pytest.approx(tuple(test.confidence_interval(0.95)), rel=1e-9)


def test_what_is_measured_apart_brings_its_own_uncertainty():
    seeds, rounds = spread(1.0), [0.2, 0.35, 0.3, 0.45]
    test = stats.ttest_ind([v - 0.5 for v in seeds], rounds, equal_var=False)
    effect = Effect(seeds, 0.5, rounds)
    assert effect.p == pytest.approx(test.pvalue, rel=1e-9)
    assert [v - 0.5 for v in effect.interval] == pytest.approx(list(test.confidence_interval(0.95)), rel=1e-9)
    assert effect.mean == pytest.approx(1.0 - 0.325)
    assert verdicts([Effect(seeds, 0.5, [0.3, 0.3, 0.3])]) == ["reproduced"]
    assert verdicts([Effect(seeds, 0.5, [-0.7, 1.3, 0.3])]) == ["inconclusive"]
    assert verdicts([Effect(seeds, 0.5, [0.3])]) == ["inconclusive"]  # nothing is known of its spread


def test_equal_values_have_no_spread_and_what_is_not_finite_decides_nothing():
    assert verdicts([Effect([0.3] * 10, 0.2)]) == ["reproduced"]
    assert verdicts([Effect([0.3] * 10, 0.3)]) == ["inconclusive"]
    assert verdicts([Effect([*spread(1.0, 11), float("nan")])]) == ["inconclusive"]
    assert verdicts([Effect([])]) == ["inconclusive"]


def test_what_cannot_be_decided_is_not_but_counts_in_its_family():
    def asked(effect, decisive=True):
        return Asked("c", "s", "s", "e", "m", effect, "t", decisive)

    found = judged([asked(Effect(spread(1.0)), False), asked(Effect(spread(1.0)))])
    assert [claim.verdict for claim in found] == ["inconclusive", "reproduced"]
    weak = Effect(spread(0.05, 20))
    assert judged([asked(weak)] + [asked(weak, False)] * 9)[0].verdict == "inconclusive"


def test_a_verdict_is_one_of_three():
    with pytest.raises(ValueError, match="expected one of reproduced"):
        Claim("c", "s", "s", "e", "m", 1, "u", "perhaps")
