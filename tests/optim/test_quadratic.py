"""The K-FAC recipe: alpha and mu minimise the model of the exact F, gamma is the best of three, lambda follows rho."""

import math

import pytest
import torch

from fisherlab.errors import SolveError, UsageError
from fisherlab.models import mlp, stack_replicas
from fisherlab.optim import KFACMartens
from fisherlab.optim.quadratic import GammaSearch, minimiser
from fisherlab.streams import generator
from tests.cases import LIKELIHOODS, batch_of, model_of
from tests.compare import assert_close, assert_same_bits
from tests.reference import Twin, flatten

SMALL = {"damping_start": 1.0, "tau1": 1.0, "l2": 0.01}


def theta(model):
    return flatten(model, dict(model.named_parameters())).detach().clone()


def watch(optimizer, tell):
    """Tell of every candidate for the step: what it was made from, and what came of it."""
    own = optimizer.quadratic._try

    def tried(*args):
        trial = own(*args)
        tell(args, trial)
        return trial

    optimizer.quadratic._try = tried


def inverse_in_use(optimizer):
    """All tensors that a solve takes, of the factors and of what ties them."""
    state = optimizer.preconditioner.structure.state()
    return [t for name in ("prepared", "links") for parts in state.get(name, []) for t in parts]


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("structure", ["kronecker", "kronecker_tridiagonal"])
def test_alpha_and_mu_minimise_the_twin_s_model(likelihood, structure):
    model, (x, y) = model_of("dense"), batch_of(likelihood)
    optimizer = KFACMartens(
        model, likelihood, structure=structure, gamma_search=False, damping=0.7, **SMALL | {"damping_start": None}
    )
    steps, points = [], [theta(model)]
    for _ in range(3):
        twin = Twin(model, likelihood, x, y)
        optimizer.step(x, y)
        points.append(theta(model))
        delta = points[-1] - points[-2]
        b = twin.fisher("exact") + (0.7 + 0.01) * torch.eye(len(delta), dtype=delta.dtype)
        g = twin.gradient + 0.01 * points[-2]
        # Stationary in the last step's direction and in its own: so in the plane of Delta and delta_0.
        for direction in [delta, *steps[-1:]]:
            assert abs(direction @ (g + b @ delta)) < 1e-9 * abs(g @ delta)
        assert_close(optimizer.report["model_change"], g @ delta + 0.5 * delta @ b @ delta, 1e-9)
        steps.append(delta)
    assert optimizer.report["mu"] != 0


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_with_half_the_batch_for_f_alpha_mu_and_m_are_those_of_every_second_example(likelihood):
    model, (x, y) = model_of("dense"), batch_of(likelihood, batch=7)
    options = {"damping": 0.7, "damping_start": None, "gamma_search": False, "tau2": 0.5}
    optimizer = KFACMartens(model, likelihood, **SMALL | options)
    directions, last = [], []
    watch(optimizer, lambda args, _: directions.append(-flatten(model, optimizer.by_name(args[2]))))
    for _ in range(3):
        before = theta(model)
        g = Twin(model, likelihood, x, y).gradient + 0.01 * before  # the gradient is of the whole batch
        b = Twin(model, likelihood, x[::2], y[::2]).fisher("exact") + (0.7 + 0.01) * torch.eye(len(g), dtype=g.dtype)
        optimizer.step(x, y)
        z = torch.stack([directions[-1], *last], -1)
        c = torch.linalg.solve(z.mT @ b @ z, -z.mT @ g)
        delta = z @ c
        assert_close(optimizer.report["alpha"], c[0], 1e-9)
        assert_close(optimizer.report["mu"], c[1:].sum(), 1e-9)
        assert_close(optimizer.report["model_change"], g @ delta + 0.5 * delta @ b @ delta, 1e-9)
        assert_close(theta(model) - before, delta, 1e-9)
        last = [delta]
    assert optimizer.report["mu"] != 0


def test_without_momentum_only_the_direction_is_rescaled():
    model, (x, y) = model_of("dense"), batch_of("categorical")
    optimizer = KFACMartens(model, "categorical", momentum=False, **SMALL)
    for _ in range(3):
        optimizer.step(x, y)
        assert optimizer.report["mu"] == 0
    assert optimizer.quadratic.last is None


def test_rho_is_the_change_over_the_model_s():
    model, (x, y) = model_of("dense"), batch_of("categorical")
    optimizer = KFACMartens(model, "categorical", **SMALL)
    for _ in range(5):
        before = Twin(model, "categorical", x, y).loss + 0.5 * 0.01 * theta(model).square().sum()
        optimizer.step(x, y)
    after = Twin(model, "categorical", x, y).loss + 0.5 * 0.01 * theta(model).square().sum()
    assert_close(optimizer.report["rho"], (after - before) / optimizer.report["model_change"], 1e-9)


def test_the_first_values_are_the_paper_s():
    model, (x, y) = model_of("dense"), batch_of("categorical")
    optimizer = KFACMartens(model, "categorical", tau1=1.0)
    dampings, refreshed, prepared = [], [], None
    for step in range(1, 46):
        optimizer.step(x, y)
        dampings.append(float(optimizer.param_groups[0]["damping"]))
        now = optimizer.preconditioner.structure.state()["prepared"]
        if now is not prepared and (prepared is None or now[0][0] is not prepared[0][0]):
            refreshed.append(step)
        prepared = now
    assert dampings[:6] == [150.0] * 5 + [pytest.approx(116.0671, abs=1e-3)]
    assert refreshed == [1, 2, 3, 20, 40]
    gamma = optimizer.report["gamma"]
    values = {math.sqrt(150 + 1e-5) * 0.5987369392383787**k for k in range(3)} | {1.0, 0.5987369392383787}
    assert any(abs(float(gamma) - v) < 1e-6 for v in values)


def test_gamma_has_three_candidates_a_floor_and_a_cap():
    omega = GammaSearch.omega
    assert omega == pytest.approx(0.5987, abs=1e-4)
    search = GammaSearch(torch.tensor([12.0, 0.5, 0.011], dtype=torch.float64), torch.full((3,), 0.01).double())
    same, lower, higher = (c.tolist() for c in search.candidates())
    assert same == pytest.approx([12.0, 0.5, 0.011])
    assert lower == pytest.approx([12.0 * omega, 0.5 * omega, 0.01])
    assert higher == pytest.approx([1.0, 0.5 / omega, 0.011 / omega])
    assert [step for step in range(60) if search.due(step)] == [19, 39, 59]


@pytest.mark.parametrize("structure", ["kronecker", "kronecker_tridiagonal"])
def test_the_best_gamma_wins_and_its_inverse_is_kept(structure):
    model, (x, y) = model_of("dense"), batch_of("categorical")
    optimizer = KFACMartens(model, "categorical", structure=structure, **SMALL)
    for _ in range(19):
        optimizer.step(x, y)
    tried = []
    watch(optimizer, lambda _, trial: tried.append(trial))
    optimizer.step(x, y)
    assert len(tried) == 3
    best = min(tried, key=lambda t: float(t.predicted))
    assert best is not tried[-1], "the last one tried is in place anyway"
    assert optimizer.report["gamma"] == best.gamma == optimizer.quadratic.gamma.now
    assert_same_bits(optimizer.report["model_change"], best.predicted)
    kept, pre = inverse_in_use(optimizer), optimizer.preconditioner
    pre.structure.refresh(best.gamma.square(), pre.inverse_period)
    for a, b in zip(kept, inverse_in_use(optimizer), strict=True):
        assert_same_bits(a, b)


def failing(optimizer, *calls):
    """Let some of the next factorisations fail: of three at the step of a search, the present gamma's is number 0."""
    structure, own, count = optimizer.preconditioner.structure, optimizer.preconditioner.structure.refresh, [0]

    def refresh(damping, solves=1):
        failed = own(damping, solves)
        if count[0] in calls:
            failed[1] = True
        count[0] += 1
        return failed

    structure.refresh = refresh


def at_the_search(*calls, trials=None):
    """Twenty steps; at the last, which searches gamma, these factorisations fail."""
    model, (x, y) = model_of("dense"), batch_of("categorical")
    optimizer = KFACMartens(model, "categorical", **SMALL)
    for _ in range(19):
        optimizer.step(x, y)
    failing(optimizer, *calls)
    watch(optimizer, lambda _, trial: trials.append(trial))
    optimizer.step(x, y)
    return optimizer


@pytest.mark.parametrize("calls", [(), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2)])
def test_a_gamma_that_cannot_be_factorised_loses_and_costs_nothing(calls):
    trials = []
    optimizer = at_the_search(*calls, trials=trials)
    left = [t for i, t in enumerate(trials) if i not in calls]
    best = min(left, key=lambda t: float(t.predicted))
    assert len(trials) == 3
    assert optimizer.report["gamma"] == best.gamma == optimizer.quadratic.gamma.now
    assert_same_bits(optimizer.quadratic.last, best.v)
    assert not optimizer.failures()
    assert not optimizer.preconditioner.refreshed.any()


def test_where_no_gamma_can_be_factorised_the_error_is_of_that_step(monkeypatch):
    before = []
    monkeypatch.setattr(
        KFACMartens, "look", lambda self, t, own=KFACMartens.look: (before.append(theta(self.model)), own(self, t))
    )
    with pytest.raises(SolveError, match="could not be factorised at step 19") as error:
        at_the_search(0, 1, 2, trials=[])
    assert error.value.step == 19
    assert len(before) == 20  # once a step, the last time after the search


def test_a_failure_between_searches_counts_as_ever():
    model, (x, y) = model_of("dense"), batch_of("categorical")
    optimizer = KFACMartens(model, "categorical", **SMALL)
    failing(optimizer, 2)
    optimizer.step(x, y)
    optimizer.step(x, y)
    with pytest.raises(SolveError, match="could not be factorised at step 2"):
        optimizer.step(x, y)


def test_in_a_group_only_the_winner_s_failure_is_marked():
    models = [mlp(4, 3, hidden=(5,), activation="tanh", generator=generator(0, "init")) for _ in range(2)]
    optimizer = KFACMartens(stack_replicas(models, (1, 2)), "categorical", seed=[0], **SMALL)
    x, y = torch.randn(1, 1, 16, 4, generator=generator(0, "x")), torch.randint(3, (1, 1, 16))
    for _ in range(19):
        optimizer.step(x, y)
    own, count = optimizer.preconditioner.structure.refresh, [0]

    def refresh(damping, solves=1):
        failed = own(damping, solves)
        failed[1, 0, 0] |= count[0] == 1  # the second candidate of the first run
        failed[0, 0, 1] = True  # all three of the second run
        count[0] += 1
        return failed

    optimizer.preconditioner.structure.refresh = refresh
    optimizer.step(x, y)
    assert count[0] == 3
    assert {at: e.step for at, e in optimizer.failures().items()} == {(0, 1): 19}


def test_each_replica_is_as_alone():
    starts = torch.tensor([[0.1, 10.0]], dtype=torch.float64)
    models = [mlp(4, 3, hidden=(5,), activation="tanh", generator=generator(0, "init")) for _ in range(3)]
    together = KFACMartens(
        stack_replicas(models[:2], (1, 2)), "categorical", seed=[0], **SMALL | {"damping_start": starts}
    )
    alone = KFACMartens(
        stack_replicas(models[2:], (1, 1)), "categorical", seed=[0], **SMALL | {"damping_start": starts[:, 1:]}
    )
    x, y = torch.randn(1, 1, 16, 4, generator=generator(0, "x")), torch.randint(3, (1, 1, 16))
    for _ in range(22):
        losses = together.step(x, y), alone.step(x, y)
        assert_same_bits(losses[0][0, 1], losses[1][0, 0])
    assert together.report["gamma"][0, 0] != together.report["gamma"][0, 1]


def test_what_is_reported_has_the_replica_axes_from_the_first_step_on():
    models = [mlp(4, 3, hidden=(5,), generator=generator(0, "init")) for _ in range(2)]
    optimizer = KFACMartens(stack_replicas(models, (1, 2)), "categorical", seed=[0], **SMALL)
    x, y = torch.randn(1, 1, 16, 4), torch.randint(3, (1, 1, 16))
    for _ in range(21):
        optimizer.step(x, y)
        assert {value.shape for value in optimizer.report.values()} == {(1, 2)}


@pytest.mark.parametrize("structure", ["kronecker", "kronecker_tridiagonal"])
def test_a_state_goes_on_bit_for_bit(structure):
    (x, y), models = batch_of("categorical"), [model_of("dense") for _ in range(2)]
    first, second = (KFACMartens(model, "categorical", structure=structure, **SMALL) for model in models)
    for _ in range(22):
        first.step(x, y)
    models[1].load_state_dict(models[0].state_dict())
    second.load_state_dict(first.state_dict())
    for _ in range(20):
        assert_same_bits(first.step(x, y), second.step(x, y))


@pytest.mark.parametrize(
    ("products", "slopes", "expected"),
    [
        ([[2.0, 0.0], [0.0, 4.0]], [1.0, 1.0], [0.5, 0.25]),
        ([[2.0, 0.0], [0.0, 0.0]], [1.0, 0.0], [0.5, 0.0]),  # the last step was nothing
        ([[2.0, 4.0], [4.0, 8.0]], [1.0, 2.0], [0.5, 0.0]),  # it was along the direction
        ([[0.0, 0.0], [0.0, 0.0]], [0.0, 0.0], [0.0, 0.0]),
    ],
)
def test_the_two_by_two_system_drops_what_adds_nothing(products, slopes, expected):
    found = minimiser(torch.tensor(products, dtype=torch.float64), torch.tensor(slopes, dtype=torch.float64))
    assert found.tolist() == pytest.approx(expected)


def test_another_learning_rate_is_refused():
    optimizer = KFACMartens(model_of("dense"), "categorical")
    optimizer.param_groups[0]["lr"] = 0.5  # as a schedule would
    with pytest.raises(UsageError, match=r"lr=0.5 does not fit rule=quadratic, which finds the size of the step"):
        optimizer.step(*batch_of("categorical"))


def test_a_parameter_that_is_not_covered_is_refused():
    model = torch.nn.Sequential(model_of("dense"), torch.nn.LayerNorm(3)).double()
    with pytest.raises(UsageError, match="rule=quadratic needs a preconditioner that covers every parameter"):
        KFACMartens(model, "categorical")


@pytest.mark.parametrize("kind", ["mc", "exact", "empirical"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_a_batch_may_go_through_in_chunks(likelihood, kind):
    (x, y), models = batch_of(likelihood, batch=11), [model_of("ntk") for _ in range(2)]
    for model, chunk in zip(models, (None, 4), strict=True):
        optimizer = KFACMartens(model, likelihood, chunk=chunk, tau2=0.5, **SMALL | {"tau1": 0.5})
        optimizer.preconditioner.kind = type(optimizer.preconditioner.kind)(kind)
        for _ in range(6):
            loss = optimizer.step(x, y)
        model.found = torch.stack([loss, *(v.double() for v in optimizer.report.values() if v.isfinite())])
    assert_close(theta(models[1]), theta(models[0]), 1e-9)
    assert_close(models[1].found, models[0].found, 1e-9)
