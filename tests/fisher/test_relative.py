"""The relative Fisher's closed forms, against the Fisher of the model that each stands for, and in the structures."""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.func import jacrev, vmap

import fisherlab
from fisherlab.errors import UsageError
from fisherlab.fisher import STRUCTURES, Capture
from fisherlab.fisher.relative import (
    ZONES,
    Form,
    nonlinear_layer,
    relative_statistics,
    softmax_layer,
    two_layers,
    zone,
)
from fisherlab.likelihood import make_likelihood
from fisherlab.models import mlp
from fisherlab.streams import generator
from tests.cases import batch_of
from tests.compare import assert_close
from tests.reference import Twin, damped_solve

Z = torch.linspace(-4, 4, 41, dtype=torch.float64)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed, "test/relative", len(shape)))


def homogeneous(batch, inputs, seed=0):
    return torch.cat([normal(batch, inputs, seed=seed), torch.ones(batch, 1, dtype=torch.float64)], -1)


def derivative(f, z=Z):
    """Of an elementwise function, by autograd."""
    z = z.clone().requires_grad_(True)
    return torch.autograd.grad(f(z).sum(), z)[0]


def fisher_over_labels(log_p, labels):
    """Sum over y of p(y) (d log p(y) / dz)^2."""
    return sum(log_p(y, Z).exp() * derivative(lambda z, y=y: log_p(y, z)) ** 2 for y in labels)


# --- zones ------------------------------------------------------------------------------------------------------------


def test_tanh_is_the_fisher_of_a_sign():
    expected = fisher_over_labels(lambda y, z: torch.log((1 + y * torch.tanh(z)) / 2), (-1, 1))
    assert_close(zone("tanh", Z), expected, 1e-12)


def test_logistic_is_the_fisher_of_a_bit():
    expected = fisher_over_labels(lambda y, z: torch.log(torch.sigmoid(z) if y else torch.sigmoid(-z)), (0, 1))
    assert_close(zone("logistic", Z), expected, 1e-12)


@pytest.mark.parametrize("sigma", [1.0, 0.5])
@pytest.mark.parametrize("omega", [1.0, 0.3, 4.0])
@pytest.mark.parametrize("iota", [0.0, 0.1, 0.9])
def test_relu_is_the_fisher_of_the_smoothed_mean(iota, omega, sigma):
    slope = derivative(lambda t: omega * torch.log(torch.exp(iota * t / omega) + torch.exp(t / omega)))
    assert_close(zone("relu", Z, iota=iota, omega=omega, sigma=sigma), slope**2 / sigma**2, 1e-12)


@pytest.mark.parametrize("sigma", [1.0, 2.0])
@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_elu_is_the_fisher_of_its_mean(alpha, sigma):
    slope = derivative(lambda t: nn.functional.elu(t, alpha))
    assert_close(zone("elu", Z[Z != 0], alpha=alpha, sigma=sigma), slope[Z != 0] ** 2 / sigma**2, 1e-12)


def test_linear_is_the_fisher_of_its_mean():
    assert_close(zone("linear", Z, sigma=0.5), torch.full_like(Z, 4.0), 1e-15)


@pytest.mark.parametrize("iota", [0.0, 0.2])
def test_without_smoothing_the_relu_s_zone_is_a_gate(iota):
    gate = torch.where(Z > 0, torch.ones_like(Z), iota**2)
    away = Z.abs() > 0.1
    assert_close(zone("relu", Z[away], iota=iota, omega=1e-3), gate[away], 1e-12)
    assert zone("relu", Z, omega=1.0).min() > 0  # whereas a wide one is open everywhere


def test_far_out_nothing_overflows():
    far = torch.tensor([-1e4, -800.0, 800.0, 1e4], dtype=torch.float64)
    for name in ZONES:
        found = zone(name, far)
        assert found.isfinite().all()
        assert (found >= 0).all()


@pytest.mark.parametrize("name", ["tanh", "logistic", "relu", "elu"])
def test_float32_keeps_its_digits_far_out(name):
    z = torch.linspace(-20, 20, 401, dtype=torch.float32)
    ratio = zone(name, z).double() / zone(name, z.double())
    assert_close(ratio, torch.ones_like(ratio), 2e-5)


@pytest.mark.parametrize(
    ("activation", "options", "message"),
    [
        ("relu", {"iota": 1.0}, "iota=1.0 is out of range: expected a number in [0, 1)"),
        ("relu", {"iota": -0.1}, "iota=-0.1 is out of range"),
        ("relu", {"omega": 0.0}, "omega=0.0 is out of range: expected a number above 0"),
        ("relu", {"omega": math.nan}, "omega=nan is out of range"),
        ("relu", {"sigma": -1.0}, "sigma=-1.0 is out of range"),
        ("elu", {"alpha": 0.0}, "alpha=0.0 is out of range"),
        ("elu", {"sigma": 0.0}, "sigma=0.0 is out of range"),
        ("linear", {"sigma": 0.0}, "sigma=0.0 is out of range"),
        ("linear", {"sigma": None}, "sigma=None is out of range: expected a number above 0"),
        ("elu", {"alpha": "x"}, "alpha='x' is out of range: expected a number above 0"),
        ("elu", {"sigma": True}, "sigma=True is out of range"),
        ("rellu", {}, "activation='rellu' is unknown: did you mean 'relu'"),
        ("logistik", {}, "activation='logistik' is unknown: did you mean 'logistic'"),
    ],
)
def test_what_has_no_zone_is_refused_in_one_line(activation, options, message):
    with pytest.raises(UsageError) as error:
        zone(activation, Z, **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


# --- layers -----------------------------------------------------------------------------------------------------------


def mean_outer(jacobian, weight):
    """E[J^T diag(weight) J], J [B, k, P] and weight [B, k]."""
    return torch.einsum("bkp,bk,bkq->pq", jacobian, weight, jacobian) / len(jacobian)


def preactivations(x, w):
    """Of the examples one by one, [B, m], and their Jacobian in w, [B, m, m n]."""
    return vmap(lambda one: w @ one)(x), vmap(lambda one: jacrev(lambda w: w @ one)(w))(x).flatten(-2)


@pytest.mark.parametrize("activation", ZONES)
def test_a_layer_is_its_neurons_side_by_side(activation):
    x, w = homogeneous(7, 3), normal(4, 4)
    z, jacobian = preactivations(x, w)
    assert_close(nonlinear_layer(activation, x, w), mean_outer(jacobian, zone(activation, z)), 1e-12)


def test_a_linear_layer_s_blocks_are_all_the_same():
    x, w = homogeneous(7, 3), normal(2, 4)
    expected = torch.kron(torch.eye(2, dtype=x.dtype), x.mT @ x / 7) / 0.25
    assert_close(nonlinear_layer("linear", x, w, sigma=0.5), expected, 1e-14)


def softmax_model(x, w):
    model = nn.Sequential(nn.Linear(x.shape[-1] - 1, len(w))).double()
    with torch.no_grad():
        model[0].weight.copy_(w[:, :-1])
        model[0].bias.copy_(w[:, -1])
    return model


def test_a_softmax_layer_is_its_exact_fisher_over_all_labels():
    x, w = homogeneous(7, 3), normal(4, 4)
    twin = Twin(softmax_model(x, w), "categorical", x[:, :-1], torch.zeros(7, dtype=torch.long))
    assert_close(softmax_layer(x, w), twin.fisher("exact"), 1e-12)


def test_a_softmax_layer_is_the_hessian_of_its_loss_whatever_the_labels():
    x, w = homogeneous(7, 3), normal(4, 4)
    y = torch.arange(7) % 4
    hessian = torch.autograd.functional.hessian(lambda w: nn.functional.cross_entropy(x @ w.mT, y), w)
    assert_close(softmax_layer(x, w), hessian.reshape(16, 16), 1e-12)


@pytest.mark.parametrize("units", [2, 4])
def test_a_softmax_layer_s_rank_lacks_one_unit(units):
    x, w = homogeneous(40, 3), normal(units, 4)
    matrix = softmax_layer(x, w)
    assert torch.linalg.matrix_rank(matrix, hermitian=True) == (units - 1) * 4
    same = normal(4).repeat(units)  # what is added to every unit alike changes no probability
    assert (matrix @ same).abs().max() < 1e-14


@pytest.mark.parametrize("second", ["linear", "logistic", "relu"])
@pytest.mark.parametrize("first", ["tanh", "logistic", "relu", "elu", "linear"])
def test_two_layers_are_the_chain_rule(first, second):
    x, w, c = homogeneous(7, 3), normal(4, 4), normal(2, 5)
    f = {"tanh": torch.tanh, "logistic": torch.sigmoid, "relu": torch.relu, "elu": nn.functional.elu}.get(
        first, lambda z: z
    )

    def hidden(w, one):
        return torch.cat([f(w @ one), torch.ones(1, dtype=torch.float64)])

    def outputs(w, c, one):
        return c @ hidden(w, one)

    parts = vmap(jacrev(outputs, (0, 1)), (None, None, 0))(w, c, x)
    jacobian = torch.cat([part.flatten(2) for part in parts], -1)
    nu = zone(second, torch.stack([outputs(w, c, one) for one in x]))
    h = torch.stack([hidden(w, one) for one in x])
    assert_close(two_layers(first, second, x, w, c, h), mean_outer(jacobian, nu), 1e-12)


def test_two_layers_by_an_unknown_name_are_refused():
    x, w, c, h = homogeneous(7, 3), normal(4, 4), normal(2, 5), homogeneous(7, 4)
    with pytest.raises(UsageError, match="activation='tahn' is unknown: did you mean 'tanh'"):
        two_layers("tahn", "linear", x, w, c, h)


def test_replicas_are_the_layers_alone():
    x, w, c, h = normal(2, 1, 6, 4), normal(2, 3, 5, 4), normal(2, 3, 2, 6), normal(2, 3, 6, 6)
    layer, outputs = nonlinear_layer("tanh", x, w), softmax_layer(x, w)
    both = two_layers("tanh", "logistic", x, w, c, h)
    for at in itertools.product(range(2), range(3)):
        own = x[at[0], 0], w[at]
        assert_close(layer[at], nonlinear_layer("tanh", *own), 1e-13)
        assert_close(outputs[at], softmax_layer(*own), 1e-13)
        assert_close(both[at], two_layers("tanh", "logistic", *own, c[at], h[at]), 1e-13)


# --- in the structures ------------------------------------------------------------------------------------------------


def net(activation="tanh", likelihood="categorical", hidden=(5, 4)):
    """A small net, what it was fed, and every layer's homogeneous weight."""
    model = mlp(3, 2, hidden=hidden, activation=activation, generator=generator(0, "init")).double()
    captured = Capture(model)(batch_of(likelihood, 8, inputs=3, outputs=2)[0])
    layers = [m for m in model if isinstance(m, fisherlab.Dense)]
    return model, captured, [torch.cat([m.weight, m.bias.unsqueeze(-1)], -1).detach() for m in layers]


def dense(structure, captured, forms, likelihood="categorical", where=slice(None), **options):
    """What a structure makes of some of the layers, written out."""
    stats = relative_statistics(captured, make_likelihood(likelihood), forms, options)
    found = STRUCTURES[structure]()
    found.update(type(stats)(stats.inputs[where], stats.gradients[where], stats.weight), 0.0)
    return found.dense()


OUTPUT = Form(None)


@pytest.mark.parametrize("activation", ["tanh", "logistic", "relu", "elu"])
def test_units_are_the_neurons_of_a_layer(activation):
    _, captured, (w, v, _) = net(activation)
    forms = [Form(activation), Form(activation), OUTPUT]
    x = [inputs.joined for inputs in captured.inputs]
    expected = torch.block_diag(nonlinear_layer(activation, x[0], w), nonlinear_layer(activation, x[1], v))
    assert_close(dense("unit", captured, forms, where=slice(0, 2)), expected, 1e-12)


def test_the_relu_s_zone_takes_its_options():
    _, captured, (w, *_) = net("relu")
    options = {"iota": 0.1, "omega": 0.3, "sigma": 2.0}
    expected = nonlinear_layer("relu", captured.inputs[0].joined, w, **options)
    found = dense("unit", captured, [Form("relu"), Form("relu"), OUTPUT], where=slice(0, 1), **options)
    assert_close(found, expected, 1e-12)


def test_shared_is_a_linear_layer():
    _, captured, (w, *_) = net()
    expected = nonlinear_layer("linear", captured.inputs[0].joined, w)
    assert_close(dense("shared", captured, [Form("linear"), Form("tanh"), OUTPUT], where=slice(0, 1)), expected, 1e-12)


LAST = [Form("tanh"), Form("tanh"), OUTPUT]


def test_layer_is_a_softmax_layer():
    _, captured, (_, _, c) = net()
    expected = softmax_layer(captured.inputs[2].joined, c)
    assert_close(dense("layer", captured, LAST, where=slice(2, 3)), expected, 1e-12)


def test_units_of_the_last_layer_are_the_softmax_layer_s_blocks():
    _, captured, (_, _, c) = net()
    whole = softmax_layer(captured.inputs[2].joined, c)
    n = len(whole) // 2
    expected = torch.block_diag(whole[:n, :n], whole[n:, n:])
    assert_close(dense("unit", captured, LAST, where=slice(2, 3)), expected, 1e-12)


@pytest.mark.parametrize(("likelihood", "name"), [("bernoulli", "logistic"), ("gaussian", "linear")])
def test_the_last_layer_of_other_likelihoods_is_their_neurons(likelihood, name):
    _, captured, (_, _, c) = net(likelihood=likelihood)
    expected = nonlinear_layer(name, captured.inputs[2].joined, c)
    assert_close(dense("layer", captured, LAST, likelihood, where=slice(2, 3)), expected, 1e-12)


@pytest.mark.parametrize("activation", ["tanh", "logistic", "relu"])
def test_pairs_are_two_layers_and_the_last_is_alone(activation):
    _, captured, (w, v, c) = net(activation)
    forms = [Form(activation, joined=True, next=True), Form(activation, joined=True), Form(None, joined=True)]
    x = [inputs.joined for inputs in captured.inputs]
    both = two_layers(activation, activation, x[0], w, v, x[1])
    assert_close(dense("pairs", captured, forms), torch.block_diag(both, softmax_layer(x[2], c)), 1e-12)


def test_a_pair_with_the_outputs_is_the_exact_fisher_of_the_net():
    model, captured, _ = net(hidden=(5,))
    forms = [Form("tanh", joined=True, next=True), Form(None, joined=True)]
    x, y = batch_of("categorical", 8, inputs=3, outputs=2)
    assert_close(dense("pairs", captured, forms), Twin(model, "categorical", x, y).fisher("exact"), 1e-12)


@pytest.mark.parametrize("stride", [2, 3])
@pytest.mark.parametrize("structure", ["unit", "pairs"])
def test_a_part_of_the_batch_is_a_batch(structure, stride):
    model, captured, _ = net("relu")
    joined = structure == "pairs"
    forms = [Form("relu", joined, next=joined), Form("relu", joined), Form(None, joined)]
    part = Capture(model)(batch_of("categorical", 8, inputs=3, outputs=2)[0][::stride])
    assert_close(dense(structure, captured.thinned(stride), forms), dense(structure, part, forms), 1e-12)


# --- invariance -------------------------------------------------------------------------------------------------------
# A layer is fed M x in place of x, M invertible and affine, and its weights w M^-1 give the same pre-activations. The
# natural direction then changes these as before. The softmax layer's matrix has no inverse: by its pseudo-inverse, the
# pre-activations move as before but for what is common to all units, which changes no probability.


def affine(n):
    """An invertible map of homogeneous vectors, whose ones stay."""
    m = torch.eye(n, dtype=torch.float64) * 2 + normal(n, n, seed=1) / n
    m[-1] = torch.eye(n, dtype=torch.float64)[-1]
    return m


def changes(matrix, x, g, damping=0.0):
    """How the pre-activations move in the natural direction; g are the pre-activations' gradients [B, m]."""
    gradient = torch.einsum("bm,bn->mn", g, x) / len(x)
    return x @ damped_solve(matrix, damping, gradient.flatten()).view_as(gradient).mT


@pytest.mark.parametrize("activation", ["linear", "tanh", "relu"])
def test_a_layer_s_natural_step_is_invariant_to_an_affine_change_of_its_inputs(activation):
    x, w, g, m = homogeneous(30, 3), normal(4, 4), normal(30, 4), affine(4)
    before = changes(nonlinear_layer(activation, x, w), x, g)
    after = changes(nonlinear_layer(activation, x @ m.mT, w @ torch.linalg.inv(m)), x @ m.mT, g)
    assert_close(after, before, 1e-9)


def test_a_softmax_layer_s_is_up_to_what_changes_no_probability():
    x, w, m = homogeneous(30, 3), normal(3, 4), affine(4)
    g = torch.softmax(x @ w.mT, -1) - nn.functional.one_hot(torch.arange(30) % 3, 3)

    def moved(x, w):
        gradient = torch.einsum("bm,bn->mn", g, x) / len(x)
        step = torch.linalg.pinv(softmax_layer(x, w), hermitian=True) @ gradient.flatten()
        z = x @ step.view_as(w).mT
        return z - z.mean(-1, keepdim=True)

    assert_close(moved(x @ m.mT, w @ torch.linalg.inv(m)), moved(x, w), 1e-8)


def test_damped_it_is_not():
    x, w, g, m = homogeneous(30, 3), normal(4, 4), normal(30, 4), affine(4)
    before = changes(nonlinear_layer("tanh", x, w), x, g, 0.1)
    after = changes(nonlinear_layer("tanh", x @ m.mT, w @ torch.linalg.inv(m)), x @ m.mT, g, 0.1)
    assert (after - before).abs().max() > 1e-3 * before.abs().max()


@pytest.mark.parametrize("structure", ["unit", "shared"])
def test_so_is_the_structures_step(structure):
    _, captured, _ = net(hidden=(5,))
    forms = [Form("linear" if structure == "shared" else "tanh"), OUTPUT]
    stats = relative_statistics(captured, make_likelihood("categorical"), forms, {})
    g, m = [normal(8, 5)], affine(4)
    moved = []
    for change in (torch.eye(4, dtype=torch.float64), m):
        x = stats.inputs[0].joined @ change.mT
        inputs = type(stats.inputs[0])(x, None)
        found = STRUCTURES[structure]()
        found.update(type(stats)([inputs], stats.gradients[:1]), 0.0)
        found.refresh(torch.zeros((), dtype=torch.float64))
        moved.append(x @ found.solve([inputs.weighted_sum(g[0], 1 / 8)])[0].mT)
    assert_close(moved[1], moved[0], 1e-8)
