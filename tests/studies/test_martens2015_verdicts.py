"""Martens and Grosse (2015), verdicts on matrices, invariance, Figure 7 and the recipe; the summary of the runs."""

import math

import numpy as np
import pandas as pd
import pytest

from fisherlab.studies.martens2015 import derived
from fisherlab.studies.martens2015.matrices import COMPARED, difference
from fisherlab.studies.martens2015.problems import METHODS, label
from fisherlab.studies.martens2015.run_verdicts import BASELINE, DIAGONAL, NO_MOMENTUM, TRI
from tests.studies.martens2015_tables import claim, folder, named, run, took, verdict


@pytest.mark.parametrize(
    ("least", "at_used", "scale", "expected"),
    [
        (10**0.5, 0.5, "paper", "reproduced"),
        (1.0, 0.5, "paper", "inconclusive"),  # not above what the search goes to
        (0.05, 0.5, "paper", "contradicted"),
        (0.05, 0.5, "quick", "inconclusive"),
        (10**0.5, -0.5, "paper", "contradicted"),
        (10**0.5, math.nan, "paper", "contradicted"),  # the factors with that gamma could not be factorised
    ],
)
def test_figure_7_without_rescaling_only_a_large_gamma_improves(tmp_path, least, at_used, scale, expected):
    gammas = np.logspace(-3, 3, 13)
    improvement = {
        "not rescaled": np.where(gammas >= 0.99 * least, 0.1, -50.0),
        "rescaled": np.full(13, 0.2),
        "rescaled, momentum": np.where(np.isclose(gammas, 0.01), at_used, 0.7),
    }
    rows = [pd.DataFrame({"step": s, "gamma": gammas, "improvement": v}) for s, v in improvement.items()]
    table = pd.concat(rows).assign(predicted=1.0, iteration=500, used=0.012)
    assert verdict(folder(tmp_path, {"gamma_mnist.csv": table}, scale), "without rescaling no gamma") == expected


def recipe(**changed):
    """Steps as in the authors' log: lambda falls every five, gamma from its start to its floor."""
    k = np.arange(1, 501)
    columns = {
        "step": k,
        "damping": 150 * 0.95 ** (5 * ((k - 1) // 5)),
        "gamma": np.where(k <= 40, math.sqrt(150 + 1e-5), 0.00317),
        "mu": np.where(k < 50, 0.6, 0.99),
        "alpha": np.where(k < 50, 4.4, 0.05),
    }
    return pd.DataFrame(columns | {name: change(k, columns[name]) for name, change in changed.items()})


RECIPE = ("lambda falls", "gamma is", "mu is 0.4", "alpha starts", "mu is about 1", "alpha falls")


def recipes(seeds=10, **changed):
    """As many runs, of which mu and alpha differ a little."""
    found = {}
    for seed in range(seeds):
        table = recipe(**changed)
        table[["mu", "alpha"]] *= 1 + 0.001 * seed
        found[f"steps_{label('mnist', TRI, seed)}.csv.gz"] = table
    return found


@pytest.mark.parametrize(
    ("changed", "wrong"),
    [
        ({}, ()),
        ({"damping": lambda k, v: np.where(k <= 10, 150.0, v)}, ["lambda falls"]),
        ({"gamma": lambda k, v: np.where(k == 20, 7.33, v)}, ["gamma is"]),
        ({"gamma": lambda k, v: np.maximum(v, 0.02)}, ["gamma is"]),
        ({"mu": lambda k, v: np.full(500, 0.99)}, ["mu is 0.4"]),
        ({"mu": lambda k, v: np.full(500, 0.3)}, ["mu is 0.4", "mu is about 1"]),
        ({"mu": lambda k, v: np.full(500, 0.6)}, ["mu is about 1"]),
        ({"alpha": lambda k, v: v / 4}, ["alpha starts"]),
        ({"alpha": lambda k, v: np.full(500, 4.4)}, ["alpha falls"]),
    ],
)
def test_the_recipe_is_that_of_the_authors_log(tmp_path, changed, wrong):
    home = folder(tmp_path, recipes(**changed))
    found = {begins: verdict(home, begins) for begins in RECIPE}
    assert found == {b: "contradicted" if b in wrong else "reproduced" for b in RECIPE}


def test_a_lambda_that_rises_later_is_told_and_contradicts_nothing(tmp_path):
    tables = recipes(2) | {f"steps_{label('mnist', TRI, 1)}.csv.gz": recipe(damping=lambda k, v: v + 9 * (k > 400))}
    home = folder(tmp_path, tables)
    one = claim(home, "lambda then falls all the way")
    assert (one.verdict, one.n) == ("inconclusive", 2)
    assert "1 rises in 2 runs, in 1 of them" in one.measured
    assert verdict(home, "lambda falls") == "reproduced"
    assert verdict(folder(tmp_path / "all", recipes(2)), "lambda then falls") == "reproduced"


def test_fewer_than_ten_seeds_decide_only_what_no_draw_changes(tmp_path):
    tables = recipes(9)
    for seed in range(1, 9):
        name = f"steps_{label('mnist', TRI, seed)}.csv.gz"
        tables[name] = tables[name].head(100)
    home = folder(tmp_path, tables)
    found = {begins: (claim(home, begins).verdict, claim(home, begins).n) for begins in RECIPE}
    kept = {"lambda falls": ("reproduced", 9), "gamma is": ("reproduced", 9)}
    early = dict.fromkeys(("mu is 0.4", "alpha starts"), ("inconclusive", 9))
    assert found == kept | early | dict.fromkeys(("mu is about 1", "alpha falls"), ("inconclusive", 1))


def test_before_any_run_has_ended_gamma_s_floor_is_not_told(tmp_path):
    home = folder(tmp_path, {name: table.head(100) for name, table in recipes(3).items()})
    one = claim(home, "gamma is")
    assert (one.verdict, one.measured) == ("inconclusive", "12.247 to 12.247")


def test_one_seed_s_wrong_lambda_is_seen(tmp_path):
    tables = recipes(3)
    tables[f"steps_{label('mnist', TRI, 2)}.csv.gz"].loc[5, "damping"] = 120.0
    assert verdict(folder(tmp_path, tables), "lambda falls") == "contradicted"


def blocks(sizes):
    """Mean and largest |entry| of 4 x 4 blocks, by their distance from the diagonal."""
    rows = []
    for name, by_distance in sizes.items():
        rows += [(name, i, j, *(by_distance[abs(i - j)],) * 2) for i in range(4) for j in range(4)]
    return pd.DataFrame(rows, columns=["matrix", "row", "column", "mean", "max"])


@pytest.mark.parametrize(
    ("facts", "sizes", "wrong"),
    [
        ({}, {}, None),
        ({"error": 1500.0}, {}, "F-tilde's error"),
        ({"error": 4500.0}, {}, "F-tilde's error"),
        ({}, {"F tilde, inverse": [10, 5, 2, 1]}, "the inverse of F-tilde"),
        ({}, {"F tilde, damped": [10, 4, 0.4, 0.1]}, "the inverse of F-tilde"),
        ({}, {("F tilde, damped", "block-tridiagonal"): [0, 1e-6, 1, 1]}, "F-breve equals"),
        ({}, {("F tilde, damped", "block-diagonal"): [1e-6, 5, 4, 3]}, "F-breve equals"),
        ({}, {("F tilde, damped", "block-diagonal"): [0, 0.1, 0.1, 0.1]}, "F-breve equals"),
        ({}, {("F tilde, inverse", "block-diagonal, inverse"): [0.05, 9, 1, 1]}, "F-hat's inverse"),
        ({}, {("F tilde, inverse", "block-diagonal, inverse"): [0.5, 0.01, 0, 0]}, "F-hat's inverse"),
    ],
)
def test_claims_on_matrices(tmp_path, facts, sizes, wrong):
    home = matrix_tables(tmp_path, facts, sizes)
    begins = ("F-tilde's error", "the inverse of F-tilde", "F-breve equals", "F-hat's inverse")
    assert {b: verdict(home, b) for b in begins} == {b: "contradicted" if b == wrong else "reproduced" for b in begins}


def test_an_inverse_as_near_to_block_diagonal_is_not_told_to_be_tridiagonal(tmp_path):
    home = matrix_tables(tmp_path, {}, {"F tilde, inverse": [10, 0.3, 0.3, 0.3]})
    one = claim(home, "the inverse of F-tilde")
    assert one.verdict == "inconclusive"
    assert "0.041 of the inverse, 0.241 of F-tilde; of what is off the diagonal blocks: 0.50 and 0.37" in one.measured


def matrix_tables(tmp_path, facts, sizes):
    """A study of the matrices as the paper has them, but for some facts and sizes of blocks."""
    usual = {
        "F tilde, damped": [10, 8, 5, 4],
        "F tilde, inverse": [10, 5, 0.3, 0.1],
        ("F tilde, damped", "block-tridiagonal"): [0, 0, 1, 1],
        ("F tilde, damped", "block-diagonal"): [0, 8, 5, 4],
        ("F tilde, inverse", "block-tridiagonal, inverse"): [0.1, 0.4, 0.3, 0.1],
        ("F tilde, inverse", "block-diagonal, inverse"): [0.5, 5, 0.3, 0.1],
    }
    assert {name for name in usual if isinstance(name, tuple)} == set(COMPARED[1:])
    table = blocks({n if isinstance(n, str) else difference(*n): v for n, v in (usual | sizes).items()})
    told = {"cases": 60000, "steps": 20, "train_error": 0.05, "gamma": 0.3, "identity": 1e-15}
    told |= {"fisher": 9000.0, "error": 2894.4, "bound": 4134.6} | facts
    tables = {"matrix_blocks.csv": table, "matrix_facts.csv": pd.DataFrame([told])}
    return folder(tmp_path, tables | {"matrices.csv.gz": pd.DataFrame({"matrix": []})})


@pytest.mark.parametrize(
    ("apart", "expected"),
    [((1e-12, 1e-11), "reproduced"), ((1e-12, 1e-7), "contradicted"), ((1e-7, 0), "contradicted")],
)
def test_claims_on_invariance_look_at_both_changes(tmp_path, apart, expected):
    rows = [
        {"method": method, "change": change, "step": 25, "apart": 1.0 if method == "gradient descent" else value}
        for method in ("block-diagonal", "block-tridiagonal", "gradient descent")
        for change, value in zip(("affine", "logistic"), apart, strict=True)
    ]
    home = folder(tmp_path, {"invariance.csv": pd.DataFrame(rows)})
    for method in (TRI, DIAGONAL):
        assert verdict(home, f"{method} K-FAC without damping") == expected


def test_the_summary_has_each_run_once_and_its_rate(tmp_path):
    tables = {}
    for names in ((TRI, 0), (TRI, 3), (NO_MOMENTUM, "batch", 2000), (BASELINE, 0), (BASELINE, "batch", 2000)):
        tables[named(*names)] = run(0.01, last=100)
        tables |= took(*names)
    home = folder(tmp_path, tables)
    table = derived(home)["runs.csv"]
    assert table[["method", "batch", "seed"]].values.tolist() == [
        [TRI, "growing", "0"],
        [TRI, "growing", "3"],
        [NO_MOMENTUM, "2000", "0"],
        [BASELINE, "", "0"],
        [BASELINE, "2000", "0"],
    ]
    assert "rate" not in table
    counted = pd.DataFrame({"method": list(METHODS), "per_case": 0.02, "per_case_in_chunks": 0.01, "per_step": 5.0})
    counted.to_csv(home / "operations_mnist.csv", index=False)
    table = derived(home)["runs.csv"]
    # 100 000 cases, 100 steps and processor seconds.
    assert table["giga_operations"].tolist() == [2500] * 5
    assert table["rate"].tolist() == [25.0] * 5
    assert table["share_of_product_rate"].tolist() == [0.5] * 5
    assert table["error"].tolist() == pytest.approx([200 * math.exp(-1)] * 5)


def test_cases_of_batches_in_chunks_take_other_operations(tmp_path):
    grows = run(0.01, last=20).assign(examples=[0, 50_000, 50_000 + 50_010])  # 5000 a step, and 5001
    counted = pd.DataFrame({"method": list(METHODS), "per_case": 0.02, "per_case_in_chunks": 0.01, "per_step": 5.0})
    tables = {named(TRI, 0): grows, "operations_mnist.csv": counted} | took(TRI, 0)
    table = derived(folder(tmp_path, tables))["runs.csv"]
    assert table["giga_operations"].tolist() == [round(1000 + 500.1 + 20 * 5)]


def test_the_error_is_the_lesser_of_the_iterate_s_and_the_average_s(tmp_path):
    table = run(0.01, last=100).assign(average_error=[np.nan] * 5 + [50.0] * 6)
    home = folder(tmp_path, {named(BASELINE, 0): table} | took(BASELINE, 0))
    assert derived(home)["runs.csv"]["error"].tolist() == [50.0]
    table.assign(average_error=99.0).to_csv(home / named(BASELINE, 0), index=False)
    assert derived(home)["runs.csv"]["error"].tolist() == pytest.approx([200 * math.exp(-1)])
