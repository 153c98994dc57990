"""Likelihoods against torch.distributions, autograd and enumeration."""

import math

import pytest
import torch

from fisherlab.errors import UsageError
from fisherlab.likelihood import LIKELIHOODS, Gaussian, make_likelihood
from fisherlab.streams import Streams, generator
from tests.compare import assert_close, assert_same_bits
from tests.reference import nll, output_fisher

NAMES = tuple(LIKELIHOODS)
BINARY = ("categorical", "bernoulli")


def outputs_and_targets(name, lead=(), batch=7, k=4, dtype=torch.float64):
    f = 2 * torch.randn(*lead, batch, k, generator=generator(0, "f"), dtype=dtype)
    if name == "categorical":
        return f, torch.randint(k, (batch,), generator=generator(0, "y"))
    y = torch.randn(batch, k, generator=generator(0, "y"), dtype=dtype)
    return f, ((y > 0).to(dtype) if name == "bernoulli" else y)


@pytest.mark.parametrize("name", NAMES)
def test_nll_is_that_of_torch_distributions(name):
    f, y = outputs_and_targets(name)
    d = torch.distributions
    if name == "categorical":
        expected = -d.Categorical(logits=f).log_prob(y)
    elif name == "bernoulli":
        expected = -d.Bernoulli(logits=f).log_prob(y).sum(-1)
    else:  # without the constant
        expected = -d.Normal(f, 1).log_prob(y).sum(-1) - 0.5 * f.shape[-1] * math.log(2 * math.pi)
    assert_close(make_likelihood(name).nll(f, y), expected, 1e-14)


def test_bernoulli_nll_of_a_target_between_0_and_1_is_the_cross_entropy():
    f, y = outputs_and_targets("gaussian")
    y = y.sigmoid()
    expected = torch.nn.functional.binary_cross_entropy(f.sigmoid(), y, reduction="none").sum(-1)
    assert_close(make_likelihood("bernoulli").nll(f, y), expected, 1e-14)


@pytest.mark.parametrize(("f", "y"), [(40.0, 1.0), (-40.0, 0.0)])
def test_bernoulli_nll_near_certainty_keeps_its_digits(f, y):
    found = make_likelihood("bernoulli").nll(*torch.tensor([[[f]], [[y]]], dtype=torch.float64))
    assert found.item() == pytest.approx(math.exp(-40), rel=1e-12, abs=0)  # log(1 + e^-40)


def test_categorical_nll_does_not_feel_a_common_shift_of_the_logits():
    f, y = torch.tensor([[0.5, 0.0, -1.0]]), torch.tensor([0])
    assert_close(make_likelihood("categorical").nll(f + 10_000, y), make_likelihood("categorical").nll(f, y), 1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_residual_is_the_gradient_of_the_nll(name):
    f, y = outputs_and_targets(name)
    f.requires_grad_()
    likelihood = make_likelihood(name)
    assert_close(likelihood.residual(f.detach(), y), torch.autograd.grad(likelihood.nll(f, y).sum(), f)[0], 1e-14)
    assert_close(torch.autograd.grad(likelihood.nll(f, y).sum(), f)[0], likelihood.mean(f) - one_hot(name, y, f), 1e-14)


def one_hot(name, y, f):
    return torch.nn.functional.one_hot(y, f.shape[-1]).to(f.dtype) if name == "categorical" else y


@pytest.mark.parametrize("name", NAMES)
def test_fisher_is_its_root_squared_the_hessian_and_the_enumerated_expectation(name):
    f, y = outputs_and_targets(name)
    likelihood = make_likelihood(name)
    fisher, root = likelihood.fisher(f), likelihood.fisher_sqrt(f)
    assert_close(root @ root.mT, fisher, 1e-14)
    changes = torch.stack([f, f.flip(-2), f.square()])
    assert_close(likelihood.weigh(f, changes), (root.mT @ changes.unsqueeze(-1)).squeeze(-1), 1e-14)
    assert_close(fisher, torch.stack([output_fisher(name, row) for row in f]), 1e-13)
    hessians = [torch.func.hessian(lambda f, y=one: nll(name, f, y))(row) for row, one in zip(f, y, strict=True)]
    assert_close(fisher, torch.stack(hessians), 1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_coefficients_give_the_residual_with_the_least_norm(name):
    f, y = outputs_and_targets(name)
    likelihood = make_likelihood(name)
    root, w = likelihood.fisher_sqrt(f), likelihood.coefficients(f, y)
    residual = likelihood.residual(f, y)
    assert_close((root @ w.unsqueeze(-1)).squeeze(-1), residual, 1e-13)
    assert_close(w, (torch.linalg.pinv(root) @ residual.unsqueeze(-1)).squeeze(-1), 1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_replica_axes_of_the_outputs_broadcast_against_the_targets(name):
    f, y = outputs_and_targets(name, lead=(2, 3))
    likelihood = make_likelihood(name)
    for method in ("nll", "residual", "coefficients", "error"):
        together = getattr(likelihood, method)(f, y)
        for i in range(2):
            for j in range(3):
                assert_same_bits(together[i, j], getattr(likelihood, method)(f[i, j], y))
    for method in ("mean", "fisher", "fisher_sqrt"):
        together = getattr(likelihood, method)(f)
        assert_same_bits(together[1, 2], getattr(likelihood, method)(f[1, 2]))


@pytest.mark.parametrize("name", NAMES)
def test_samples_have_the_model_s_distribution(name):
    n = 40_000
    f = torch.tensor([[0.3, -1.2, 2.0], [-3.0, 0.0, 0.5]], dtype=torch.float64)
    likelihood = make_likelihood(name)
    noise = likelihood.noise(Streams(0), 5, (n, 2, 3), torch.float64)
    assert noise.shape == ((n, 2, 1) if name == "categorical" else (n, 2, 3))
    y = likelihood.sample(f, noise)
    if name == "categorical":
        assert y.shape == (n, 2)
        y = torch.nn.functional.one_hot(y, 3).double()
    mean = likelihood.mean(f)
    spread = torch.ones_like(mean) if name == "gaussian" else (mean * (1 - mean)).sqrt()
    assert ((y.mean(0) - mean).abs() < 4 * spread / n**0.5).all()
    assert_close(y.var(0).sqrt(), spread, 0.05)
    residuals = likelihood.residual(f.expand(n, 2, 3), y.argmax(-1) if name == "categorical" else y)
    assert_close(torch.einsum("nbk,nbl->bkl", residuals, residuals) / n, likelihood.fisher(f), 0.03)


@pytest.mark.parametrize("name", NAMES)
def test_label_noise_depends_on_seed_and_step_alone(name):
    likelihood = make_likelihood(name)
    noise = likelihood.noise(Streams([1, 2]), 3, (2, 5, 4), torch.float64)
    assert torch.equal(noise[1], likelihood.noise(Streams(2), 3, (2, 5, 4), torch.float64))
    assert not torch.equal(noise[1], likelihood.noise(Streams(2), 4, (2, 5, 4), torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_impossible_classes_are_never_sampled(dtype):
    f = torch.tensor([[-1e4, 0.0, 0.0, -1e4]], dtype=dtype)
    edges = torch.tensor([0.0, torch.finfo(dtype).tiny, 0.5, 1 - torch.finfo(dtype).eps / 2], dtype=dtype).view(
        -1, 1, 1
    )
    assert make_likelihood("categorical").sample(f, edges).flatten().tolist() == [1, 1, 2, 2]
    for logit, expected in ((-1e4, 0.0), (1e4, 1.0)):
        assert (make_likelihood("bernoulli").sample(torch.full((1, 1), logit, dtype=dtype), edges) == expected).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [30.0, 300.0, 1e4])
@pytest.mark.parametrize("name", NAMES)
def test_extreme_outputs_stay_finite_and_consistent(name, size, dtype):
    f = size * torch.tensor([[1, 0, -1], [-1, 1, 1], [0, 0, 1]], dtype=dtype)
    likelihood = make_likelihood(name)
    for label in range(3):
        y = torch.full((3,), label) if name == "categorical" else torch.full((3, 3), label / 2, dtype=dtype)
        w, root, residual = likelihood.coefficients(f, y), likelihood.fisher_sqrt(f), likelihood.residual(f, y)
        for t in (w, root, residual, likelihood.nll(f, y), likelihood.fisher(f), likelihood.error(f, y)):
            assert t.isfinite().all()
        assert_close((root @ w.unsqueeze(-1)).squeeze(-1), residual, 1e-5 if dtype == torch.float32 else 1e-12)


def test_errors():
    f = torch.tensor([[0.1, 2.0, -1.0], [0.3, 0.2, 0.1]])
    assert make_likelihood("categorical").error(f, torch.tensor([1, 2])).tolist() == [0, 1]
    y = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    assert_close(make_likelihood("bernoulli").error(f, y), torch.tensor([1 / 3, 0.0]), 1e-6)
    assert_close(make_likelihood("gaussian").error(f, y), (f - y).square().sum(-1), 1e-7)


def test_a_likelihood_is_found_by_name_or_is_one_already():
    own = Gaussian()
    assert make_likelihood(own) is own
    assert [make_likelihood(n).name for n in NAMES] == list(NAMES)
    with pytest.raises(UsageError, match=r"likelihood='bernouli' is unknown: did you mean 'bernoulli'"):
        make_likelihood("bernouli")


@pytest.mark.parametrize("lead", [(), (2, 3)])
@pytest.mark.parametrize("name", NAMES)
def test_targets_of_another_shape_or_type_are_refused(name, lead):
    f, y = outputs_and_targets(name, lead)
    likelihood = make_likelihood(name)
    likelihood.check(f, y)
    wrong = [y[:1], y[:-1], y.bool(), y.float() if name == "categorical" else y.long()]
    wrong += [y.unsqueeze(-1)] if name == "categorical" else [y[:, :1], y[:, 0]]
    for other in wrong:
        with pytest.raises(UsageError) as error:
            likelihood.check(f, other)
        assert f"targets of shape {tuple(other.shape)} do not fit outputs of shape {tuple(f.shape)}" in str(error.value)


@pytest.mark.parametrize("name", NAMES)
def test_nll_and_mean_are_those_of_their_own(name):
    f, y = outputs_and_targets(name)
    likelihood = make_likelihood(name)
    nll_found, mean = likelihood.nll_and_mean(f, y)
    assert_same_bits(nll_found, likelihood.nll(f, y))
    assert_close(mean, likelihood.mean(f), 1e-14)
