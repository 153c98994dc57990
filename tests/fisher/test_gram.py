"""The dual system solves the dense one, from large damping to none."""

import pytest
import torch

from fisherlab.errors import UsageError
from fisherlab.fisher import Full, Gram, Smaller, Statistics
from fisherlab.fisher import gram as gram_module
from fisherlab.fisher.full import per_example
from fisherlab.models import stack_replicas
from fisherlab.streams import generator
from tests.cases import KINDS, LAYERS, LIKELIHOODS, batch_of, batch_statistics, flat, like, model_of, noise_of
from tests.compare import assert_close, assert_same_bits
from tests.reference import Twin, damped_solve


def number(value):
    return torch.tensor(value, dtype=torch.float64)


def prepared(stats, damping):
    structure = Gram()
    structure.update(stats, 0.0)
    assert not structure.refresh(number(damping)).any()
    return structure


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("kind", KINDS)
def test_kernel_is_the_matrix_of_inner_products(kind, layer):
    x, y = batch_of("categorical")
    stats, _ = batch_statistics(model_of(layer), "categorical", kind, x, y, noise_of("categorical", 2))
    u = per_example(stats) * stats.weight**0.5
    assert_close(prepared(stats, 1.0).kernel(), u @ u.mT, 1e-13)


@pytest.mark.parametrize("batch", [6, 30])  # fewer and more rows than parameters
@pytest.mark.parametrize("damping", [1e-5, 1e-1, 1e3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_solve_is_the_dense_damped_solve(likelihood, kind, damping, batch):
    model, (x, y), noise = model_of(), batch_of(likelihood, batch), noise_of(likelihood, 2, batch)
    stats, gradient = batch_statistics(model, likelihood, kind, x, y, noise)
    extra = like(gradient)
    fisher = Twin(model, likelihood, x, y).fisher(kind, noise)
    for structure in (prepared(stats, damping), full(stats, damping)):
        for added in (None, extra):
            v = flat(gradient) if added is None else flat(gradient) + flat(added)
            assert_close(flat(structure.solve(gradient, added)), damped_solve(fisher, damping, v), 1e-8)


def full(stats, damping):
    structure = Full()
    structure.update(stats, 0.0)
    assert not structure.refresh(number(damping)).any()
    return structure


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("bias", [True, False])
def test_solve_with_every_layer_kind(layer, bias):
    model, (x, y) = model_of(layer, bias=bias), batch_of("bernoulli")
    stats, gradient = batch_statistics(model, "bernoulli", "exact", x, y)
    expected = damped_solve(Twin(model, "bernoulli", x, y).fisher("exact"), 1e-2, flat(gradient))
    assert_close(flat(prepared(stats, 1e-2).solve(gradient)), expected, 1e-10)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_without_damping_the_empirical_step_lowers_every_loss_equally(likelihood):
    # EF-NGD of a batch of fewer examples than parameters: u_n^T step = 1 for every n.
    x, y = batch_of(likelihood)
    stats, gradient = batch_statistics(model_of(), likelihood, "empirical", x, y)
    u = per_example(stats)
    assert_close(u @ flat(prepared(stats, 0.0).solve(gradient)), torch.ones(6), 1e-9)


def test_small_damping_keeps_its_digits_in_single_precision():
    x, y = batch_of("categorical", seed=3)
    model, damping = model_of(), 1e-5
    expected = damped_solve(
        Twin(model, "categorical", x, y).fisher("empirical"), damping, Twin(model, "categorical", x, y).gradient
    )
    stats, gradient = batch_statistics(model.float(), "categorical", "empirical", x.float(), y)
    assert_close(flat(prepared(stats, damping).solve(gradient)), expected, 1e-4)
    u, g = per_example(stats), flat(gradient)
    textbook = (g - u.mT @ torch.linalg.solve(u @ u.mT + 6 * damping * torch.eye(6), u @ g)) / damping
    assert (textbook - expected).abs().max() > 1e-3 * expected.abs().max()


def test_single_precision_products_are_solved_in_double():
    x, y = batch_of("categorical")
    stats, gradient = batch_statistics(model_of().float(), "categorical", "exact", x.float(), y)
    structure = prepared(stats, 1e-2)
    assert structure.kernel().dtype == torch.float64
    assert all(u.dtype == torch.float32 for u in structure.solve(gradient))


@pytest.mark.parametrize("kind", KINDS)
def test_duplicated_examples_change_nothing(kind):
    (x, y), noise = batch_of("categorical"), noise_of("categorical", 2)
    once, gradient = batch_statistics(model_of(), "categorical", kind, x, y, noise)
    double = [torch.cat([t, t], d) for t, d in ((x, 0), (y, 0), (noise, 1))]
    twice, same = batch_statistics(model_of(), "categorical", kind, *double)
    assert_close(flat(prepared(twice, 1e-2).solve(same)), flat(prepared(once, 1e-2).solve(gradient)), 1e-10)


def test_singular_without_damping_is_marked():
    x, y = (torch.cat([t, t]) for t in batch_of("categorical"))
    for kind in ("exact", "empirical"):
        structure = Gram()
        structure.update(batch_statistics(model_of(), "categorical", kind, x, y)[0], 0.0)
        assert structure.refresh(number(0.0)).all()


def test_monte_carlo_without_damping_is_marked_because_the_gradient_lies_outside_its_span():
    x, y = batch_of("categorical")
    structure = Gram()
    structure.update(batch_statistics(model_of(), "categorical", "mc", x, y, noise_of("categorical", 1))[0], 0.0)
    assert structure.refresh(number(0.0)).all()


def test_solving_changes_neither_statistics_nor_arguments():
    x, y = batch_of("categorical")
    stats, gradient = batch_statistics(model_of(), "categorical", "exact", x, y)
    structure, extra = prepared(stats, 1e-2), like(gradient)
    tensors = [*(i.a for i in stats.inputs), *stats.gradients, stats.coefficients, *gradient, *extra]
    kept = [t.clone() for t in tensors]
    first = structure.solve(gradient, extra)
    structure.refresh(number(1e-2))
    for one, two in zip(first, structure.solve(gradient, extra), strict=True):
        assert_same_bits(two, one)
    for t, old in zip(tensors, kept, strict=True):
        assert_same_bits(t, old)


def test_replicas_solve_each_its_own_system():
    models = [model_of(seed=i) for i in range(6)]
    x = torch.randn(2, 1, 6, 4, dtype=torch.float64, generator=generator(0, "x"))
    y = torch.randint(3, (2, 1, 6), generator=generator(0, "y"))
    stats, gradient = batch_statistics(stack_replicas(models, (2, 3)), "categorical", "exact", x, y)
    damping = torch.logspace(-3, 0, 6, dtype=torch.float64).view(2, 3)
    for structure in (Gram(), Full()):
        structure.update(stats, 0.0)
        assert structure.refresh(damping).shape == (1, 2, 3)
        solved = structure.solve(gradient, like(gradient))
        for i, model in enumerate(models):
            s, h = divmod(i, 3)
            alone, own = batch_statistics(model, "categorical", "exact", x[s, 0], y[s, 0])
            extra = [e[s, h] for e in like(gradient)]
            for layer, expected in zip(solved, prepared(alone, damping[s, h].item()).solve(own, extra), strict=True):
                assert_close(layer[s, h], expected, 1e-9)


def test_it_keeps_no_average_and_needs_its_calls_in_order():
    stats, gradient = batch_statistics(model_of(), "categorical", "exact", *batch_of("categorical"))
    structure = Gram()
    with pytest.raises(ValueError, match="no batch yet"):
        structure.refresh(number(1.0))
    with pytest.raises(ValueError, match="not prepared"):
        structure.solve(gradient)
    with pytest.raises(ValueError, match="no average"):
        structure.update(stats, 0.5)
    assert structure.state() == {}


def test_a_dual_system_too_large_is_refused(monkeypatch):
    stats, _ = batch_statistics(model_of(), "categorical", "exact", *batch_of("categorical"))
    monkeypatch.setattr(gram_module, "MAX_ROWS", 17)
    with pytest.raises(UsageError, match=r"a batch of 6 examples needs a 18 x 18 dual system"):
        Gram().update(stats, 0.0)


@pytest.mark.parametrize(("batch", "chosen"), [(14, Gram), (15, Full)])
def test_smaller_takes_the_smaller_system(batch, chosen):
    # 43 parameters against 3 rows per example.
    stats, gradient = batch_statistics(model_of(), "categorical", "exact", *batch_of("categorical", batch))
    assert isinstance(stats, Statistics)
    structure = Smaller()
    structure.update(stats, 0.0)
    assert isinstance(structure.chosen, chosen)
    assert not structure.refresh(number(1e-2)).any()
    for other in (prepared(stats, 1e-2), full(stats, 1e-2)):
        assert_close(flat(structure.solve(gradient)), flat(other.solve(gradient)), 1e-9)


def test_an_undamped_lane_of_an_exact_system_is_finite_with_a_part_outside_the_span():
    stats, gradient = batch_statistics(model_of(), "categorical", "empirical", *batch_of("categorical"))
    structure = Gram()
    structure.update(stats, 0.0)
    extra = [1e-3 * e for e in like(gradient)]
    assert structure.refresh(torch.tensor([0.0, 0.1], dtype=torch.float64)).tolist() == [[False, False]]
    undamped, damped = flat(structure.solve(gradient, extra))
    structure.refresh(number(0.0))
    assert_close(undamped, flat(structure.solve(gradient)), 1e-10)
    assert_close(damped, flat(prepared(stats, 0.1).solve(gradient, extra)), 1e-10)
