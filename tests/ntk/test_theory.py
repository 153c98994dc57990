"""The theory's numbers: couplings, rates, predictions; kernels of infinite width; Forster's position."""

import numpy as np
import pytest
import torch
from scipy.integrate import dblquad

from fisherlab.errors import UsageError
from fisherlab.fisher.capture import Capture
from fisherlab.models import wide
from fisherlab.ntk import Jacobian, analytic, grams, isotropy, make, radial_isotropic, theory
from fisherlab.streams import generator
from tests.compare import assert_close
from tests.ntk.dense import problem

F64 = torch.float64


# --- couplings and rates ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "share"),
    [(3, [0, 1, 0]), (4, [1, 0, 0, 1]), (6, [0, 1, 0, 0, 1, 0]), (7, [1, 0, 0, 1, 0, 0, 1])],
)
def test_the_block_tridiagonal_fisher_moves_every_third_layer(depth, share):
    found = theory.shares(theory.coupling("tridiagonal", depth))
    assert_close(found, torch.tensor(share, dtype=F64), 1e-12)
    s = depth // 3
    assert theory.alpha("tridiagonal", depth) == pytest.approx(s if depth % 3 == 0 else s + 1)


@pytest.mark.parametrize("depth", [2, 5, 8, 11])
def test_its_singular_depths_are_3s_plus_2(depth):
    ones = torch.ones(depth, depth).tril(1).triu(-1)
    assert abs(float(torch.linalg.det(ones))) < 1e-6
    with pytest.raises(UsageError, match=f"layers={depth}: .*is singular at 2, 5, 8"):
        theory.alpha("tridiagonal", depth)


def test_its_t_is_indefinite():
    assert float(torch.linalg.eigvalsh(theory.coupling("tridiagonal", 3))[0]) == pytest.approx(1 - 2**0.5)


def test_kfac_s_rate_counts_the_last_layer_once():
    """Caution 1 of the sheet: N (L - 1) + 1, not N L, which would leave a third at L = 3."""
    assert theory.alpha("kfac", 3, examples=100) == 201
    assert 1 - theory.alpha("kfac", 3, examples=100) / 300 == pytest.approx(0.33)
    assert theory.alpha("kfac", 3, examples=100, first=60) == 161
    assert theory.alpha("kfac", 1, examples=100) == 1


@pytest.mark.parametrize("variant", ["exact", "layer", "tridiagonal", "kfac"])
@pytest.mark.parametrize("layers", [3, 4])
def test_every_undamped_variant_is_isotropic_with_its_alpha(variant, layers):
    model, x, _, _ = problem(layers=layers, width=16)
    one = Jacobian.of(Capture(model), x)
    s = make(variant, one).kernel(grams(one), one)
    assert isotropy(s) < 1e-6
    assert float(s.diagonal().mean()) == pytest.approx(theory.alpha(variant, layers, examples=len(x)), rel=1e-6)


@pytest.mark.parametrize(("variant", "depth"), [("kfak", 3), ("diagonal", 3)])
def test_what_has_no_alpha_is_said(variant, depth):
    with pytest.raises(ValueError, match="has no alpha"):
        theory.alpha(variant, depth)


# --- predictions ------------------------------------------------------------------------------------------------------


def start_of(model, x, test):
    capture = Capture(model)
    one, two = Jacobian.of(capture, x), Jacobian.of(capture, test)
    return one, grams(one), grams(two, one), theory.Path(one.outputs, two.outputs)


def test_closed_forms_are_the_linear_dynamics():
    model, x, test, y = problem(layers=4, width=16)
    one, own, cross, start = start_of(model, x, test)
    inverses = [torch.linalg.inv(k) for k in own.layers]
    parts = torch.stack([k @ i for k, i in zip(cross.layers, inverses, strict=True)])
    share = theory.shares(theory.coupling("tridiagonal", 4))
    qs = {
        "exact": cross.total @ torch.linalg.inv(own.total),
        "layer": parts.mean(0),
        "tridiagonal": torch.einsum("l,lij->ij", share, parts) / share.sum(),
    }
    for variant, q in qs.items():
        alpha, found = theory.alpha(variant, 4), make(variant, one)
        for rate in (1.0, 0.1, 1.9):
            left = (1 - rate) ** torch.arange(6, dtype=F64)[:, None]  # the sheet's f_t(x'), 4.2
            gap = y - start.train
            closed = (y - left * gap, start.test + (1 - left) * (q @ gap))
            steps = theory.linear(start, y, found.kernel(own), found.kernel(cross), rate / alpha, 5)
            for a, b in zip(closed, steps, strict=True):
                assert_close(a, b, 1e-6)


def test_test_outputs_differ_between_variants_though_training_outputs_agree():
    model, x, test, y = problem(layers=4, width=16)
    one, own, cross, start = start_of(model, x, test)
    ends = {}
    for variant in ("exact", "layer", "tridiagonal", "kfac"):
        found, alpha = make(variant, one), theory.alpha(variant, 4, examples=len(x))
        ends[variant] = theory.linear(start, y, found.kernel(own), found.kernel(cross), 0.5 / alpha, 3)
        assert_close(ends[variant].train, ends["exact"].train, 1e-6)
        assert variant == "exact" or (ends[variant].test - ends["exact"].test).abs().max() > 0.01


def test_gradient_flow_is_the_limit_of_small_steps():
    model, x, test, y = problem()
    one, own, cross, start = start_of(model, x, test)
    found = make("gd", one)
    flow = theory.flow(start, y, own.total, cross.total, 0.5, 4)
    steps = theory.linear(start, y, found.kernel(own), found.kernel(cross), 0.5 / 20_000, 80_000)
    for a, b in zip(flow, steps, strict=True):
        assert_close(a, b[::20_000], 1e-3)


# --- infinite width ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("activation", "sigma_b2"), [("relu", 0.0), ("relu", 0.2), ("erf", 0.1), ("tanh", 0.1)])
def test_empirical_kernels_approach_the_analytic_ones(activation, sigma_b2):
    source = generator(0, "test/ntk")
    x = torch.nn.functional.normalize(torch.randn(8, 20, generator=source, dtype=F64), dim=1) * 20**0.5
    told = {"layers": 3, "activation": activation, "sigma_w2": 2.0, "sigma_b2": sigma_b2}
    expected, expected_test = analytic.kernels(x, 5, **told)

    def apart(width):
        errors = []
        for seed in range(4):
            model = wide(20, 1, width=width, generator=generator(seed, "test/wide"), **told).double()
            capture = Capture(model)
            one, two = Jacobian.of(capture, x[:5]), Jacobian.of(capture, x[5:])
            for found, want in ((grams(one), expected), (grams(two, one), expected_test)):
                for a, b in zip([*found.inputs, *found.gradients], [*want.inputs, *want.gradients], strict=True):
                    errors.append((torch.linalg.norm(a - b) / torch.linalg.norm(b)).square())
        return float(torch.stack(errors).mean().sqrt())

    narrow, broad = apart(64), apart(1024)
    assert broad < 0.12
    assert 2.5 < narrow / broad < 6  # the root of 16 is 4


def test_relu_kernels_have_the_released_code_s_form():
    """The sheet's formulas, with q_0 = 2 / M_0 and sigma_w^2 = 2 for unit-norm inputs without biases."""
    x = torch.nn.functional.normalize(torch.randn(6, 11, generator=generator(0, "test/ntk"), dtype=F64), dim=1)
    found, _ = analytic.kernels(x, 6, layers=3, activation="relu", sigma_w2=2.0)
    a, q, slopes, inputs = x @ x.mT / 11, 2 / 11, [], []
    for _ in range(2):
        inputs.append(2 * a)
        p = (2 * a / q).clamp(-1, 1)
        a = q / (2 * torch.pi) * ((1 - p**2).sqrt() + torch.pi / 2 * p + p * p.asin())
        slopes.append((p.asin() + torch.pi / 2) / (2 * torch.pi))
    expected = [2 * slopes[0] * 2 * slopes[1] * inputs[0], 2 * slopes[1] * inputs[1], 2 * a]
    for theta, want in zip(found.layers, expected, strict=True):
        assert_close(theta, want, 1e-7)


def test_quadrature_gives_erf_s_closed_form():
    x = torch.randn(6, 11, generator=generator(0, "test/ntk"), dtype=F64)
    c = 0.2 * x @ x.mT
    slope = 2 / torch.pi**0.5
    found = analytic.quadrature(c, torch.erf, lambda u: slope * torch.exp(-u * u))
    for a, b in zip(found, analytic.MOMENTS["erf"](c), strict=True):
        assert_close(a, b, 1e-10)


@pytest.mark.parametrize("variance", [0.3, 2.0, 4.0])
def test_tanh_s_kernels_are_the_integrals(variance):
    """Against an adaptive rule, and by Price's theorem: the slope of E[phi(u) phi(v)] in the covariance."""
    p, root = 0.6, variance**0.5
    c = variance * torch.tensor([[1.0, p], [p, 1.0]], dtype=F64)
    a, k = analytic.MOMENTS["tanh"](c)

    def density(s, t):
        return np.exp(-(s * s + t * t) / 2) / (2 * np.pi)

    def product(phi):
        return lambda s, t: phi(root * s) * phi(root * (p * s + (1 - p * p) ** 0.5 * t)) * density(s, t)

    for found, phi in ((a, np.tanh), (k, lambda u: 1 / np.cosh(u) ** 2)):
        expected = dblquad(product(phi), -9, 9, -9, 9, epsabs=1e-9, epsrel=1e-9)[0]
        assert float(found[0, 1]) == pytest.approx(expected, rel=1e-7)
    step = 1e-5 * torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=F64)
    above, below = (analytic.MOMENTS["tanh"](c + s)[0][0, 1] for s in (step, -step))
    assert float(k[0, 1]) == pytest.approx(float(above - below) / 2e-5, rel=1e-5)


def test_an_activation_without_a_kernel_is_refused():
    with pytest.raises(UsageError, match="activation='logistic' has no analytic kernel: expected one of"):
        analytic.kernels(torch.ones(2, 2), 1, layers=2, activation="logistic", sigma_w2=1.0)


# --- fewer inputs than examples ---------------------------------------------------------------------------------------


def test_radial_isotropic_inputs_make_kfac_isotropic_with_its_rate():
    x = torch.randn(20, 6, generator=generator(0, "test/forster"), dtype=F64)
    x = torch.cat([x, x[:, :1], torch.zeros(20, 2, dtype=F64)], 1)  # rank 6
    found = radial_isotropic(x, tolerance=1e-9, iterations=1000)
    assert found.shape == (20, 6)
    assert_close(found.square().sum(1), torch.ones(20), 1e-12)
    assert_close(found.mT @ found, 20 / 6 * torch.eye(6, dtype=F64), 1e-8)
    model = wide(6, 1, width=64, generator=generator(0, "test/wide")).double()
    one = Jacobian.of(Capture(model), found)
    s = make("kfac", one).kernel(grams(one), one)
    assert isotropy(s) < 1e-6
    assert float(s.diagonal().mean()) == pytest.approx(theory.alpha("kfac", 3, examples=20, first=6), rel=1e-6)


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (torch.randn(4, 9, generator=generator(0, "x")), "4 examples are linearly independent"),
        (torch.eye(3)[torch.tensor([0, 0, 0, 0, 0, 1, 2])], "radial-isotropic position was not reached in 100"),
    ],
)
def test_positions_that_do_not_exist_are_refused(x, says):
    with pytest.raises(UsageError) as error:
        radial_isotropic(x)
    assert says in str(error.value)
