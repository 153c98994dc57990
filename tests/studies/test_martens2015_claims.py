"""Martens and Grosse (2015), verdicts on runs: each flips as the numbers of hand-made tables change."""

import math

import pytest

from fisherlab.studies.martens2015 import claims
from fisherlab.studies.martens2015.run_verdicts import BASELINE, DIAGONAL, NO_MOMENTUM, TRI
from tests.studies.martens2015_tables import NOISE, folder, named, paired, rate_to, run, verdict


@pytest.mark.parametrize(
    ("train", "test", "expected"),
    [
        (23.58, 23.25, ("reproduced", "reproduced")),
        (23.58 * 1.03, 23.25, ("reproduced", "reproduced")),
        (23.58 * 1.3, 23.25, ("contradicted", "reproduced")),
        (23.58, 23.25 / 1.3, ("reproduced", "contradicted")),
    ],
)
def test_the_authors_error_lies_in_the_prediction_interval(tmp_path, train, test, expected):
    runs = {
        named(TRI, seed): run(rate_to(train * math.exp(noise), 100), test=test / train)
        for seed, noise in enumerate(NOISE)
    }
    home = folder(tmp_path, runs)
    assert expected == tuple(verdict(home, f"{w} error at iteration 100 as") for w in ("training", "test"))
    assert verdict(home, "training error at iteration 0") == "contradicted"  # 200 each, and 260.7
    for seed in range(4, 10):
        (home / named(TRI, seed)).unlink()
    assert verdict(home, "training error at iteration 100") != "reproduced"  # four runs predict too little
    for seed in range(1, 4):
        (home / named(TRI, seed)).unlink()
    assert verdict(home, "training error at iteration 100") is None  # one predicts nothing


@pytest.mark.parametrize(
    ("tables", "expected"),
    [
        (paired(1.2), "reproduced"),
        (paired(0.8), "contradicted"),
        (paired(1.001), "inconclusive"),
        (paired(1.2, spread=40), "inconclusive"),
        (paired(1.2, seeds=9), "inconclusive"),
        (paired(1.2, seeds=1), None),
    ],
)
def test_which_inverse_is_ahead(tmp_path, tables, expected):
    assert verdict(folder(tmp_path, tables), "block-tridiagonal K-FAC is ahead") == expected


@pytest.mark.parametrize(
    ("fewer", "expected"), [(0.25, "reproduced"), (0.05, "contradicted"), (0.5, "contradicted"), (-0.2, "contradicted")]
)
def test_how_many_iterations_fewer(tmp_path, fewer, expected):
    tables = {}
    for seed, noise in enumerate(NOISE):
        slow = rate_to(30.0, 100) * math.exp(0.1 * noise)
        tables |= {named(TRI, seed): run(slow / (1 - fewer)), named(DIAGONAL, seed): run(slow, last=100)}
    home = folder(tmp_path, tables)
    assert verdict(home, "block-tridiagonal K-FAC's rate of progress") == expected
    (home / named(TRI, 9)).unlink()
    assert verdict(home, "block-tridiagonal K-FAC's rate of progress") == "inconclusive"


@pytest.mark.parametrize(("seconds", "expected"), [(1.6, "reproduced"), (1.2, "contradicted"), (2.2, "contradicted")])
def test_better_per_second_but_moderately(tmp_path, seconds, expected):
    # Half the iterations: 0.8, 0.6, 1.1 of the seconds.
    tables = {named(TRI, 0): run(0.02, seconds=seconds), named(DIAGONAL, 0): run(0.01)}
    assert verdict(folder(tmp_path, tables), "block-tridiagonal K-FAC is only moderately") == expected


@pytest.mark.parametrize(
    ("kfac", "scale", "expected"),
    [
        (0.1, "paper", "reproduced"),
        (0.1, "quick", "reproduced"),
        (0.02, "paper", "inconclusive"),
        (0.006, "paper", "contradicted"),
        (0.006, "quick", "inconclusive"),
        (0.0001, "paper", "contradicted"),  # never as low
    ],
)
def test_orders_of_magnitude_fewer_iterations(tmp_path, kfac, scale, expected):
    baseline = run(0.0007, last=14400)
    tables = {named(TRI, 0): run(kfac, last=2000), named(BASELINE, 0): baseline}
    home = folder(tmp_path, tables, scale)
    assert verdict(home, "K-FAC with momentum takes orders") == expected


@pytest.mark.parametrize(
    ("seconds", "scale", "expected"),
    [
        (10.0, "paper", "reproduced"),
        (0.6, "paper", "reproduced"),
        (0.4, "paper", "contradicted"),
        (0.4, "quick", "inconclusive"),
    ],
)
def test_without_momentum_it_is_not_faster(tmp_path, seconds, scale, expected):
    # To the same error in as many steps, of one second and of so many.
    tables = {
        named(NO_MOMENTUM, "batch", 6000): run(0.01, last=300, seconds=seconds),
        named(BASELINE, 0): run(0.01, last=1000),
    }
    assert verdict(folder(tmp_path, tables, scale), "without momentum K-FAC is not") == expected


@pytest.mark.parametrize(
    ("method", "power", "expected"),
    [
        (TRI, -0.5, "reproduced"),
        (TRI, 0.0, "contradicted"),
        (TRI, 0.5, "contradicted"),
        (NO_MOMENTUM, 0.1, "reproduced"),
        (NO_MOMENTUM, -0.5, "contradicted"),
        (NO_MOMENTUM, 1.0, "contradicted"),
        (BASELINE, 1.0, "reproduced"),
        (BASELINE, 0.3, "contradicted"),
        (BASELINE, 1.6, "contradicted"),
    ],
)
def test_cases_that_are_needed_by_the_batch(tmp_path, method, power, expected):
    # Cases to an error grow with the batch to the power: so the rate per step is m^(1 - power).
    tables = {
        named(method, "batch", m): run(0.01 * (m / 4000) ** (1 - power), last=300, cases=m) for m in (2000, 4000, 6000)
    }
    home = folder(tmp_path, tables)
    assert verdict(home, f"{method}: progress") == expected
    told = next(c.measured for c in claims(home) if c.claim.startswith(f"{method}: "))
    assert float(told.split()[-1]) == pytest.approx(power, abs=0.006)
    (home / named(method, "batch", 4000)).unlink()
    assert verdict(home, f"{method}: progress") is None


def flat(last=300):
    """A run that never gets below its first error."""
    table = run(0.0, last=last)
    return table.assign(train_error=table["train_error"] + table["step"])


@pytest.mark.parametrize(
    "tables",
    [
        {named(NO_MOMENTUM, "batch", 6000): flat(), named(BASELINE, 0): run(0.01)},
        {named(TRI, 0): run(0.01), named(BASELINE, 0): flat()},
        {**paired(1.2, seeds=3), named(TRI, 1): run(0.01, last=50)},
        {named(TRI, "batch", m): flat() if m == 2000 else run(0.01, last=300) for m in (2000, 4000, 6000)},
    ],
)
def test_a_run_that_diverged_or_does_not_improve_can_be_judged(tmp_path, tables):
    assert not [c for c in claims(folder(tmp_path, tables)) if "nan" in c.measured and c.verdict != "inconclusive"]


def test_seeds_that_disagree_reproduce_no_rate(tmp_path):
    tables = {}
    for seed in range(10):
        slow = rate_to(30.0, 100)
        tables |= {named(TRI, seed): run(slow * (4 if seed % 2 else 0.8)), named(DIAGONAL, seed): run(slow, last=100)}
    assert verdict(folder(tmp_path, tables), "block-tridiagonal K-FAC's rate of progress") == "inconclusive"


def test_more_iterations_are_a_claim_too(tmp_path):
    tables = {named(TRI, seed): run(0.018 + 1e-5 * seed, last=100) for seed in range(10)}
    tables |= {named(DIAGONAL, seed): run(0.019, last=100) for seed in range(10)}
    home = folder(tmp_path, tables)
    assert verdict(home, "block-tridiagonal K-FAC is ahead") == "contradicted"
    assert verdict(home, "block-tridiagonal K-FAC's rate of progress") == "contradicted"


def test_a_baseline_that_never_gets_as_far_is_slower(tmp_path):
    tables = {named(NO_MOMENTUM, "batch", 6000): run(0.01, last=300), named(BASELINE, 0): run(0.001, last=1000)}
    assert verdict(folder(tmp_path, tables), "without momentum K-FAC is not") == "contradicted"


def test_an_inverse_that_never_gets_as_far_is_slower(tmp_path):
    tables = {named(TRI, 0): run(0.01), named(DIAGONAL, 0): run(0.02)}
    assert verdict(folder(tmp_path, tables), "block-tridiagonal K-FAC is only moderately") == "contradicted"


def test_updates_after_the_baseline_s_least_error_do_not_count(tmp_path):
    baseline = run(0.01, last=14400)
    baseline.loc[baseline["step"] > 500, "train_error"] = 150.0
    tables = {named(TRI, 0): run(0.1), named(BASELINE, 0): baseline}  # 50 against 500 iterations
    assert verdict(folder(tmp_path, tables), "K-FAC with momentum takes orders") == "inconclusive"
