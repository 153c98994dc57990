"""Batch normalisation: by hand, by torch's own, held, and with replica axes."""

import pytest
import torch
from torch import nn

from fisherlab.errors import UsageError
from fisherlab.models import BatchNorm, Dense, mlp, stack_replicas
from fisherlab.models.normalise import couples, held, settle
from fisherlab.streams import generator
from tests.compare import assert_close, assert_same_bits

UNITS = 5


def batch(seed=0, size=8):
    return 2 * torch.randn(size, UNITS, dtype=torch.float64, generator=generator(seed, "test/norm")) + 3


def norm_of(seed=0, **options):
    """With a scale and a shift of its own."""
    norm, source = BatchNorm(UNITS, **options).double(), generator(seed, "test/scale")
    with torch.no_grad():
        norm.scale.normal_(1, 0.3, generator=source)
        norm.shift.normal_(0, 0.5, generator=source)
    return norm


def by_hand(norm, a, mean, variance):
    return norm.scale * (a - mean) / torch.sqrt(variance + norm.eps) + norm.shift


def moments(a):
    mean = a.sum(0) / len(a)
    return mean, ((a - mean) ** 2).sum(0) / len(a)


def test_training_is_torch_s_own_with_tensorflow_s_constants():
    norm, a = norm_of(), batch()
    own = nn.BatchNorm1d(UNITS, eps=1e-3, momentum=0.001).double()
    with torch.no_grad():
        own.weight.copy_(norm.scale)
        own.bias.copy_(norm.shift)
    assert_close(norm(a), own(a), 1e-13)
    assert_close(norm.mean, own.running_mean, 1e-13)
    biased = 0.999 + (own.running_var - 0.999) * (len(a) - 1) / len(a)  # torch's average takes the unbiased variance
    assert_close(norm.variance, biased, 1e-13)


def test_the_averages_after_several_batches_are_those_by_hand_and_evaluation_uses_them():
    norm = norm_of(decay=0.9)
    mean, variance = torch.zeros(UNITS, dtype=torch.float64), torch.ones(UNITS, dtype=torch.float64)
    for seed in range(3):
        of_batch = moments(batch(seed))
        norm(batch(seed))
        mean, variance = 0.9 * mean + 0.1 * of_batch[0], 0.9 * variance + 0.1 * of_batch[1]
    assert_close(norm.mean, mean, 1e-14)
    assert_close(norm.variance, variance, 1e-14)
    norm.eval()
    assert_close(norm(batch(7)), by_hand(norm, batch(7), mean, variance), 1e-13)
    assert_close(norm.mean, mean, 1e-14)  # which evaluation leaves as they are


def test_settled_averages_are_the_statistics_layer_by_layer():
    model = mlp(UNITS, 3, hidden=(4, 6), batch_norm="after", generator=generator(0, "init")).double().eval()
    x = batch(size=20)
    settle(model, x)
    assert not any(m.training for m in model.modules())
    a = x
    for layer in model:
        if isinstance(layer, BatchNorm):
            assert_close(layer.mean, moments(a)[0], 1e-14)
            assert_close(layer.variance, moments(a)[1], 1e-14)
            assert layer.decay == 0.999
        a = layer(a)
    assert_close(model(x), model.train()(x), 1e-13)


def test_a_failed_settling_leaves_decay_and_mode():
    model = mlp(UNITS, 3, hidden=(4, 6), batch_norm="after", generator=generator(0, "init")).double().eval()
    with pytest.raises(RuntimeError):
        settle(model, torch.zeros(5, UNITS + 1, dtype=torch.float64))
    assert not any(m.training for m in model.modules())
    assert {m.decay for m in model if isinstance(m, BatchNorm)} == {0.999}


def gradients(output, *of):
    weights = torch.randn(output.shape, dtype=output.dtype, generator=generator(1, "test/cotangent"))
    return torch.autograd.grad((output * weights).sum(), of)


def test_the_gradient_goes_through_mean_and_variance():
    norm, a = norm_of(), batch().requires_grad_(True)
    of = (a, norm.scale, norm.shift)
    for found, expected in zip(gradients(norm(a), *of), gradients(by_hand(norm, a, *moments(a)), *of), strict=True):
        assert_close(found, expected, 1e-12)


def test_held_they_are_constants_and_stay():
    norm, a = norm_of(), batch().requires_grad_(True)
    free = norm(a).detach()
    before = norm.mean.clone(), norm.variance.clone()
    with held(norm):
        found = norm(a)
    assert_same_bits(found, free)
    assert_same_bits(norm.mean, before[0])
    assert_same_bits(norm.variance, before[1])
    constants = [m.detach() for m in moments(a)]
    of = (a, norm.scale, norm.shift)
    mine = gradients(found, *of)
    for own, expected in zip(mine, gradients(by_hand(norm, a, *constants), *of), strict=True):
        assert_close(own, expected, 1e-12)
    assert (mine[0] - gradients(norm(a), a)[0]).abs().max() > 0.01


def test_afterwards_nothing_is_held_whatever_happens():
    model = nn.Sequential(norm_of(), norm_of(1))

    def fail():
        with held(model):
            assert all(norm.held for norm in model)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not any(norm.held for norm in model)


def test_examples_are_coupled_in_training_only():
    model = mlp(3, 2, hidden=(4,), batch_norm="after")
    assert couples(model)
    assert not couples(model.eval())
    assert not couples(mlp(3, 2, hidden=(4,)))
    model.norm1.train()
    assert couples(model)


def normed(seed):
    model = mlp(3, 2, hidden=(4,), activation="tanh", batch_norm="after", generator=generator(seed, "init"))
    with torch.no_grad():
        model.norm1.scale.normal_(generator=generator(seed, "test/scale"))
        model.norm1.mean.normal_(generator=generator(seed, "test/mean"))
        model.norm1.variance.uniform_(0.5, 2, generator=generator(seed, "test/variance"))
    return model.double()


def test_replicas_keep_parameters_and_averages_of_their_own():
    six, x = [normed(seed) for seed in range(6)], torch.randn(2, 1, 7, 3, dtype=torch.float64)
    stacked = stack_replicas(six, (2, 3))
    for training in (True, False):  # the first moves the averages
        y = stacked.train(training)(x)
        for i, model in enumerate(six):
            at = divmod(i, 3)
            assert_close(y[at], model.train(training)(x[at[0], 0]), 1e-12)
    for i, model in enumerate(six):
        for name, own in model.state_dict().items():
            assert_close(stacked.state_dict()[name][divmod(i, 3)], own, 1e-12)
    assert not torch.equal(stacked.norm1.mean[0, 0], stacked.norm1.mean[0, 1])


def test_the_given_models_averages_stay_as_they_are():
    two = [normed(seed) for seed in range(2)]
    before = [m.norm1.mean.clone() for m in two]
    stack_replicas(two, (2,))(torch.randn(7, 3, dtype=torch.float64))
    for model, mean in zip(two, before, strict=True):
        assert_same_bits(model.norm1.mean, mean)


def test_it_stands_behind_every_hidden_activation():
    model = mlp(3, 2, hidden=(5, 4), batch_norm="after")
    assert [type(m) for m in model] == [Dense, nn.ReLU, BatchNorm, Dense, nn.ReLU, BatchNorm, Dense]
    assert [m.scale.shape[0] for m in model if isinstance(m, BatchNorm)] == [5, 4]
    assert not any(isinstance(m, BatchNorm) for m in mlp(3, 2, hidden=(), batch_norm="after"))


def test_it_draws_nothing_and_starts_as_torch_s():
    with_norm = mlp(3, 2, hidden=(4,), batch_norm="after", generator=generator(0, "init"))
    without = mlp(3, 2, hidden=(4,), generator=generator(0, "init"))
    for name, p in without.named_parameters():
        assert_same_bits(with_norm.get_parameter(name), p)
    fresh = nn.BatchNorm1d(4)
    assert_same_bits(with_norm.norm1.scale, fresh.weight)
    assert_same_bits(with_norm.norm1.shift, fresh.bias)
    assert_same_bits(with_norm.norm1.mean, fresh.running_mean)
    assert_same_bits(with_norm.norm1.variance, fresh.running_var)


def test_an_unknown_place_is_refused():
    with pytest.raises(UsageError, match="batch_norm='aftr' is unknown: did you mean 'after'"):
        mlp(3, 2, batch_norm="aftr")
