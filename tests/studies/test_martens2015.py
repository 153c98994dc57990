"""Martens and Grosse (2015), what the study computes: matrices, invariance, the baseline, Figure 7, interpolation."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from scipy import stats
from torch.nn.functional import binary_cross_entropy_with_logits
from tqdm import tqdm

from fisherlab.composition import conf_dir
from fisherlab.models import autoencoder, mlp
from fisherlab.optim import NAG, KFACMartens
from fisherlab.streams import generator
from fisherlab.studies.judge import prediction
from fisherlab.studies.martens2015 import baseline, invariance, matrices
from fisherlab.studies.martens2015.gamma import Probe, moved, objective
from fisherlab.studies.martens2015.matrices import MIDDLE, SIDE, difference
from fisherlab.studies.martens2015.problems import PROBLEMS
from fisherlab.studies.martens2015.tables import at, reached
from tests.compare import assert_close, assert_same_bits

GAMMA = 0.3
BAR = partial(tqdm, disable=True)
SCALES = OmegaConf.to_container(OmegaConf.load(conf_dir() / "study" / "martens2015.yaml").scales)


@pytest.fixture(scope="module")
def net():
    """A small net and cases, as those of the figures of matrices."""
    source = generator(3, "test")
    model = mlp(SIDE**2, 10, hidden=matrices.HIDDEN, activation="tanh", init="glorot", generator=source).double()
    for name, p in model.named_parameters():
        if "bias" in name:
            torch.nn.init.normal_(p, 0, 0.3, source)
    return model, torch.rand(6, SIDE**2, dtype=torch.float64, generator=source)


@pytest.fixture(scope="module")
def found(net):
    """The moments; four cases at a time, so that sums go over chunks of different sizes."""
    model, x = net
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matrices, "CHUNK", 4)
        return matrices.moments(model, x, BAR())


@pytest.fixture(scope="module")
def shown(found):
    return matrices.matrices(found, GAMMA)


@pytest.fixture(scope="module")
def brute(net):
    """By autograd for every case and class: a-bar and d log p / ds, both [case, class, layer, unit], and p."""
    model, x = net
    linear = [m for m in model if len(list(m.parameters()))][MIDDLE]
    inputs, gradients, weights = [], [], []
    for case in x:
        log_p = model(case.unsqueeze(0)).log_softmax(-1)[0]
        weights.append(log_p.exp().detach())
        for one in log_p:
            whole = []
            for layer in linear:
                w, b = torch.autograd.grad(one, [layer.weight, layer.bias], retain_graph=True)
                whole.append(torch.cat([w, b.unsqueeze(-1)], -1).mT)  # input units first, the bias last
            gradients.append(torch.stack(whole))
        a, own = case.unsqueeze(0), []
        for module in model:
            if any(module is layer for layer in linear):
                own.append(torch.cat([a, a.new_ones(1, 1)], -1)[0].detach())
            a = module(a)
        inputs.append(torch.stack(own))
    return torch.stack(inputs), torch.stack(gradients).unflatten(0, (len(x), 10)), torch.stack(weights)


def mean(weights, one, other):
    """Mean over cases of the expectation over classes of an outer product."""
    product = (one.flatten(2) * weights.unsqueeze(-1)).flatten(0, 1).mT @ other.flatten(2).flatten(0, 1)
    return (product / len(weights)).view(*one.shape[2:], *other.shape[2:])


def test_the_exact_fisher_is_that_of_all_labels(found, brute):
    _, gradients, p = brute
    assert gradients.shape[2:] == (4, 21, 20)
    assert_close(found.fisher, mean(p, gradients, gradients))


def test_moments_are_expectations_over_cases_and_labels(found, brute):
    a, gradients, p = brute
    g = gradients[..., -1, :]  # the bias's
    everywhere = a.unsqueeze(1).expand(-1, 10, -1, -1)
    assert_close(found.mean, a.mean(0))
    assert_close(found.a, mean(p, everywhere, everywhere))
    assert_close(found.g, mean(p, g, g))
    deviation = (everywhere - a.mean(0)).unsqueeze(-1) * g.unsqueeze(-2)
    assert_close(found.centred, mean(p, deviation, deviation))
    assert_close(found.third, mean(p, deviation, g))


def test_the_error_is_the_sum_of_the_cumulants_terms_and_below_their_bound(found, shown):
    told = matrices.cumulants(found)
    assert told["identity"] < 1e-12
    assert told["error"] == pytest.approx(float((shown["F"] - shown["F tilde"]).abs().sum()), rel=1e-10)
    assert told["fisher"] == pytest.approx(float(shown["F"].abs().sum()), rel=1e-10)
    assert 0 < told["error"] <= told["bound"]
    # What independence of inputs and gradients would give: fourth cumulants vanish only with the others.
    covariance = found.a - torch.einsum("li,kj->likj", found.mean, found.mean)
    fourth = found.centred - torch.einsum("likj,lokp->liokjp", covariance, found.g)
    third = torch.einsum("li,kjplo->liokjp", found.mean, found.third)
    expected = fourth.abs().sum() + 2 * third.abs().sum()  # the other third-order term is its transpose
    assert told["bound"] == pytest.approx(float(expected), rel=1e-10)


def test_f_tilde_is_made_of_kronecker_products_in_the_paper_s_order(found, shown):
    for i in range(4):
        for j in range(4):
            expected = torch.kron(found.a[i, :, j].contiguous(), found.g[i, :, j].contiguous())
            assert_close(shown["F tilde"][i * 420 : i * 420 + 420, j * 420 : j * 420 + 420], expected)


def test_damping_is_factored_and_on_the_diagonal_blocks_only(found, shown):
    own, tilde = (shown[name].view(4, 420, 4, 420) for name in ("F tilde, damped", "F tilde"))
    for i in range(4):
        a, g = found.a[i, :, i], found.g[i, :, i]
        pi = math.sqrt(float(a.trace() / 21) / float(g.trace() / 20))
        damped = a + pi * GAMMA * torch.eye(21).double(), g + GAMMA / pi * torch.eye(20).double()
        assert_close(own[i, :, i], torch.kron(*damped))
        for j in {0, 1, 2, 3} - {i}:
            assert_close(own[i, :, j], tilde[i, :, j])


def test_both_approximations_agree_with_f_tilde_where_they_promise(shown):
    own, block, tri, inverse = (
        shown[name].view(4, 420, 4, 420)
        for name in ("F tilde, damped", "block-diagonal", "block-tridiagonal", "block-tridiagonal, inverse")
    )
    for i in range(4):
        for j in range(4):
            if i == j:
                assert_close(block[i, :, j], own[i, :, j])
            else:
                assert not block[i, :, j].any()
            if abs(i - j) <= 1:
                assert_close(tri[i, :, j], own[i, :, j])
                assert inverse[i, :, j].abs().max() > 1e-6 * inverse.abs().max()
            else:
                assert inverse[i, :, j].abs().max() < 1e-12 * inverse.abs().max()
                assert (tri[i, :, j] - own[i, :, j]).abs().max() > 1e-6 * own[i, :, j].abs().max()


def test_inverses_are_inverses(shown):
    pairs = [
        ("F tilde, damped", "F tilde, inverse"),
        *((n, f"{n}, inverse") for n in ("block-diagonal", "block-tridiagonal")),
    ]
    for one, inverse in pairs:
        assert_close(shown[one] @ shown[inverse], torch.eye(1680).double(), 1e-8)


def test_what_the_figures_show_are_sizes_of_blocks(shown):
    both = matrices.with_differences(shown)
    assert set(both) == set(shown) | {difference(*pair) for pair in matrices.COMPARED}
    name = difference("F tilde, damped", "block-tridiagonal")
    assert_same_bits(both[name], shown["F tilde, damped"] - shown["block-tridiagonal"])
    m = torch.randn(1680, 1680, generator=generator(0, "test")) * torch.linspace(1, 9, 1680)  # not symmetric
    table = matrices.blocks({"m": m}, 4).set_index(["row", "column"])
    corner = m[:420, 840:1260].abs()
    assert table.loc[(0, 2), "mean"] == pytest.approx(float(corner.mean()))
    assert table.loc[(0, 2), "max"] == pytest.approx(float(corner.max()))
    pooled = matrices._pooled("m", m)
    assert pooled.shape == (240, 241)
    assert pooled.iloc[1][120] == pytest.approx(float(m[7:14, 840:847].abs().mean()), rel=0.05)


def test_pictures_are_16_by_16():
    flat = matrices.pictures(torch.full((2, 784), 0.3))
    assert flat.shape == (2, 256)
    assert_close(flat, torch.full((2, 256), 0.3).double(), 1e-6)
    step = torch.zeros(1, 28, 28)
    step[:, :14] = 1  # the upper half
    assert matrices.pictures(step.flatten(1)).view(16, 16)[[0, 7, 8, 15], 5].tolist() == pytest.approx(
        [1, 1, 0, 0], abs=0.2
    )


@pytest.mark.parametrize("change", ["affine", "logistic"])
def test_a_twin_is_the_same_function_by_other_parameters(change):
    x, _ = invariance._data("digits")
    model = invariance.start()
    other = invariance.twin(model, change)
    assert_close(other(x), model(x), 1e-12)
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    assert all((p - q).abs().max() > 0.1 for p, q in pairs)
    assert any(isinstance(m, torch.nn.Sigmoid) for m in other.modules()) == (change == "logistic")


@pytest.mark.parametrize("change", ["affine", "logistic"])
@pytest.mark.parametrize("method", invariance.METHODS)
def test_only_undamped_natural_gradients_follow_the_same_path(method, change):
    x, y = invariance._data("digits")
    one = invariance.path(invariance.start(), method, x, y, steps=3)
    other = invariance.path(invariance.twin(invariance.start(), change), method, x, y, steps=3)
    assert one.shape == (4, len(x), 10)
    apart = (one - other).abs().amax((1, 2)) / (one - one[0]).abs().max()
    if method in ("block-diagonal", "block-tridiagonal"):
        assert apart.max() < 1e-8
    else:
        assert apart[0] < 1e-12
        assert apart[-1] > 1e-3


def test_settings_that_are_one_run_are_made_once():
    short = baseline.distinct(baseline.MOMENTA, 1000)
    assert {mu for mu in baseline.MOMENTA if short[mu] == 0.999} == {0.999, 0.995, 0.99, 0.9}
    assert short[0.0] == 0.0
    assert baseline.distinct(baseline.MOMENTA, 1251)[0.9] == 0.9  # 11/12 from update 1250 on
    assert baseline.distinct(baseline.MOMENTA, 1250)[0.9] == 0.999
    long = baseline.distinct(baseline.MOMENTA, 14400)  # up to 0.9914, as good as 0.99
    assert long == {0.999: 0.999, 0.995: 0.999, 0.99: 0.999, 0.9: 0.9, 0.0: 0.0}
    assert baseline.distinct(baseline.MOMENTA, 30000)[0.995] == 0.995  # where 0.999 gets further


@pytest.mark.parametrize("rate", [1e-3, 0.05])
def test_those_settings_give_the_same_bits(rate):
    x = torch.rand(8, 5, generator=generator(0, "test"))
    ends = {}
    for largest in (0.9, 0.99, 0.0):
        model = mlp(5, 5, hidden=(4,), activation="tanh", generator=generator(1, "test"))
        optimizer = NAG(model, "bernoulli", lr=rate, momentum=largest)
        for _ in range(300):
            optimizer.step(x, x)
        ends[largest] = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert_same_bits(ends[0.9], ends[0.99])
    assert (ends[0.0] - ends[0.9]).abs().max() > 1e-3


@pytest.mark.parametrize(("scale", "iterations"), [("smoke", 30), ("paper", 500)])
@pytest.mark.parametrize("batch", [50, 1])
def test_the_baseline_takes_as_many_cases(scale, iterations, batch, monkeypatch):
    assert PROBLEMS["digits"].baseline_batch == 50
    monkeypatch.setattr(baseline, "PROBLEMS", {"digits": replace(PROBLEMS["digits"], baseline_batch=batch)})
    examples, first = 1437, 100
    rate = math.log(examples / first) / (iterations - 1)  # 1 / b: the whole data at the last iteration
    sizes = [math.floor(first * math.exp((k - 1) * rate)) for k in range(1, iterations)] + [examples]
    assert baseline.length("digits", SCALES[scale]) == math.ceil(sum(sizes) / batch / 100) * 100


def exponential(rate, last=50, every=10):
    steps = np.arange(0, last + 1, every)
    return pd.DataFrame({"step": steps, "examples": 7 * steps, "error": 20 * np.exp(-rate * steps)})


def test_when_an_error_is_reached_is_exact_on_an_exponential():
    table = exponential(0.1)
    for step in (0.5, 13.0, 20.0, 49.9):
        level = 20 * math.exp(-0.1 * step)
        assert reached(table, level, "step") == pytest.approx(step, rel=1e-9)
        assert reached(table, level, "examples") == pytest.approx(7 * step, rel=1e-9)
    assert reached(table, 20.0, "step") == 0
    assert reached(table, 21.0, "step") == 0
    assert reached(table, 20 * math.exp(-0.1 * 50.1), "step") is None
    back = table.assign(error=[20.0, 10.0, 30.0, 5.0, 2.0, 1.0])  # the first time counts
    assert reached(back, 10.0, "step") == 10


def test_the_value_at_a_step_is_one_that_was_evaluated():
    table = exponential(0.1)
    assert at(table, 20) == table["error"][2]
    assert at(table, 20, "examples") == 140
    assert at(table, 25) is None
    assert at(table, 20, "test_error") is None


def test_a_prediction_interval_is_where_one_more_run_lies():
    values = [20.1, 23.4, 25.0, 19.2, 22.2]
    logs = np.log(values)
    half = stats.t(df=4).isf(0.025) * np.sqrt(np.var(logs, ddof=1) * (1 + 1 / 5))
    assert prediction(values) == pytest.approx((math.exp(logs.mean() - half), math.exp(logs.mean() + half)))
    draws = np.exp(np.random.default_rng(0).normal(1.0, 0.3, (2000, 6)))
    inside = [low <= one <= high for *runs, one in draws.tolist() for low, high in [prediction(runs)]]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.015)  # three standard errors


class Checked(Probe):
    """Figure 7's rule, which then makes the same steps by hand."""

    def __call__(self, optimizer, x, direction):
        theta = torch.cat([p.detach().flatten() for p in optimizer.parameters])
        slope = optimizer.gradients[0].clone()
        told = super().__call__(optimizer, x, direction)
        self.expected = []
        for gamma in self.gammas:
            delta = -optimizer.resolve(torch.tensor(gamma**2, dtype=torch.float64))
            for vectors in ([delta, -self.kept], [delta]):
                c, model = self._by_hand(optimizer, x, vectors, slope)
                step = sum(a * b for a, b in zip(c, vectors, strict=True))
                self.expected.append((*self._change(optimizer, x, theta, step), model))
            self.expected.append((*self._change(optimizer, x, theta, delta), None))
        return told

    def _by_hand(self, optimizer, x, vectors, slope):
        """Minimise g^T d + 1/2 d^T (F + (lambda + eta) I) d; F by derivatives of the outputs."""
        names = [name for name, _ in optimizer.model.named_parameters()]
        own = {name: p.detach() for name, p in optimizer.model.named_parameters()}

        def out(p):
            return torch.func.functional_call(optimizer.model, p, (x,))

        moves = [torch.func.jvp(out, (own,), ({n: optimizer.by_name(v)[n] for n in names},))[1] for v in vectors]
        p = out(own).sigmoid()
        ridge = float(optimizer.param_groups[0]["damping"]) + self.l2
        b = [
            [(p * (1 - p) * m * n).sum(-1).mean() + ridge * (v @ w) for n, w in zip(moves, vectors, strict=True)]
            for m, v in zip(moves, vectors, strict=True)
        ]
        slopes = torch.stack([slope @ v for v in vectors])
        c = torch.linalg.solve(torch.tensor(b, dtype=torch.float64), -slopes)
        return c, float(0.5 * slopes @ c)

    def _change(self, optimizer, x, theta, step):
        """h before and after."""
        values = []
        for point in (theta, theta + step):
            parts = optimizer.by_name(point)
            logits = torch.func.functional_call(optimizer.model, parts, (x,))
            nll = binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1).mean()
            values.append(float(nll + 0.5 * self.l2 * point @ point))
        return values


@pytest.mark.parametrize("structure", ["kronecker", "kronecker_tridiagonal"])
def test_figure_7_tells_what_steps_improve_and_takes_none(structure):
    x = torch.rand(40, 6, generator=generator(0, "test"), dtype=torch.float64)
    model = autoencoder(6, 6, hidden=(5,), code=3, init="glorot", generator=generator(1, "test")).double()
    optimizer = KFACMartens(model, "bernoulli", structure=structure, damping_start=0.5, l2=0.01, tau1=1.0)
    for _ in range(4):
        optimizer.step(x[:30], x[:30])
    rule = Checked(optimizer.quadratic, [0.03, 0.3, 3.0], BAR())
    rule.l2, optimizer.quadratic = 0.01, rule
    kept = rule.kept.clone()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.step(x, x)
    for name, p in model.named_parameters():
        assert_same_bits(p.detach(), before[name])
    assert_same_bits(rule.kept, kept)
    steps = ["rescaled, momentum", "rescaled", "not rescaled"]
    assert [(r["step"], r["gamma"]) for r in rule.rows] == [(s, g) for g in rule.gammas for s in steps]
    for row, (here, there, change) in zip(rule.rows, rule.expected, strict=True):
        assert row["improvement"] == pytest.approx(here - there, rel=1e-7, abs=1e-11)
        assert (row["predicted"] is None) == (row["step"] == "not rescaled")
        if row["predicted"] is not None:
            assert row["predicted"] == pytest.approx(-change, rel=1e-7)
    found = pd.DataFrame(rule.rows).groupby("step")["improvement"].nunique()
    assert (found == 3).all()  # gamma matters
    with_momentum, without = (pd.DataFrame(rule.rows).set_index("step").loc[s, "predicted"] for s in steps[:2])
    assert (with_momentum.to_numpy() > without.to_numpy()).all()


def test_a_trial_s_objective_has_l2_and_is_taken_back():
    x = torch.rand(9, 6, generator=generator(0, "test"), dtype=torch.float64)
    model = autoencoder(6, 6, hidden=(5,), code=3, init="glorot", generator=generator(1, "test")).double()
    optimizer = KFACMartens(model, "bernoulli", l2=0.5)
    theta = torch.cat([p.detach().flatten() for p in model.parameters()])
    nll = binary_cross_entropy_with_logits(model(x), x, reduction="none").sum(-1).mean()
    with torch.no_grad():
        assert objective(optimizer, x) == pytest.approx(float(nll + 0.25 * theta @ theta), rel=1e-12)
        all_zero = 6 * math.log(2)
        assert moved(optimizer, x, theta) == pytest.approx(all_zero, rel=1e-12)
    assert_same_bits(torch.cat([p.detach().flatten() for p in model.parameters()]), theta)
