"""The papers' networks: sizes, wiring, messages."""

import pytest
import torch
import torch.nn.functional as F

from fisherlab.elementwise import elu, logistic
from fisherlab.errors import UsageError
from fisherlab.models import Dense, autoencoder, deep_linear, linear, mlp, wide
from fisherlab.streams import generator
from tests.compare import assert_close, assert_same_bits

TORCH = {
    "relu": F.relu,
    "tanh": torch.tanh,
    "erf": torch.erf,
    "logistic": torch.sigmoid,
    "elu": F.elu,
    "linear": lambda x: x,
}


def size(model):
    return sum(p.numel() for p in model.parameters())


def by_hand(model, x, activations):
    layers = [m for m in model if isinstance(m, Dense)]
    assert len(layers) == len(activations) + 1
    for layer, name in zip(layers, [*activations, "linear"], strict=True):
        x = TORCH[name](F.linear(x, layer.weight, layer.bias))
    return x


def test_sizes_are_the_papers():
    assert size(mlp(784, 10)) == 76_570
    assert size(autoencoder(784, 784)) == 2_837_314
    assert size(deep_linear(784, 10)) == 119_910
    assert size(deep_linear(784, 10, bias=False)) == 784 * 100 + 4 * 100 * 100 + 100 * 10
    assert size(linear(123, 2)) == 248
    assert size(linear(123, 2, bias=False)) == 246


@pytest.mark.parametrize("activation", TORCH)
def test_mlp_puts_the_activation_after_every_hidden_layer(activation):
    model, x = (
        mlp(5, 2, hidden=(4, 3), activation=activation, init="glorot").double(),
        torch.randn(6, 5, dtype=torch.float64),
    )
    assert_close(model(x), by_hand(model, x, [activation] * 2), 1e-14)


def test_autoencoder_mirrors_its_encoder_around_linear_codes():
    model, x = autoencoder(8, 8, hidden=(6, 5), code=2).double(), torch.randn(3, 8, dtype=torch.float64)
    widths = [(m.weight.shape[1], m.weight.shape[0]) for m in model if isinstance(m, Dense)]
    assert widths == [(8, 6), (6, 5), (5, 2), (2, 5), (5, 6), (6, 8)]
    assert_close(model(x), by_hand(model, x, ["logistic", "logistic", "linear", "logistic", "logistic"]), 1e-14)


@pytest.mark.parametrize("sigma_b2", [0.0, 0.5])
def test_wide_is_the_ntk_parameterisation(sigma_b2):
    """s = sigma_w / sqrt(M) W h + sigma_b b with W, b from N(0, 1): the scale is the layer's, not the weights'."""
    model, x = wide(6, 2, width=400, layers=3, sigma_b2=sigma_b2, generator=generator(0, "init")), torch.randn(3, 6)
    h = x
    for i, layer in enumerate(m for m in model if isinstance(m, Dense)):
        assert abs(float(layer.weight.detach().std()) - 1) < 0.1
        assert (layer.bias is not None) == (sigma_b2 > 0)
        bias = 0 if layer.bias is None else sigma_b2**0.5 * layer.bias
        h = (2 / h.shape[1]) ** 0.5 * h @ layer.weight.mT + bias
        h = h.relu() if i < 2 else h
    assert [tuple(m.weight.shape) for m in model if isinstance(m, Dense)] == [(400, 6), (400, 400), (2, 400)]
    assert_close(model(x), h, 1e-5)


def test_deep_linear_is_linear():
    model, x = deep_linear(5, 2, layers=3, width=4).double(), torch.randn(2, 5, dtype=torch.float64)
    assert len([m for m in model if isinstance(m, Dense)]) == 3
    assert_close(model(x[:1]) + model(x[1:]), model(x[:1] + x[1:]) + model(0 * x[:1]), 1e-13)


def test_convex_models_start_at_zero():
    assert all(not p.any() for p in linear(5, 2).parameters())


@pytest.mark.parametrize("build", [mlp, deep_linear, linear])
def test_initial_weights_come_from_the_generator(build):
    def weights(seed):
        model = build(5, 2, init="pytorch", generator=generator(seed, "init"))
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: mlp(5, 2, activation="rellu"), "activation='rellu' is unknown: did you mean 'relu'"),
        (lambda: mlp(5, 2, hidden=(4, 0)), "hidden=0 is no layer width"),
        (lambda: mlp(5, 2, hidden=(2.5,)), "hidden=2.5 is no layer width"),
        (lambda: mlp(5, 2, init="zeroes"), "init='zeroes' is no initialisation: did you mean 'zeros'"),
        (lambda: deep_linear(5, 2, layers=0), "layers=0 is no layer width"),
        (lambda: deep_linear(5, 2, width=-1), "hidden=-1 is no layer width"),
        (lambda: autoencoder(8, 10), "outputs=10 does not fit an autoencoder of 8 inputs: set target=input"),
        (lambda: wide(5, 2, width=0), "width=0 is no layer width"),
        (lambda: wide(5, 2, sigma_w2=0.0), "sigma_w2=0.0 is no variance: expected a number above 0"),
        (lambda: wide(5, 2, sigma_b2=-1.0), "sigma_b2=-1.0 is no variance: expected a number of at least 0"),
        (lambda: autoencoder(8, 8, code=0), "hidden=0 is no layer width"),
    ],
)
def test_messages_name_the_value(build, message):
    with pytest.raises(UsageError) as error:
        build()
    assert message in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("ours", "theirs"), [(logistic, torch.sigmoid), (elu, F.elu)])
def test_activations_equal_torch_s_with_their_gradients(ours, theirs, dtype):
    x = torch.tensor([-1e4, -300, -80, -20, -1, -1e-5, 0, 1e-5, 1, 20, 80, 300, 1e4], dtype=dtype, requires_grad=True)
    tolerance = 4 * torch.finfo(dtype).eps
    for f, g in ((ours(x), theirs(x)), [torch.autograd.grad(h(x).sum(), x)[0] for h in (ours, theirs)]):
        assert f.isfinite().all()
        assert ((f - g).abs() <= tolerance * g.abs().clamp(min=1)).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_logistic_keeps_its_digits_in_the_tails_and_its_slope_those_of_torch(dtype, tolerance):
    x = torch.tensor([-80.0, -20.0, 20.0, 80.0], dtype=dtype, requires_grad=True)
    y = logistic(x)
    tail = (-x.detach().double().abs()).exp()
    assert_close((y * (1 + tail) / tail)[:2], torch.ones(2), tolerance)
    slope = torch.autograd.grad(y.sum(), x)[0]
    expected = tail / (1 + tail).square()
    assert_close((slope / expected)[:2], torch.ones(2), tolerance)
    assert ((slope - expected).abs()[2:] <= torch.finfo(dtype).eps).all()  # 1 - y rounds


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", TORCH)
def test_activations_have_the_same_bits_wherever_an_element_lies(name, dtype):
    model = mlp(1, 1, hidden=(1,), activation=name)
    activation = torch.nn.Identity() if name == "linear" else model[1]
    x = 4 * torch.randn(20_000, generator=generator(0, "x"), dtype=dtype)

    def value_and_gradient(x):
        x = x.clone().requires_grad_()
        y = activation(x)
        return torch.stack([y.detach(), torch.autograd.grad(y.sum(), x)[0]])

    whole = value_and_gradient(x)
    for cut in range(1, 200):
        assert_same_bits(value_and_gradient(x[cut : 2 * cut + 1]), whole[:, cut : 2 * cut + 1])
