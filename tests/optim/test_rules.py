"""The step rules have the bits of torch.optim, and each lane of a group those of a lone run."""

import pytest
import torch

import fisherlab
from fisherlab.optim import FisherOptimizer, Preconditioner
from fisherlab.optim.rules import _each, adam_rule, momentum_rule
from fisherlab.streams import generator
from tests.cases import batch_of, model_of, parameters
from tests.compare import assert_same_bits

SIZES = [1, 7, 16, 33, 1001, 20_003]
RULES = {
    "plain": (momentum_rule, {"momentum": 0.0, "nesterov": False}, lambda p, lr: torch.optim.SGD(p, lr)),
    "momentum": (
        momentum_rule,
        {"momentum": 0.9, "nesterov": False},
        lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9),
    ),
    "nesterov": (
        momentum_rule,
        {"momentum": 0.9, "nesterov": True},
        lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9, nesterov=True),
    ),
    "adam": (adam_rule, {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}, lambda p, lr: torch.optim.Adam(p, lr)),
    "adam, own betas": (
        adam_rule,
        {"beta1": 0.3, "beta2": 0.99, "eps": 1e-3},
        lambda p, lr: torch.optim.Adam(p, lr, betas=(0.3, 0.99), eps=1e-3),
    ),
}


def gradients(shape, dtype, steps):
    for step in range(steps):
        yield 10.0 ** -(step % 5) * torch.randn(shape, dtype=dtype, generator=generator(0, "g", step))


def apply(p, rule, g, state, **options):
    v = torch.full_like(p, torch.nan)
    c = rule(g, state, v, **options)
    p.addcmul_(v, c.unsqueeze(-1) if c.ndim else c, value=-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", RULES)
def test_a_lone_run_has_the_bits_of_torch(name, size, dtype):
    rule, options, torch_s = RULES[name]
    p = torch.randn(size, dtype=dtype, generator=generator(0, "p"))
    theirs = p.clone().requires_grad_()
    optimizer, state = torch_s([theirs], 0.013), {}
    for g in gradients(size, dtype, 60):
        theirs.grad = g.clone()
        optimizer.step()
        apply(p, rule, g, state, lr=0.013, **options)
        assert_same_bits(p, theirs.detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1, 7, 33, 1001])
@pytest.mark.parametrize("name", RULES)
def test_every_lane_of_a_group_has_the_bits_of_a_lone_run(name, size, dtype):
    rule, options, _ = RULES[name]
    lanes = 11  # more than fill a vector register
    names = [k for k in options if k != "nesterov"]
    # Momentum and betas in [0.1, 0.9], lr and eps smaller; every lane its own.
    tensors = {k: torch.linspace(0.1, 0.9, lanes, dtype=torch.float64) * (1e-3 if k == "eps" else 1) for k in names}
    lr = torch.logspace(-4, -1, lanes, dtype=torch.float64)
    p = torch.randn(lanes, size, dtype=dtype, generator=generator(0, "p"))
    alone, state, states = [row.clone() for row in p], {}, [{} for _ in range(lanes)]
    for g in gradients((lanes, size), dtype, 20):
        apply(p, rule, g, state, lr=lr, **(options | tensors))
        for i, row in enumerate(alone):
            own = {k: t[i].item() for k, t in tensors.items()}
            apply(row, rule, g[i], states[i], lr=lr[i].item(), **(options | own))
    assert_same_bits(p, torch.stack(alone))


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_adam_s_bias_correction_is_the_same_power_in_every_lane(step):
    # torch.pow rounds differently in the tail of a tensor; Python's power is the one torch.optim uses.
    betas = torch.rand(5000, dtype=torch.float64, generator=generator(0, "b"))
    found = _each(betas, lambda b: b**step)
    assert_same_bits(found, torch.tensor([b**step for b in betas.tolist()], dtype=torch.float64))


@pytest.mark.parametrize("rule", ["momentum", "adam"])
def test_a_rule_does_not_write_on_the_direction(rule):
    function, options, _ = RULES[rule]
    state, g = {}, torch.randn(10)
    for _ in range(3):
        kept = g.clone()
        function(g, state, torch.empty_like(g), lr=0.1, **options)
        assert_same_bits(g, kept)


@pytest.mark.parametrize("name", ["momentum", "nesterov", "adam"])
def test_the_optimizers_apply_the_rules_to_every_parameter(name):
    preset = {
        "momentum": lambda m: fisherlab.SGD(m, "gaussian", lr=0.05, momentum=0.9),
        "nesterov": lambda m: fisherlab.SGD(m, "gaussian", lr=0.05, momentum=0.9, nesterov=True),
        "adam": lambda m: fisherlab.Adam(m, "gaussian", lr=0.05),
    }[name]
    model = fisherlab.mlp(5, 3, hidden=(7,), activation="tanh", generator=generator(0, "init"))
    theirs = fisherlab.mlp(5, 3, hidden=(7,), activation="tanh", generator=generator(0, "init"))
    ours, torch_s = preset(model), RULES[name][2](theirs.parameters(), 0.05)
    for step in range(20):
        x, y = (torch.randn(6, k, generator=generator(k, "xy", step)) for k in (5, 3))
        ours.step(x, y)
        # Equal gradients: that of half the squared residual, back-propagated as 1/B of the residual.
        f = theirs(x)
        grads = torch.autograd.grad(f, list(theirs.parameters()), (f.detach() - y) / 6)
        for p, g in zip(theirs.parameters(), grads, strict=True):
            p.grad = g
        torch_s.step()
        for p, q in zip(model.parameters(), theirs.parameters(), strict=True):
            assert_same_bits(p, q)


@pytest.mark.parametrize(("rule", "preset"), [("momentum", fisherlab.SGD), ("adam", fisherlab.Adam)])
def test_options_that_are_not_given_are_the_presets(rule, preset):
    one, two, (x, y) = model_of(), model_of(), batch_of("categorical")
    FisherOptimizer(one, "categorical", lr=0.1, rule=rule).step(x, y)
    preset(two, "categorical", lr=0.1).step(x, y)
    assert_same_bits(parameters(one), parameters(two))


def test_a_preconditioner_needs_none_of_them():
    one, two, (x, y) = model_of(), model_of(), batch_of("categorical")
    chosen = Preconditioner("exact", "kronecker")
    FisherOptimizer(one, "categorical", lr=0.1, preconditioner=chosen, damping=0.1).step(x, y)
    fisherlab.NaturalGradient(two, "categorical", lr=0.1, damping=0.1, structure="kronecker").step(x, y)
    assert_same_bits(parameters(one), parameters(two))


def test_momentum_that_is_switched_off_and_on_again_is_torch_s():
    one = torch.randn(33, generator=generator(0, "p"))
    two, state, v = one.clone().requires_grad_(), {}, torch.empty_like(one)
    optimizer = torch.optim.SGD([two], 0.1, momentum=0.9)
    for g, momentum in zip(gradients(33, torch.float32, 4), (0.9, 0.9, 0.0, 0.9), strict=True):
        optimizer.param_groups[0]["momentum"], two.grad = momentum, g.clone()
        optimizer.step()
        c = momentum_rule(g, state, v, lr=0.1, momentum=momentum)
        one.addcmul_(v, c, value=-1)
    assert_same_bits(one, two.detach())
