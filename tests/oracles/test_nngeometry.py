"""Against nngeometry 0.4: dense Fishers, K-FAC with joint biases, damped solves."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from fisherlab.likelihood import make_likelihood
from tests.cases import LIKELIHOODS
from tests.compare import assert_close
from tests.oracles.common import FORMS, problem

metrics = pytest.importorskip("nngeometry.metrics")
objects = pytest.importorskip("nngeometry.object")
LayerCollection = pytest.importorskip("nngeometry.layercollection").LayerCollection

VARIANTS = {"categorical": "classif_logits", "bernoulli": "classif_binary_logits", "gaussian": "regression"}
SEED = 5


@pytest.fixture(autouse=True)
def _double_by_default():
    """nngeometry makes some matrices in the default dtype, and divides by its epsilon."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def fisher(p, representation, kind="exact"):
    loader = DataLoader(TensorDataset(p.peer_x.clone(), p.peer_y), batch_size=len(p.peer_x))
    if kind == "mc":
        torch.manual_seed(SEED)
        return metrics.FIM_MonteCarlo(p.peer, loader, representation, "classif_logits", trials=1)
    if kind == "exact":
        return metrics.FIM(p.peer, loader, representation, VARIANTS[p.likelihood])
    # The empirical Fisher is the "Fisher" of a regression whose output is each example's own nll.
    nll = make_likelihood(p.likelihood).nll
    return metrics.FIM(
        p.peer, loader, representation, "regression", function=lambda x, y: nll(p.peer(x), y).unsqueeze(1)
    )


def vector(p, flat):
    return objects.PVector(LayerCollection.from_model(p.peer), vector_repr=flat)


def labels(p, kind):
    """The labels that nngeometry samples after seeding with SEED."""
    if kind != "mc":
        return None
    p_of_labels = torch.log_softmax(p.peer(p.peer_x), 1).exp().detach()
    torch.manual_seed(SEED)
    torch.empty((), dtype=torch.int64).random_()  # a DataLoader draws its base seed first
    return torch.multinomial(p_of_labels, 1, replacement=True).squeeze(1)


CASES = [(k, n) for n in LIKELIHOODS for k in ("exact", "empirical")] + [("mc", "categorical")]


@pytest.mark.parametrize("duplicated", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("kind", "likelihood"), CASES)
def test_dense_matrix(likelihood, kind, form, duplicated):
    p = problem(form, likelihood, duplicated=duplicated)
    expected = fisher(p, objects.PMatDense, kind).to_torch().detach()
    assert_close(p.dense(kind, labels(p, kind)), expected, 1e-12)


@pytest.mark.parametrize(("structure", "representation"), [("layer", "PMatBlockDiag"), ("diagonal", "PMatDiag")])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("kind", "likelihood"), CASES)
def test_what_a_structure_keeps(likelihood, kind, form, bias, structure, representation):
    p = problem(form, likelihood, bias=bias)
    expected = fisher(p, getattr(objects, representation), kind)
    assert_close(p.dense(kind, labels(p, kind), structure), expected.to_torch().detach(), 1e-12)
    if kind != "mc":
        step = p.step(kind=kind, structure=structure, damping=1e-3)
        assert_close(step, expected.solve(vector(p, p.gradient()), regul=1e-3).to_torch(), 1e-9)


@pytest.mark.parametrize("structure", ["gram", "full"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("kind", "likelihood"), CASES[:-1])
def test_natural_gradient(likelihood, kind, form, structure):
    p = problem(form, likelihood)
    expected = fisher(p, objects.PMatDense, kind).solve(vector(p, p.gradient()), regul=1e-3).to_torch()
    assert_close(p.step(kind=kind, structure=structure, damping=1e-3), expected, 1e-9)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("kind", "likelihood"), CASES)
def test_kfac_product(likelihood, kind, form, bias):
    p = problem(form, likelihood, bias=bias)
    kfac = fisher(p, objects.PMatKFAC, kind)
    expected = [torch.kron(g, a).detach() for a, g in kfac.data.values()]
    for block, theirs in zip(p.blocks(kind, labels(p, kind)), expected, strict=True):
        assert_close(block, theirs, 1e-12)


@pytest.mark.parametrize("duplicated", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("kind", "likelihood"), CASES[:-1])
def test_kfac_direction(likelihood, kind, form, duplicated):
    p = problem(form, likelihood, duplicated=duplicated)
    expected = fisher(p, objects.PMatKFAC, kind).solve(vector(p, p.gradient()), regul=1e-2).to_torch()
    assert_close(p.step(kind=kind, structure="kronecker", damping=1e-2), expected, 1e-9)
