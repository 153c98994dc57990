"""Iterate averaging, and Nesterov's gradient with its momentum schedule."""

import pytest
import torch

from fisherlab import KFAC, NAG, SGD
from fisherlab.errors import UsageError
from fisherlab.optim.averaging import Average
from tests.cases import batch_of, model_of
from tests.compare import assert_close, assert_same_bits


def test_the_average_is_the_mean_until_xi_bounds_it():
    average, theta, seen = Average(0.75, start=2), torch.zeros(2), []
    for k in range(1, 9):
        theta = theta + k
        average.update([theta])
        seen.append(theta.clone())
        if k < 3:
            assert not average.values
        elif k <= 6:  # 1 - 1/j <= 3/4
            assert_close(average.values[0], torch.stack(seen[2:]).mean(0), 1e-6)
    expected = torch.stack(seen[2:6]).mean(0)
    for one in seen[6:]:
        expected = 0.75 * expected + 0.25 * one
    assert_close(average.values[0], expected, 1e-6)


@pytest.mark.parametrize("xi", [0, 1, 1.5, True, "a"])
def test_xi_lies_between_0_and_1(xi):
    with pytest.raises(UsageError, match=r"average=.* is out of range: expected a number between 0 and 1, or null"):
        SGD(model_of("dense"), "categorical", average=xi)


def test_the_average_takes_the_parameters_place_for_a_while():
    model, (x, y) = model_of("dense"), batch_of("categorical")
    optimizer = KFAC(model, "categorical", average=0.9)
    for _ in range(3):
        optimizer.step(x, y)
    own = [p.detach().clone() for p in model.parameters()]
    with optimizer.average.swapped(optimizer.parameters):
        assert not any(torch.equal(p, q) for p, q in zip(model.parameters(), own, strict=True))
        assert_same_bits(optimizer.parameters[0].detach(), optimizer.average.values[0])
    for p, q in zip(model.parameters(), own, strict=True):
        assert_same_bits(p.detach(), q)


def test_averaging_changes_no_bit_of_the_training_and_is_saved():
    (x, y), models = batch_of("categorical"), [model_of("dense") for _ in range(3)]
    plain, first, second = (KFAC(m, "categorical", average=a) for m, a in zip(models, (None, 0.9, 0.9), strict=True))
    for _ in range(4):
        assert_same_bits(first.step(x, y), plain.step(x, y))
    models[2].load_state_dict(models[1].state_dict())
    second.load_state_dict(first.state_dict())
    for _ in range(3):
        first.step(x, y), second.step(x, y)
    for a, b in zip(first.average.values, second.average.values, strict=True):
        assert_same_bits(a, b)


@pytest.mark.parametrize(("step", "expected"), [(0, 0.5), (249, 0.5), (250, 0.75), (500, 1 - 1 / 6), (10_000, 0.95)])
def test_nag_has_the_schedule_of_sutskever_et_al(step, expected):
    optimizer = NAG(model_of("dense"), "categorical", lr=0.1, momentum=0.95)
    optimizer.steps = step
    optimizer.step(*batch_of("categorical"))
    assert optimizer.param_groups[0]["momentum"] == pytest.approx(expected)


def test_nag_is_torch_s_nesterov_at_equal_momentum():
    (x, y), models = batch_of("categorical"), [model_of("dense") for _ in range(2)]
    own = NAG(models[0], "categorical", lr=0.1, momentum=0.5)
    theirs = torch.optim.SGD(models[1].parameters(), lr=0.1, momentum=0.5, nesterov=True)
    for _ in range(4):
        own.step(x, y)
        theirs.zero_grad()
        torch.nn.functional.cross_entropy(models[1](x), y).backward()
        theirs.step()
    for p, q in zip(*(m.parameters() for m in models), strict=True):
        assert_close(p.detach(), q.detach(), 1e-12)


def test_nag_goes_on_where_it_was():
    (x, y), models = batch_of("categorical"), [model_of("dense") for _ in range(2)]
    first, second = (NAG(m, "categorical", lr=0.1, momentum=0.99) for m in models)
    first.steps = 249
    first.step(x, y)
    models[1].load_state_dict(models[0].state_dict())
    second.load_state_dict(first.state_dict())
    assert_same_bits(first.step(x, y), second.step(x, y))
    assert second.param_groups[0]["momentum"] == first.param_groups[0]["momentum"] == 0.75
