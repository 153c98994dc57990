"""Against ASDL (asdfghjkl 0.1a5): dense Fishers, K-FAC, EF-NGD by Sherman-Morrison-Woodbury.

Its A has no ones column, so with biases the weights' part of a block is compared, and solves are compared without.
"""

import pytest
import torch
import torch.nn.functional as F

from tests.compare import assert_close
from tests.oracles.common import FORMS, problem
from tests.reference import damped_solve

asdl = pytest.importorskip("asdl")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

TYPES = {"exact": "fisher_exact", "empirical": "fisher_emp", "mc": "fisher_mc"}
# It knows the losses of two likelihoods; any loss will do for the empirical Fisher.
CASES = [(k, n) for n in ("categorical", "gaussian") for k in ("exact", "empirical", "mc")] + [
    ("empirical", "bernoulli")
]
SEED = 3


def nll(likelihood):
    return {
        "categorical": lambda f, y, reduction="sum": F.cross_entropy(f, y, reduction=reduction),
        "bernoulli": lambda f, y, reduction="sum": F.binary_cross_entropy_with_logits(f, y, reduction="sum"),
        "gaussian": lambda f, y, reduction="sum": 0.5 * F.mse_loss(f, y, reduction="sum"),
    }[likelihood]


def fisher(p, kind, shape):
    """Fill the peer's modules (or the model, for a full matrix) with ASDL's Fisher of one batch."""
    loss_type = "cross_entropy" if p.likelihood == "categorical" else "mse"
    config = asdl.FisherConfig(TYPES[kind], [shape], loss_type=loss_type, data_size=len(p.peer_x), seed=SEED)
    maker = asdl.get_fisher_maker(p.peer, config)
    output = maker.setup_model_call(p.peer, p.peer_x)
    maker.setup_loss_call(nll(p.likelihood), output, p.peer_y)
    maker.setup_logits_repr(output)
    maker.forward_and_backward()


def labels(p, kind):
    """The labels that ASDL samples after seeding with SEED."""
    if kind != "mc":
        return None
    f = p.peer(p.peer_x).detach()
    torch.manual_seed(SEED)
    if p.likelihood == "categorical":
        return torch.distributions.Categorical(f.softmax(-1)).sample()
    return torch.distributions.Normal(f, 1.0).sample()


@pytest.mark.parametrize("duplicated", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("kind", "likelihood"), CASES)
def test_dense_matrix(likelihood, kind, form, duplicated):
    p = problem(form, likelihood, duplicated=duplicated)
    fisher(p, kind, asdl.SHAPE_FULL)
    assert_close(p.dense(kind, labels(p, kind)), p.peer.fisher.data, 1e-12)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("kind", "likelihood"), CASES)
def test_kfac_product_of_the_weights(likelihood, kind, form, bias):
    p = problem(form, likelihood, bias=bias)
    fisher(p, kind, asdl.SHAPE_KRON)
    layers = [m for m in p.peer if isinstance(m, torch.nn.Linear)]
    for block, module in zip(p.blocks(kind, labels(p, kind)), layers, strict=True):
        kron = module.fisher.kron
        g, a = len(kron.B), len(kron.A)
        weights = block.view(g, a + bias, g, a + bias)[:, :a, :, :a].reshape(g * a, g * a)
        assert_close(weights, torch.kron(kron.B, kron.A), 1e-12)


@pytest.mark.parametrize("duplicated", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("kind", "likelihood"), [c for c in CASES if c[0] != "mc"])
def test_kfac_direction_without_biases(likelihood, kind, form, duplicated):
    p, damping = problem(form, likelihood, bias=False, duplicated=duplicated), 1e-2
    gradient = p.gradient()
    fisher(p, kind, asdl.SHAPE_KRON)
    parts = []
    for module, v in zip([m for m in p.peer if isinstance(m, torch.nn.Linear)], split(p, gradient), strict=True):
        module.fisher.kron.update_inv(damping)
        parts.append(module.fisher.kron.mvp(v, use_inv=True).flatten())
    assert_close(p.step(kind=kind, structure="kronecker", damping=damping), torch.cat(parts), 1e-10)


def split(p, flat):
    sizes = [q.numel() for q in p.peer.parameters()]
    return [part.view(q.shape) for part, q in zip(flat.split(sizes), p.peer.parameters(), strict=True)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("kind", "likelihood"), [c for c in CASES if c[0] != "mc"])
def test_natural_gradient(likelihood, kind, form):
    p = problem(form, likelihood)
    fisher(p, kind, asdl.SHAPE_FULL)
    expected = damped_solve(p.peer.fisher.data, 1e-3, p.gradient())
    assert_close(p.step(kind=kind, structure="gram", damping=1e-3), expected, 1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_empirical_natural_gradient_by_woodbury(form):
    p, damping = problem(form, "categorical"), 1e-2
    maker = asdl.SmwEmpNaturalGradientMaker(
        p.peer, asdl.SmwEmpNaturalGradientConfig(data_size=len(p.peer_x), damping=damping)
    )
    output = maker.setup_model_call(p.peer, p.peer_x)
    maker.setup_loss_call(F.cross_entropy, output, p.peer_y)
    p.peer.zero_grad()
    maker.forward_and_backward()
    expected = torch.cat([q.grad.flatten() for q in p.peer.parameters()])
    assert_close(p.step(kind="empirical", structure="gram", damping=damping), expected, 1e-9)
