"""Martens and Grosse (2015), the whole study at smoke scale, its figures, and settings that are refused."""

import json
import math
import shutil
import time
from itertools import accumulate

import pandas as pd
import pytest
import torch
from tqdm import tqdm

from fisherlab.cli import main
from fisherlab.plots.martens2015 import figures
from fisherlab.studies.martens2015 import parts, runs
from fisherlab.studies.study import VERDICTS

FIGURES = {*(f"figure_{i}" for i in (2, 3, 5, 6, 7, 9, 10, 11)), "invariance", "recipe", "seeds", "cases"}
RUNS = [
    *((method, "growing", seed) for method in ("block-tridiagonal", "block-diagonal") for seed in (0, 1)),
    *((method, size, 0) for method in ("block-tridiagonal", "block-tridiagonal, no momentum") for size in (100, 200)),
    *(("baseline", size, 0) for size in ("", 100, 200)),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    path = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "REPEATS", 1)  # how fast the machine is, is measured 22 times
        assert study(path) == 0
    return path


def study(path):
    return main(["study", "martens2015", "scale=smoke", "threads=1", f"results={path}"])


@pytest.fixture
def smoke(results):
    return results / "studies" / "martens2015" / "smoke"


def copied(smoke, home, *patterns):
    """A folder with some of the study's tables."""
    home.mkdir()
    for pattern in ("study.json", *patterns):
        found = [p for p in smoke.glob(pattern) if p.suffix in (".json", ".csv", ".gz")]
        assert found, pattern
        for path in found:
            shutil.copy(path, home)
    return home


@pytest.mark.slow
def test_everything_planned_is_made_and_judged(smoke):
    record = json.loads((smoke / "study.json").read_text())
    assert len(record["planned"]) == len(set(record["planned"])) == 17
    assert set(record["parts"]) == set(record["planned"])
    claims = pd.read_csv(smoke / "claims.csv")
    assert set(claims["verdict"]) <= set(VERDICTS)
    assert not claims.duplicated(["claim", "setting"]).any()
    assert "contradicted" not in set(claims["verdict"])  # 1 437 pictures of 8 x 8 contradict nothing
    sections = claims.groupby("source")["verdict"].agg(list)
    assert sections["Section 10"] == ["reproduced"] * 2
    assert sections["Figure 5"] == sections["Figure 6"] == ["reproduced"]
    assert not [path for path in smoke.iterdir() if path.name.startswith(".")]


@pytest.mark.slow
def test_the_summary_has_a_row_per_run(smoke):
    table = pd.read_csv(smoke / "runs.csv", keep_default_na=False)
    found = [(r["method"], r["batch"], r["seed"]) for _, r in table.iterrows()]
    assert sorted(found) == sorted((method, str(batch), seed) for method, batch, seed in RUNS)
    others = [pd.read_csv(p)["threads"].tolist() for p in smoke.glob("took_*_two_threads.csv")]
    assert others == [[2]]  # of which the summary has no row, for its seconds are not the others'
    assert table["threads"].tolist() == [1] * len(RUNS)
    assert len(list(smoke.glob("took_*.csv"))) == len(RUNS) + 1
    assert (table["status"] == "finished").all()
    assert (table["rate"] > 0).all()
    assert table["share_of_product_rate"].between(0, 1.2, inclusive="neither").all()
    counted = pd.read_csv(smoke / "operations_digits.csv").set_index("method")
    assert counted["per_case"]["baseline"] < counted["per_case"]["block-tridiagonal, no momentum"]
    assert counted["per_case"]["block-tridiagonal, no momentum"] < counted["per_case"]["block-tridiagonal"]
    weights = 64 * 40 + 40 * 20 + 20 * 6
    # One pass forwards, one backwards for inputs (not the first layer's) and one for weights: 2 operations each.
    assert counted["per_case"]["baseline"] == pytest.approx(2e-9 * (6 * weights - 64 * 40), rel=1e-6)
    assert (table["data"] == "digits").all()
    assert (table["sessions"] == 1).all()
    assert (table["cpu_seconds"] < table["cpu_seconds_in_all"]).all()


@pytest.mark.slow
def test_the_batch_grows_to_the_whole_data_at_the_last_iteration(smoke):
    sizes = [math.floor(100 * (1437 / 100) ** ((k - 1) / 29)) for k in range(1, 30)] + [1437]
    cases = [0, *accumulate(sizes)]
    for method in ("block-tridiagonal", "block-diagonal"):
        for seed, last in ((0, 30), (1, 10)):
            run = pd.read_csv(smoke / f"evaluations_digits_{method}_{seed}.csv").set_index("step")
            assert run["examples"].to_dict() == {k: cases[k] for k in range(0, last + 1, 5)}
    fixed = pd.read_csv(smoke / "evaluations_digits_block-tridiagonal_batch_200.csv").set_index("step")
    assert fixed["examples"].to_dict() == {k: 200 * k for k in range(0, 21, 5)}
    fixed = pd.read_csv(smoke / "evaluations_digits_block-tridiagonal_batch_100.csv").set_index("step")
    assert fixed["examples"].to_dict() == {k: 100 * k for k in range(0, 41, 10)}  # to as many cases
    baseline = pd.read_csv(smoke / "evaluations_digits_baseline_0.csv").set_index("step")
    assert baseline["examples"].iloc[-1] == 50 * math.ceil(cases[-1] / 5000) * 100


@pytest.mark.slow
def test_methods_start_at_one_point_and_seeds_do_not(smoke):
    starts = {p.stem: pd.read_csv(p)["train_error"][0] for p in smoke.glob("evaluations_*.csv")}
    first = {name: value for name, value in starts.items() if not name.endswith("_1")}
    assert len(first) == 10
    assert len(set(first.values())) == 1
    others = {value for name, value in starts.items() if name.endswith("_1")}
    assert len(others) == 1
    assert not others & set(first.values())


@pytest.mark.slow
def test_the_recipe_s_first_values_are_the_paper_s(smoke):
    for method in ("block-tridiagonal", "block-diagonal"):
        steps = pd.read_csv(smoke / f"steps_digits_{method}_0.csv.gz").set_index("step")
        assert steps["damping"][1] == 150
        assert steps["damping"][6] == pytest.approx(150 * 0.95**5, rel=1e-6)
        assert steps["gamma"][1] == pytest.approx(math.sqrt(150 + 1e-5), rel=1e-6)
        assert steps.index.tolist() == list(range(1, 31))
    for size in (100, 200):
        without = pd.read_csv(smoke / f"steps_digits_block-tridiagonal_no_momentum_batch_{size}.csv.gz")
        assert (without["mu"] == 0).all()


@pytest.mark.slow
def test_the_grid_names_its_twins_and_its_best_goes_on(smoke):
    grid = pd.read_csv(smoke / "grid_digits.csv")
    assert len(grid) == 30
    assert not grid.duplicated(["lr", "momentum"]).any()
    assert grid["same_as"].tolist() == [0.999, 0.999, 0.999, 0.999, 0.0] * 6
    assert grid.groupby(["lr", "same_as"])["train_error"].nunique().eq(1).all()
    best = grid.loc[grid["train_error"].idxmin()]
    finalists = pd.read_csv(smoke / "finalists_digits.csv")
    assert finalists["momentum"].tolist() == [0.999] * 2  # what is one run in 400 updates too is made once
    others = grid[grid["lr"] != best["lr"]].sort_values("train_error")
    assert finalists["lr"].tolist() == [best["lr"], others["lr"].iloc[0]]
    won = finalists.sort_values("train_error").iloc[0]
    took = pd.read_csv(smoke / "took_digits_baseline_0.csv")
    assert took[["lr", "momentum"]].values.tolist() == [[won["lr"], 0.999]]
    # The updates that the grid made are the first ones of the long run.
    run = pd.read_csv(smoke / "evaluations_digits_baseline_0.csv").set_index("step")
    ends = run.loc[20, ["train_error", "average_error"]].min()
    assert ends == pytest.approx(best["train_error"], rel=1e-5)


@pytest.mark.slow
def test_the_baseline_is_evaluated_more_often_where_k_fac_goes_too(smoke):
    run = pd.read_csv(smoke / "evaluations_digits_baseline_0.csv")
    assert run["step"].tolist() == [0, 20, 40, 60, 80, *range(100, run["step"].iloc[-1] + 1, 100)]
    assert run["examples"].tolist() == [50 * step for step in run["step"]]
    assert run["cpu_seconds"].is_monotonic_increasing
    # What is made again is the same run: its loss falls on.
    assert run["train_loss"].is_monotonic_decreasing


@pytest.mark.slow
def test_no_part_is_left_unfinished_and_all_ran_with_one_thread(smoke):
    record = json.loads((smoke / "study.json").read_text())
    assert "unfinished" not in record
    assert {part["threads"] for part in record["parts"].values()} == {1}


@pytest.mark.slow
def test_other_threads_are_refused(results, smoke, capsys):
    before = (smoke / "study.json").read_bytes()
    try:
        assert main(["study", "martens2015", "scale=smoke", "threads=2", f"results={results}"]) == 2
    finally:
        torch.set_num_threads(1)
    assert "was begun with threads=1: expected threads=1" in capsys.readouterr().err
    assert (smoke / "study.json").read_bytes() == before


@pytest.mark.slow
def test_figure_7_is_of_the_last_iteration(smoke):
    table = pd.read_csv(smoke / "gamma_digits.csv")
    assert table.groupby("step")["gamma"].apply(list).tolist() == [pytest.approx([1e-3, 10**-1.5, 1, 10**1.5, 1e3])] * 3
    assert (table["iteration"] == 30).all()
    steps = pd.read_csv(smoke / "steps_digits_block-tridiagonal_0.csv.gz").set_index("step")
    assert table["used"].to_numpy() == pytest.approx(steps["gamma"][30], rel=1e-6)
    # lambda is too large to be exceeded: what is rescaled improves at any gamma, and by more than predicted.
    rescaled = table[table["step"] != "not rescaled"]
    assert (rescaled["improvement"] > 0).all()
    assert (rescaled["predicted"] > 0).all()


@pytest.mark.slow
def test_all_figures_are_there(smoke):
    assert {p.stem for p in smoke.glob("*.png")} == {p.stem for p in smoke.glob("*.pdf")} == FIGURES


@pytest.mark.slow
def test_a_finished_study_changes_no_byte(results, smoke):
    before = {p.relative_to(results): p.read_bytes() for p in results.rglob("*") if p.is_file()}
    began = time.process_time()
    assert study(results) == 0
    assert time.process_time() - began < 20
    after = {p.relative_to(results): p.read_bytes() for p in results.rglob("*") if p.is_file()}
    assert [str(p) for p in before.keys() ^ after.keys()] == []
    assert [str(p) for p in before if before[p] != after[p]] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["digits, block-tridiagonal, seed 0", "digits, block-diagonal, seed 1 to iteration 10"]
)
def test_a_run_whose_tables_are_lost_is_not_trained_again(smoke, name):
    settings = json.loads((smoke / "study.json").read_text())["settings"]
    part = next(part for part in parts(settings, smoke) if part.name == name)
    found = part.make(tqdm(disable=True))
    for table in part.tables[:2]:
        found[table].to_csv(smoke / "again.csv", index=False)
        again = pd.read_csv(smoke / "again.csv")
        (smoke / "again.csv").unlink()
        pd.testing.assert_frame_equal(again, pd.read_csv(smoke / table), check_exact=True)  # the seconds too
    assert found[part.tables[2]]["status"].tolist() == ["finished"]


MATRICES = ("matri*", "invariance.csv")
FIRST = ("*_digits_block-tridiagonal_0.*",)
BOTH = (*FIRST, "*_digits_block-diagonal_0.*")
GROWN = {"recipe", "figure_10", "figure_11", "cases", "seeds"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ((), set()),
        (MATRICES, {"figure_2", "figure_3", "figure_5", "figure_6", "invariance"}),
        (("invariance.csv", "gamma_*"), {"invariance", "figure_7"}),
        (FIRST, GROWN),
        (BOTH, GROWN),
        (("*_digits_block-diagonal_0.*", "*_digits_baseline_*"), set()),
        ((*BOTH, "*_digits_baseline_0.*"), GROWN),
        ((*BOTH, "*_digits_block-tridiagonal_batch_100.*"), {*GROWN, "figure_9"}),
    ],
)
def test_figures_are_drawn_of_what_there_is(smoke, tmp_path, patterns, expected):
    drawn = figures(copied(smoke, tmp_path / "some", *patterns))
    assert set(drawn) == expected
    for name, figure in drawn.items():
        figure.savefig(tmp_path / f"{name}.png", dpi=20)
        assert any(axis.has_data() or axis.texts for axis in figure.axes)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        (
            "study.scales.smoke.problems=[mnits]",
            "problems=[mnits]: expected a list, each entry mnist, curves, faces or",
        ),
        ("study.scales.smoke.problems=digits", "problems=digits: expected a list"),
        ("study.scales.smoke.seeds=0", "seeds=0: expected a whole number of at least 1"),
        ("study.scales.smoke.iterations=1.5", "iterations=1.5: expected a whole number"),
        ("study.scales.smoke.fixed_batches=[100,0]", "fixed_batches=[100,0]: expected a list"),
        ("study.scales.smoke.gammas=none", "gammas=none: expected a whole number"),
        ("study.scales.smoke.iteration=5", "did you mean"),
        ("scale=smoek", "did you mean 'smoke'?"),
        ("study.scales.smoke.dataset=mnits", "did you mean 'mnist'?"),
        ("study.scales.smoke.fixed_batches=[]", "fixed_batches=[]: expected"),
        ("study.scales.smoke.fixed_cases=0", "fixed_cases=0: expected a whole number"),
        ("study.scales.smoke.no_momentum_batch=300", "no_momentum_batch=300: expected one of fixed_batches=[100, 200]"),
        ("study.scales.smoke.baseline_later=50", "baseline_later=50: expected a multiple of baseline_every=20"),
    ],
)
def test_wrong_settings_are_one_line_and_write_nothing(override, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    scale = [] if override.startswith("scale") else ["scale=smoke"]
    assert main(["study", "martens2015", *scale, override]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())
