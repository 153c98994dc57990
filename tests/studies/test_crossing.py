"""Where a curve first falls to a level."""

import math

import pytest

from fisherlab.studies.crossing import crossing


@pytest.mark.parametrize(
    ("level", "expected"),
    [(math.sqrt(10), 2.5), (1.0, 3.0), (0.5, None), (10.0, 2.0), (100.0, 0.0), (200.0, 0.0), (10**1.5, 1.0)],
)
def test_it_is_interpolated_by_the_logarithm(level, expected):
    found = crossing([100.0, 10.0, 1.0, 5.0], [0, 2, 3, 4], level)
    assert found == (None if expected is None else pytest.approx(expected))


def test_the_first_time_counts():
    assert crossing([4.0, 2.0, 3.0, 1.0], [0, 1, 2, 3], 2.0) == 1.0


def test_a_gap_in_the_curve_is_no_crossing():
    assert crossing([4.0, math.nan, 1.0], [0, 1, 2], 0.5) is None
