"""Dense is nn.Linear with replica axes and parameterisation scales."""

import pytest
import torch
from torch import nn

from fisherlab.models import Dense
from fisherlab.streams import generator
from tests.compare import assert_close


def make(bias=True, lead=(), **scales):
    dense = Dense(4, 3, bias=bias, **scales).double()
    for p in dense.parameters():
        p.data = torch.randn(*lead, *p.shape, dtype=torch.float64, generator=generator(0, "p", p.ndim))
    return dense


@pytest.mark.parametrize("bias", [True, False])
def test_without_replicas_it_is_linear(bias):
    dense, linear = make(bias), nn.Linear(4, 3, bias=bias, dtype=torch.float64)
    linear.load_state_dict(dense.state_dict())
    x = torch.randn(6, 4, dtype=torch.float64)
    assert_close(dense(x), linear(x), 1e-15)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("inputs", [(), (2, 1), (2, 3)])
def test_every_replica_is_the_layer_alone(bias, inputs):
    dense = make(bias, (2, 3))
    x = torch.randn(*inputs, 6, 4, dtype=torch.float64)
    together = dense(x)
    assert together.shape == (2, 3, 6, 3)
    each = x.expand(2, 3, 6, 4)
    for i in range(2):
        for j in range(3):
            alone = nn.functional.linear(each[i, j], dense.weight[i, j], dense.bias[i, j] if bias else None)
            assert_close(together[i, j], alone, 1e-14)


def test_scales_multiply_weights_and_biases():
    dense, x = make(scale=0.7, bias_scale=0.2), torch.randn(6, 4, dtype=torch.float64)
    assert_close(dense(x), 0.7 * x @ dense.weight.T + 0.2 * dense.bias, 1e-15)


def test_ntk_scales_reach_the_gradients():
    dense, x = make(scale=0.7, bias_scale=0.2), torch.randn(6, 4, dtype=torch.float64)
    dense(x).sum().backward()
    assert_close(dense.weight.grad, 0.7 * x.sum(0).expand(3, 4), 1e-14)
    assert_close(dense.bias.grad, torch.full((3,), 0.2 * 6, dtype=torch.float64), 1e-14)


def test_its_parameters_have_linear_s_names_order_and_shapes():
    def shapes(module):
        return [(n, p.shape) for n, p in module.named_parameters()]

    assert shapes(Dense(4, 3)) == shapes(nn.Linear(4, 3))
    assert shapes(Dense(4, 3, bias=False)) == shapes(nn.Linear(4, 3, bias=False))


def test_printout_names_sizes_and_replicas():
    assert str(make()) == "Dense(4, 3, bias=True)"
    assert str(make(False, (2, 3))) == "Dense(4, 3, bias=False, replicas=(2, 3))"
