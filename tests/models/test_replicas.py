"""Models side by side."""

import pytest
import torch
from torch import nn

from fisherlab.errors import UsageError
from fisherlab.models import Dense, can_replicate, linear, mlp, stack_replicas
from fisherlab.streams import generator
from tests.compare import assert_close, assert_same_bits


def models(n):
    return [mlp(5, 2, hidden=(4,), activation="tanh", generator=generator(i, "init")) for i in range(n)]


def test_replicas_are_the_models_in_row_major_order():
    six = models(6)
    stacked = stack_replicas(six, (2, 3))
    x = torch.randn(2, 1, 7, 5)
    y = stacked(x)
    for i, model in enumerate(six):
        stream, lane = divmod(i, 3)
        for name, p in model.named_parameters():
            assert_same_bits(dict(stacked.named_parameters())[name][stream, lane], p)
        assert_close(y[stream, lane], model(x[stream, 0]), 1e-6)


def test_the_given_models_stay_as_they_are():
    three = models(3)
    before = [p.detach().clone() for m in three for p in m.parameters()]
    stacked = stack_replicas(three, (3,))
    with torch.no_grad():
        for p in stacked.parameters():
            p.zero_()
    for p, old in zip((p for m in three for p in m.parameters()), before, strict=True):
        assert_same_bits(p, old)


def test_replicas_are_leaves_that_can_be_trained():
    stacked = stack_replicas(models(2), (2,))
    assert all(p.is_leaf and p.requires_grad for p in stacked.parameters())


def test_the_number_must_fill_the_axes():
    with pytest.raises(UsageError, match=r"3 models do not fill replica axes \(2, 2\)"):
        stack_replicas(models(3), (2, 2))


@pytest.mark.parametrize(
    "foreign",
    [
        nn.Linear(4, 3),
        nn.Sequential(Dense(4, 3), nn.LayerNorm(3)),
        nn.Sequential(Dense(4, 3), nn.BatchNorm1d(3, affine=False)),
        nn.Sequential(Dense(4, 3), nn.PReLU()),
    ],
    ids=["linear", "layernorm", "batchnorm buffers", "prelu"],
)
def test_foreign_parameters_are_refused(foreign):
    assert not can_replicate(foreign)
    with pytest.raises(UsageError, match=r"fisherlab\.Dense"):
        stack_replicas([foreign, foreign], (2,))


def test_own_models_can_replicate():
    assert can_replicate(mlp(3, 2))
    assert can_replicate(linear(3, 2))
    assert can_replicate(nn.Sequential(Dense(3, 2), nn.ReLU(), nn.Dropout()))
