"""Jacobian-vector products and the exact Fisher's inner products, against the dense twin."""

import pytest
import torch

from fisherlab.fisher.pushforward import fisher_products, pushforward
from fisherlab.likelihood import make_likelihood
from fisherlab.models import mlp, stack_replicas
from fisherlab.streams import generator
from tests.cases import LAYERS, LIKELIHOODS, batch_of, model_of
from tests.compare import assert_close
from tests.reference import Twin, flatten


def change_of(model, seed=0):
    source = generator(seed, "change")
    return {name: torch.randn(p.shape, generator=source).double() for name, p in model.named_parameters()}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_inner_products_are_the_dense_fisher_s(likelihood, layer):
    model, (x, y) = model_of(layer), batch_of(likelihood)
    change, twin = change_of(model), Twin(model, likelihood, x, y)
    v = flatten(model, change)
    other = change_of(model, 1)
    both = torch.stack([v, flatten(model, other)])
    f, tangents = pushforward(model, x, [change, other])
    assert_close(f, twin.outputs, 1e-14)
    assert_close(tangents, torch.einsum("bkp,cp->cbk", twin.jacobian, both), 1e-12)
    found = fisher_products(model, make_likelihood(likelihood), x, [change, other])
    assert_close(found, both @ twin.fisher("exact") @ both.mT, 1e-12)


@pytest.mark.parametrize("activation", ["relu", "tanh", "logistic", "elu", "linear"])
def test_every_activation_and_replicas(activation):
    models = [
        mlp(5, 3, hidden=(4,), activation=activation, generator=generator(seed, "init")).double() for seed in (0, 1)
    ]
    together, likelihood = stack_replicas(models, (1, 2)), make_likelihood("categorical")
    x = torch.randn(6, 5, generator=generator(0, "x")).double()
    changes = [change_of(model, seed) for seed, model in enumerate(models)]
    stacked = {name: torch.stack([c[name] for c in changes])[None] for name in changes[0]}
    found = fisher_products(together, likelihood, x[None, None], [stacked])
    expected = [fisher_products(m, likelihood, x, [c]) for m, c in zip(models, changes, strict=True)]
    assert_close(found[0], torch.stack(expected), 1e-12)


def test_parameters_that_are_not_named_stay():
    model, x = mlp(5, 3, hidden=(4,)).double(), torch.randn(6, 5).double()
    bias = torch.randn(3).double()
    f, tangents = pushforward(model, x, [{"layer2.bias": bias}])
    assert_close(f, model(x).detach(), 1e-14)
    assert_close(tangents[0], bias.expand(6, 3), 1e-14)
    assert not tangents.requires_grad
