"""Against BackPACK 1.7.1: per-example gradients, the exact Fisher's square root, K-FAC's blocks.

BackPACK keeps weight and bias apart, so of a Kronecker block its weight part and its bias part are compared.
"""

import pytest
import torch

from fisherlab.fisher.full import per_example
from tests.cases import LIKELIHOODS
from tests.compare import assert_close
from tests.oracles.common import FORMS, loss_of, problem
from tests.reference import damped_solve

backpack = pytest.importorskip("backpack")
extensions = pytest.importorskip("backpack.extensions")


def run(p, *wanted):
    """Back-propagate the summed loss through an extended copy of the peer's model."""
    model, loss = backpack.extend(p.peer), backpack.extend(loss_of(p.likelihood))
    with backpack.backpack(*wanted):
        loss(model(p.peer_x), p.peer_y).backward()
    return list(model.parameters())


def nll_scale(p):
    """BackPACK's gaussian loss is twice the nll."""
    return 2 if p.likelihood == "gaussian" else 1


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_per_example_gradients(likelihood, form, bias):
    p = problem(form, likelihood, bias=bias)
    expected = torch.cat([q.grad_batch.flatten(1) for q in run(p, extensions.BatchGrad())], 1) / nll_scale(p)
    assert_close(p.lane(per_example(p.statistics("empirical"))), expected[:, p.order], 1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_empirical_natural_gradient(likelihood, form):
    p = problem(form, likelihood)
    u = torch.cat([q.grad_batch.flatten(1) for q in run(p, extensions.BatchGrad())], 1) / nll_scale(p)
    assert_close(
        p.step(kind="empirical", structure="gram", damping=1e-3), damped_solve(u.mT @ u / len(u), 1e-3, u.mean(0)), 1e-9
    )


@pytest.mark.parametrize("duplicated", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_exact_fisher(likelihood, form, duplicated):
    # It knows the logistic loss of one output only.
    p = problem(form, likelihood, duplicated=duplicated, outputs=1 if likelihood == "bernoulli" else 3)
    root = torch.cat([q.sqrt_ggn_exact.flatten(2) for q in run(p, extensions.SqrtGGNExact())], 2).flatten(0, 1)
    assert_close(p.dense("exact"), root.mT @ root / (nll_scale(p) * len(p.peer_x)), 1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_exact_diagonal(likelihood, form):
    p = problem(form, likelihood, outputs=1 if likelihood == "bernoulli" else 3)
    expected = torch.cat([q.diag_ggn_exact.flatten() for q in run(p, extensions.DiagGGNExact())])
    found = p.dense("exact", structure="diagonal").diagonal()
    assert_close(found, expected / (nll_scale(p) * len(p.peer_x)), 1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_exact_blocks_of_units(likelihood, form):
    # It has no such structure: the units' blocks are cut out of its square root.
    p = problem(form, likelihood, bias=False, outputs=1 if likelihood == "bernoulli" else 3)
    blocks = []
    for q in run(p, extensions.SqrtGGNExact()):
        root = q.sqrt_ggn_exact.flatten(0, 1) / (nll_scale(p) * len(p.peer_x)) ** 0.5
        blocks += [root[:, i].mT @ root[:, i] for i in range(len(q))]
    assert_close(p.dense("exact", structure="unit"), torch.block_diag(*blocks), 1e-12)


@pytest.mark.parametrize("duplicated", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("likelihood", ["categorical", "gaussian"])
def test_exact_kfac_product(likelihood, form, duplicated):
    p = problem(form, likelihood, duplicated=duplicated)
    parameters = run(p, extensions.KFLR())
    batch = len(p.peer_x)
    for block, weight, bias in zip(p.blocks("exact"), parameters[::2], parameters[1::2], strict=True):
        (g, a), (own,) = weight.kflr, bias.kflr
        full = block.view(len(g), len(a) + 1, len(g), len(a) + 1) * nll_scale(p)
        expected = torch.kron(g, a) / batch
        assert_close(full[:, :-1, :, :-1].reshape(expected.shape), expected, 1e-12)
        assert_close(full[:, -1, :, -1], own / batch, 1e-12)
