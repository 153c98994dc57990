"""Block-tridiagonal K-FAC against the dense twin: F-hat's inverse, its blocks, and where it is block-diagonal."""

import pytest
import torch

from fisherlab.errors import UsageError
from fisherlab.fisher import Kronecker, KroneckerTridiagonal
from fisherlab.models import deep_linear, mlp, stack_replicas
from fisherlab.optim import NaturalGradient
from fisherlab.streams import generator
from tests.cases import KINDS, LIKELIHOODS, batch_statistics, flat, like, noise_of
from tests.compare import assert_close, assert_same_bits
from tests.reference import Twin

DAMPING = 0.05


def number(value):
    return torch.tensor(value, dtype=torch.float64)


def problem(layers, likelihood, batch=6):
    source = generator(layers, "test/tridiagonal")
    hidden = [4, 3, 5, 2][: layers - 1]
    model = mlp(5, 3, hidden=hidden, activation="tanh", generator=source).double()
    for p in model.parameters():
        torch.nn.init.normal_(p, 0, 0.7, source)
    x = torch.randn(batch, 5, generator=source, dtype=torch.float64)
    y = torch.randn(batch, 3, generator=source, dtype=torch.float64)
    targets = {"categorical": y.argmax(-1), "bernoulli": (y > 0).double(), "gaussian": y}
    return model, x, targets[likelihood]


def prepared(stats, damping=DAMPING):
    structure = KroneckerTridiagonal()
    structure.update(stats, 0.0)
    assert not structure.refresh(number(damping)).any()
    return structure


@pytest.mark.parametrize("layers", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_solve_is_the_dense_twin_s(likelihood, kind, layers):
    model, x, y = problem(layers, likelihood)
    noise = noise_of(likelihood, 3)
    stats, gradient = batch_statistics(model, likelihood, kind, x, y, noise)
    structure, v = prepared(stats), like(gradient)
    tilde, hat, sizes = Twin(model, likelihood, x, y).tridiagonal(kind, DAMPING, noise)
    assert_close(flat(structure.solve(v)), torch.linalg.solve(hat, flat(v)), 1e-8)
    assert_close(flat(structure.solve(gradient, v)), torch.linalg.solve(hat, flat(gradient) + flat(v)), 1e-8)
    assert_close(flat(structure.damped_matvec(v)), hat @ flat(v), 1e-10)
    inverse = torch.linalg.inv(hat)
    ends = torch.tensor([0, *sizes]).cumsum(0).tolist()
    for i in range(layers):
        for j in range(layers):
            at = (slice(ends[i], ends[i + 1]), slice(ends[j], ends[j + 1]))
            if abs(i - j) <= 1:
                assert_close(hat[at], tilde[at], 1e-12)
            else:
                assert inverse[at].abs().max() < 1e-8 * inverse.abs().max()


def test_without_ties_it_is_block_diagonal():
    model, x, y = problem(4, "categorical")
    stats, gradient = batch_statistics(model, "categorical", "exact", x, y)
    structure, blocks = KroneckerTridiagonal(), Kronecker()
    for one in (structure, blocks):
        one.update(stats, 0.0)
    structure._cross = [(a * 0, g * 0) for a, g in structure._cross]
    for one in (structure, blocks):
        one.refresh(number(DAMPING))
    assert_close(flat(structure.solve(gradient)), flat(blocks.solve(gradient)), 1e-10)


def test_one_layer_is_block_diagonal():
    model, (x, y) = deep_linear(5, 3, layers=1).double(), problem(2, "categorical")[1:]
    stats, gradient = batch_statistics(model, "categorical", "exact", x, y)
    blocks = Kronecker()
    blocks.update(stats, 0.0)
    blocks.refresh(number(DAMPING))
    assert_close(flat(prepared(stats).solve(gradient)), flat(blocks.solve(gradient)), 1e-12)


def test_the_average_moves_the_ties_too():
    model, x, y = problem(3, "categorical")
    first, second = (
        batch_statistics(model, "categorical", "exact", x[rows], y[rows])[0] for rows in ([0, 1, 2], [3, 4, 5])
    )
    moved, a, b = (KroneckerTridiagonal() for _ in range(3))
    moved.update(first, 0.0)
    kept = moved.cross[0][0].clone()
    a.update(first, 0.0)
    b.update(second, 0.0)
    moved.update(second, 0.75)
    for (m, n), (c, d), (e, f) in zip(moved.cross, a.cross, b.cross, strict=True):
        assert_close(m, 0.75 * c + 0.25 * e, 1e-14)
        assert_close(n, 0.75 * d + 0.25 * f, 1e-14)
    assert not torch.equal(moved.cross[0][0], kept)
    moved.update(second, 0.0)
    assert_same_bits(moved.cross[0][0], b.cross[0][0])


def test_a_batch_smaller_than_a_layer_and_dead_units_are_solved():
    model, x, y = problem(4, "categorical", batch=2)
    with torch.no_grad():
        model[2].weight.zero_()  # the second layer's outputs do not depend on its inputs: its gradients vanish below
        x[:, 0] = 0
    stats, gradient = batch_statistics(model, "categorical", "exact", x, y)
    _, hat, _ = Twin(model, "categorical", x, y).tridiagonal("exact", 1e-6)
    assert_close(flat(prepared(stats, 1e-6).solve(gradient)), torch.linalg.solve(hat, flat(gradient)), 1e-6)


def test_a_singular_factor_is_marked_and_its_neighbours_are_not_disturbed():
    models = [problem(3, "categorical")[0] for _ in range(3)]
    _, x, y = problem(3, "categorical")
    with torch.no_grad():
        models[1][0].weight.fill_(float("nan"))
    stats, v = batch_statistics(stack_replicas(models, (1, 3)), "categorical", "exact", x[None, None], y[None, None])
    structure = KroneckerTridiagonal()
    structure.update(stats, 0.0)
    failed = structure.refresh(number(DAMPING).expand(1, 3))
    assert failed.any(0).tolist() == [[False, True, False]]
    clean = [layer.nan_to_num() for layer in v]
    solved = flat(structure.solve(clean))
    own, _ = batch_statistics(models[0], "categorical", "exact", x, y)
    assert_close(solved[0, 0], flat(prepared(own).solve([layer[0, 0] for layer in clean])), 1e-10)
    assert_close(solved[0, 2], solved[0, 0], 1e-14)


def two_units(cross):
    """Two layers of one weight each in float32: every factor is 1, and what ties them is given."""
    one = torch.ones(1, 1)
    structure = KroneckerTridiagonal()
    state = {"a": [one, one], "g": [one, one], "cross": [[one * cross, one * cross]]}
    structure.load(state | {"prepared": [], "links": [], "explicit": False})
    return structure


@pytest.mark.parametrize(("cross", "untied"), [(0.5, 0), (1.0, 1)])
def test_a_tie_that_rounding_leaves_nothing_of_is_counted(cross, untied):
    structure = two_units(cross)
    assert not structure.refresh(number(1e-20)).any()
    assert structure.report() == {"untied": untied}
    solved = structure.solve([torch.ones(1, 1), torch.zeros(1, 1)])
    assert float(solved[0]) == pytest.approx(1 / (1 - cross**4) if not untied else 1)
    again = two_units(cross)
    again.load(structure.state())
    assert again.report() == {"untied": untied}


def test_a_tie_that_is_no_number_fails_its_layer():
    structure = two_units(float("inf"))
    assert structure.refresh(number(0.1)).tolist() == [True, False]


def test_there_is_no_joint_eigenbasis():
    model, _, _ = problem(2, "categorical")
    with pytest.raises(UsageError, match="damping_mode='tikhonov' does not fit structure=kronecker_tridiagonal"):
        NaturalGradient(model, "categorical", structure="kronecker_tridiagonal", damping_mode="tikhonov")
