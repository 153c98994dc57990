"""Initialisations by name."""

import math

import pytest
import torch
from torch import nn

from fisherlab.errors import UsageError
from fisherlab.models import Dense, initialise
from fisherlab.streams import generator


@pytest.fixture(params=[nn.Linear, Dense])
def layer(request):
    module = request.param(400, 300)
    with torch.no_grad():
        for p in module.parameters():
            p.fill_(float("nan"))
    return module


def uniform_within(values, bound):
    spread = 2 * bound / math.sqrt(12)
    assert values.abs().max() <= bound
    assert abs(values.std() / spread - 1) < 0.05
    assert abs(values.mean()) < 4 * spread / values.numel() ** 0.5


def test_pytorch_is_uniform_in_the_inverse_root_of_the_inputs(layer):
    initialise(layer, "pytorch", generator(0, "init"))
    uniform_within(layer.weight, 1 / 20)
    uniform_within(layer.bias, 1 / 20)


def test_pytorch_is_nn_linear_s_own_distribution():
    torch.manual_seed(0)
    expected = nn.Linear(30, 20)
    torch.manual_seed(0)
    layer = initialise(nn.utils.skip_init(nn.Linear, 30, 20), "pytorch")
    assert torch.allclose(layer.weight, expected.weight, atol=0, rtol=1e-6)
    assert torch.allclose(layer.bias, expected.bias, atol=0, rtol=1e-6)


def test_half_is_half_of_pytorch(layer):
    initialise(layer, "half", generator(0, "init"))
    whole = initialise(nn.Linear(*layer.weight.shape[::-1]), "pytorch", generator(0, "init"))
    assert torch.equal(layer.weight, whole.weight / 2)
    assert torch.equal(layer.bias, whole.bias / 2)


def test_glorot_is_uniform_in_the_mean_of_inputs_and_outputs(layer):
    initialise(layer, "glorot", generator(0, "init"))
    uniform_within(layer.weight, math.sqrt(6 / 700))
    assert not layer.bias.any()


def test_glorot_with_biases_counts_them_as_an_input(layer):
    initialise(layer, "glorot_biases", generator(0, "init"))
    uniform_within(layer.weight, math.sqrt(6 / 701))
    uniform_within(layer.bias, math.sqrt(6 / 701))


def test_sparse_has_fifteen_normal_weights_per_unit(layer):
    initialise(layer, "sparse", generator(0, "init"))
    filled = (layer.weight != 0).sum(1)
    assert filled.max() == 15
    assert filled.min() >= 12  # inputs are drawn with replacement
    values = layer.weight[layer.weight != 0]
    assert abs(values.mean()) < 4 / values.numel() ** 0.5
    assert abs(values.var() - 1) < 4 * (2 / values.numel()) ** 0.5
    assert not layer.bias.any()


def test_zeros(layer):
    initialise(layer, "zeros")
    assert not layer.weight.any()
    assert not layer.bias.any()


@pytest.mark.parametrize("name", ["pytorch", "glorot", "sparse"])
def test_the_generator_alone_decides(name, layer):
    before = torch.get_rng_state()
    first = initialise(layer, name, generator(0, "init")).weight.detach().clone()
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(initialise(layer, name, generator(0, "init")).weight, first)
    assert not torch.equal(initialise(layer, name, generator(1, "init")).weight, first)


def test_layers_without_biases_and_other_modules_are_left_in_peace():
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.LayerNorm(3), Dense(3, 2, bias=False))
    initialise(model, "zeros")
    assert not model[0].weight.any()
    assert model[1].weight.all()


def test_an_unknown_name_is_refused():
    with pytest.raises(UsageError, match="init='glorrot' is no initialisation: did you mean 'glorot'"):
        initialise(Dense(2, 2), "glorrot")
