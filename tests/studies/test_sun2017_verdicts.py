"""Sun and Nielsen (2017): each verdict turns as the numbers of hand-made tables change."""

import json
import math
from pathlib import Path

import pandas as pd
import pytest

from fisherlab.plots.sun2017 import figures
from fisherlab.studies import sun2017
from fisherlab.studies.asked import judged
from fisherlab.studies.sun2017 import runs, timing, verdicts
from fisherlab.studies.sun2017.against import MEASURES, VARIED
from fisherlab.studies.sun2017.settings import VARIANTS
from fisherlab.studies.sun2017.settled import settled_table
from tests.studies.sun2017_tables import SETTINGS, curves, folder, make, verdict


@pytest.mark.parametrize(
    ("accuracy", "expected"),
    [(0.972, "reproduced"), (0.98, "contradicted"), (0.96, "contradicted"), (0.9775, "inconclusive")],
)
def test_the_range_of_the_figure(tmp_path, accuracy, expected):
    home = folder(tmp_path, sgd=curves(0.1, accuracy))
    assert verdict(home, "SGD's validation accuracy ends in") == expected


@pytest.mark.parametrize(
    ("rate", "best", "expected"),
    [(0.3, 0.1, "reproduced"), (0.03, 0.1, "contradicted"), (0.1, 0.1, "contradicted"), (0.3, 1.0, "inconclusive")],
)
def test_fewer_epochs_than_sgd(tmp_path, rate, best, expected):
    home = folder(tmp_path, best, sgd=curves(0.1, 0.97), rngd=curves(0.1, 0.97, rate=rate))
    assert verdict(home, FEWER) == expected


FEWER = "RNGD reaches SGD's objective of epoch 100 (its median seed's, times 1.02) in fewer epochs than SGD"
SOONER = FEWER.replace("fewer epochs", "less time")


NO_MORE = FEWER.replace("fewer", "no more").replace("than SGD", "than Adam")


def cut(table, seeds, epoch):
    """Some runs diverge: their curves end, as the trainer's do."""
    gone = table["seed"].isin(seeds)
    return table.assign(status=table["status"].mask(gone, "diverged"))[~gone | (table["epoch"] <= epoch)]


@pytest.mark.parametrize(
    ("level", "expected"), [(0.2, "reproduced"), (0.05, "contradicted"), (0.5, "contradicted"), (0.395, "inconclusive")]
)
def test_the_cost_in_the_figure_s_range(tmp_path, level, expected):
    table = curves(level, 0.97)
    table["objective"] *= 1 + 0.02 * (table["seed"] - 1004.5)  # the interval is some 4 % to each side
    home = folder(tmp_path, rngd=table)
    assert verdict(home, "RNGD's training cost ends in") == expected


def test_a_lead_on_the_way_shows_though_it_ends_higher(tmp_path):
    """Where RNGD is fast at first, and its noise keeps it above SGD's end."""
    home = folder(tmp_path, sgd=curves(0.1, 0.97, rate=0.05), rngd=curves(0.12, 0.97, rate=0.5))
    told = [verdict(home, FEWER.replace("100", str(epoch))) for epoch in (10, 20, 50, 100)]
    assert told == ["reproduced", "reproduced", "reproduced", "contradicted"]


def test_where_rngd_never_gets_to_sgd_s_end_the_claim_is_contradicted(tmp_path):
    home = folder(tmp_path, sgd=curves(0.1, 0.97), rngd=curves(0.3, 0.97, rate=0.5))
    claim = next(c for c in sun2017.claims(home) if c.claim == FEWER)
    assert claim.verdict == "contradicted"
    assert "never, counted as epoch 101: 10 runs of RNGD" in claim.measured
    assert "nan" not in claim.measured + claim.uncertainty


def test_one_seed_that_never_gets_there_is_counted(tmp_path):
    table = curves(0.1, 0.97, rate=0.3)
    table.loc[table["seed"] == 1003, "objective"] += 0.5
    home = folder(tmp_path, sgd=curves(0.1, 0.97), rngd=table)
    claim = next(c for c in sun2017.claims(home) if c.claim == FEWER)
    assert claim.n == 10
    assert "counted as epoch 101: 1 runs of RNGD" in claim.measured
    assert claim.verdict == "reproduced"  # nine of ten: the interval allows for the one


def test_rngd_that_diverges_early_does_not_get_there_soon(tmp_path):
    rngd = cut(curves(0.1, 0.97, rate=0.3), range(1000, 1010), 5)
    home = folder(tmp_path, sgd=curves(0.1, 0.97), rngd=rngd)
    assert verdict(home, FEWER) == "contradicted"


def test_without_sgd_s_end_there_is_no_level(tmp_path):
    home = folder(tmp_path, sgd=cut(curves(0.1, 0.97), range(1000, 1010), 5), rngd=curves(0.1, 0.97, rate=0.3))
    assert verdict(home, FEWER) == "inconclusive"


@pytest.mark.parametrize(("rate", "expected"), [(0.3, "reproduced"), (0.2, "reproduced"), (0.1, "contradicted")])
def test_no_more_epochs_than_adam(tmp_path, rate, expected):
    home = folder(tmp_path, sgd=curves(0.1, 0.97), adam=curves(0.1, 0.97, rate=0.2), rngd=curves(0.1, 0.97, rate=rate))
    assert verdict(home, NO_MORE) == expected


@pytest.mark.parametrize(("known", "expected"), [(0, "inconclusive"), (1, "inconclusive"), (8, "reproduced")])
def test_seeds_of_which_neither_gets_there_say_nothing(tmp_path, known, expected):
    """By epochs and by seconds; those of which RNGD does count."""
    rngd, slow = curves(0.3, 0.97), curves(0.3, 0.97)
    rngd.loc[rngd["seed"] < 1000 + known, ["objective"]] /= 3
    home = folder(tmp_path, sgd=curves(0.1, 0.97), adam=slow, rngd=rngd)
    cost(1.2).to_csv(home / timing.TABLE, index=False)
    in_time = NO_MORE.replace("epochs", "time")
    for start in (NO_MORE, in_time):
        claim = next(c for c in sun2017.claims(home) if c.claim == start)
        assert claim.verdict == expected
        assert f"of {10 - known} seeds neither, which says nothing" in claim.measured
        assert ("times as fast" in claim.measured) == (start == in_time and known > 0)


@pytest.mark.parametrize(("level", "expected"), [(0.3, "inconclusive"), (0.1, "contradicted")])
def test_where_the_other_never_gets_there_a_dear_step_says_nothing(tmp_path, level, expected):
    """Its time is then unknown, if above that of its epochs: RNGD's may be more or less."""
    tables = {"sgd": curves(0.1, 0.97), "adam": curves(level, 0.97), "rngd": curves(0.1, 0.97, rate=0.09)}
    home = folder(tmp_path, **tables)
    cost(30).to_csv(home / timing.TABLE, index=False)
    assert verdict(home, NO_MORE.replace("epochs", "time")) == expected


def test_one_lucky_epoch_does_not_reach_a_level(tmp_path):
    rngd = curves(0.1, 0.97, rate=0.05)
    rngd.loc[rngd["epoch"] == 5, "objective"] /= 100
    home = folder(tmp_path, sgd=curves(0.1, 0.97), rngd=rngd)
    assert verdict(home, FEWER.replace("100", "20")) == "contradicted"


def test_the_summary_tells_how_close_the_choice_of_the_learning_rate_was(tmp_path):
    row = verdicts.last_epochs(folder(tmp_path, sgd=curves(0.1, 0.97)), SETTINGS).iloc[0]
    assert (row["lr"], row["next_lr"]) == (0.1, 0.01)
    assert row["next_error_more"] == pytest.approx(1.0)  # a decade


@pytest.mark.parametrize("net", ["plain", "bna"])
@pytest.mark.parametrize("fast", MEASURES)
def test_who_is_ahead_is_judged_by_each_measure_alone(tmp_path, net, fast):
    """The objective has L2, and a normalised net's lags behind by the moving averages: another measure may differ."""
    rngd = curves(0.1, 0.97, rate=0.03)
    rngd[fast] = curves(0.1, 0.97, rate=0.3)[fast]
    home = folder(tmp_path, net=net, sgd=curves(0.1, 0.97), rngd=rngd)
    told = {c.claim: (c.verdict, c.source) for c in sun2017.claims(home)}
    for column, name in MEASURES.items():
        source = "Figure (slides 25, 26)" if column == "objective" else "beyond the paper"  # it has the objective alone
        claim = FEWER.replace("objective", name)
        assert told[claim] == ("reproduced" if column == fast else "contradicted", source)


@pytest.mark.parametrize(("accuracy", "expected"), [(0.974, "reproduced"), (0.97, "contradicted")])
def test_methods_beyond_the_paper_have_a_family_of_their_own(tmp_path, accuracy, expected):
    tables = {"sgd": curves(0.1, 0.97), "kfac": curves(0.1, 0.973), "rngd": curves(0.1, accuracy, spread=2e-4)}
    home = folder(tmp_path, **tables)
    assert verdict(home, "RNGD is competitive with K-FAC at damping 0.1 in validation accuracy") == expected
    start = FEWER.replace("fewer", "no more").replace("than SGD", "than K-FAC at damping 0.1")
    assert verdict(home, start) == "reproduced"
    assert verdict(home, start.replace("epoch 100", "epoch 50")) is None


@pytest.mark.parametrize(
    ("change", "others", "expected"),
    [(0.2, 0.05, "reproduced"), (0.05, 0.01, "contradicted"), (0.2, 0.15, "contradicted")],
)
def test_a_small_change_of_the_matrices_is_no_motion(change, others, expected):
    rows = [
        {"seed": seed, "epoch": epoch, "layer": 2, "form": "a matrix per unit", "shape_other_cases": others}
        | dict.fromkeys(("since_start", "since_last", "shape_since_start", "shape_since_last"), change + 1e-3 * seed)
        for seed in range(10)
        for epoch in (0, 1, 2)
    ]
    found = list(verdicts._moving("plain", pd.DataFrame(rows), SETTINGS))
    assert [claim.verdict for claim in judged(found)] == [expected] * 2


def cost(ratio, *, threads=2, others=0.0, rounds=10, spread=0.01):
    """Timings of PLAIN with a ratio of RNGD's step to SGD's."""
    rows = []
    for turn in range(1, rounds + 1):
        for method, ms in (("sgd", 1.0), ("adam", 1.5), ("rngd", ratio * 10 ** (spread * (turn - (rounds + 1) / 2)))):
            rows.append({"net": "plain", "method": method, "round": turn, "ms": ms, "refresh_ms": 0.0, "period": 1})
    return pd.DataFrame(rows).assign(threads=threads, others=others)


@pytest.mark.parametrize(
    ("ratio", "options", "expected"),
    [
        (5, {}, ("reproduced", "reproduced")),
        (30, {}, ("reproduced", "contradicted")),
        (0.9, {}, ("contradicted", "reproduced")),
        (5, {"threads": 1}, ("reproduced", "inconclusive")),
        (5, {"others": 0.8}, ("reproduced", "inconclusive")),
        (5, {"others": math.nan}, ("reproduced", "inconclusive")),
        (8, {}, ("reproduced", "inconclusive")),
        (5, {"rounds": 5}, ("inconclusive", "inconclusive")),
    ],
)
def test_the_cost_of_a_step(tmp_path, ratio, options, expected):
    home, table = folder(tmp_path), cost(ratio, **options)
    table.to_csv(home / timing.TABLE, index=False)
    claims = [c for c in sun2017.claims(home) if c.claim.startswith(("an epoch of RNGD", "a step of RNGD"))]
    assert tuple(c.verdict for c in claims) == expected
    assert {c.n for c in claims} == {options.get("rounds", 10)}


@pytest.mark.parametrize(
    ("ratio", "spread", "expected"), [(2, 0.01, "reproduced"), (6, 0.01, "contradicted"), (2, 0.3, "inconclusive")]
)
def test_less_time_than_sgd(tmp_path, ratio, spread, expected):
    home = folder(tmp_path, sgd=curves(0.1, 0.97), rngd=curves(0.1, 0.97, rate=0.3))  # in a third of the epochs
    cost(ratio, spread=spread).to_csv(home / timing.TABLE, index=False)
    assert verdict(home, SOONER) == expected


def test_a_cost_of_other_methods_says_nothing_of_seconds(tmp_path):
    home = folder(tmp_path, sgd=curves(0.1, 0.97), rngd=curves(0.1, 0.97))
    cost(5).query("method != 'sgd'").to_csv(home / timing.TABLE, index=False)
    assert verdict(home, SOONER) is None
    assert verdict(home, FEWER) is not None


@pytest.mark.parametrize(("ratio", "expected"), [(1.5, "reproduced"), (2.9, "reproduced"), (6, "contradicted")])
def test_a_higher_accuracy_than_sgd_in_the_time_of_its_epochs(tmp_path, ratio, expected):
    rngd = curves(0.1, 0.975)
    rngd.loc[rngd["epoch"] <= 30, "valid_error"] += 0.01  # slow to come; 2.9 times the time is that of 34 epochs
    home = folder(tmp_path, sgd=curves(0.1, 0.97, spread=2e-4), rngd=rngd)
    cost(ratio).to_csv(home / timing.TABLE, index=False)
    claim = "RNGD ends with a higher validation accuracy than SGD"
    assert verdict(home, f"{claim}, stopped after the time of SGD's 100 epochs") == expected
    assert verdict(home, claim) == "reproduced"


def settled(accuracy, spread=1e-4):
    """Evaluations by the training set's statistics, as `curves` has them by moving averages."""
    errors = [1 - accuracy - spread * (seed - 4.5) for seed in range(10)]
    rows = {"seed": range(1000, 1010), "epoch": 1, "valid_error": errors, "test_error": errors}
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("accuracy", "expected"), [(0.9705, "reproduced"), (0.975, "contradicted"), (0.971, "inconclusive")]
)
def test_what_moving_averages_lag_behind(tmp_path, accuracy, expected):
    home = folder(tmp_path, sgd=curves(0.1, 0.97, spread=2e-4))
    settled(accuracy).to_csv(home / settled_table("plain", "sgd"), index=False)
    assert verdict(home, "SGD's validation accuracy is that by the training set's statistics") == expected


@pytest.mark.parametrize(("accuracy", "expected"), [(0.9735, "reproduced"), (0.97, "contradicted")])
def test_competitive_without_the_lag(tmp_path, accuracy, expected):
    home = folder(tmp_path, adam=curves(0.1, 0.973), rngd=curves(0.1, 0.96, spread=2e-4))
    for method, value in (("adam", 0.973), ("rngd", accuracy)):
        settled(value, 1e-4 if method == "adam" else 2e-4).to_csv(home / settled_table("plain", method), index=False)
    claim = "RNGD is competitive with Adam in validation accuracy, or ahead"
    assert verdict(home, f"{claim}, normalised by the training set's statistics") == expected
    assert verdict(home, claim) == "contradicted"


@pytest.mark.parametrize(
    ("accuracy", "expected"), [(0.974, "reproduced"), (0.9725, "reproduced"), (0.97, "contradicted")]
)
def test_competitive_with_adam(tmp_path, accuracy, expected):
    home = folder(tmp_path, adam=curves(0.1, 0.973), rngd=curves(0.1, accuracy, spread=2e-4))
    assert verdict(home, "RNGD is competitive with Adam") == expected


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(
    ("accuracy", "best", "expected"),
    [(0.9725, 0.1, "reproduced"), (0.97, 0.1, "contradicted"), (0.9725, 1.0, "inconclusive")],
)
def test_a_variant_is_no_worse_than_rngd(tmp_path, name, accuracy, best, expected):
    tables = {"rngd": curves(0.1, 0.973), name: curves(0.1, accuracy, spread=2e-4)}
    home = folder(tmp_path, best, variants=[name], **tables)
    assert verdict(home, f"RNGD {VARIED[name]} is no worse in validation accuracy") == expected


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(
    ("level", "best", "expected"),
    [(0.08, 0.1, "reproduced"), (0.1, 0.1, "reproduced"), (0.12, 0.1, "contradicted"), (0.08, 1.0, "inconclusive")],
)
def test_a_variant_s_objective_is_no_higher_than_rngd_s(tmp_path, name, level, best, expected):
    home = folder(tmp_path, best, variants=[name], rngd=curves(0.1, 0.973), **{name: curves(level, 0.9)})
    assert verdict(home, f"RNGD {VARIED[name]} ends with no higher a training objective") == expected


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(("rate", "expected"), [(0.3, "reproduced"), (0.03, "contradicted")])
def test_a_variant_is_held_against_sgd_per_epoch(tmp_path, name, rate, expected):
    tables = {"sgd": curves(0.1, 0.97), "rngd": curves(0.1, 0.97, rate=0.05), name: curves(0.1, 0.97, rate=rate)}
    told = {c.claim: (c.verdict, c.source) for c in sun2017.claims(folder(tmp_path, variants=[name], **tables))}
    assert told[FEWER] == ("contradicted", "Figure (slides 25, 26)")
    assert told[FEWER.replace("RNGD", f"RNGD {VARIED[name]}")] == (expected, "beyond the paper")


@pytest.mark.parametrize("seeds", [10, 12])
def test_a_method_of_which_a_run_diverged_decides_nothing(tmp_path, seeds):
    table = cut(curves(0.1, 0.974, seeds=seeds), [1003], 30)
    home = folder(tmp_path, adam=curves(0.1, 0.973, seeds=seeds), rngd=table)
    for start in ("RNGD is competitive with Adam", "RNGD's validation accuracy ends in"):
        claim = next(c for c in sun2017.claims(home) if c.claim.startswith(start))
        assert (claim.verdict, claim.n) == ("inconclusive", seeds)
        assert f"1 of {seeds} runs of RNGD on PLAIN did not finish" in claim.measured
    row = verdicts.last_epochs(home, SETTINGS).set_index("method").loc["rngd"]
    assert (row["seeds"], row["finished"]) == (seeds, seeds - 1)
    assert math.isnan(row["valid_accuracy"])


LOST = runs.Trained("diverged", curves(1, 0.9, epochs=0), Path())


def test_a_method_that_diverges_at_every_learning_rate_is_an_outcome(tmp_path, monkeypatch):
    """Of RNGD, on whose learning rate the variants and the matrices depend too."""
    settings = SETTINGS | {"variants": ["rngd, softmax"]}
    home = folder(tmp_path, variants=settings["variants"], sgd=curves(0.1, 0.97), adam=curves(0.1, 0.97))
    monkeypatch.setattr(runs, "_train", lambda cfg, cells, *_: [LOST] * len(cells))
    made = [*runs.parts("plain", "rngd", settings, home), *runs.parts("plain", "rngd, softmax", settings, home)]
    for part in sorted(made, key=lambda p: "grid" not in p.name):
        make(part, home)
    assert runs.chosen(home, "plain", "rngd") is None
    assert verdict(home, FEWER) == "contradicted"
    assert verdict(home, "RNGD is competitive with Adam") == "inconclusive"
    assert verdict(home, "RNGD with the softmax RFIM") == "inconclusive"
    row = sun2017.derived(home)["summary.csv"].set_index("method").loc["rngd"]
    assert (row["seeds"], row["finished"]) == (10, 0)
    for method, table in (("rngd", settled(0.97).iloc[:0]), ("adam", settled(0.97))):
        table.to_csv(home / settled_table("plain", method), index=False)
    assert verdict(home, "RNGD's validation accuracy is that by") is None
    assert verdict(home, "Adam's validation accuracy is that by") == "reproduced"
    assert "settled" in figures(home)


@pytest.mark.parametrize(
    ("hours", "expected"), [((7, 8), "reproduced"), ((8, 9), "contradicted"), ((1, 9), "contradicted")]
)
def test_the_whole_study_is_timed_once_it_is_whole(tmp_path, hours, expected):
    """By half of its processor time, and by its longest part, which no second core helps."""
    home, start = folder(tmp_path), "the whole study takes at most 8 hours"
    record = json.loads((home / "study.json").read_text())
    for name, spent in zip("ab", hours, strict=True):
        assert verdict(home, start) is None
        record["planned"], record["parts"][name] = ["a", "b"], {"cpu_seconds": 3600 * spent, "seconds": 7200}
        (home / "study.json").write_text(json.dumps(record))
    assert verdict(home, start) == expected
