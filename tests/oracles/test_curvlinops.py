"""Against curvlinops 3.0.1: dense Fisher and empirical Fisher, K-FAC with joint biases, damped solves."""

import pytest
import torch

from tests.cases import LIKELIHOODS
from tests.compare import assert_close
from tests.oracles.common import FORMS, by_columns, loss_of, problem
from tests.reference import damped_solve

curvlinops = pytest.importorskip("curvlinops")
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")

KFAC_KINDS = {"exact": "type-2", "empirical": "empirical", "mc": "mc"}


def scale(p, kind):
    """curvlinops sums over examples, and its gaussian loss is twice the nll."""
    return len(p.peer_x) * ({"exact": 2, "empirical": 4, "mc": 4}[kind] if p.likelihood == "gaussian" else 1)


def arguments(p):
    return p.peer, loss_of(p.likelihood), list(p.peer.parameters()), [(p.peer_x, p.peer_y)]


def matrix(p, kind):
    operator = {"exact": curvlinops.GGNLinearOperator, "empirical": curvlinops.EFLinearOperator}[kind]
    return by_columns(operator(*arguments(p)), sum(q.numel() for q in p.peer.parameters())) / scale(p, kind)


def kfac(p, kind):
    return curvlinops.KFACLinearOperator(
        *arguments(p), fisher_type=KFAC_KINDS[kind], separate_weight_and_bias=False, check_deterministic=False
    )


@pytest.mark.parametrize("duplicated", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["exact", "empirical"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_dense_matrix(likelihood, kind, form, duplicated):
    p = problem(form, likelihood, duplicated=duplicated)
    assert_close(p.dense(kind), matrix(p, kind), 1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("structure", ["gram", "full"])
@pytest.mark.parametrize("kind", ["exact", "empirical"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_natural_gradient(likelihood, kind, structure, form):
    p = problem(form, likelihood)
    expected = damped_solve(matrix(p, kind), 1e-3, p.gradient())
    assert_close(p.step(kind=kind, structure=structure, damping=1e-3), expected, 1e-9)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KFAC_KINDS)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_kfac_product(likelihood, kind, form, bias, monkeypatch):
    p = problem(form, likelihood, bias=bias)
    labels = p.peer_y.roll(1, 0) if kind == "mc" else None
    monkeypatch.setattr(curvlinops.KFACLinearOperator, "draw_label", lambda self, output: labels)
    size = sum(q.numel() for q in p.peer.parameters())
    ours = p.reordered(torch.block_diag(*p.blocks(kind, labels)))
    assert_close(ours, by_columns(kfac(p, kind), size) / scale(p, kind), 1e-12)


@pytest.mark.parametrize("duplicated", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mode", ["factored", "tikhonov"])
@pytest.mark.parametrize("kind", ["exact", "empirical"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_kfac_direction(likelihood, kind, mode, form, duplicated):
    # (s F + s lambda I)^-1 = (F + lambda I)^-1 / s, for the factored damping too.
    p, damping = problem(form, likelihood, duplicated=duplicated), 1e-2
    s = scale(p, kind)
    chosen = {"use_heuristic_damping": True} if mode == "factored" else {"use_exact_damping": True}
    inverse = curvlinops.KFACInverseLinearOperator(kfac(p, kind), damping=s * damping, **chosen)
    step = p.step(kind=kind, structure="kronecker", damping_mode=mode, damping=damping)
    assert_close(step, s * (inverse @ p.gradient()), 1e-10)
