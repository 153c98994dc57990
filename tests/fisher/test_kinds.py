"""The kinds of Fisher against the twin, and against one another."""

import pytest
import torch

from fisherlab.errors import UsageError
from fisherlab.fisher import Full
from tests.cases import KINDS, LAYERS, LIKELIHOODS, batch_of, batch_statistics, flat, model_of, noise_of
from tests.compare import assert_close
from tests.reference import Twin


def dense(model, likelihood, kind, x, y, noise=None):
    full = Full()
    full.update(batch_statistics(model, likelihood, kind, x, y, noise)[0], 0.0)
    return full.matrix


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_dense_matrix_is_the_twin_s(likelihood, kind, layer, bias):
    model, (x, y), noise = model_of(layer, bias=bias), batch_of(likelihood), noise_of(likelihood, 3)
    assert_close(dense(model, likelihood, kind, x, y, noise), Twin(model, likelihood, x, y).fisher(kind, noise), 1e-12)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_monte_carlo_approaches_exact_at_the_inverse_root_of_the_samples(likelihood):
    model, (x, y) = model_of(widths=(4, 3)), batch_of(likelihood)
    exact = dense(model, likelihood, "exact", x, y)

    def error(samples):
        repeats = [dense(model, likelihood, "mc", x, y, noise_of(likelihood, samples, seed=s)) for s in range(8)]
        return torch.stack([(m - exact).square().sum() for m in repeats]).mean().sqrt() / exact.norm()

    few, many = error(10), error(1000)
    assert many < 0.05
    assert 7 < few / many < 14  # the root of 100


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_empirical_fisher_is_covariance_plus_outer_product_of_the_gradient(likelihood):
    model, (x, y) = model_of(), batch_of(likelihood)
    u = Twin(model, likelihood, x, y).per_example
    covariance = torch.cov(u.mT, correction=0)
    expected = covariance + torch.outer(u.mean(0), u.mean(0))
    assert_close(dense(model, likelihood, "empirical", x, y), expected, 1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_duplicated_examples_change_nothing(likelihood, kind):
    model, (x, y), noise = model_of(), batch_of(likelihood), noise_of(likelihood, 2)
    once = dense(model, likelihood, kind, x, y, noise)
    twice = dense(model, likelihood, kind, torch.cat([x, x]), torch.cat([y, y]), torch.cat([noise, noise], 1))
    assert_close(twice, once, 1e-13)


@pytest.mark.parametrize("kind", ["exact", "empirical"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_coefficients_combine_the_vectors_to_the_gradient(likelihood, kind):
    model, (x, y) = model_of(), batch_of(likelihood)
    stats, gradient = batch_statistics(model, likelihood, kind, x, y)
    for inputs, g, expected in zip(stats.inputs, stats.gradients, gradient, strict=True):
        combined = inputs.weighted_sum((stats.coefficients.unsqueeze(-1) * g).sum(0)) / len(x)
        assert_close(combined, expected, 1e-12)


def test_monte_carlo_has_no_coefficients():
    x, y = batch_of("categorical")
    assert batch_statistics(model_of(), "categorical", "mc", x, y, noise_of("categorical", 2))[0].coefficients is None


def test_exact_refuses_more_columns_than_allowed():
    x, y = batch_of("categorical")
    with pytest.raises(UsageError, match=r"one column per output, 3 here: expected at most max_columns=2; use kind=mc"):
        batch_statistics(model_of(), "categorical", "exact", x, y, max_columns=2)
    batch_statistics(model_of(), "categorical", "exact", x, y, max_columns=3)


def test_monte_carlo_needs_noise():
    x, y = batch_of("categorical")
    with pytest.raises(ValueError, match="noise"):
        batch_statistics(model_of(), "categorical", "mc", x, y)


@pytest.mark.parametrize("kind", KINDS)
def test_statistics_tell_batch_and_rows(kind):
    x, y = batch_of("categorical")
    stats, _ = batch_statistics(model_of(), "categorical", kind, x, y, noise_of("categorical", 2))
    assert stats.batch == 6
    assert stats.rows == {"exact": 18, "mc": 12, "empirical": 6}[kind]


def test_the_gradient_is_the_twin_s():
    x, y = batch_of("bernoulli")
    _, gradient = batch_statistics(model_of(), "bernoulli", "empirical", x, y)
    assert_close(flat(gradient), Twin(model_of(), "bernoulli", x, y).gradient, 1e-13)
