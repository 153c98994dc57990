"""Fujimori et al. (2022): the settings mean what they say, the tables are the runs', the study runs whole."""

import math

import numpy as np
import pandas as pd
import pytest

from fisherlab.cli import main
from fisherlab.studies.fujimori2022 import policies, reruns, searches
from fisherlab.studies.fujimori2022.settings import SETTINGS, configured, space
from fisherlab.studies.fujimori2022.summary import _row
from fisherlab.studies.fujimori2022.tables import at_bounds, with_base

SCALE = {"dataset": "digits", "steps": 20, "moments": [5, 10], "seeds": 2, "best": 2, "trials": 6}


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_changes_one_choice(setting):
    base, own = (configured(name, 0.1, SCALE, 1) for name in ("base", setting))
    differ = [k for k in base.optimizer if base.optimizer[k] != own.optimizer.get(k)]
    differ += ["model"] if base.model != own.model else []
    differ += ["space"] if space("base", 10.0, base) != space(setting, 10.0, own) else []
    assert len(differ) == (setting != "base")


def test_scaled_learning_rates_leave_small_dampings_alone():
    cfg = configured("scaled", 100.0, SCALE, 1)
    assert next((d.low, d.high) for d in space("scaled", 100.0, cfg)) == pytest.approx((1e-2, 1e2))
    assert space("scaled", 0.1, cfg) == space("base", 0.1, cfg)
    assert SETTINGS["scaled"].dampings([0.1, 1.0, 10.0]) == [10.0]


def test_bounds_are_five_percent_of_the_searched_range():
    best = pd.DataFrame({"damping": [1.0] * 4, "lr": [1.5e-4, 1.7e-4, 0.6, 0.7], "momentum": [0.0, 0.9, 0.95, 0.1]})
    edges = at_bounds(best, "base")
    assert edges["lr"].tolist() == [True, False, False, True]
    assert edges["momentum"].tolist() == [False, False, True, False]
    scaled = at_bounds(best.assign(damping=100.0, lr=best["lr"] * 100), "scaled")
    assert scaled["lr"].tolist() == edges["lr"].tolist()


def test_what_a_setting_has_in_common_with_the_base_is_its_own(tmp_path):
    nan = math.nan
    pd.DataFrame({"damping": [0.1, 10.0, nan], "x": [1, 2, 3]}).to_csv(tmp_path / "base.csv", index=False)
    pd.DataFrame({"damping": [10.0], "x": [4]}).to_csv(tmp_path / "own.csv", index=False)
    pd.DataFrame({"damping": [10.0, nan], "x": [5, 6]}).to_csv(tmp_path / "net.csv", index=False)

    def found(table, setting):
        return with_base(tmp_path, table, "base.csv", setting)["x"].tolist()

    assert found("own.csv", "scaled") == [1, 3, 4]
    assert found("own.csv", "identity") == [3, 4]  # SGD has no factors
    assert found("net.csv", "glorot") == [5, 6]
    assert with_base(tmp_path, "none.csv", "base.csv", "glorot") is None


def test_the_summary_counts_a_divergence_as_worse_than_anything():
    trials = pd.DataFrame({"damping": 1.0, "value": [3.0, 1.0, np.nan, 2.0], "lr": 0.1, "momentum": 0.5})
    row = _row(trials, 2, "base")
    assert (row["best"], row["mean_best"], row["median"], row["diverged"]) == (1.0, 1.5, 2.5, 0.25)
    assert row["best_low"] == 1.0
    assert row["median_high"] == math.inf


def test_typical_squares_are_the_gradients_of_the_run(tmp_path):
    norms = np.geomspace(1.0, 1e-4, 40)
    steps = pd.DataFrame({"step": range(1, 41), "loss": np.linspace(3, 0.1, 40), "grad_norm": norms})
    steps.to_csv(tmp_path / "steps.csv", index=False)
    bins = {"step": 5, "layer": "a", "bin_left": [0, 1e-8, 10**-7.5], "bin_right": [1e-8, 10**-7.5, 1e-7]}
    pd.DataFrame(bins | {"count": [1, 1, 3]}).to_csv(tmp_path / "gradient_histogram.csv", index=False)
    found = reruns._gradients(tmp_path, [20])
    at_step, at_loss = (found[found["when"] == w] for w in ("step", "loss"))
    assert at_step["log10"].tolist()[0] == pytest.approx(2 * math.log10(norms[19]))
    assert at_step["log10"].tolist()[1] == pytest.approx(-7.25)
    first = at_loss.set_index("at").loc[1.0]
    assert steps.set_index("step")["loss"][first["step"]] <= 1.0 < steps.set_index("step")["loss"][first["step"] - 1]


def test_curves_and_histograms_are_of_the_best_runs(tmp_path):
    for i in range(2):
        (tmp_path / str(i)).mkdir()
        pd.DataFrame({"step": [1, 2], "loss": [1.0 + i, 3.0 + i]}).to_csv(tmp_path / str(i) / "steps.csv")
        bins = {"step": 5, "layer": ["a", "a"], "bin_left": [0, 1], "bin_right": [1, 2], "count": [i, 4]}
        pd.DataFrame(bins).to_csv(tmp_path / str(i) / "gradient_histogram.csv", index=False)
    runs = [tmp_path / str(i) for i in range(2)]
    curves = searches._curves(runs)
    assert curves["mean"].tolist() == [1.5, 3.5]
    assert curves["n"].tolist() == [2, 2]
    pooled = searches._histogram(runs)
    assert pooled[pooled["trials"] == 2]["count"].tolist() == [1, 8]
    assert pooled[pooled["trials"] == 1]["count"].tolist() == [4]


def test_the_winner_diverges_on_the_fewest_held_out_seeds(monkeypatch):
    losses = [(0.1, None, 0.1), (0.3, 0.3, 0.3), (0.2, 0.2, 0.4), (None, None, None)]

    def trained(net, policy, finalists, seeds, *_):
        assert [f["lr"] for f in finalists] == [0, 1, 2, 3]
        rows = [(i, seed, loss) for i, own in enumerate(losses) for seed, loss in zip(seeds, own, strict=True)]
        table = pd.DataFrame(rows, columns=["finalist", "seed", "train_loss"])
        return table.assign(status=np.where(table["train_loss"].isna(), "diverged", "finished"))

    monkeypatch.setattr(policies, "_trained", trained)
    finalists = [{"lr": i} for i in range(4)]
    assert policies._winner("mlp", "constant", finalists, {}, None) == {"lr": 2}
    assert policies._winner("mlp", "constant", finalists[:1], {}, None) == {"lr": 0}
    assert policies._winner("mlp", "constant", [], {}, None) is None


@pytest.mark.slow
def test_the_study_runs_whole_at_smoke_scale(tmp_path, monkeypatch):
    monkeypatch.setattr(policies, "ROUNDS", 3)  # of what a policy costs
    assert main(["study", "fujimori2022", "scale=smoke", f"results={tmp_path}", "threads=1"]) == 0
    folder = tmp_path / "studies" / "fujimori2022" / "smoke"
    claims = pd.read_csv(folder / "claims.csv")
    assert {told.split(";")[0] for told in claims["setting"]} >= {SETTINGS[s].told for s in ("identity", "scaled")}
    assert claims.loc[claims["claim"] == "damping 100 points along the gradient", "verdict"].tolist() == ["reproduced"]
    summary = pd.read_csv(folder / "summary.csv")
    assert set(summary["sampler"]) == {"tpe", "random"}
    own = (summary["setting"] == "scaled") & (summary["damping"] > 1)
    assert (summary["trials"] == np.where(own, 4, 6)).all()
