"""What a step is: gradient, L2, damping, clipping, learning rates, uncovered parameters."""

import itertools
import warnings

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

import fisherlab
from fisherlab.errors import SolveError, UsageError
from fisherlab.optim import FisherOptimizer, Preconditioner, failing
from tests.cases import (
    KINDS,
    LAYERS,
    LIKELIHOODS,
    NATURAL,
    PRESETS,
    batch_of,
    direction,
    label_noise,
    model_of,
    parameters,
)
from tests.compare import assert_close, assert_same_bits
from tests.reference import Twin, damped_solve, flatten


def natural(model, likelihood, **options):
    return fisherlab.NaturalGradient(model, likelihood, **({"lr": 1.0} | options))


def weights_only(model):
    """The parameters with biases set to zero."""
    return flatten(model, {k: v.detach() * ("bias" not in k) for k, v in model.named_parameters()})


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("structure", ["gram", "full", "smaller", "factored", "tikhonov"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_direction_is_the_twin_s(likelihood, structure, kind, layer):
    model, (x, y), damping = model_of(layer), batch_of(likelihood), 0.03
    kronecker = structure in ("factored", "tikhonov")
    chosen = {"structure": "kronecker", "damping_mode": structure} if kronecker else {"structure": structure}
    optimizer = natural(model, likelihood, kind=kind, damping=damping, samples=2, seed=5, **chosen)
    twin, noise = Twin(model, likelihood, x, y), label_noise(optimizer, x)
    if kronecker:
        expected = torch.linalg.solve(twin.kronecker_blocks(kind, damping, structure, noise), twin.gradient)
    else:
        expected = damped_solve(twin.fisher(kind, noise), damping, twin.gradient)
    assert_close(direction(optimizer, x, y), expected, 1e-9)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_step_returns_the_loss_before_it_and_training_lowers_it(likelihood, name):
    cls, options = PRESETS[name]
    model, (x, y) = model_of(), batch_of(likelihood)
    optimizer = cls(model, likelihood, **options)
    losses = []
    for _ in range(15):
        expected = Twin(model, likelihood, x, y).loss
        losses.append(optimizer.step(x, y))
        assert_close(losses[-1], expected, 1e-13)
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("name", ["sgd", "efngd"])
def test_l2_adds_its_gradient_and_the_loss_stays_the_data_s(name, biases):
    model, (x, y) = model_of(), batch_of("categorical")
    cls = PRESETS[name][0]
    twin, penalised = Twin(model, "categorical", x, y), parameters(model) if biases else weights_only(model)
    damped = {"damping": 1e12, "l2_in_curvature": False} if name == "efngd" else {}
    optimizer = cls(model, "categorical", lr=1.0, l2=0.3, l2_biases=biases, **damped)
    step = direction(optimizer, x, y) if name == "sgd" else None
    if name == "efngd":  # at large damping the step is the gradient over lambda: read the gradient itself
        optimizer.step(x, y)
        step = flatten(model, dict(zip(optimizer.param_groups[0]["names"], parts(optimizer), strict=True)))
    assert_close(step, twin.gradient + 0.3 * penalised, 1e-12)


def parts(optimizer):
    params = optimizer.param_groups[0]["params"]
    return [
        g.view(p.shape) for g, p in zip(optimizer.gradients[0].split([p.numel() for p in params]), params, strict=True)
    ]


@pytest.mark.parametrize("in_curvature", [True, False])
@pytest.mark.parametrize("structure", ["gram", "full", "factored", "tikhonov"])
def test_l2_enters_the_curvature_when_asked(structure, in_curvature):
    model, (x, y), damping, l2 = model_of(), batch_of("bernoulli"), 0.05, 0.02
    kronecker = structure in ("factored", "tikhonov")
    chosen = {"structure": "kronecker", "damping_mode": structure} if kronecker else {"structure": structure}
    optimizer = natural(
        model, "bernoulli", kind="exact", damping=damping, l2=l2, l2_in_curvature=in_curvature, **chosen
    )
    twin = Twin(model, "bernoulli", x, y)
    gradient, shift = twin.gradient + l2 * weights_only(model), damping + l2 * in_curvature
    if kronecker:
        expected = torch.linalg.solve(twin.kronecker_blocks("exact", shift, structure), gradient)
    else:
        expected = damped_solve(twin.fisher("exact"), shift, gradient)
    assert_close(direction(optimizer, x, y), expected, 1e-9)


@pytest.mark.parametrize("structure", ["gram", "kronecker"])
def test_kl_clip_holds_the_step_to_its_bound(structure):
    (x, y), damping, lr, kappa = batch_of("categorical"), 0.05, 0.5, 1e-3
    free, model = model_of(), model_of()
    options = {"structure": structure, "kind": "exact", "damping": damping, "lr": lr}
    v = direction(natural(free, "categorical", **options), x, y) / lr
    twin = Twin(model, "categorical", x, y)
    form = lr**2 * (v @ twin.gradient).item()
    assert form > kappa
    clipped = direction(natural(model, "categorical", kl_clip=kappa, **options), x, y) / lr
    assert_close(clipped, v * (kappa / form) ** 0.5, 1e-10)
    if structure == "gram":  # where the solve is exact, that is v^T (F + lambda I) v
        damped = twin.fisher("exact") + damping * torch.eye(len(v), dtype=torch.float64)
        assert lr**2 * (clipped @ damped @ clipped).item() == pytest.approx(kappa, rel=1e-9)


def test_a_loose_kl_clip_changes_no_bit():
    x, y = batch_of("categorical")
    one, two = model_of(), model_of()
    natural(one, "categorical").step(x, y)
    natural(two, "categorical", kl_clip=1e6).step(x, y)
    assert_same_bits(parameters(one), parameters(two))


@pytest.mark.parametrize("name", ["momentum", "adam", "kfac", "efngd"])
@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: lr_scheduler.StepLR(o, step_size=2, gamma=0.1),
        lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
        lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=6),
    ],
    ids=["step", "lambda", "cosine"],
)
def test_torch_s_schedulers_drive_the_learning_rate(name, schedule):
    x, y = batch_of("categorical")
    reference = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.2)
    cls, options = PRESETS[name]
    model, by_hand = model_of(), model_of()
    scheduled = cls(model, "categorical", **(options | {"lr": 0.2}))
    manual = cls(by_hand, "categorical", **(options | {"lr": 0.2}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler, expected = schedule(scheduled), schedule(reference)
        rates = []
        for _ in range(6):
            rates.append(reference.param_groups[0]["lr"])
            manual.param_groups[0]["lr"] = rates[-1]
            scheduled.step(x, y)
            manual.step(x, y)
            assert_same_bits(parameters(model), parameters(by_hand))
            scheduler.step()
            reference.step()
            expected.step()
    assert len(set(rates)) >= 3


def test_the_learning_rate_scales_the_step():
    x, y = batch_of("categorical")
    steps = [direction(natural(model_of(), "categorical", lr=lr), x, y) for lr in (1.0, 0.25)]
    assert_close(4 * steps[1], steps[0], 1e-12)


@pytest.mark.parametrize("own", [0.7, None])
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_uncovered_parameters_take_the_plain_gradient(momentum, own):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, y = batch_of("categorical")
    optimizer = fisherlab.KFAC(
        model, "categorical", lr=0.2, momentum=momentum, lr_uncovered=own, l2=0.1, l2_biases=True, kind="exact"
    )
    assert [group["lr"] for group in optimizer.param_groups] == [0.2, own or 0.2]
    buffers = [torch.zeros(5, dtype=torch.float64) for _ in range(2)]
    for _ in range(3):
        norm = model[1]
        grads = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), list(norm.parameters()))
        old = [p.detach().clone() for p in norm.parameters()]
        optimizer.step(x, y)
        for i, (p, before, g) in enumerate(zip(norm.parameters(), old, grads, strict=True)):
            buffers[i] = momentum * buffers[i] + g + 0.1 * before
            assert_close(p.detach(), before - (own or 0.2) * buffers[i], 1e-12)


def test_covered_parameters_do_not_feel_the_uncovered_ones():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 5), nn.LayerNorm(5, elementwise_affine=True), nn.Tanh(), nn.Linear(5, 3)
    ).double()
    x, y = batch_of("categorical")
    options = {"structure": "gram", "kind": "exact", "damping": 0.03}
    expected = Twin(model, "categorical", x, y)
    covered = [i for i, (n, _) in enumerate(model.named_parameters()) if not n.startswith("1.")]
    before = [p.detach().clone() for p in model.parameters()]
    natural(model, "categorical", **options).step(x, y)
    assert_close(
        flatten(
            model, {n: before[i] - p.detach() for i, (n, p) in enumerate(model.named_parameters()) if i in covered}
        ),
        damped_solve(expected.fisher("exact"), 0.03, expected.gradient),
        1e-9,
    )


def test_description_names_the_fisher_and_what_it_covers():
    model = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 3))
    assert fisherlab.KFAC(model, "categorical").describe() == {
        "rule": "momentum",
        "likelihood": "categorical",
        "kind": "mc",
        "structure": "kronecker",
        "damping_mode": "factored",
        "scale": "mean over examples",
        "preconditioned": ["0.weight", "0.bias", "2.weight", "2.bias"],
        "plain_gradient": ["1.weight", "1.bias"],
    }
    assert fisherlab.EFNGD(model, "categorical").describe()["kind"] == "empirical"
    assert fisherlab.Adam(model, "bernoulli").describe() == {"rule": "adam", "likelihood": "bernoulli"}


@pytest.mark.parametrize("kind", ["exact", "empirical"])
@pytest.mark.parametrize("structure", ["gram", "full", "kronecker"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_duplicated_examples_change_no_step(likelihood, structure, kind):
    x, y = batch_of(likelihood)
    steps = [
        direction(natural(model_of(), likelihood, structure=structure, kind=kind, damping=0.01), *batch)
        for batch in ((x, y), (torch.cat([x, x]), torch.cat([y, y])))
    ]
    assert_close(steps[1], steps[0], 1e-9)


@pytest.mark.parametrize("name", NATURAL)
def test_norms_are_those_of_the_gradient_and_the_update(name):
    cls, options = PRESETS[name]
    model, (x, y) = model_of(), batch_of("categorical")
    optimizer = cls(model, "categorical", l2=0.1, **options)
    optimizer.record_norms = True
    for _ in range(2):
        gradient = Twin(model, "categorical", x, y).gradient + 0.1 * weights_only(model)
        update = direction(optimizer, x, y)
        assert_close(optimizer.report["grad_norm"], gradient.norm(), 1e-12)
        assert_close(optimizer.report["update_norm"], update.norm(), 1e-9)


@pytest.mark.parametrize("mode", ["factored", "tikhonov"])
def test_a_dead_relu_layer_does_no_harm(mode):
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.fill_(-1)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = fisherlab.KFAC(model, "categorical", damping_mode=mode)
    for _ in range(3):
        optimizer.step(*batch_of("categorical"))
    assert all(p.isfinite().all() for p in model.parameters())
    assert [not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True)] == [
        False,
        False,
        False,
        True,
    ]


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ({"structure": "gram", "kind": "empirical"}, "gram matrix could"),
        ({"structure": "full", "kind": "exact"}, "full matrix could"),
        ({"structure": "kronecker", "kind": "exact"}, "kronecker matrix of layer 'layer0' could"),
        (
            {"structure": "kronecker", "kind": "exact", "damping_mode": "tikhonov"},
            "kronecker matrix of layer 'layer0' could",
        ),
    ],
)
def test_a_singular_matrix_is_an_error_that_names_step_and_damping(options, place):
    x, y = (torch.cat([t, t]) for t in batch_of("categorical", batch=2))
    model = model_of()
    optimizer = natural(model, "categorical", damping=1.0, **options)
    optimizer.step(x, y)
    optimizer.param_groups[0]["damping"] = 0.0
    before = parameters(model)
    with pytest.raises(SolveError) as error:
        optimizer.step(x, y)
    assert place in str(error.value)
    assert "at step 1," in str(error.value)
    assert error.value.step == 1
    assert "damping=0.0" in str(error.value)
    assert_same_bits(parameters(model), before)


@pytest.mark.parametrize("name", ["efngd", "full", "kfac", "kfac-tikhonov"])
def test_after_a_failure_a_larger_damping_goes_on(name):
    x, y = (torch.cat([t, t]) for t in batch_of("categorical", batch=2))
    cls, options = PRESETS[name]
    options = options | {"kind": "empirical", "damping": 0.0}
    options |= {"inverse_period": 10} if "kfac" in name else {}
    model, fresh = model_of(), model_of()
    optimizer = cls(model, "categorical", **options)
    with pytest.raises(SolveError, match="at step 0"):
        optimizer.step(x, y)
    optimizer.param_groups[0]["damping"] = 1.0
    optimizer.step(x, y)
    cls(fresh, "categorical", **(options | {"damping": 1.0})).step(x, y)
    assert_close(parameters(model), parameters(fresh), 1e-12)
    if "kfac" in name:  # and the period is as before
        kept = optimizer.preconditioner.structure._prepared
        optimizer.step(x, y)
        assert optimizer.preconditioner.structure._prepared is kept


def test_the_message_of_a_failure_names_the_whole_damping():
    optimizer = natural(model_of(), "categorical", structure="full", damping=0.25, l2=0.5)
    assert "(damping=0.25, and l2=0.5 in the curvature)" in str(failing.failure(optimizer, 0, 0, ()))


def test_values_that_are_not_finite_are_an_error_too():
    model, (x, y) = model_of(), batch_of("categorical")
    with pytest.raises(SolveError, match="at step 0"):
        natural(model, "categorical").step(x * float("nan"), y)


def test_plain_optimizers_take_models_that_a_capture_refuses():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Linear(4, 3)).double()
    model[2].weight = model[0].weight
    x, y = batch_of("categorical")
    expected = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), list(model.parameters()))
    before = [p.detach().clone() for p in model.parameters()]
    fisherlab.SGD(model, "categorical", lr=1.0).step(x, y)
    steps = [(old - p.detach()).flatten() for p, old in zip(model.parameters(), before, strict=True)]
    assert_close(torch.cat(steps), torch.cat([g.flatten() for g in expected]), 1e-12)
    with pytest.raises(UsageError, match="share a parameter"):
        fisherlab.KFAC(model, "categorical")


def test_the_four_choices_compose_freely():
    x, y = batch_of("categorical")
    for kind, structure, rule in itertools.product(KINDS, ("gram", "full", "kronecker"), ("momentum", "adam")):
        options = (
            {"momentum": 0.5, "nesterov": False} if rule == "momentum" else {"beta1": 0.9, "beta2": 0.99, "eps": 1e-8}
        )
        model = model_of()
        before = parameters(model)
        preconditioner = Preconditioner(kind, structure)
        FisherOptimizer(
            model, "categorical", lr=0.1, rule=rule, rule_options=options, preconditioner=preconditioner, damping=0.1
        ).step(x, y)
        assert not torch.equal(parameters(model), before)


def test_gram_refuses_undamped_l2_outside_the_curvature():
    model = nn.Sequential(nn.Linear(3, 2))
    with pytest.raises(UsageError, match="damping=0 with l2 outside the curvature"):
        fisherlab.EFNGD(model, "categorical", damping=0.0, l2=0.1, l2_in_curvature=False)
