"""Karakida and Osawa (2020): its problem, runs, verdicts, and the whole at smoke scale."""

import numpy as np
import pandas as pd
import pytest
import torch

from fisherlab.cli import main
from fisherlab.data import load_dataset
from fisherlab.errors import UsageError
from fisherlab.ntk import isotropy
from fisherlab.ntk.solving import NONE, Damping
from fisherlab.studies import karakida2020
from fisherlab.studies.karakida2020 import empirical, minibatch, tables
from fisherlab.studies.karakida2020.descent import best_rate, descend, linearise
from fisherlab.studies.karakida2020.problem import Net, data, loss
from tests.compare import assert_close

SETTINGS = {
    "dataset": "digits", "classes": [0, 1], "examples": 10, "tests": 6, "layers": 3, "seeds": 10, "networks": ["relu"],
    "width": 512, "middle_width": 256, "other_width": 512, "widths": [256, 512], "gap_widths": [256, 512],
    "unit_widths": [256], "depths": [3], "dampings": [1e-3], "unit_rho": 1e-4, "unit_rhos": [1e-4, 1e-1], "steps": 2,
    "slow": 0.1, "slow_steps": 3, "batches": [10, 5], "epochs": 2, "empirical_rate": 0.2, "empirical_steps": 3,
}  # fmt: skip


# --- the problem ------------------------------------------------------------------------------------------------------


def test_the_data_are_the_first_of_two_classes_standardised_and_of_norm_1():
    points = data(SETTINGS)
    split = load_dataset("digits").splits["train"]
    kept = torch.nonzero((split.y == 0) | (split.y == 1))[:, 0]
    for x, y, index in ((points.x, points.y, kept[:10]), (points.x_test, points.y_test, kept[10:16])):
        raw = split.x[index].double().numpy()
        raw = (raw - raw.mean()) / raw.std()
        assert_close(x, torch.from_numpy(raw / np.linalg.norm(raw, axis=1, keepdims=True)), 1e-6)
        assert y.tolist() == [0.5 if label == 0 else -0.5 for label in split.y[index]]
    assert_close(data(SETTINGS, "tanh").x, points.x * 8, 1e-12)  # there the norm is the root of the number of inputs


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"classes": [0, 1, 2]}, "classes=[0, 1, 2]: expected two classes"),
        ({"width": 9}, "width=9: the last layer's kernel is singular below as many units as examples"),
        ({"layers": 5}, "layers=5: T of the block-tridiagonal Fisher is singular at 2, 5, 8"),
        ({"slow": 1.0}, "slow=1.0: expected a number above 0 and below 1"),
        ({"networks": ["relv"]}, "networks=[relv]: expected a list"),
        ({"unit_rho": 0.0}, "unit_rho=0.0: expected a number above 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(change, says, tmp_path):
    with pytest.raises(UsageError) as error:
        karakida2020.parts(SETTINGS | change, tmp_path)
    assert says in str(error.value)


def test_more_examples_than_there_are_is_said():
    with pytest.raises(UsageError, match="examples=4000: 'digits' has 360 of the classes 0 and 1"):
        data(SETTINGS | {"examples": 4000})


# --- runs -------------------------------------------------------------------------------------------------------------


def net_of(width=512, seed=0):
    points = data(SETTINGS)
    return Net("relu", points.x.shape[1], width, 3, seed), points


def test_a_restored_network_is_as_it_was():
    net, points = net_of()
    before = net.outputs(points.x)
    descend(net, points, "exact", NONE, 1.0, 1)
    assert (net.outputs(points.x) - before).abs().max() > 0.1
    net.restore()
    assert torch.equal(net.outputs(points.x), before)


@pytest.mark.parametrize("variant", ["exact", "layer", "tridiagonal"])
def test_small_rates_follow_the_closed_form(variant):
    net, points = net_of(2048)
    here = linearise(net, points, variant, NONE)
    run = descend(net, points, variant, NONE, 0.1 * here.eta, 4)
    expected = 0.9 ** (2 * torch.arange(5))
    assert_close(loss(run.train, points.y) / loss(run.train[0], points.y), expected, 0.02)


def test_the_best_rate_is_one_over_alpha():
    net, points = net_of()
    for variant, alpha in (("exact", 1), ("layer", 3), ("tridiagonal", 1), ("kfac", 21)):
        assert linearise(net, points, variant, NONE).eta == pytest.approx(1 / alpha)
    unit = linearise(net, points, "unit", Damping(1e-4, relative=True))
    assert unit.eta == pytest.approx(10 / float(unit.s.trace()))
    for variant in ("gd", "diagonal"):
        here = linearise(net, points, variant, NONE)
        assert here.eta == pytest.approx(1 / float(torch.linalg.eigvalsh(here.s)[-1]))


def test_a_run_that_diverges_ends_and_is_infinite():
    net, points = net_of()
    run = descend(net, points, "gd", NONE, 1e9, 5)
    assert len(run.train) == 6
    assert torch.isinf(run.train[-1]).all()


def test_the_exact_empirical_fisher_divides_by_squared_residuals():
    net, points = net_of()
    one = net.jacobian(points.x)
    r = one.outputs - points.y
    found = empirical.kernel(one, r, "exact", 1e-4)
    assert_close(found, torch.diag(1 / r.square()), 1e-8)
    assert isotropy(found) > 0.1
    assert isotropy(empirical.kernel(one, torch.ones_like(r), "exact", 1e-4)) < 1e-10


def test_mini_batches_of_everything_are_full_batches():
    net, points = net_of()
    rows = minibatch._train(net, points, "layer", 10, 0, SETTINGS)
    first = rows[0]["loss"]
    assert [row["loss_frozen"] / first for row in rows] == pytest.approx([0.81**t for t in range(3)])
    net.restore()
    run = descend(net, points, "layer", NONE, 0.1 / 3, 2)
    assert rows[-1]["loss"] == pytest.approx(float(loss(run.train[-1], points.y)))


# --- tables -----------------------------------------------------------------------------------------------------------


def test_slopes_are_fitted_per_seed():
    rows = [{"seed": s, "width": w, "v": 7.0 * w ** (-0.5 - s)} for s in range(2) for w in (64, 256, 1024)]
    assert tables.slopes(pd.DataFrame(rows), "v") == pytest.approx([-0.5, -1.5])
    rows[-1]["v"] = np.inf
    assert np.isnan(tables.slopes(pd.DataFrame(rows), "v")[1])


def test_the_rate_of_what_has_no_alpha_is_its_largest_eigenvalue_s():
    assert best_rate("gd", torch.diag(torch.tensor([4.0, 1.0])), 3) == 0.25


# --- the whole --------------------------------------------------------------------------------------------------------


def test_the_study_runs_whole_at_smoke_scale(tmp_path):
    assert main(["study", "karakida2020", "scale=smoke", "threads=1", f"results={tmp_path}"]) == 0
    folder = tmp_path / "studies/karakida2020/smoke"
    claims = pd.read_csv(folder / "claims.csv").set_index("claim")
    assert claims["verdict"].notna().all()
    exact = [c for c in claims.index if c.startswith("S = J G^-1 J^T / N is alpha I")]
    assert claims.loc[exact[0], "verdict"] == "reproduced"
    refused = "a singular depth, a duplicated and a dependent input are refused with the reason"
    assert claims.loc[refused, "verdict"] == "reproduced"
    names = {"figure_1", "figure_2", "figure_3", "figure_4", "isotropy", "width", "minibatches", "empirical_fisher"}
    assert {path.stem for path in folder.glob("*.png")} == names | {"cross_entropy_and_features"}
    runs = pd.read_csv(folder / "dynamics.csv")
    first = runs[runs["step"] == 0]
    assert np.allclose(first["train_loss"], first["train_loss_theory"])
    # Figures come from tables alone.
    (folder / "figure_1.png").unlink()
    assert main(["figures", "karakida2020", f"results={tmp_path}"]) == 0
    assert (folder / "figure_1.png").exists()
