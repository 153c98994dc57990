"""Martens and Grosse (2015), what the study computes: matrices, invariance, the baseline, Figure 7, interpolation."""

import json
import math
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from scipy import stats
from torch.nn.functional import binary_cross_entropy_with_logits
from tqdm import tqdm

from fisherlab.composition import conf_dir
from fisherlab.errors import SolveError, UsageError
from fisherlab.models import autoencoder, mlp
from fisherlab.optim import NAG, KFACMartens
from fisherlab.streams import generator
from fisherlab.studies.judge import prediction
from fisherlab.studies.martens2015 import baseline, derived, invariance, matrices, parts, runs
from fisherlab.studies.martens2015.gamma import Probe, moved, objective
from fisherlab.studies.martens2015.matrices import MIDDLE, SIDE, difference
from fisherlab.studies.martens2015.operations import Products, _per_case
from fisherlab.studies.martens2015.problems import METHODS, PROBLEMS, configured
from fisherlab.studies.martens2015.run_verdicts import TRI, run_claims
from fisherlab.studies.martens2015.runs import Session, product_rate
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
    long = baseline.distinct(baseline.MOMENTA, 14400)
    assert long == {0.999: 0.999, 0.995: 0.999, 0.99: 0.99, 0.9: 0.9, 0.0: 0.0}


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


WIDTHS = (64, 40, 20, 6, 20, 40, 64)  # of the digits' autoencoder
PRODUCTS = [2 * m * n for m, n in pairwise(WIDTHS)]  # operations of a case in each layer's weights


def by_hand(method, in_chunks):
    """Operations of a case in a step: the mean of twenty, with one search for gamma and four ratios rho."""
    inputs, outputs = [w + 1 for w in WIDTHS[:-1]], WIDTHS[1:]
    forwards, backwards = sum(PRODUCTS), sum(PRODUCTS[1:])  # to the pre-activations: not through the first layer
    if method == "baseline":
        return 2 * forwards + backwards  # its gradient's bias is a sum
    gradient = 2 * sum(m * n for m, n in zip(inputs, outputs, strict=True))
    moments = 2 * sum(n * n for n in (*inputs, *outputs))
    if "tridiagonal" in method:
        moments += 2 * sum(m * n for sizes in (inputs, outputs) for m, n in pairwise(sizes))
    vectors = 1 if "no momentum" in method else 2
    # f and, for each vector, its product with the inputs and the weights' with the change of them, which is zero in
    # the first layer, and the same for all.
    tangents = forwards + vectors * (forwards + backwards) + PRODUCTS[0]
    sampled = (forwards + 2 * backwards) / 8 if in_chunks else backwards  # in chunks an eighth of the cases, once more
    return forwards + backwards + gradient + sampled + moments / 8 + 1.1 * tangents + forwards / 5


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_operations_are_those_that_a_hand_counts(method):
    assert _per_case("digits", method)[0] == pytest.approx(1e-9 * by_hand(method, False), rel=1e-9)
    if method != "baseline":
        found = _per_case("digits", method, "optimizer.chunk=80")[0]
        assert found == pytest.approx(1e-9 * by_hand(method, True), rel=1e-9)


def test_products_in_place_are_counted():
    a, b, c = torch.rand(3, 10, 20), torch.rand(3, 20, 30), torch.zeros(3, 10, 30)
    with Products() as products:
        c.baddbmm_(a, b, beta=0.5)
        assert products.operations == 3 * 12_000
        c[0].addmm_(a[0], b[0])
        assert products.operations == 4 * 12_000
        a @ b
        a[0] @ b[0]
        torch.baddbmm(c, a, b)
        assert products.operations == 11 * 12_000
        c.mul_(2).add_(1)
    assert products.operations == 11 * 12_000


def test_a_beginning_is_put_before_the_rest_of_a_run():
    later = pd.DataFrame({"step": [0, 600, 900], "seconds": [0.0, 6.0, 9.0], "cpu_seconds": [0.0, 3.0, 4.5]})
    early = pd.DataFrame({"step": range(0, 601, 100)}).assign(seconds=lambda t: t["step"] / 50, cpu_seconds=0.0)
    early["cpu_seconds"] = early["step"] / 400
    found = baseline.joined(early.assign(train_error=1.0), later.assign(train_error=2.0))
    assert found["step"].tolist() == [*range(0, 601, 100), 900]
    assert found["train_error"].tolist() == [2.0, *[1.0] * 5, 2.0, 2.0]
    assert found["seconds"].tolist() == pytest.approx([0, 1, 2, 3, 4, 5, 6, 9])  # half of what was measured early
    assert found["cpu_seconds"].tolist() == pytest.approx([0, 0.5, 1, 1.5, 2, 2.5, 3, 4.5])
    # A run that diverged before both were evaluated again.
    assert baseline.joined(early, later.head(1))["step"].tolist() == early["step"].tolist()


def test_a_session_that_was_killed_counts(tmp_path):
    home = tmp_path / "runs" / "one"
    first = Session(home)
    first.note()
    first.note()  # not within ten seconds
    path = tmp_path / "runs" / "one.sessions.json"
    record = json.loads(path.read_text())
    assert len(record["sessions"]) == 1
    record["sessions"][0] = {"product_rate": 1e9, "peak_gib": 77.0, "seconds": 1000.0, "cpu_seconds": 500.0}
    path.write_text(json.dumps(record))  # as it was when it was killed
    told = Session(home).end()
    assert told["product_rate"] == 1e9
    assert told["peak_gib"] == 77.0
    assert told["sessions"] == 2
    assert 1000 < told["seconds_in_all"] < 1060
    assert 500 < told["cpu_seconds_in_all"] < 530
    assert 0.05 < json.loads(path.read_text())["sessions"][1]["peak_gib"] < 60


def test_the_rate_of_products_is_per_processor_second(monkeypatch):
    now = iter(range(100))
    monkeypatch.setattr(runs.time, "process_time", lambda: 0.5 * next(now))
    assert product_rate() == 32.0  # 16 giga-operations in half a second


def config():
    return configured("digits", TRI, 12, 4, "batch_size=100", "keep=nothing", "threads=1")


def test_a_solve_that_fails_is_an_outcome_and_not_tried_again(tmp_path, monkeypatch):
    home = tmp_path / "runs" / "one"
    cfg = config()
    monkeypatch.setattr(KFACMartens, "failures", fail_at(7))
    found = runs.trained(cfg, "digits", "one", home, BAR())
    evaluations, steps, took = (found[name] for name in runs.tables_of("one"))
    assert took[["status", "last_step", "data"]].values.tolist() == [["failed", 8, "digits"]]
    assert "could not be factorised" in took["message"][0]
    assert evaluations["step"].tolist() == [0, 4]
    assert steps["step"].tolist() == list(range(1, 9))
    monkeypatch.undo()  # from the checkpoint it would come further now
    again = runs.trained(cfg, "digits", "one", home, BAR())
    assert again[runs.tables_of("one")[2]]["status"].tolist() == ["failed"]
    pd.testing.assert_frame_equal(again[runs.tables_of("one")[1]], steps)


def fail_at(step):
    """What `failures` of an optimizer gives once it has come to a step."""

    def failures(self):
        told = SolveError("the damped matrix could not be factorised at step 7", step)
        return {(0,) * len(self.replicas): told} if self.preconditioner.step > step else {}

    return failures


def test_an_error_of_the_program_is_none(tmp_path, monkeypatch):
    def wrong(self, x):
        raise ValueError("a bug")

    monkeypatch.setattr(KFACMartens, "look", wrong)
    with pytest.raises(RuntimeError, match="one' failed: ValueError: a bug"):
        runs.trained(config(), "digits", "one", tmp_path / "runs" / "one", BAR())


def test_a_grid_without_a_best_setting_is_an_outcome(tmp_path):
    settings = SCALES["smoke"] | {"problems": ["digits"]}
    grid = pd.DataFrame([{"lr": lr, "momentum": 0.9, "same_as": 0.9, "status": "diverged"} for lr in baseline.RATES])
    grid.assign(train_error=np.nan).to_csv(tmp_path / "grid_digits.csv", index=False)
    for part in (baseline.parts("digits", settings, tmp_path)[1], baseline.fixed("digits", 100, settings, tmp_path)):
        for name, table in part.make(BAR()).items():
            table.to_csv(tmp_path / name, index=False)
        assert all((tmp_path / name).exists() for name in part.tables)
        took = pd.read_csv(tmp_path / part.tables[2])
        assert took[["status", "data"]].values.tolist() == [["diverged", "digits"]]
    (tmp_path / "study.json").write_text(json.dumps({"settings": settings}))
    assert derived(tmp_path)["runs.csv"]["status"].tolist() == ["diverged"] * 2
    told = {c.claim: c for c in run_claims(tmp_path, settings, decisive=True)}
    assert [c.verdict for c in told.values()] == ["contradicted"]


def test_k_fac_averages_from_the_first_iteration_where_batches_have_one_size():
    settings = SCALES["paper"]
    fixed = {m: runs.one_size("mnist", m, 2000, settings) for m in METHODS}
    assert {cfg.optimizer.average_from for cfg in fixed.values()} == {0}
    assert {cfg.optimizer.average for cfg in fixed.values()} == {0.99}
    assert {cfg.evaluate_every for cfg in fixed.values()} == {settings["fixed_every"]}
    assert configured("mnist", TRI, 500, 10).optimizer.average_from == 200


def test_parts_come_in_the_order_in_which_they_are_wanted(tmp_path):
    names = [part.name for part in parts(SCALES["paper"], tmp_path)]
    assert len(names) == len(set(names)) == 41
    wanted = [
        "matrices", "invariance", f"mnist, {TRI}, seed 0", "mnist, block-diagonal, seed 0", "mnist, baseline's grid",
        "mnist, baseline", "mnist, operations", f"mnist, {TRI}, no momentum, batch 6000",
        f"mnist, {TRI}, seed 3 to iteration 100",
    ]  # fmt: skip
    assert names[:9] == wanted
    curves = [i for i, one in enumerate(names) if one.startswith("curves")]
    assert curves == list(range(24, 30))
    assert all("to iteration 100" in one for one in names[8:24])


def test_other_threads_than_those_of_the_beginning_are_refused(tmp_path):
    settings, now = SCALES["smoke"], torch.get_num_threads()
    for then in (now, None):
        (tmp_path / "study.json").write_text(json.dumps({"settings": {}, "environment": {"threads": then}}))
        assert parts(settings, tmp_path)
    (tmp_path / "study.json").write_text(json.dumps({"settings": {}, "environment": {"threads": now + 1}}))
    with pytest.raises(
        UsageError, match=rf"threads={now}: .* begun with threads={now + 1}: expected threads={now + 1}"
    ):
        parts(settings, tmp_path)
