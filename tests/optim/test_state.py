"""A saved and restored optimizer goes on bit for bit."""

import copy
import io
import itertools
import pickle

import pytest
import torch

import fisherlab
from fisherlab.errors import UsageError
from fisherlab.optim.state import mapped, part
from tests.cases import PRESETS, batch_of, model_of, parameters
from tests.compare import assert_same_bits

NAMES = [*PRESETS]


def make(name, model, **options):
    cls, preset = PRESETS[name]
    return cls(model, "categorical", l2=1e-3, **(preset | options))


def steps(optimizer, start, stop):
    return torch.stack(
        [optimizer.step(*batch_of("categorical", seed=s, dtype=torch.float32)) for s in range(start, stop)]
    )


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("cut", [1, 3])  # in the middle of a period, and at its end
@pytest.mark.parametrize("name", NAMES)
def test_resumed_is_uninterrupted(name, cut):
    model = model_of().float()
    optimizer = make(name, model, seed=4)
    steps(optimizer, 0, cut)
    saved = through_a_file({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    expected = steps(optimizer, cut, cut + 5)

    fresh = model_of(seed=1).float()
    fresh.load_state_dict(saved["model"])
    resumed = make(name, fresh, seed=4)
    resumed.load_state_dict(saved["optimizer"])
    assert_same_bits(steps(resumed, cut, cut + 5), expected)
    assert_same_bits(parameters(fresh), parameters(model))


@pytest.mark.parametrize("name", NAMES)
def test_a_state_is_a_snapshot_both_ways(name):
    model = model_of().float()
    optimizer = make(name, model)
    steps(optimizer, 0, 2)
    state = optimizer.state_dict()
    kept = through_a_file(state)
    steps(optimizer, 2, 4)  # must not reach the state that was taken
    other = make(name, model_of(seed=1).float())
    other.load_state_dict(state)
    steps(other, 2, 4)  # nor must the optimizer that was given it
    assert tensors(state)
    for one, old in zip(tensors(state), tensors(kept), strict=True):
        assert_same_bits(one, old)


def tensors(state):
    if isinstance(state, torch.Tensor):
        return [state]
    if isinstance(state, dict):
        return list(itertools.chain.from_iterable(map(tensors, state.values())))
    if isinstance(state, list):
        return list(itertools.chain.from_iterable(map(tensors, state)))
    return [torch.tensor(state)] if isinstance(state, (int, float)) else []


@pytest.mark.parametrize("name", ["momentum", "kfac"])
def test_a_scheduled_run_goes_on(name):
    def scheduled(model):
        optimizer = make(name, model)
        return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=8)

    def go(optimizer, scheduler, start, stop):
        for s in range(start, stop):
            steps(optimizer, s, s + 1)
            scheduler.step()

    model = model_of().float()
    optimizer, scheduler = scheduled(model)
    go(optimizer, scheduler, 0, 3)
    saved = through_a_file([model.state_dict(), optimizer.state_dict(), scheduler.state_dict()])
    go(optimizer, scheduler, 3, 6)
    fresh = model_of(seed=1).float()
    fresh.load_state_dict(saved[0])
    resumed, other = scheduled(fresh)
    resumed.load_state_dict(saved[1])
    other.load_state_dict(saved[2])
    go(resumed, other, 3, 6)
    assert_same_bits(parameters(fresh), parameters(model))


def test_hyper_parameters_of_replicas_travel_too():
    lr = torch.tensor([[0.1, 0.2]], dtype=torch.float64)

    def make_group(scale):
        model = fisherlab.stack_replicas([fisherlab.mlp(4, 3, hidden=(5,))] * 2, (1, 2))
        return fisherlab.KFAC(model, "categorical", lr=scale * lr, damping=scale * lr, seed=[0])

    first, second, third = make_group(1.0), make_group(2.0), make_group(3.0)
    state = first.state_dict()
    second.load_state_dict(through_a_file(state))
    third.load_state_dict(state)
    first.param_groups[0]["lr"].mul_(5)  # must not reach the snapshot, nor who was given it
    for optimizer in (second, third):
        assert torch.equal(optimizer.param_groups[0]["lr"], lr)
        assert torch.equal(optimizer.param_groups[0]["damping"], lr)
    third.param_groups[0]["lr"].mul_(5)
    assert torch.equal(state["param_groups"][0]["lr"], lr)


OTHERS = {
    "rule": ("momentum", "adam", {}, "expected rule=adam, got rule=momentum"),
    "preconditioner": ("kfac", "momentum", {}, "expected kind=None, got kind=mc"),
    "kind": ("kfac", "kfac-exact", {}, "expected kind=exact, got kind=mc"),
    "structure": ("gram-exact", "full", {}, "expected structure=full, got structure=gram"),
    "damping mode": ("kfac-exact", "kfac-exact", {"damping_mode": "tikhonov"}, "expected damping_mode=tikhonov, got"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_state_of_something_else_is_refused_and_the_difference_named(case):
    source, target, options, message = OTHERS[case]
    with pytest.raises(UsageError, match=f"does not fit: {message}"):
        make(target, model_of(), **options).load_state_dict(make(source, model_of()).state_dict())


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ((4, 6, 3), r"expected plain 'layer0.weight' \(6, 4\), got plain 'layer0.weight' \(5, 4\)"),
        ((4, 5, 3, 3), r"expected plain 'layer2.weight' \(3, 3\), got nothing more"),
        ((4, 5), r"expected nothing more, got plain 'layer1.weight' \(3, 5\)"),
    ],
)
def test_a_state_of_another_model_is_refused_and_the_parameter_named(widths, message):
    state = make("momentum", model_of()).state_dict()
    with pytest.raises(UsageError, match=message):
        make("momentum", model_of(widths=widths)).load_state_dict(state)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["copy", "pickle"])
@pytest.mark.parametrize("name", NAMES)
def test_a_copy_goes_on_by_itself(name, copied):
    optimizer = make(name, model_of().float())
    torch.optim.lr_scheduler.StepLR(optimizer, 1)  # wraps `step` on the instance
    steps(optimizer, 0, 2)
    other = copied(optimizer)
    before = parameters(optimizer.model)
    found = steps(other, 2, 5)
    assert_same_bits(parameters(optimizer.model), before)
    assert_same_bits(steps(optimizer, 2, 5), found)
    assert_same_bits(parameters(other.model), parameters(optimizer.model))


def test_an_unknown_format_is_refused():
    optimizer = make("kfac", model_of())
    with pytest.raises(UsageError, match="does not fit"):
        optimizer.load_state_dict(optimizer.state_dict() | {"format": 0})


def group_of(name, count):
    models = [model_of(seed=i).float() for i in range(count)]
    return make(name, fisherlab.stack_replicas(models, (1, count)), seed=[0])


def group_steps(optimizer, start, stop):
    found = []
    for s in range(start, stop):
        x, y = batch_of("categorical", seed=s, dtype=torch.float32)
        found.append(optimizer.step(x[None, None], y[None, None]))
    return torch.stack(found)


@pytest.mark.parametrize("name", NAMES)
def test_some_replicas_of_a_group_go_on_without_the_others(name):
    """As a sweep does where the others have ended."""
    whole, places = group_of(name, 3), [[0], [0, 2]]
    group_steps(whole, 0, 3)
    rest = group_of(name, 2)
    for p, given in zip(rest.model.parameters(), whole.model.parameters(), strict=True):
        p.data.copy_(part(given.data, places, (1, 3)))
    with pytest.raises(UsageError, match=r"expected replica axes \(1, 2\), got \(1, 3\)"):
        rest.load_state_dict(whole.state_dict())
    rest.load_state_dict(mapped(whole.state_dict(), lambda t: part(t, places, (1, 3)).clone()))
    found, expected = group_steps(rest, 3, 8), group_steps(whole, 3, 8)
    assert_same_bits(found, expected[..., [0, 2]])
    for p, given in zip(rest.model.parameters(), whole.model.parameters(), strict=True):
        assert_same_bits(p.data, part(given.data, places, (1, 3)))


def test_a_part_is_laid_out_as_the_whole():
    # BLAS may sum in another order where a factor is transposed in memory.
    for axes in itertools.permutations(range(4)):
        whole = torch.randn(2, 3, 4, 5).permute(axes).contiguous().permute([axes.index(i) for i in range(4)])
        found = part(whole, [[1, 0], [0, 2]], (2, 3))
        assert_same_bits(found, whole.flip(0)[:, [0, 2]])
        order = [found.stride(i) for i in sorted(range(4), key=whole.stride)]
        assert order == sorted(order)
