"""The dense Hessian equals torch.func's, and the Fisher where theory says so."""

import pytest
import torch

from fisherlab.errors import UsageError
from fisherlab.fisher import Full
from fisherlab.fisher import hessian as module
from fisherlab.fisher.hessian import hessian
from fisherlab.likelihood import make_likelihood
from tests.cases import LAYERS, batch_of, batch_statistics, model_of
from tests.compare import assert_close
from tests.reference import flatten, nll


def by_torch_func(model, likelihood, x, y):
    named = dict(model.named_parameters())

    def mean(parameters):
        outputs = torch.func.functional_call(model, parameters, (x,))
        return torch.vmap(lambda f, y: nll(likelihood, f, y))(outputs, y).mean()

    blocks = torch.func.hessian(mean)(named)
    halves = {}
    for name, parameter in named.items():
        row = {other: block.flatten(0, parameter.ndim - 1) for other, block in blocks[name].items()}
        halves[name] = flatten(model, row, 1).T.reshape(-1, *parameter.shape)
    return flatten(model, halves, 1)  # the rows, too, in the order of the layers' homogeneous matrices


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli", "gaussian"])
def test_equals_torch_func(likelihood, layer, bias):
    model, (x, y) = model_of(layer, bias=bias), batch_of(likelihood)
    found = hessian(model, make_likelihood(likelihood), x, y)
    assert_close(found, by_torch_func(model, likelihood, x, y), 1e-12)
    assert_close(found, found.T, 1e-12)


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli", "gaussian"])
def test_is_the_fisher_of_a_linear_model(likelihood):
    model, (x, y) = model_of(widths=(4, 3)), batch_of(likelihood)
    structure = Full()
    structure.update(batch_statistics(model, likelihood, "exact", x, y)[0], 0.0)
    assert_close(hessian(model, make_likelihood(likelihood), x, y), structure.dense(), 1e-12)


def test_too_many_parameters_are_refused(monkeypatch):
    monkeypatch.setattr(module, "MAX_SIZE", 3)
    model, (x, y) = model_of(), batch_of("gaussian")
    with pytest.raises(UsageError, match="expected at most 3 parameters"):
        hessian(model, make_likelihood("gaussian"), x, y)
