"""When statistics and inverses are renewed, how they are averaged, and which labels are drawn."""

import pytest
import torch

import fisherlab
from tests.cases import KINDS, LIKELIHOODS, batch_of, direction, label_noise, model_of, parameters
from tests.compare import assert_close, assert_same_bits
from tests.reference import Twin, damped_solve


def run(optimizer, steps, look):
    """Take steps on ever new batches; look at the optimizer after each."""
    seen = []
    for step in range(steps):
        optimizer.step(*batch_of("categorical", seed=step))
        seen.append(look(optimizer.preconditioner.structure))
    return seen


def changes(values):
    return [0, *[i for i in range(1, len(values)) if not torch.equal(values[i], values[i - 1])]]


def kfac(model, **options):
    defaults = {"kind": "exact", "lr": 0.1, "momentum": 0.0, "ema": 0.9, "inverse_period": 1, "damping": 0.1}
    return fisherlab.KFAC(model, "categorical", **(defaults | options))


@pytest.mark.parametrize(("stats", "inverse"), [(1, 1), (2, 3), (3, 1), (1, 4)])
@pytest.mark.parametrize("mode", ["factored", "tikhonov"])
def test_periods(stats, inverse, mode):
    optimizer = kfac(model_of(), stats_period=stats, inverse_period=inverse, damping_mode=mode, samples=1)
    # Damping changes at every step, so every refresh shows.
    seen = []
    for step in range(9):
        optimizer.param_groups[0]["damping"] = 0.1 + step
        optimizer.step(*batch_of("categorical", seed=step))
        structure = optimizer.preconditioner.structure
        seen.append((structure.a[1].clone(), structure.g[0].clone(), structure._prepared[0][-1].clone()))
    for i, period in enumerate((stats, stats, inverse)):
        assert changes([s[i] for s in seen]) == list(range(0, 9, period))


def test_between_refreshes_the_old_inverse_serves_the_new_gradient():
    optimizer = fisherlab.KFAC(
        model_of(), "categorical", kind="exact", lr=1.0, momentum=0.0, inverse_period=2, damping=0.1
    )
    blocks = Twin(optimizer.model, "categorical", *batch_of("categorical")).kronecker_blocks("exact", 0.1, "factored")
    direction(optimizer, *batch_of("categorical"))
    later = batch_of("categorical", seed=1)
    gradient = Twin(optimizer.model, "categorical", *later).gradient
    assert_close(direction(optimizer, *later), torch.linalg.solve(blocks, gradient), 1e-10)


@pytest.mark.parametrize(
    ("start", "weights"),
    [("batch", [0.0, 1 / 2, 2 / 3, 3 / 4, 0.75, 0.75]), ("identity", [0.75] * 6)],
)
@pytest.mark.parametrize("structure", ["kronecker", "full"])
def test_moving_average(structure, start, weights):
    # eps = min(1 - 1/k, eps_max), so the first average is the first batch's statistic; or eps_max from the identity.
    options = {"structure": structure, "kind": "exact", "ema": 0.75, "ema_start": start, "lr": 0.1, "damping": 0.1}
    optimizer = fisherlab.NaturalGradient(model_of(), "categorical", **options)
    average = None
    for step, weight in enumerate(weights):
        batch = batch_of("categorical", seed=step)
        twin = Twin(optimizer.model, "categorical", *batch)
        new = [twin.fisher("exact")] if structure == "full" else [m for pair in twin.factors("exact") for m in pair]
        average = average or [torch.eye(len(m), dtype=m.dtype) for m in new]
        average = [weight * a + (1 - weight) * m for a, m in zip(average, new, strict=True)]
        optimizer.step(*batch)
        s = optimizer.preconditioner.structure
        found = [s.matrix] if structure == "full" else [m for pair in zip(s.a, s.g, strict=True) for m in pair]
        for f, expected in zip(found, average, strict=True):
            assert_close(f, expected, 1e-12)


def test_the_average_counts_updates_not_steps():
    optimizer = kfac(model_of(), stats_period=3, ema=0.95)
    twins = []
    for step in range(4):
        batch = batch_of("categorical", seed=step)
        twins.append(Twin(optimizer.model, "categorical", *batch).factors("exact"))
        optimizer.step(*batch)
    for found, first, second in zip(optimizer.preconditioner.structure.a, twins[0], twins[3], strict=True):
        assert_close(found, (first[0] + second[0]) / 2, 1e-12)  # k = 2: eps = 1/2


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_labels_are_the_stream_s_for_this_seed_and_step(likelihood):
    model = model_of()
    optimizer = fisherlab.NaturalGradient(
        model, likelihood, kind="mc", structure="full", samples=2, lr=0.1, damping=0.1, seed=9
    )
    for step in range(3):
        x, y = batch_of(likelihood, seed=step)
        noise = label_noise(optimizer, x, step=step)
        expected = Twin(model, likelihood, x, y).fisher("mc", noise)
        optimizer.step(x, y)
        assert_close(optimizer.preconditioner.structure.matrix, expected, 1e-12)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_statistics_from_a_part_of_the_batch(likelihood, kind, bias):
    model, (x, y) = model_of(bias=bias), batch_of(likelihood, batch=7)
    part = Twin(model, likelihood, x[::3], y[::3])
    optimizer = fisherlab.NaturalGradient(
        model, likelihood, kind=kind, structure="full", samples=2, damping=0.1, tau1=1 / 3, seed=9
    )
    noise = label_noise(optimizer, x[::3])
    expected = damped_solve(part.fisher(kind, noise), 0.1, Twin(model, likelihood, x, y).gradient)
    assert_close(direction(optimizer, x, y), expected, 1e-11)


def test_labels_drawn_every_third_step_are_those_of_that_step():
    structures = []
    for period in (1, 3):
        optimizer = kfac(model_of(), kind="mc", lr=1e-300, ema=0.0, stats_period=period, seed=3)
        for _ in range(4):
            optimizer.step(*batch_of("categorical"))
        structures.append(optimizer.preconditioner.structure)
    for one, other in zip(structures[0].g, structures[1].g, strict=True):
        assert_same_bits(one, other)


@pytest.mark.parametrize("kind", ["mc", "exact"])
def test_steps_leave_the_global_random_state_alone(kind):
    before = torch.get_rng_state()
    optimizer = kfac(model_of(), kind=kind)
    optimizer.step(*batch_of("categorical"))
    assert torch.equal(torch.get_rng_state(), before)


def test_steps_leave_gradients_and_hooks_alone():
    model = model_of()
    kfac(model).step(*batch_of("categorical"))
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())


def test_the_precision_of_the_model_does_not_reach_the_curvature():
    before = torch.get_float32_matmul_precision()
    results = []
    try:
        for precision in ("highest", "medium"):
            torch.set_float32_matmul_precision(precision)
            model = model_of().float()
            x, y = batch_of("categorical", dtype=torch.float32)
            optimizer = kfac(model)
            optimizer.step(x, y)
            assert torch.get_float32_matmul_precision() == precision
            results.append(optimizer.preconditioner.structure.g[0])
    finally:
        torch.set_float32_matmul_precision(before)
    assert_close(results[1], results[0], 1e-2)  # the network itself may run in bf16


def test_refused_periods_leave_nothing_behind():
    model = model_of()
    before = parameters(model)
    with pytest.raises(fisherlab.errors.UsageError):
        kfac(model, stats_period=0)
    assert_same_bits(parameters(model), before)
