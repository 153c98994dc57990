"""A run has the same bits alone and inside any group, however cut; a bad lane disturbs nobody.

Alone means replica axes (1, 1). Single precision, one thread, MKL_CBWR=AUTO,STRICT (tests/conftest.py).
"""

import pytest
import torch

import fisherlab
from fisherlab.models import mlp, stack_replicas
from fisherlab.streams import generator
from tests.cases import LIKELIHOODS, NATURAL, PRESETS
from tests.compare import assert_same_bits

STREAMS, LANES, STEPS = 3, 4, 5
WHOLE = (slice(None), slice(None))
SMALL, ODD = (5, 7, (6, 5), 3), (31, 33, (17, 18), 10)  # batch, inputs, hidden, outputs
SHAPE = (STREAMS, LANES)


def spread(low, high):
    """One value per replica."""
    return torch.logspace(low, high, STREAMS * LANES, dtype=torch.float64).view(SHAPE)


def batches(likelihood, size):
    batch, inputs, _, outputs = size
    for step in range(STEPS):
        x = torch.randn(STREAMS, 1, batch, inputs, generator=generator(0, "x", step))
        source = generator(0, "y", step)
        if likelihood == "categorical":
            yield x, torch.randint(outputs, (STREAMS, 1, batch), generator=source)
        elif likelihood == "bernoulli":
            yield x, torch.randint(2, (STREAMS, 1, batch, outputs), generator=source).float()
        else:
            yield x, torch.randn(STREAMS, 1, batch, outputs, generator=source)


def hyper(name, cut):
    """Hyper-parameters that differ from lane to lane."""
    options = {"lr": spread(-2, -0.5), "l2": spread(-4, -2)}
    options |= {"beta1": spread(-1, -0.1)} if name == "adam" else {"momentum": spread(-1, -0.1)}
    if name in NATURAL:
        policy = isinstance(PRESETS[name][1].get("damping"), str)
        options["damping_start" if policy else "damping"] = spread(-2, 0)
        if name in ("kfac", "gram-exact"):
            options["kl_clip"] = spread(-3, -1)
    return {k: v[cut] for k, v in options.items()}


def run(name, likelihood, size, activation, cut=WHOLE, spoil=None, norm="none", **more):
    """Train the part of the group that `cut` names; everything that came out, per replica."""
    _, inputs, hidden, outputs = size
    streams, lanes = (range(n)[c] for n, c in zip(SHAPE, cut, strict=True))
    options = {"hidden": hidden, "activation": activation, "batch_norm": norm}
    models = [
        mlp(inputs, outputs, **options, generator=generator(LANES * s + h, "init")) for s in streams for h in lanes
    ]
    model = stack_replicas(models, (len(streams), len(lanes)))
    cls, options = PRESETS[name]
    optimizer = cls(model, likelihood, seed=list(streams), **(options | hyper(name, cut) | more))
    optimizer.record_norms = True
    if spoil is not None:
        spoil(optimizer)
    record = []
    for x, y in batches(likelihood, size):
        loss = optimizer.step(x[cut[0]], y[cut[0]])
        record += [loss, optimizer.report["grad_norm"], optimizer.report["update_norm"]]
    flat = [p.detach().flatten(2) for p in (*model.parameters(), *model.buffers())]
    return torch.cat([torch.stack(record, -1), *flat], -1), optimizer


CUTS = [(slice(s, s + 1), slice(h, h + 1)) for s in range(STREAMS) for h in range(LANES)]
CUTS += [(slice(0, 2), slice(1, 3)), (slice(1, 3), slice(0, 1)), (slice(2, 3), slice(None))]


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("name", PRESETS)
def test_every_run_has_its_own_bits_in_any_group(name, likelihood):
    activation = {"categorical": "tanh", "bernoulli": "logistic", "gaussian": "elu"}[likelihood]
    whole, _ = run(name, likelihood, SMALL, activation)
    assert whole.isfinite().all()
    for cut in CUTS:
        assert_same_bits(run(name, likelihood, SMALL, activation, cut)[0], whole[cut])


@pytest.mark.parametrize("name", [n for n in PRESETS if n != "full"])
def test_so_it_has_with_larger_odd_shapes(name):
    whole, _ = run(name, "categorical", ODD, "relu")
    assert whole.isfinite().all()
    for cut in CUTS[:: LANES + 1]:
        assert_same_bits(run(name, "categorical", ODD, "relu", cut)[0], whole[cut])


@pytest.mark.parametrize("name", PRESETS)
def test_so_it_has_with_batch_normalisation(name):
    whole, _ = run(name, "categorical", SMALL, "relu", norm="after")
    assert whole.isfinite().all()
    for cut in CUTS[:: LANES + 1]:
        assert_same_bits(run(name, "categorical", SMALL, "relu", cut, norm="after")[0], whole[cut])


@pytest.mark.parametrize("hidden", [(), (20,)])
@pytest.mark.parametrize("name", PRESETS)
def test_so_it_has_with_a_single_output(name, hidden):
    # Products with one row or column: BLAS takes another way for these, and sums in another order.
    size = (201, 61, hidden, 1)
    whole, _ = run(name, "bernoulli", size, "relu")
    assert whole.isfinite().all()
    for cut in CUTS[:: LANES + 1]:
        assert_same_bits(run(name, "bernoulli", size, "relu", cut)[0], whole[cut])


# Where a processor's BLAS was found to sum otherwise: one unit, one input, few of both, many layers, chunks.
NARROW = {
    "one unit": ("sgd", "gaussian", (65, 40, (1,), 17), {}),
    "one input": ("kfac", "categorical", (33, 1, (11, 18), 12), {}),
    "few inputs": ("sgd", "bernoulli", (33, 7, (17,), 2), {}),
    "quadratic model": ("martens", "categorical", (12, 12, (), 10), {}),
    "quadratic model, chunks": ("martens", "categorical", (12, 1, (11, 18), 12), {"chunk": 7}),
    "quadratic model, many cases": ("martens", "categorical", (33, 12, (6,), 4), {}),
    "five traces": ("kfac-settling", "categorical", (9, 40, (5, 2, 12, 12), 3), {}),
    "five chunks": ("efngd", "categorical", (65, 5, (3,), 3), {"chunk": 13}),
}


@pytest.mark.parametrize("case", NARROW)
def test_so_it_has_in_narrow_and_in_deep_nets(case, monkeypatch):
    name, likelihood, size, more = NARROW[case]
    if name == "martens":
        monkeypatch.setitem(PRESETS, name, (fisherlab.KFACMartens, {"damping_start": 1.0}))
        monkeypatch.setattr(f"{__name__}.hyper", lambda _, cut: {"l2": spread(-4, -2)[cut]})
    whole, _ = run(name, likelihood, size, "tanh", **more)
    assert whole.isfinite().all()
    for cut in CUTS[:: LANES + 1]:
        assert_same_bits(run(name, likelihood, size, "tanh", cut, **more)[0], whole[cut])


BAD = (1, 2)


def weights_nan(optimizer):
    with torch.no_grad():
        optimizer.param_groups[0]["params"][0][BAD] = float("nan")


def weights_huge(optimizer):
    with torch.no_grad():
        optimizer.param_groups[0]["params"][0][BAD] = 1e30


def rate_huge(optimizer):
    optimizer.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"].clone()
    optimizer.param_groups[0]["lr"][BAD] = 1e25


def no_damping(optimizer):
    optimizer.param_groups[0]["damping"] = optimizer.param_groups[0]["damping"].clone()
    optimizer.param_groups[0]["damping"][BAD] = 0.0


def hardly_any_damping(optimizer):
    optimizer.param_groups[0]["damping"] = optimizer.param_groups[0]["damping"].clone()
    optimizer.param_groups[0]["damping"][BAD] = 1e-13


@pytest.mark.parametrize("spoil", [weights_nan, weights_huge, rate_huge, no_damping, hardly_any_damping])
@pytest.mark.parametrize("name", PRESETS)
def test_a_lane_gone_wrong_changes_no_bit_of_the_others(name, spoil):
    if "damping" in spoil.__name__ and (name not in NATURAL or isinstance(PRESETS[name][1].get("damping"), str)):
        pytest.skip("has no damping, or a policy that sets it")
    likelihood, activation = "bernoulli", "relu"
    good, _ = run(name, likelihood, SMALL, activation, l2=0.0)
    spoiled, optimizer = run(name, likelihood, SMALL, activation, l2=0.0, spoil=spoil)
    others = torch.ones(SHAPE, dtype=torch.bool)
    others[BAD] = False
    assert_same_bits(spoiled[others], good[others])
    assert not torch.equal(spoiled[BAD], good[BAD])
    if name in NATURAL:
        step, block = optimizer.preconditioner.failures()
        step = step.broadcast_to(SHAPE)
        assert (step[others] == -1).all()
        if spoil is weights_nan:
            assert step[BAD] == 0
            assert 0 <= block.broadcast_to(SHAPE)[BAD] < 3


def test_a_group_s_failure_is_found_on_request_and_named():
    _, optimizer = run("kfac", "categorical", SMALL, "tanh", spoil=weights_nan)
    with pytest.raises(fisherlab.errors.SolveError, match=r"of layer 'layer\d' could not be factorised at step 0"):
        optimizer.check()


def test_a_failing_lane_of_a_group_does_not_stop_the_group():
    whole, _ = run("kfac", "categorical", SMALL, "tanh", spoil=weights_nan)
    assert whole.isfinite().all(-1).sum() == STREAMS * LANES - 1
