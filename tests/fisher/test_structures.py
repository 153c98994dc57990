"""What every structure promises, against the twin's dense matrix less the entries that the structure leaves out."""

import itertools

import pytest
import torch

from fisherlab.errors import UsageError
from fisherlab.fisher import STRUCTURES, Blocks, Statistics, blocks, layer, unit
from fisherlab.models import stack_replicas
from tests.cases import KINDS, LAYERS, LIKELIHOODS, batch_of, batch_statistics, flat, like, model_of, noise_of
from tests.compare import assert_close, assert_same_bits
from tests.reference import Twin, damped_solve, layers_of

FACTORED = ["kronecker", "kronecker_tridiagonal"]
ADDITIVE = [name for name in STRUCTURES if name not in FACTORED]  # damped by lambda I, exactly
KEEPING = [name for name, structure in STRUCTURES.items() if structure.keeps]
DAMPING = 1e-2


def number(value):
    return torch.tensor(value, dtype=torch.float64)


def kept(structure, model):
    """Which entries of the full matrix a structure keeps: those of a common block."""
    shapes = [(m.weight.shape[0], m.weight.shape[1] + (m.bias is not None)) for _, _, m in layers_of(model)]
    sizes = {
        "layer": [out * n for out, n in shapes],
        "pairs": [sum(out * n for out, n in shapes[i : i + 2]) for i in range(0, len(shapes), 2)],
        "unit": list(itertools.chain(*([n] * out for out, n in shapes))),
        "diagonal": [1] * sum(out * n for out, n in shapes),
    }.get(structure, [sum(out * n for out, n in shapes)])
    return torch.block_diag(*(torch.ones(n, n, dtype=torch.float64) for n in sizes))


def expected(structure, model, likelihood, kind, x, y, noise):
    twin = Twin(model, likelihood, x, y)
    if structure == "kronecker":
        return twin.kronecker_blocks(kind, noise=noise)
    if structure == "kronecker_tridiagonal":
        return twin.tridiagonal(kind, noise=noise)[1]
    if structure == "shared":
        return shared(twin.fisher(kind, noise), model)
    return twin.fisher(kind, noise) * kept(structure, model)


def shared(matrix, model):
    """The mean of a layer's unit-wise blocks, in the place of each."""
    at, blocks = 0, []
    for _, _, m in layers_of(model):
        out, n = m.weight.shape[0], m.weight.shape[1] + (m.bias is not None)
        own = [matrix[at + i * n : at + (i + 1) * n, at + i * n : at + (i + 1) * n] for i in range(out)]
        blocks += [torch.stack(own).mean(0)] * out
        at += out * n
    return torch.block_diag(*blocks)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_products_and_solves_are_the_twin_s(structure, likelihood, kind, layer, bias):
    model, (x, y), noise = model_of(layer, bias=bias), batch_of(likelihood), noise_of(likelihood, 3)
    stats, gradient = batch_statistics(model, likelihood, kind, x, y, noise)
    found = STRUCTURES[structure]()
    found.update(stats, 0.0)
    dense, v = expected(structure, model, likelihood, kind, x, y, noise), like(gradient)
    tolerance = 1e-9 if structure == "kronecker_tridiagonal" else 1e-12  # of pseudo-inverses
    assert_close(found.dense(), dense, tolerance)
    assert_close(flat(found.matvec(v)), dense @ flat(v), tolerance)
    assert_close(found.quadratic(v), flat(v) @ dense @ flat(v), tolerance)
    assert_close(found.trace(), dense.trace(), 1e-12)
    if structure in ADDITIVE:
        assert not found.refresh(number(DAMPING)).any()
        assert_close(flat(found.solve(gradient)), damped_solve(dense, DAMPING, flat(gradient)), 1e-10)
        assert_close(flat(found.solve(gradient, v)), damped_solve(dense, DAMPING, flat(gradient) + flat(v)), 1e-10)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_replicas_are_the_models_alone(structure):
    models = [model_of("dense", seed=seed) for seed in range(6)]
    noise, dampings = noise_of("categorical", 2), 10.0 ** torch.arange(-3, 3, dtype=torch.float64)
    (x, y), (other_x, other_y) = batch_of("categorical", seed=0), batch_of("categorical", seed=1)
    xs, ys = torch.stack([x, other_x]).unsqueeze(1), torch.stack([y, other_y]).unsqueeze(1)
    stats, gradient = batch_statistics(stack_replicas(models, (2, 3)), "categorical", "mc", xs, ys, noise)
    found = STRUCTURES[structure]()
    found.update(stats, 0.0)
    found.refresh(dampings.view(2, 3))
    v = like(gradient)
    for i, at in enumerate(itertools.product(range(2), range(3))):
        own = batch_statistics(models[i], "categorical", "mc", *((x, y), (other_x, other_y))[at[0]], noise)
        alone, lane = STRUCTURES[structure](), [layer[at] for layer in v]
        alone.update(own[0], 0.0)
        alone.refresh(dampings[i])
        tolerance = 1e-7 if structure == "kronecker_tridiagonal" else 1e-11  # pseudo-inverses
        assert_close(found.dense()[at], alone.dense(), tolerance)
        assert_close(found.trace()[at], alone.trace(), 1e-12)
        assert_close(found.quadratic(v)[at], alone.quadratic(lane), tolerance)
        assert_close(flat(found.matvec(v))[at], flat(alone.matvec(lane)), tolerance)
        assert_close(flat(found.solve(v, v))[at], flat(alone.solve(lane, lane)), max(1e-9, tolerance))


def two_batches(likelihood="categorical"):
    model = model_of()
    return [batch_statistics(model, likelihood, "exact", *batch_of(likelihood, seed=seed)) for seed in (0, 1)]


@pytest.mark.parametrize("structure", [name for name in KEEPING if name not in FACTORED])
def test_the_average_moves_towards_the_batch(structure):
    (first, _), (second, _) = two_batches()
    moved, a, b = (STRUCTURES[structure]() for _ in range(3))
    moved.update(first, 0.0)
    moved.update(second, 0.75)
    a.update(first, 0.0)
    b.update(second, 0.0)
    assert_close(moved.dense(), 0.75 * a.dense() + 0.25 * b.dense(), 1e-14)
    moved.update(second, 0.0)
    assert_same_bits(moved.dense(), b.dense())


@pytest.mark.parametrize("structure", KEEPING)
def test_it_may_start_at_the_identity(structure):
    (stats, _), _ = two_batches()
    found = STRUCTURES[structure]()
    found.start_at_identity(stats)
    assert_same_bits(found.dense(), torch.eye(43, dtype=torch.float64))


@pytest.mark.parametrize("structure", KEEPING)
def test_a_state_goes_on_where_it_was(structure):
    (first, gradient), (second, _) = two_batches()
    found, again = STRUCTURES[structure](), STRUCTURES[structure]()
    found.update(first, 0.0)
    found.refresh(number(DAMPING))
    again.load(found.state())
    assert_same_bits(flat(again.solve(gradient)), flat(found.solve(gradient)))
    again.update(second, 0.5)
    other = STRUCTURES[structure]()
    other.update(first, 0.0)
    other.update(second, 0.5)
    assert_same_bits(again.dense(), other.dense())


@pytest.mark.parametrize("structure", ADDITIVE)
def test_without_damping_a_singular_matrix_is_marked(structure):
    model, (x, y) = model_of(), batch_of("categorical")
    x[:, 0] = 0  # an input that is never active
    found = STRUCTURES[structure]()
    found.update(batch_statistics(model, "categorical", "exact", x, y)[0], 0.0)
    assert found.refresh(number(0.0)).any()
    assert not found.refresh(number(DAMPING)).any()


@pytest.mark.parametrize("structure", [n for n, s in STRUCTURES.items() if issubclass(s, Blocks)])
def test_a_block_too_large_is_refused(structure, monkeypatch):
    monkeypatch.setattr(blocks, "MAX_SIZE", 4)
    (stats, _), _ = two_batches()
    with pytest.raises(UsageError, match=rf"structure={structure} needs .* expected at most 4 parameters in a block"):
        STRUCTURES[structure]().update(stats, 0.0)


@pytest.mark.parametrize("structure", ["gram", "full", "layer", "unit"])
def test_what_comes_first_is_said(structure):
    with pytest.raises(ValueError, match="call update first"):
        STRUCTURES[structure]().refresh(number(DAMPING))


@pytest.mark.parametrize("units", [None, 2])  # by outer products of the inputs, or by rows where they serve few units
@pytest.mark.parametrize("decay", [0.0, 0.7])
def test_units_are_cut_into_pieces_that_fit(decay, units, monkeypatch):
    batches = [Statistics(stats.inputs, [g[..., :units] for g in stats.gradients]) for stats, _ in two_batches()]
    whole, pieces = STRUCTURES["unit"](), STRUCTURES["unit"]()
    for batch in batches:
        whole.update(batch, decay)
    monkeypatch.setattr(unit, "CHUNK", 8 * 6 * 5)  # one unit of the first layer, or one example's outer products
    for batch in batches:
        pieces.update(batch, decay)
    assert [pieces._packs(i) for i in range(2)] == [units is None] * 2
    assert len(list(pieces.rows(batches[0], 0))) == batches[0].gradients[0].shape[-1]
    assert_close(pieces.dense(), whole.dense(), 1e-14)


@pytest.mark.parametrize("decay", [0.0, 0.7])
def test_a_layer_s_columns_are_added_before_the_outer_products_or_after(decay, monkeypatch):
    (stats, _), (more, _) = two_batches()
    together, by_rows = STRUCTURES["layer"](), STRUCTURES["layer"]()
    assert stats.gradients[0].shape[-3] > 2  # fewer columns go by rows anyway
    for found in (stats, more):
        together.update(found, decay)
    monkeypatch.setattr(layer, "CHUNK", 0)
    for found in (stats, more):
        by_rows.update(found, decay)
    assert_close(together.dense(), by_rows.dense(), 1e-13)
