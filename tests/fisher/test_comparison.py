"""Fisher against empirical Fisher: every number equals that of the dense matrices."""

import math

import pytest
import torch

from fisherlab.fisher.comparison import CONTROLS, Point, Settings, compare
from fisherlab.fisher.hessian import hessian
from fisherlab.likelihood import make_likelihood
from tests.cases import LAYERS, LIKELIHOODS, batch_of, flat, model_of
from tests.compare import assert_close

DAMPINGS = (1e-2, 1.0)


def found(likelihood, layer="dense", bias=True, **settings):
    model, batches = model_of(layer, bias=bias), {}
    batches = {"same": batch_of(likelihood, seed=0), "independent": batch_of(likelihood, seed=1)}
    point = Point(model, make_likelihood(likelihood), batches["same"], Settings(DAMPINGS, **settings))
    return point, batches, *compare(point, batches)


def dense(point, batch, number):
    return {name: m.structure.dense() for name, m in point.matrices(batch, number).items()}


def size_of(layer):
    return layer.shape[0] * layer.shape[1]


def blocks(point, matrix):
    """The whole matrix, then every layer's block."""
    at, cut = 0, [matrix]
    for layer in point.capture.layers:
        cut.append(matrix[at : at + size_of(layer), at : at + size_of(layer)])
        at += size_of(layer)
    return cut


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_sizes_and_distances_equal_the_dense_ones(likelihood, layer, bias):
    point, batches, rows, _ = found(likelihood, layer, bias)
    names = ["all", *point.names]
    for number, (batch, data) in enumerate(batches.items()):
        matrices = dense(point, data, number)
        for row in (r for r in rows if r["batch"] == batch and r["lambda"] == 1.0 and r["match"] == "equal"):
            i = names.index(row["layer"])
            control, reference = (blocks(point, matrices[row[key]])[i] for key in ("control", "against"))
            for key, matrix in (
                ("fisher", matrices["fisher"]),
                ("ef", matrices["ef"]),
                ("control", matrices[row["control"]]),
            ):
                block = blocks(point, matrix)[i]
                assert row[f"trace_{key}"] == pytest.approx(float(block.trace()), rel=1e-10)
                assert row[f"norm_{key}"] == pytest.approx(float(block.norm()), rel=1e-10)
                assert row[f"rank_{key}"] == pytest.approx(float(block.trace() ** 2 / block.norm() ** 2), rel=1e-10)
            scale = float((control * reference).sum() / control.norm() ** 2)
            plain, scaled = (float((reference - c * control).norm() / reference.norm()) for c in (1.0, scale))
            assert row["distance"] == pytest.approx(plain, abs=1e-7)
            assert row["best_scale"] == pytest.approx(scale, rel=1e-9)
            assert row["distance_scaled"] == pytest.approx(scaled, abs=1e-7)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_directions_equal_the_dense_ones(likelihood):
    point, batches, rows, _ = found(likelihood)
    gradient = flat(point.gradient)
    eye = torch.eye(len(gradient), dtype=torch.float64)
    for number, (batch, data) in enumerate(batches.items()):
        matrices = dense(point, data, number)
        for row in (r for r in rows if r["batch"] == batch and r["layer"] == "all"):
            factor = (
                matrices[row["control"]].trace() / matrices[row["against"]].trace() if row["match"] == "trace" else 1.0
            )
            u = torch.linalg.solve(matrices[row["control"]] + factor * row["lambda"] * eye, gradient)
            other = torch.linalg.solve(matrices[row["against"]] + row["lambda"] * eye, gradient)
            assert row["cosine"] == pytest.approx(float(torch.cosine_similarity(u, other, 0)), abs=1e-9)
            assert row["cosine_gradient"] == pytest.approx(float(torch.cosine_similarity(u, gradient, 0)), abs=1e-9)
            form = u @ matrices["fisher"] @ u
            assert row["best_step"] == pytest.approx(float(gradient @ u / form), rel=1e-8)
            assert row["predicted"] == pytest.approx(float((gradient @ u) ** 2 / form / 2), rel=1e-8)
            assert row["line_decrease"] >= row["measured"]


def test_the_prediction_is_exact_where_the_loss_is_quadratic():
    batches = {"same": batch_of("gaussian")}
    point = Point(model_of(widths=(4, 3)), make_likelihood("gaussian"), batches["same"], Settings(DAMPINGS))
    rows, _ = compare(point, batches)
    for row in (r for r in rows if r["layer"] == "all"):
        assert row["measured"] == pytest.approx(row["predicted"], rel=1e-9)
        assert row["line_step"] == row["best_step"]
        assert row["hessian_distance"] < 1e-7


def test_the_weights_come_back_to_the_bit():
    model = model_of()
    before = [p.detach().clone() for p in model.parameters()]
    batch = batch_of("categorical")
    compare(Point(model, make_likelihood("categorical"), batch, Settings(DAMPINGS)), {"same": batch})
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


def test_spectra_are_those_of_the_dense_matrices():
    point, batches, _, spectra = found("categorical")
    matrices = dense(point, batches["same"], 0)
    for name, matrix in matrices.items():
        top = [s["eigenvalue"] for s in spectra if s["batch"] == "same" and s["matrix"] == name]
        expected = torch.linalg.eigvalsh(matrix).flip(0)[: len(top)]
        assert_close(torch.tensor(top, dtype=torch.float64), expected.clamp(min=0), 1e-10)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_the_distance_of_the_hessian_tends_to_the_dense_one(likelihood):
    point, batches, rows, _ = found(likelihood, probes=2000)
    x, y = batches["same"]
    h, f = hessian(point.model, point.likelihood, x, y), dense(point, batches["same"], 0)["fisher"]
    assert rows[0]["hessian_distance"] == pytest.approx(float((h - f).norm() / h.norm()), rel=0.1)
    assert math.isnan(rows[-1]["hessian_distance"])  # of the gradient's batch only


def test_a_sampled_fisher_stands_in_where_the_exact_one_has_too_many_columns():
    rows = found("categorical", samples=200)[2]
    exact = found("categorical")[2]
    assert rows[0]["trace_fisher"] == pytest.approx(exact[0]["trace_fisher"], rel=0.1)
    assert {r["control"] for r in rows} == {"fisher", *CONTROLS}
