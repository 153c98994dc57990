"""Every natural gradient through its dual equals the dense solve; what has no solution is refused with the reason."""

import copy

import pytest
import torch

from fisherlab.errors import UsageError
from fisherlab.fisher.capture import Capture
from fisherlab.models import wide
from fisherlab.ntk import VARIANTS, Jacobian, grams, isotropy, make
from fisherlab.ntk.dual import coupled, exact
from fisherlab.ntk.solving import Damping
from tests.compare import assert_close
from tests.ntk.dense import Dense, kfac_inverse, problem

SETTINGS = [("tanh", 0.0), ("relu", 0.0), ("erf", 0.3)]


def jacobians(model, x, test):
    capture = Capture(model)
    return Jacobian.of(capture, x), Jacobian.of(capture, test)


def flat(step):
    return torch.cat([u.flatten() for u in step])


def check(found, inverse, model, x, test, y, weights=None, tolerance=1e-7):
    """Step, S on the training examples, and S between test and training examples."""
    dense, other = Dense(model, x, weights), Dense(model, test)
    jacobian, rows = jacobians(model, x, test)
    if weights is not None:
        jacobian = jacobian.weighted(weights)
    n = len(x)
    assert_close(flat(found.step(jacobian, y)), inverse @ dense.j.mT @ y / n, tolerance)
    assert_close(found.kernel(grams(jacobian), jacobian), dense.j @ inverse @ dense.j.mT / n, tolerance)
    assert_close(found.kernel(grams(rows, jacobian), rows), other.j @ inverse @ dense.j.mT / n, tolerance)


@pytest.mark.parametrize(("activation", "sigma_b2"), SETTINGS)
def test_gram_matrices_are_those_of_explicit_jacobians(activation, sigma_b2):
    model, x, test, _ = problem(activation=activation, sigma_b2=sigma_b2)
    one, two = jacobians(model, x, test)
    for own, rows, columns in ((grams(one), x, x), (grams(two, one), test, x)):
        left, right = Dense(model, rows), Dense(model, columns)
        assert_close(own.total, left.j @ right.j.mT, 1e-12)
        for theta, a, b in zip(own.layers, left.blocks, right.blocks, strict=True):
            assert_close(theta, a @ b.mT, 1e-12)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("activation", "sigma_b2"), SETTINGS)
@pytest.mark.parametrize(
    ("variant", "damping"), [(v, d) for v in VARIANTS for d in (0.0, 0.03) if v != "kfac" and (v, d) != ("unit", 0.0)]
)
def test_dual_systems_equal_dense_solves(variant, activation, sigma_b2, damping, weighted):
    model, x, test, y = problem(activation=activation, sigma_b2=sigma_b2, layers=4)
    weights = torch.linspace(0.3, 1.7, len(x), dtype=torch.float64) if weighted else None
    jacobian, _ = jacobians(model, x, test)
    jacobian = jacobian if weights is None else jacobian.weighted(weights)
    found = make(variant, jacobian, Damping(damping))
    inverse = Dense(model, x, weights).inverse(variant, damping)
    inverse = inverse / (1 + damping) if variant == "gd" else inverse
    check(found, inverse, model, x, test, y, weights)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("activation", "sigma_b2"), SETTINGS)
@pytest.mark.parametrize(("inputs", "damping"), [(9, 0.0), (9, 0.03), (5, 0.03)])  # more and fewer than the examples
def test_kfac_by_duals_equals_dense_factors(inputs, activation, sigma_b2, damping, weighted):
    model, x, test, y = problem(inputs=inputs, width=16, activation=activation, sigma_b2=sigma_b2)
    weights = torch.linspace(0.3, 1.7, len(x), dtype=torch.float64) if weighted else None
    jacobian, _ = jacobians(model, x, test)
    jacobian = jacobian if weights is None else jacobian.weighted(weights)
    found = make("kfac", jacobian, Damping(damping))
    check(found, kfac_inverse(model, x, damping, weights), model, x, test, y, weights)


@pytest.mark.parametrize("variant", ["exact", "layer", "tridiagonal", "unit", "diagonal"])
def test_relative_damping_is_in_units_of_the_mean_eigenvalue(variant):
    model, x, test, y = problem(layers=3)
    dense = Dense(model, x)
    n, jacobian = len(x), Jacobian.of(Capture(model), x)
    found = make(variant, jacobian, Damping(0.01, relative=True))
    if variant == "unit":
        blocks = []
        for j, (out, into) in zip(dense.blocks, dense.shapes, strict=True):
            for unit in j.view(n, out, into).unbind(1):
                f = unit.mT @ unit / n
                blocks.append(torch.linalg.inv(f + 0.01 * f.trace() / min(n, into) * torch.eye(into, dtype=f.dtype)))
        inverse = torch.block_diag(*blocks)
    else:
        traces = [float(j.square().sum()) / n for j in dense.blocks]
        sizes = [j.shape[1] for j in dense.blocks] if variant == "diagonal" else [n] * 3
        rhos = [0.01 * t / s for t, s in zip(traces, sizes, strict=True)]
        inverse = dense.inverse(variant, [0.01 * sum(traces) / n] * 3 if variant == "exact" else rhos)
    check(found, inverse, model, x, test, y)


def test_coupling_by_ones_is_the_whole_fisher():
    model, x, _, _ = problem()
    own = grams(Jacobian.of(Capture(model), x))
    found = coupled(own, torch.ones(3, 3, dtype=torch.float64), Damping(0.02))
    assert_close(found.kernel(own), exact(own, Damping(0.02)).kernel(own), 1e-12)


def test_a_step_moves_the_outputs_by_s():
    """f(theta - eta step) = f - eta S r to first order, with the scales of the NTK parameterisation."""
    model, x, _, y = problem(sigma_b2=0.2)
    capture = Capture(model)
    for variant in VARIANTS:
        one = Jacobian.of(capture, x)
        found = make(variant, one, Damping(1e-2 if variant == "unit" else 0.0))
        r, eta = one.outputs - y, 1e-6
        for layer, u in zip(capture.layers, found.step(one, r), strict=True):
            for p, part in zip(layer.parameters, layer.split(u), strict=True):
                p.data.sub_(part, alpha=eta)
        moved = (one.outputs - model(x).detach()[:, 0]) / eta
        assert_close(moved, found.kernel(grams(one), one) @ r, 1e-3)


def test_kfac_s_step_needs_no_factor_of_the_width():
    """Caution 2 of the sheet: in the weights' own coordinates the step moves the outputs by (N (L - 1) + 1) r."""
    for width in (16, 64):
        model, x, _, y = problem(width=width)
        capture = Capture(model)
        one = Jacobian.of(capture, x)
        r, eta = one.outputs - y, 1e-7
        for layer, u in zip(capture.layers, make("kfac", one).step(one, r), strict=True):
            layer.module.weight.data.sub_(u, alpha=eta)
        moved = (one.outputs - model(x).detach()[:, 0]) / eta
        assert_close(moved, (len(x) * 2 + 1) * r, 1e-3)


def plain(model):
    """The same function in plain weight coordinates: the scales multiplied into the weights."""
    other = copy.deepcopy(model)
    for layer in Capture(other).layers:
        layer.module.weight.data.mul_(layer.module.scale)
        layer.module.scale = 1.0
    return other


@pytest.mark.parametrize("variant", VARIANTS)
def test_float32_networks_are_solved_in_float64(variant):
    """Kernels and solves are float64 whatever the network's dtype; only what enters and leaves is rounded."""
    model, x, _, y = problem()
    damping = Damping(1e-2 if variant == "unit" else 0.0)
    found = []
    for net, inputs in ((model, x), (copy.deepcopy(model).float(), x.float())):
        one = Jacobian.of(Capture(net), inputs)
        made = make(variant, one, damping)
        found.append((made.kernel(grams(one), one), flat(made.step(one, y.to(inputs.dtype)))))
    (s, step), (rough, rough_step) = found
    assert rough.dtype == torch.float64
    assert rough_step.dtype == torch.float32
    assert_close(rough, s, 1e-4)
    assert_close(rough_step, step, 1e-3)


def test_the_parameterisation_matters_where_layers_are_summed():
    """The whole Fisher's pseudo-inverse and damping see coordinates; undamped layer-wise blocks and K-FAC do not."""
    model, x, test, _ = problem()
    moves = {}
    for name, net in (("ntk", model), ("plain", plain(model))):
        one, rows = jacobians(net, x, test)
        for variant, damping in (("exact", 0.0), ("layer", 0.0), ("kfac", 0.0), ("layer", 0.1)):
            found = make(variant, one, Damping(damping))
            moves[name, variant, damping] = found.kernel(grams(rows, one), rows)
    for variant in ("layer", "kfac"):
        assert_close(moves["plain", variant, 0.0], moves["ntk", variant, 0.0], 1e-6)
    for variant, damping in (("exact", 0.0), ("layer", 0.1)):
        off = moves["plain", variant, damping] - moves["ntk", variant, damping]
        assert off.abs().max() > 0.01 * moves["ntk", variant, damping].abs().max()


def test_isotropy_is_the_share_that_is_no_multiple_of_the_identity():
    assert isotropy(3 * torch.eye(5)) == 0
    assert isotropy(torch.diag(torch.tensor([1.0, -1.0]))) == pytest.approx(1)
    assert isotropy(torch.ones(4, 4)) == pytest.approx((1 - 1 / 4) ** 0.5)


# --- what is refused --------------------------------------------------------------------------------------------------


def refused(variant, x, damping=0.0, layers=3):
    model, *_ = problem(inputs=x.shape[1], width=16, layers=layers)
    with pytest.raises(UsageError) as error:
        make(variant, Jacobian.of(Capture(model), x), Damping(damping))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("variant", ["exact", "layer", "tridiagonal", "kfac"])
def test_duplicated_inputs_are_named(variant):
    _, x, _, _ = problem()
    x = torch.cat([x, x[2:3]])
    said = refused(variant, x)
    assert "is singular: rank 7 of 8; examples 2 and 7 are the same there; expected damping above 0" in said
    model, *_ = problem()
    make(variant, Jacobian.of(Capture(model), x), Damping(1e-3))  # with damping there is a solution


def test_dependent_inputs_end_kfac_with_the_factor():
    _, x, _, _ = problem(inputs=9)
    x[6] = x[0] + x[1]
    said = refused("kfac", x)
    assert "the factor A of layer 1 is singular: rank 6 of 7; its examples are linearly dependent there" in said


def test_fewer_inputs_than_examples_want_radial_isotropic_position():
    _, x, _, _ = problem(inputs=5)
    assert "5 inputs of layer 1 are fewer than the 7 examples" in refused("kfac", x)


@pytest.mark.parametrize(("layers", "near"), [(2, "layers=1 or layers=3"), (5, "layers=4 or layers=6")])
def test_a_singular_depth_is_refused_with_the_reason(layers, near):
    _, x, _, _ = problem()
    said = refused("tridiagonal", x, layers=layers)
    assert said.startswith(f"layers={layers}: T of the block-tridiagonal Fisher")
    assert "is singular at 2, 5, 8, ... layers" in said
    assert said.endswith(near)


@pytest.mark.parametrize(
    ("variant", "damping", "says"),
    [
        ("unit", 0.0, "damping=0: a unit-wise block is singular"),
        ("exact", -1.0, "damping=-1.0: expected a finite number of at least 0"),
        ("kfak", 0.0, "variant='kfak' is unknown: did you mean 'kfac'?"),
    ],
)
def test_wrong_arguments_are_one_line(variant, damping, says):
    _, x, _, _ = problem()
    assert says in refused(variant, x, damping)


def test_other_networks_are_refused():
    x = torch.randn(3, 4)
    with pytest.raises(UsageError, match="outputs=2: the function space of one output"):
        Jacobian.of(Capture(wide(4, 2, width=5)), x)
    with pytest.raises(UsageError, match=r"parameter '1\.weight' belongs to no fully connected layer"):
        Jacobian.of(Capture(torch.nn.Sequential(wide(4, 3, width=5), torch.nn.LayerNorm(3), wide(3, 1, width=5))), x)
