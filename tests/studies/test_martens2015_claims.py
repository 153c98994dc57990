"""Martens and Grosse (2015), verdicts on runs: each flips as the numbers of hand-made tables change."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from fisherlab.studies.martens2015 import claims
from fisherlab.studies.martens2015.problems import METHODS
from fisherlab.studies.martens2015.run_verdicts import BASELINE, DIAGONAL, NO_MOMENTUM, TRI
from tests.studies.martens2015_tables import NOISE, SETTINGS, claim, folder, named, paired, rate_to, run, took, verdict

STILL = named(NO_MOMENTUM, "batch", SETTINGS["no_momentum_batch"])  # the run without momentum that the claims look at


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
    ("train", "n", "expected"), [(23.58, 5, "reproduced"), (23.58 * 2, 5, "contradicted"), (23.58, 4, "inconclusive")]
)
def test_five_runs_are_enough_to_agree_with_the_authors(tmp_path, train, n, expected):
    found = {named(TRI, s): run(rate_to(train * math.exp(e), 100)) for s, e in enumerate(NOISE[:n])}
    assert verdict(folder(tmp_path, found), "training error at iteration 100") == expected


@pytest.mark.parametrize(
    ("last", "n", "expected"),
    [
        (0.987, 5, "reproduced"),
        (0.987, 3, "inconclusive"),
        (0.987 * 2, 3, "contradicted"),
        (0.987 / 2, 5, "contradicted"),
    ],
)
def test_the_authors_last_error_too(tmp_path, last, n, expected):
    found = {named(TRI, s): run(rate_to(last * math.exp(e), 500), test=4.21 / 0.987) for s, e in enumerate(NOISE[:n])}
    home = folder(tmp_path, found)
    one = claim(home, "training error at iteration 500")
    assert one.verdict == expected
    mean = last * math.exp(NOISE[:n].mean())
    assert f"{mean / 0.987:.3f} times the log's" in one.measured
    assert f"here {rate_to(last, 500):.1%} of error" in one.uncertainty  # what one update is
    assert verdict(home, "test error at iteration 500") == expected


FEWER = "block-tridiagonal K-FAC's rate of progress"
ALL, RECENT = "at iteration 0 to that at 100", "at iteration 40 to that at 100"
LATE = "at iteration 300 to that at 500"


@pytest.mark.parametrize(
    ("share", "expected"), [(0.25, "reproduced"), (0.05, "contradicted"), (0.5, "contradicted"), (-0.2, "contradicted")]
)
def test_how_many_iterations_fewer(tmp_path, share, expected):
    tables = {}
    for seed, noise in enumerate(NOISE):
        slow = rate_to(30.0, 100) * math.exp(0.1 * noise)
        tables |= {named(TRI, seed): run(slow / (1 - share)), named(DIAGONAL, seed): run(slow)}
    home = folder(tmp_path, tables)
    assert {verdict(home, FEWER, words) for words in (ALL, RECENT, LATE)} == {expected}
    (home / named(TRI, 9)).unlink()
    assert {verdict(home, FEWER, words) for words in (ALL, RECENT, LATE)} == {"inconclusive"}


def test_a_common_start_does_not_hide_what_comes_later(tmp_path):
    tables = {}
    for seed, noise in enumerate(NOISE):
        slow = rate_to(30.0, 100) * math.exp(0.1 * noise)
        tri, steps = run(slow, last=100), np.arange(0, 101, 10)
        # Alike to iteration 40, then a third faster.
        tri["train_error"] = 200 * np.exp(-slow * np.where(steps < 40, steps, 40 + (steps - 40) / 0.75))
        tables |= {named(TRI, seed): tri, named(DIAGONAL, seed): run(slow, last=100)}
    home = folder(tmp_path, tables)
    assert verdict(home, FEWER, RECENT) == "reproduced"
    assert verdict(home, FEWER, ALL) == "contradicted"  # 0.15: each range tells of itself


def test_later_ranges_are_told_of_the_pair_that_goes_so_far(tmp_path):
    tables = {named(TRI, 0): run(0.01 / 0.75), named(DIAGONAL, 0): run(0.01)}
    home = folder(tmp_path, tables)
    for words in (ALL, RECENT, "at iteration 100 to that at 300", "at iteration 300 to that at 500"):
        one = claim(home, FEWER, words)
        assert (one.verdict, one.n) == ("inconclusive", 1)
        assert float(one.measured.split()[0]) == pytest.approx(0.25, abs=2e-3)


def pairs(ratio, n=10):
    """Half the iterations, and so much of the processor seconds."""
    found = {}
    for seed, noise in enumerate(NOISE[:n]):
        found[named(TRI, seed)] = run(0.02, last=100, seconds=2 * ratio * math.exp(noise))
        found[named(DIAGONAL, seed)] = run(0.01, last=100)
    return found


@pytest.mark.parametrize(
    ("tables", "expected"),
    [
        (pairs(0.8), "reproduced"),
        (pairs(0.6), "contradicted"),
        (pairs(1.1), "contradicted"),
        (pairs(1.0), "inconclusive"),
        (pairs(0.8, 9), "inconclusive"),
    ],
)
def test_better_per_processor_second_but_moderately(tmp_path, tables, expected):
    one = claim(folder(tmp_path, tables), "block-tridiagonal K-FAC is only moderately")
    assert one.verdict == expected
    assert "processor seconds at one thread" in one.measured


def test_seconds_of_two_versions_of_the_code_are_not_compared(tmp_path):
    home = folder(tmp_path, pairs(0.8))
    parts = {
        f"mnist, {method}, seed {seed} to iteration 100": "old" for method in (TRI, DIAGONAL) for seed in range(10)
    }
    parts[f"mnist, {TRI}, seed 3 to iteration 100"] = "new"
    record = json.loads((home / "study.json").read_text())
    for known, n, expected in ((parts, 9, "inconclusive"), (dict.fromkeys(parts, "old"), 10, "reproduced")):
        record["parts"] = {name: {"commit": commit} for name, commit in known.items()}
        (home / "study.json").write_text(json.dumps(record))
        one = claim(home, "block-tridiagonal K-FAC is only moderately")
        assert (one.n, one.verdict) == (n, expected)


def test_an_inverse_that_never_gets_as_far_is_slower(tmp_path):
    tables = {named(TRI, s): run(0.01 + 1e-5 * s, last=100) for s in range(10)}
    tables |= {named(DIAGONAL, s): run(0.02, last=100) for s in range(10)}
    for table in list(tables)[:10]:
        tables[table]["cpu_seconds"] *= 1.2
    one = claim(folder(tmp_path, tables), "block-tridiagonal K-FAC is only moderately")
    assert one.verdict == "contradicted"
    assert one.measured.startswith("1.200 of its")


@pytest.mark.parametrize(
    ("kfac", "says"),
    [
        (0.1, "to 0.00838 in 101 against 14400 iterations, 142.9 times fewer"),
        (0.02, "to 0.00838 in 504 against 14400 iterations, 28.6 times fewer"),
        (0.02, "to 0.0629 in 403 against 11520 iterations, 28.6 times fewer; to 0.023"),
        (0.02, "where the baseline never is, in 2000, over 7.2 times fewer"),
        (0.0001, "never to 0.0629; never to 0.023; never to 0.00838; the"),
    ],
)
def test_one_run_each_tells_how_many_iterations_fewer(tmp_path, kfac, says):
    baseline = run(0.0007, last=14400)
    tables = {named(TRI, 0): run(kfac, last=2000), named(BASELINE, 0): baseline}
    one = claim(folder(tmp_path, tables), "K-FAC with momentum takes orders")
    assert (one.verdict, one.n) == ("inconclusive", 1)  # ten seeds would decide
    assert says in one.measured
    for k in (100, 500):
        assert f"the baseline has {math.exp((kfac - 0.0007) * k):.3g} times its error at iteration {k}" in one.measured


@pytest.mark.parametrize(("seconds", "told"), [(10.0, "10.00 times"), (0.4, "0.40 times")])
def test_one_run_each_tells_what_momentum_is_worth(tmp_path, seconds, told):
    # To the same error in as many steps, of one second and of so many.
    tables = {
        STILL: run(0.01, last=300, seconds=seconds),
        named(BASELINE, 0): run(0.01, last=1000),
    }
    one = claim(folder(tmp_path, tables), "without momentum K-FAC is not")
    assert (one.verdict, one.n) == ("inconclusive", 1)
    assert one.measured.count(told) == 3
    assert one.measured.startswith("to 99.3 in")  # by iteration 70, the last one of the first quarter that is evaluated


@pytest.mark.parametrize(("lr", "bound"), [(0.05, True), (0.01, False), (0.0001, True)])
def test_a_baseline_tells_its_grid(tmp_path, lr, bound):
    rows = [
        {"lr": r, "momentum": m, "same_as": 0.999, "step": 1000} for r in (0.05, 0.01, 0.0001) for m in (0.999, 0.9)
    ]
    grid = pd.DataFrame(rows)
    grid["train_error"] = [30.0 if r == lr else 30.0 + r for r in grid["lr"]]
    tables = {named(TRI, 0): run(0.01), named(BASELINE, 0): run(0.001), "grid_mnist.csv": grid}
    tables |= took(BASELINE, 0, lr=lr, momentum=0.999)
    setting = claim(folder(tmp_path, tables), "K-FAC with momentum takes orders").setting
    assert f"lr {lr:g}, mu_max 0.999 (after 1000 updates of the grid lr {lr:g}: 30, next lr " in setting
    assert ("on the grid's bound" in setting) == bound
    assert "baseline with eta 1e-5" in setting
    assert "batches of 500" in setting
    assert "eta 1e-5, tau2 1" in setting
    assert "each batch drawn anew" in setting
    assert "one order an epoch" in setting  # the baseline's


@pytest.mark.parametrize("method", [TRI, NO_MOMENTUM, BASELINE])
@pytest.mark.parametrize("power", [-0.5, 0.1, 1.0])
@pytest.mark.parametrize("wait", [0, 100])
def test_cases_that_are_needed_by_the_batch(tmp_path, method, power, wait):
    # Cases to an error grow with the batch to the power: so the rate per step is m^(1 - power), once it has begun.
    tables = {}
    for m in (2000, 4000, 6000):
        table = run(0.01 * (m / 4000) ** (1 - power), last=300 + wait, cases=m)
        falls = table["train_error"].to_numpy()
        table["train_error"] = np.where(table["step"] < wait, falls[0], np.roll(falls, wait // 10))
        tables[named(method, "batch", m)] = table
    home = folder(tmp_path, tables)
    one = claim(home, f"{method}: progress")
    assert (one.verdict, one.n) == ("inconclusive", 1)
    late, whole = (float(one.measured.split(cut)[1].split(";")[0]) for cut in ("to the power", "from the start"))
    assert late == pytest.approx(power, abs=0.006)
    assert (whole == pytest.approx(power, abs=0.006)) if not wait else whole > power - 0.006
    (home / named(method, "batch", 4000)).unlink()
    assert claim(home, f"{method}: progress") is None


def flat(last=300):
    """A run that never gets below its first error."""
    table = run(0.0, last=last)
    return table.assign(train_error=table["train_error"] + table["step"])


@pytest.mark.parametrize(
    "tables",
    [
        {STILL: flat(), named(BASELINE, 0): run(0.01)},
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
    assert verdict(folder(tmp_path, tables), FEWER, ALL) == "inconclusive"


def test_more_iterations_are_a_claim_too(tmp_path):
    tables = {named(TRI, seed): run(0.018 + 1e-5 * seed, last=100) for seed in range(10)}
    tables |= {named(DIAGONAL, seed): run(0.019, last=100) for seed in range(10)}
    home = folder(tmp_path, tables)
    assert verdict(home, "block-tridiagonal K-FAC is ahead") == "contradicted"
    assert float(claim(home, FEWER, ALL).measured.split()[0]) <= 0


def test_a_baseline_that_never_gets_as_far_is_told(tmp_path):
    tables = {STILL: run(0.01, last=300), named(BASELINE, 0): run(0.001, last=1000)}
    assert "never as low" in claim(folder(tmp_path, tables), "without momentum K-FAC is not").measured


def test_updates_after_the_baseline_s_least_error_do_not_count(tmp_path):
    baseline = run(0.01, last=14400)
    baseline.loc[baseline["step"] > 500, "train_error"] = 150.0
    tables = {named(TRI, 0): run(0.1), named(BASELINE, 0): baseline}
    assert (
        "in 50 against 500 iterations, 10.0 times fewer"
        in claim(folder(tmp_path, tables), "K-FAC with momentum").measured
    )


@pytest.mark.parametrize(
    ("minutes", "worked", "scale", "expected"),
    [
        (14.9, 14.0, "paper", ("reproduced", "reproduced")),
        (15.1, 14.9, "paper", ("inconclusive", "reproduced")),
        (50.0, 15.1, "paper", ("contradicted", "inconclusive")),
        (90.0, 80.0, "paper", ("contradicted", "contradicted")),
        (90.0, 80.0, "quick", ("inconclusive", "inconclusive")),
    ],
)
def test_time_bars_are_of_the_run_on_two_threads(tmp_path, minutes, worked, scale, expected):
    # Minutes to iteration 300, and what they were with both threads at work all the time.
    timed = run(0.01, seconds=2 * worked * 60 / 300)
    timed["seconds"] = minutes * 60 / 300 * timed["step"]
    home = folder(tmp_path, {named(TRI, 0): run(0.01, seconds=1e-3), named(TRI, "two_threads"): timed}, scale)
    found = [claim(home, f"iteration {k} within {m} minutes of computing") for k, m in ((300, 15), (500, 75))]
    assert tuple(one.verdict for one in found) == expected
    assert found[0].measured == f"{minutes:.1f} minutes"
    (home / named(TRI, "two_threads")).unlink()
    assert claim(home, "iteration 300 within") is None


@pytest.mark.parametrize(
    ("rate", "peak", "expected"),
    [
        (50.0, 7.9, ("reproduced", "reproduced")),
        (60.0, 8.1, ("contradicted", "contradicted")),
    ],
)
def test_bars_of_rate_and_memory(tmp_path, rate, peak, expected):
    # 1000 cases and one second a step: 25 giga-operations per second.
    counted = pd.DataFrame({"method": list(METHODS), "per_case": 0.02, "per_case_in_chunks": 9.0, "per_step": 5.0})
    tables = {named(TRI, 0): run(0.01), named(BASELINE, 0): run(0.01), "operations_mnist.csv": counted}
    tables |= took(TRI, 0, product_rate=rate) | took(BASELINE, 0, peak_gib=peak, product_rate=1e9)
    home = folder(tmp_path, tables)
    begins = ("at least half of the measured rate", "memory below 8 GiB")
    assert tuple(verdict(home, b) for b in begins) == expected
    assert f"{25 / rate:.3f}" in claim(home, begins[0]).measured


def test_a_run_that_failed_is_an_outcome_and_told(tmp_path):
    tables = paired(1.2) | took(TRI, 0) | took(DIAGONAL, 0)
    home = folder(tmp_path, tables)
    begins = "every run comes to its end"
    assert verdict(home, begins) == "reproduced"
    assert verdict(home, "block-tridiagonal K-FAC is ahead") == "reproduced"
    why = "the damped matrix could not be factorised"
    for name, table in took(DIAGONAL, 0, status="failed", last_step=57, message=why).items():
        table.to_csv(home / name, index=False)
    tables[named(DIAGONAL, 0)].loc[lambda t: t["step"] <= 50].to_csv(home / named(DIAGONAL, 0), index=False)
    assert verdict(home, begins) == "contradicted"
    assert f"1 of 2; {DIAGONAL} growing seed 0: {why}" in claim(home, begins).measured
    assert verdict(home, "block-tridiagonal K-FAC is ahead") == "inconclusive"  # nine pairs are left
    assert f"; {DIAGONAL} 0 failed at step 57" in claim(home, "block-tridiagonal K-FAC is ahead").setting


def test_a_baseline_without_any_setting_is_an_outcome(tmp_path):
    empty = pd.DataFrame(columns=["step", "error", "train_error"])
    tables = {named(TRI, 0): run(0.01), named(BASELINE, 0): empty} | took(TRI, 0)
    tables |= took(BASELINE, 0, status="diverged", last_step=math.nan, message="every setting of the grid diverged")
    home = folder(tmp_path, tables)
    assert "1 of 2; baseline  seed 0: every setting" in claim(home, "every run comes").measured
    assert claim(home, "K-FAC with momentum takes orders") is None


def test_generated_data_are_told_as_such(tmp_path):
    tables = {named(TRI, 0, problem="curves"): run(0.01), named(BASELINE, 0, problem="curves"): run(0.001)}
    tables |= took(TRI, 0, problem="curves", data="curves (synthetic)")
    told = [c for c in claims(folder(tmp_path, tables)) if "curves" in c.setting]
    assert told
    assert all("curves (synthetic)" in c.setting for c in told)
