"""Natural gradients with batch normalisation: the true gradient, statistics by constants, averages moved once."""

import copy

import pytest
import torch
from torch import nn

import fisherlab
from fisherlab.errors import UsageError
from fisherlab.models import mlp
from fisherlab.models.normalise import settle
from fisherlab.streams import generator
from tests.cases import PRESETS, batch_of
from tests.compare import assert_close, assert_same_bits
from tests.reference import Twin, damped_solve, flatten

NORM = ["norm1.scale", "norm1.shift", "norm2.scale", "norm2.shift"]


def net(hidden=(5, 6), activation="tanh"):
    model = mlp(4, 3, hidden=hidden, activation=activation, batch_norm="after", generator=generator(0, "init")).double()
    with torch.no_grad():
        for name in NORM[: 2 * len(hidden)]:
            model.get_parameter(name).add_(torch.linspace(-0.3, 0.5, len(model.get_parameter(name))))
    return model


def gradient_of(model, x, y):
    """Of the mean nll in training, through the batch's statistics, by parameter name."""
    own = copy.deepcopy(model).train()
    names, parameters = zip(*own.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(nn.functional.cross_entropy(own(x), y), parameters), strict=True))


def with_constants(model, x):
    """The same function at this batch, whose mean and variance are now constants: its averages, in evaluation."""
    own = copy.deepcopy(model)
    settle(own, x)
    return own.eval()


def change(optimizer, x, y):
    before = {n: p.detach().clone() for n, p in optimizer.model.named_parameters()}
    optimizer.step(x, y)
    return {n: before[n] - p.detach() for n, p in optimizer.model.named_parameters()}


HUGE = 1e16
DIRECT = {
    "kfac": (fisherlab.KFAC, {"momentum": 0.0}),
    "kfac-tikhonov": (fisherlab.KFAC, {"momentum": 0.0, "kind": "empirical", "damping_mode": "tikhonov"}),
    "tridiagonal": (fisherlab.KFAC, {"momentum": 0.0, "structure": "kronecker_tridiagonal"}),
    "efngd": (fisherlab.EFNGD, {}),
    "gram-exact": (fisherlab.NaturalGradient, {"structure": "gram"}),
    "full": (fisherlab.NaturalGradient, {"structure": "full"}),
    "unit": (fisherlab.NaturalGradient, {"structure": "unit"}),
    "diagonal": (fisherlab.NaturalGradient, {"structure": "diagonal"}),
    "rngd": (fisherlab.RNGD, {"damping_mode": "tikhonov"}),
}


@pytest.mark.parametrize("name", DIRECT)
def test_the_gradient_is_the_true_one(name):
    # Under a huge damping a natural step is the gradient over the damping.
    model, (x, y) = net(), batch_of("categorical")
    expected = gradient_of(model, x, y)
    by_constants = Twin(with_constants(model, x), "categorical", x, y).gradient
    cls, options = DIRECT[name]
    found = change(cls(model, "categorical", lr=HUGE, damping=HUGE, lr_uncovered=1.0, **options), x, y)
    assert_close(flatten(model, found), flatten(model, expected), 1e-6)
    assert (flatten(model, found) - by_constants).abs().max() > 0.01


@pytest.mark.parametrize("kind", ["exact", "empirical"])
@pytest.mark.parametrize("structure", ["full", "gram", "smaller"])
def test_the_statistics_take_mean_and_variance_for_constants(structure, kind):
    model, (x, y) = net(), batch_of("categorical", 7)
    gradient = flatten(model, gradient_of(model, x, y))
    fisher = Twin(with_constants(model, x), "categorical", x, y).fisher(kind)
    options = {"structure": structure, "kind": kind, "lr": 1.0, "damping": 0.1}
    found = change(fisherlab.NaturalGradient(model, "categorical", **options), x, y)
    assert_close(flatten(model, found), damped_solve(fisher, 0.1, gradient), 1e-9)


@pytest.mark.parametrize("kind", ["exact", "empirical"])
def test_so_do_the_factors_of_kfac(kind):
    model, (x, y) = net(), batch_of("categorical", 7)
    factors = Twin(with_constants(model, x), "categorical", x, y).factors(kind)
    optimizer = fisherlab.KFAC(model, "categorical", kind=kind)
    optimizer.step(x, y)
    own = optimizer.preconditioner.structure
    for a, g, expected in zip(own.a, own.g, factors, strict=True):
        assert_close(a, expected[0], 1e-12)
        assert_close(g, expected[1], 1e-12)


def test_rngd_s_are_those_of_evaluation_after_the_step():
    model, (x, y) = net(), batch_of("categorical", 7)
    optimizer = fisherlab.RNGD(model, "categorical", ema=0.0, lr=0.1)
    optimizer.step(x, y)
    with torch.no_grad():
        ones = torch.ones(7, 1, dtype=x.dtype)
        h = copy.deepcopy(model).eval()[:3](x)
        a = torch.cat([h, ones], 1)
        z = model.layer2(h)
        blocks = torch.einsum("bi,bj,bk->ijk", 1 / torch.cosh(z) ** 2, a, a) / 7
    assert_close(optimizer.preconditioner.structure.dense()[25:61, 25:61], torch.block_diag(*blocks), 1e-12)


def two_layers_in_a_block(model, **options):
    pairs = {"first": "pairs", "between": "pairs", "last": "pairs", "lr": 1e-14}
    return fisherlab.RNGD(model, "categorical", **pairs, **options)


def test_two_layers_that_share_a_block_take_constants_too():
    # Up to the outputs, two layers are the whole net, and their relative Fisher is the exact one.
    model, (x, y) = net(hidden=(5,)), batch_of("categorical", 7)
    expected = Twin(with_constants(model, x), "categorical", x, y).fisher("exact")
    optimizer = two_layers_in_a_block(model, ema=0.0, late=False, ema_start="batch")
    optimizer.step(x, y)
    assert_close(optimizer.preconditioner.structure.dense(), expected, 1e-10)


def test_so_do_they_where_a_late_average_starts_from_the_batch():
    # The first batch serves the first step by its constants, and starts the average by the running ones after it.
    model, (x, y) = net(hidden=(5,)), batch_of("categorical", 7)
    first = Twin(with_constants(model, x), "categorical", x, y).fisher("exact")
    optimizer = two_layers_in_a_block(model, ema=0.5, ema_start="batch")
    served, take = [], optimizer.preconditioner.structure.update
    optimizer.preconditioner.structure.update = lambda *a: (
        take(*a),
        served.append(optimizer.preconditioner.structure.dense().clone()),
    )
    optimizer.step(x, y)
    late = Twin(copy.deepcopy(model).eval(), "categorical", x, y).fisher("exact")
    assert len(served) == 2
    assert_close(served[0], first, 1e-10)
    assert_close(served[1], late, 1e-10)


def test_where_nothing_is_back_propagated_a_step_has_one_pass_and_a_late_one():
    passes, model = [], net()
    model.register_forward_hook(lambda *_: passes.append(None))
    fisherlab.RNGD(model, "categorical").step(*batch_of("categorical"))
    assert len(passes) == 2


@pytest.mark.parametrize("name", PRESETS)
def test_running_averages_move_once_in_a_step(name):
    model = net()
    cls, options = PRESETS[name]
    optimizer = cls(model, "categorical", **options)
    for step in range(6):  # where the reduction ratio is measured, that is in the fifth
        x, y = batch_of("categorical", seed=step)
        once = copy.deepcopy(model).train()
        once(x)
        optimizer.step(x, y)
        for own, expected in zip(model.buffers(), once.buffers(), strict=True):
            assert_same_bits(own, expected)
    assert model.training


@pytest.mark.parametrize("name", [n for n in PRESETS if n not in ("sgd", "momentum", "nesterov", "adam")])
def test_in_evaluation_they_stay_and_couple_nothing(name):
    model = net().eval()
    before = [b.clone() for b in model.buffers()]
    cls, options = PRESETS[name]
    optimizer = cls(model, "categorical", **options)
    for step in range(6):
        optimizer.step(*batch_of("categorical", seed=step))
    for own, expected in zip(model.buffers(), before, strict=True):
        assert_same_bits(own, expected)
    assert not any(m.training for m in model.modules())


@pytest.mark.parametrize("name", ["kfac", "efngd", "rngd"])
def test_its_parameters_take_the_plain_gradient(name):
    model, (x, y) = net(), batch_of("categorical")
    expected = gradient_of(model, x, y)
    cls, options = PRESETS[name]
    optimizer = cls(model, "categorical", l2=0.1, **(options | {"lr_uncovered": 0.25}))
    about = optimizer.describe()
    assert about["plain_gradient"] == NORM
    assert not set(NORM) & set(about["preconditioned"])
    found = change(optimizer, x, y)
    for parameter in NORM:  # without weight decay, as biases
        assert_close(found[parameter], 0.25 * expected[parameter], 1e-10)


def test_the_reduction_ratio_takes_the_curvature_by_constants():
    model = net()
    optimizer = fisherlab.KFAC(model, "categorical", kind="exact", damping="lm", damping_start=1.0, lr=0.3)
    for step in range(5):
        before = copy.deepcopy(model)
        x, y = batch_of("categorical", seed=step)
        loss = optimizer.step(x, y)
    delta = {n: p.detach() - before.get_parameter(n).detach() for n, p in model.named_parameters()}
    slope = sum((g * delta[n]).sum() for n, g in gradient_of(before, x, y).items())
    fixed = with_constants(before, x)
    own = {n: p.detach() for n, p in fixed.named_parameters()}
    f, moved = torch.func.jvp(lambda p: torch.func.functional_call(fixed, p, (x,)), (own,), (delta,))
    p = torch.softmax(f, 1)
    form = ((p * moved**2).sum(1) - (p * moved).sum(1) ** 2).mean()
    after = nn.functional.cross_entropy(copy.deepcopy(model).train()(x), y)
    assert_close(optimizer.report["rho"], (after - loss) / (slope + 0.5 * form), 1e-9)


@pytest.mark.parametrize("name", ["kfac", "rngd"])
def test_chunks_are_refused(name):
    cls, options = PRESETS[name]
    optimizer = cls(net(), "categorical", chunk=4, **options)
    with pytest.raises(UsageError, match=r"chunk=4 .*: expected null"):
        optimizer.step(*batch_of("categorical"))


@pytest.mark.parametrize("name", ["kfac", "rngd"])
def test_torch_s_own_normalisation_is_still_refused_in_training(name):
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.BatchNorm1d(5), nn.Linear(5, 3)).double()
    cls, options = PRESETS[name]
    with pytest.raises(UsageError, match=r"'2' \(BatchNorm1d\) in training mode couples the examples"):
        cls(model, "categorical", **options).step(*batch_of("categorical"))
