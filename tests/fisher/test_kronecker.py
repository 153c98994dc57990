"""Block-diagonal K-FAC against the dense twin, and where it is exact."""

import pytest
import torch
from torch import nn

from fisherlab.fisher import Capture, Kronecker, Statistics
from fisherlab.fisher.inputs import MeanGradient
from fisherlab.fisher.kronecker import factored_damping
from fisherlab.models import deep_linear, mlp, stack_replicas
from fisherlab.streams import generator
from tests.cases import KINDS, LAYERS, LIKELIHOODS, batch_of, batch_statistics, flat, like, model_of, noise_of
from tests.compare import assert_close, assert_same_bits
from tests.reference import Twin, damped_solve

ABSOLUTE = ("factored", "tikhonov")
MODES = (*ABSOLUTE, "trace")  # the last: in parts of the matrix itself


def number(value):
    return torch.tensor(value, dtype=torch.float64)


def prepared(stats, damping, mode="factored", solves=1):
    structure = Kronecker(mode)
    structure.update(stats, 0.0)
    assert not structure.refresh(number(damping), solves).any()
    return structure


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_factors_are_the_twin_s(likelihood, kind, layer, bias):
    model, (x, y), noise = model_of(layer, bias=bias), batch_of(likelihood), noise_of(likelihood, 3)
    structure = Kronecker()
    structure.update(batch_statistics(model, likelihood, kind, x, y, noise)[0], 0.0)
    for a, g, (expected_a, expected_g) in zip(
        structure.a, structure.g, Twin(model, likelihood, x, y).factors(kind, noise), strict=True
    ):
        assert_close(a, expected_a, 1e-13)
        assert_close(g, expected_g, 1e-12)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("damping", [1e-6, 1e-1, 1e3])
@pytest.mark.parametrize("solves", [1, 20])  # triangular solves, and an explicit inverse
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_solve_is_the_dense_damped_solve(likelihood, mode, solves, damping, layer):
    model, (x, y) = model_of(layer), batch_of(likelihood)
    stats, gradient = batch_statistics(model, likelihood, "exact", x, y)
    extra = like(gradient)
    structure = prepared(stats, damping, mode, solves)
    blocks = Twin(model, likelihood, x, y).kronecker_blocks("exact", damping, mode)
    for added in (None, extra):
        v = flat(gradient) if added is None else flat(gradient) + flat(added)
        assert_close(flat(structure.solve(gradient, added)), torch.linalg.solve(blocks, v), 1e-10)


def test_pi_is_the_root_of_the_ratio_of_the_mean_eigenvalues():
    a, g = torch.diag(torch.tensor([1.0, 3.0, 8.0])), torch.diag(torch.tensor([0.5, 2.5]))
    on_a, on_g = factored_damping(a, g, number(0.04))
    pi = (4 / 1.5) ** 0.5
    assert_close(on_a, torch.tensor(0.2 * pi), 1e-6)
    assert_close(on_g, torch.tensor(0.2 / pi), 1e-6)


@pytest.mark.parametrize(("a", "g"), [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0), (float("inf"), 1.0), (1.0, float("nan"))])
def test_pi_is_one_where_a_trace_is_zero_or_not_finite(a, g):
    on_a, on_g = factored_damping(a * torch.eye(2), g * torch.eye(3), number(0.04))
    assert_close(on_a, torch.tensor(0.2), 1e-6)
    assert_close(on_g, torch.tensor(0.2), 1e-6)


def test_pi_is_each_replica_s_own():
    g = torch.stack([torch.eye(3), torch.zeros(3, 3), 4 * torch.eye(3)])
    on_a, on_g = factored_damping(
        torch.eye(2).expand(1, 2, 2), g, torch.tensor([0.04, 0.09, 0.04], dtype=torch.float64)
    )
    assert_close(on_a, torch.tensor([0.2, 0.3, 0.1]), 1e-6)
    assert_close(on_g, torch.tensor([0.2, 0.3, 0.4]), 1e-6)


def test_exact_for_one_example():
    # One input: E[a a^T (x) g g^T] = a a^T (x) E[g g^T], so only the blocks between layers are lost.
    model, (x, y) = model_of(), batch_of("categorical", batch=1)
    stats, gradient = batch_statistics(model, "categorical", "exact", x, y)
    fisher = Twin(model, "categorical", x, y).fisher("exact")
    first = gradient[0].numel()
    blocks = torch.block_diag(fisher[:first, :first], fisher[first:, first:])
    structure = prepared(stats, 1e-3, "tikhonov")
    assert_close(flat(structure.solve(gradient)), damped_solve(blocks, 1e-3, flat(gradient)), 1e-10)
    dense = torch.block_diag(*[torch.kron(g, a) for a, g in zip(structure.a, structure.g, strict=True)])
    assert_close(dense, blocks, 1e-13)


def test_exact_for_deep_linear_networks_with_squared_loss():
    # G does not depend on the example there, so the expectation factorises (Bernacchia et al. 2018).
    model = deep_linear(4, 3, layers=3, width=4, init="glorot", generator=generator(0, "init")).double()
    x, y = batch_of("gaussian")
    stats, gradient = batch_statistics(model, "gaussian", "exact", x, y)
    structure = prepared(stats, 1e-3, "tikhonov")
    fisher = Twin(model, "gaussian", x, y).fisher("exact")
    start = 0
    for solved, v in zip(structure.solve(gradient), gradient, strict=True):
        block = fisher[start : start + v.numel(), start : start + v.numel()]
        assert_close(solved.flatten(), damped_solve(block, 1e-3, v.flatten()), 1e-10)
        start += v.numel()


@pytest.mark.parametrize("mode", ABSOLUTE)
def test_large_damping_leaves_the_gradient_over_lambda(mode):
    x, y = batch_of("categorical")
    stats, gradient = batch_statistics(model_of(), "categorical", "exact", x, y)
    assert_close(1e14 * flat(prepared(stats, 1e14, mode).solve(gradient)), flat(gradient), 1e-5)


def test_large_damping_by_the_trace_leaves_the_gradient_over_the_traces_too():
    x, y = batch_of("categorical")
    stats, gradient = batch_statistics(model_of(), "categorical", "exact", x, y)
    structure = prepared(stats, 1e8, "trace")
    expected = [v / (a.trace() * g.trace()) for v, a, g in zip(gradient, structure.a, structure.g, strict=True)]
    assert_close(1e8 * flat(structure.solve(gradient)), flat(expected), 1e-7)


@pytest.mark.parametrize("mode", MODES)
def test_solving_changes_neither_factors_nor_arguments(mode):
    x, y = batch_of("categorical")
    stats, gradient = batch_statistics(model_of(), "categorical", "exact", x, y)
    structure, extra = prepared(stats, 1e-2, mode), like(gradient)
    kept = [[t.clone() for t in group] for group in (structure.a, structure.g, gradient, extra)]
    first = structure.solve(gradient, extra)
    structure.refresh(number(1e-2))
    for one, two in zip(first, structure.solve(gradient, extra), strict=True):
        assert_same_bits(two, one)
    for group, old in zip((structure.a, structure.g, gradient, extra), kept, strict=True):
        for t, o in zip(group, old, strict=True):
            assert_same_bits(t, o)


def test_average_moves_towards_the_batch():
    structure = Kronecker()
    batches = [
        batch_statistics(model_of(), "categorical", "exact", *batch_of("categorical", seed=s))[0] for s in range(2)
    ]
    alone = []
    for stats in batches:
        fresh = Kronecker()
        fresh.update(stats, 0.0)
        alone.append(fresh)
    structure.update(batches[0], 0.0)
    structure.update(batches[1], 0.75)
    for name in "ag":
        for mixed, old, new in zip(*(getattr(s, name) for s in (structure, *alone)), strict=True):
            assert_close(mixed, 0.75 * old + 0.25 * new, 1e-14)
    structure.update(batches[1], 0.0)
    for mixed, new in zip(structure.a, alone[1].a, strict=True):
        assert_same_bits(mixed, new)


def test_identity_start():
    stats, _ = batch_statistics(model_of(), "categorical", "exact", *batch_of("categorical"))
    structure = Kronecker()
    structure.start_at_identity(stats)
    for m in (*structure.a, *structure.g):
        assert_same_bits(m, torch.eye(len(m), dtype=torch.float64))
    assert [len(a) for a in structure.a] == [5, 6]
    assert [len(g) for g in structure.g] == [5, 3]


@pytest.mark.parametrize("mode", ABSOLUTE)
def test_dead_units_do_no_harm(mode):
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.fill_(-1)
    stats, gradient = batch_statistics(model, "categorical", "mc", *batch_of("categorical"), noise_of("categorical", 1))
    solved = prepared(stats, 0.04, mode).solve(gradient)
    assert not solved[0].any()
    assert solved[1].isfinite().all()
    assert solved[1][:, -1].abs().sum() > 0


def test_a_dead_layer_has_no_trace_to_be_damped_by_and_is_marked():
    stats, _ = batch_statistics(model_of(), "categorical", "exact", *batch_of("categorical"))
    stats.gradients[0].zero_()
    structure = Kronecker("trace")
    structure.update(stats, 0.0)
    assert structure.refresh(number(0.04)).tolist() == [True, False]


@pytest.mark.parametrize("mode", MODES)
def test_singular_factors_without_damping_are_marked(mode):
    stats, _ = batch_statistics(model_of(), "categorical", "exact", *batch_of("categorical", batch=2))
    structure = Kronecker(mode)
    structure.update(stats, 0.0)
    assert structure.refresh(number(0.0)).tolist() == [True, True]


@pytest.mark.parametrize("mode", MODES)
def test_shared_inputs_keep_one_factor_per_stream(mode):
    models = [model_of(seed=i) for i in range(6)]
    x = torch.randn(2, 1, 6, 4, dtype=torch.float64, generator=generator(0, "x"))
    y = torch.randint(3, (2, 1, 6), generator=generator(0, "y"))
    stats, gradient = batch_statistics(stack_replicas(models, (2, 3)), "categorical", "exact", x, y)
    structure = Kronecker(mode)
    structure.update(stats, 0.0)
    damping = torch.logspace(-3, 0, 6, dtype=torch.float64).view(2, 3)
    assert structure.refresh(damping).shape == (2, 2, 3)
    assert structure.a[0].shape == (2, 1, 5, 5)
    solved = structure.solve(gradient)
    for i, model in enumerate(models):
        s, h = divmod(i, 3)
        alone, own = batch_statistics(model, "categorical", "exact", x[s, 0], y[s, 0])
        expected = prepared(alone, damping[s, h].item(), mode).solve(own)
        for layer, one in zip(solved, expected, strict=True):
            assert_close(layer[s, h], one, 1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_undamped_rounding_noise_is_marked_lane_by_lane(dtype):
    eps = torch.finfo(dtype).eps
    a = torch.diag_embed(torch.tensor([[1.0, eps, 1.0], [1.0, 1e-3, 1.0], [1.0, eps, 1.0]], dtype=dtype))
    damping = torch.tensor([0.0, 0.0, 1e-3], dtype=torch.float64)
    _, failed = Kronecker._eigen(a, torch.eye(2, dtype=dtype), damping)
    assert failed.tolist() == [True, False, False]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("batch", [1, 3, 50])  # the batch is rotated, or solved for, or its gradient
@pytest.mark.parametrize("solves", [1, 10])
def test_the_mean_gradient_of_a_batch_is_solved_for_formed_or_not(solves, batch, mode, bias):
    x, model = (
        torch.rand(batch, 12, dtype=torch.float64),
        mlp(12, 3, hidden=(2,), activation="tanh", bias=bias).double(),
    )
    captured = Capture(model)(x)
    observed, _ = captured.backward(torch.rand(batch, 3, dtype=torch.float64))
    structure = Kronecker(mode)
    structure.update(Statistics(captured.inputs, [g.unsqueeze(-3) for g in observed]), 0.0)
    structure.refresh(number(0.1), solves)
    gradient = MeanGradient(captured.inputs, observed)
    expected = structure.solve([g.mT @ a.joined / batch for g, a in zip(observed, captured.inputs, strict=True)])
    assert_close(flat(structure.solve_mean(gradient)), flat(expected), 1e-12)
    extra = like(expected)
    assert_close(flat(structure.solve_mean(gradient, extra)), flat(structure.solve(gradient.layers, extra)), 1e-12)
