"""RNGD against a slow, obvious twin: loops over examples and units, after Sun and Nielsen (2017) and their code."""

import copy
import math

import pytest
import torch
from torch import nn

import fisherlab
from fisherlab.errors import UsageError
from fisherlab.fisher.relative import softmax_layer, two_layers
from fisherlab.models import Dense, mlp, stack_replicas
from fisherlab.optim import FisherOptimizer, Preconditioner
from fisherlab.streams import generator
from tests.cases import batch_of, batch_statistics, direction, flat, model_of, parameters
from tests.compare import assert_close, assert_same_bits
from tests.reference import damped_solve

FUNCTIONS = {"tanh": torch.tanh, "relu": torch.relu}
ZONES = {"tanh": lambda z: 1 / math.cosh(z) ** 2, "relu": lambda z: (1 / (1 + math.exp(-z))) ** 2}


def net(activation="tanh", hidden=(5, 6)):
    return mlp(4, 3, hidden=hidden, activation=activation, generator=generator(0, "init")).double()


class Twin:
    """Every matrix and every step written out; the weights are homogeneous, one matrix per layer."""

    def __init__(
        self,
        model,
        activation="tanh",
        *,
        first="shared",
        last="shared",
        period=1,
        early=0,
        every=1,
        damping=1e-2,
        lr=0.1,
        momentum=0.0,
        l2=0.0,
        ema=0.995,
        start="identity",
        late=True,
    ):
        self.weights = [torch.cat([m.weight, m.bias[:, None]], 1).detach() for m in model if isinstance(m, Dense)]
        self.activation, self.structures = activation, [first, "unit", last]
        self.period, self.early, self.every, self.late = period, early, every, late
        self.damping, self.lr, self.momentum, self.l2, self.ema, self.start = damping, lr, momentum, l2, ema, start
        self.matrices, self.inverses, self.speed = [], [], [torch.zeros_like(w) for w in self.weights]
        self.steps = self.updates = 0

    def forward(self, x, weights):
        """What each layer is fed, with its one, and its pre-activations."""
        fed, found = [], []
        for w in weights:
            fed.append(torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1))
            found.append(fed[-1] @ w.mT)
            x = FUNCTIONS[self.activation](found[-1])
        return fed, found

    def batch(self, x):
        """Of each layer: the matrix of each unit, one for all, or one over all."""
        means = []
        for structure, w, fed, z in zip(self.structures, self.weights, *self.forward(x, self.weights), strict=True):
            total = 0.0
            for a, s in zip(fed, z, strict=True):
                outer = torch.outer(a, a)
                if structure == "shared":
                    own = outer[None]
                elif structure == "unit":
                    own = torch.stack([ZONES[self.activation](float(t)) * outer for t in s])
                else:
                    eta = torch.softmax(s, 0)
                    own = torch.kron(torch.diag(eta) - torch.outer(eta, eta), outer)[None]
                total = total + own / len(fed)
            assert total.shape[-1] in (w.shape[1], w.numel())
            means.append(total)
        return means

    def observe(self, x):
        self.updates += 1
        weight = self.ema if self.start == "identity" else min(1 - 1 / self.updates, self.ema)
        found = self.batch(x)
        old = self.matrices or found
        self.matrices = [weight * m + (1 - weight) * f for m, f in zip(old, found, strict=True)]

    def step(self, x, y):
        turn = self.steps % self.every == 0
        if not self.matrices and self.start == "identity":
            self.matrices = [torch.eye(m.shape[-1], dtype=m.dtype).expand_as(m) for m in self.batch(x)]
        if turn and (not self.late or not self.matrices):
            self.observe(x)
            self.updates *= not self.late  # a late one's first serves its first step alone
        if self.steps < self.early or (self.steps + bool(self.early)) % self.period == 0:
            self.inverses = []
            for family in self.matrices:
                damped = [m + self.damping * m.trace() * torch.eye(len(m), dtype=m.dtype) for m in family]
                self.inverses.append([torch.linalg.inv(m) for m in damped])
        weights = [w.clone().requires_grad_(True) for w in self.weights]
        objective = nn.functional.cross_entropy(self.forward(x, weights)[1][-1], y)
        objective = objective + 0.5 * self.l2 * sum((w[:, :-1] ** 2).sum() for w in weights)
        for i, g in enumerate(torch.autograd.grad(objective, weights)):
            if self.structures[i] == "layer":
                natural = (self.inverses[i][0] @ g.flatten()).view_as(g)
            else:
                each = self.inverses[i] * (len(g) if self.structures[i] == "shared" else 1)
                natural = torch.stack([inverse @ row for inverse, row in zip(each, g, strict=True)])
            self.speed[i] = self.momentum * self.speed[i] + natural
            self.weights[i] = self.weights[i] - self.lr * self.speed[i]
        if turn and self.late:
            self.observe(x)
        self.steps += 1

    @property
    def parameters(self):
        return torch.cat([w.flatten() for w in self.weights])


NAMES = {"period": "inverse_period", "every": "stats_period", "start": "ema_start", "early": "inverse_early"}


def both(activation="tanh", **options):
    model = net(activation)
    options = {"lr": 0.1, "damping": 1e-2, "period": 1} | options
    mine = fisherlab.RNGD(model, "categorical", **{NAMES.get(k, k): v for k, v in options.items()})
    return mine, Twin(model, activation, **options)


@pytest.mark.parametrize(
    "options",
    [
        *[{"period": period, "l2": l2} for period in (1, 2, 3) for l2 in (0.0, 0.1)],
        {"period": 6},  # few refreshes: an explicit inverse
        {"last": "layer"},
        {"last": "unit"} | {"first": "unit", "last": "shared"},
        {"first": "unit", "last": "layer", "period": 2, "l2": 0.1},
        {"late": False},
        {"late": False, "period": 2, "last": "layer"},
        {"start": "batch"},
        {"start": "batch", "late": False, "ema": 0.7},
        {"start": "batch", "early": 2, "period": 5},
        {"every": 2, "period": 3},
        {"every": 2, "late": False},
        {"momentum": 0.9},
        {"ema": 0.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_its_path_is_the_twin_s(activation, options):
    mine, twin = both(activation, **options)
    start = twin.parameters
    for step in range(7):
        x, y = batch_of("categorical", seed=step)
        mine.step(x, y)
        twin.step(x, y)
        assert_close(parameters(mine.model), twin.parameters, 1e-10)
        blocks = [b for family in zip(twin.structures, twin.matrices, strict=True) for b in spread(*family, mine.model)]
        assert_close(mine.preconditioner.structure.dense(), torch.block_diag(*blocks), 1e-10)
    assert (twin.parameters - start).abs().max() > 0.01


def spread(structure, matrices, model):
    """One block per unit, or one per layer."""
    if structure != "shared":
        return list(matrices)
    layers = [m for m in model if isinstance(m, Dense) and m.weight.shape[1] + 1 == matrices.shape[-1]]
    return list(matrices) * layers[0].weight.shape[0]


def test_the_identity_weighs_less_and_less():
    mine, _ = both(lr=1e-12)  # so the statistics of a batch are the same at every step
    x, y = batch_of("categorical")
    (fed, *_), _ = Twin(mine.model).forward(x, Twin(mine.model).weights)
    moment = fed.mT @ fed / len(fed)
    for _ in range(20):
        mine.step(x, y)
    own = mine.preconditioner.structure.dense()[:5, :5]
    kept = 0.995**20
    assert_close(own, kept * torch.eye(5, dtype=x.dtype) + (1 - kept) * moment, 1e-10)


def test_the_first_step_is_the_gradient_over_one_plus_damping_times_size():
    # M_0 = I: the inverse is 1 / (1 + damping n) of the gradient.
    mine, twin = both(damping=0.5, lr=1.0)
    x, y = batch_of("categorical")
    weights = [w.clone().requires_grad_(True) for w in twin.weights]
    loss = nn.functional.cross_entropy(twin.forward(x, weights)[1][-1], y)
    expected = [g / (1 + 0.5 * g.shape[1]) for g in torch.autograd.grad(loss, weights)]
    assert_close(direction(mine, x, y), flat(expected), 1e-12)


def test_every_unit_is_damped_by_its_own_trace():
    model = model_of()
    stats, gradient = batch_statistics(model, "categorical", "exact", *batch_of("categorical"))
    found = fisherlab.fisher.STRUCTURES["unit"]("trace")
    found.update(stats, 0.0)
    found.refresh(torch.tensor(0.3, dtype=torch.float64))
    blocks = [m for family in found.families for m in family]
    assert max(m.trace() for m in blocks) > 2 * min(m.trace() for m in blocks)
    rows = [row for layer in gradient for row in layer]
    expected = [damped_solve(m, 0.3 * m.trace(), row) for m, row in zip(blocks, rows, strict=True)]
    assert_close(flat(found.solve(gradient)), torch.cat(expected), 1e-10)


def test_two_layers_may_share_a_block():
    model = net("tanh", hidden=(5, 6))
    options = {"first": "pairs", "between": "pairs", "last": "pairs", "late": False, "ema_start": "batch"}
    mine, twin = fisherlab.RNGD(model, "categorical", lr=1.0, damping=0.1, **options), Twin(model)
    x, y = batch_of("categorical")
    weights = [w.clone().requires_grad_(True) for w in twin.weights]
    fed, z = twin.forward(x, weights)
    gradient = torch.autograd.grad(nn.functional.cross_entropy(z[-1], y), weights)
    (w, v, c), fed = twin.weights, [a.detach() for a in fed]
    blocks = [two_layers("tanh", "tanh", fed[0], w, v, fed[1]), softmax_layer(fed[2], c)]
    parts = [flat(list(gradient[:2])), gradient[2].flatten()]
    expected = [damped_solve(m, 0.1 * m.trace(), g) for m, g in zip(blocks, parts, strict=True)]
    assert_close(direction(mine, x, y), torch.cat(expected), 1e-10)


def test_the_relu_s_zone_takes_leak_and_width():
    model = net("relu")
    mine = fisherlab.RNGD(model, "categorical", iota=0.2, omega=0.5, late=False, ema=0.0)
    x, y = batch_of("categorical")
    twin = Twin(model, "relu", late=False)
    fed, z = twin.forward(x, twin.weights)
    nu = (0.2 + 0.8 * torch.sigmoid(0.8 / 0.5 * z[1])) ** 2
    expected = torch.einsum("bi,bj,bk->ijk", nu, fed[1], fed[1]) / len(x)
    mine.step(x, y)
    assert_close(mine.preconditioner.structure.dense()[25:61, 25:61], torch.block_diag(*expected), 1e-12)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("structure", ["unit", "shared", "pairs"])
def test_late_statistics_may_be_of_a_part_of_the_batch(structure, stride):
    model, (x, y) = net(), batch_of("categorical")
    pre = Preconditioner("relative", structure, "trace", tau1=1 / stride, late=True)
    options = {"lr": 0.1, "rule_options": {"momentum": 0.0, "nesterov": False}, "damping": 0.1}
    FisherOptimizer(model, "categorical", preconditioner=pre, **options).step(x, y)
    again = Preconditioner("relative", structure, "trace")
    after = FisherOptimizer(copy.deepcopy(model), "categorical", preconditioner=again, **options)
    after.step(x[::stride], y[::stride])
    assert_close(pre.structure.dense(), again.structure.dense(), 1e-12)


@pytest.mark.parametrize("options", [{}, {"between": "shared"}, {"first": "unit"}, {"last": "layer"}], ids=str)
@pytest.mark.parametrize("hidden", [(), (5,), (5, 4)])
def test_replicas_step_as_alone(hidden, options):
    def made(i):
        return mlp(4, 3, hidden=hidden, activation="tanh", generator=generator(i, "init")).double()

    group = stack_replicas([made(i) for i in range(4)], (2, 2))
    batches = [[batch_of("categorical", seed=10 * s + t) for t in range(3)] for s in range(2)]
    mine = fisherlab.RNGD(group, "categorical", lr=0.1, inverse_period=1, **options)
    for t in range(3):
        x, y = (torch.stack([batches[s][t][k] for s in range(2)]).unsqueeze(1) for k in (0, 1))
        mine.step(x, y)
    for i in range(4):
        model = made(i)
        alone = fisherlab.RNGD(model, "categorical", lr=0.1, inverse_period=1, **options)
        for t in range(3):
            alone.step(*batches[i // 2][t])
        for p, whole in zip(model.parameters(), group.parameters(), strict=True):
            assert_close(whole[divmod(i, 2)], p, 1e-10)


# --- what a layer is seen as ------------------------------------------------------------------------------------------


class Functional(nn.Module):
    """Its activation is no module."""

    def __init__(self, **modules):
        super().__init__()
        self.one, self.two, self.three = nn.Linear(4, 5), nn.Linear(5, 6), nn.Linear(6, 3)
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.three(torch.tanh(self.two(torch.tanh(self.one(x)))))


def seen(model, **options):
    mine = fisherlab.RNGD(model, "categorical", first="unit", **options)
    return [form.activation for form in mine.preconditioner.forms]


def test_activations_are_found_in_the_model():
    for name in ("relu", "tanh", "logistic", "elu"):
        assert seen(net(name)) == [name, name, "linear"]
    plain = nn.Sequential(nn.Linear(4, 5), nn.Sigmoid(), nn.Linear(5, 5), nn.Linear(5, 4), nn.ELU(), nn.Linear(4, 3))
    assert seen(plain, last="layer") == ["logistic", "linear", "elu", None]


def test_one_module_may_serve_behind_several_layers():
    act = nn.Tanh()
    assert seen(nn.Sequential(nn.Linear(4, 5), act, nn.Linear(5, 4), act, nn.Linear(4, 3))) == [
        "tanh",
        "tanh",
        "linear",
    ]


def test_normalisation_behind_a_linear_layer_leaves_it_linear():
    model = mlp(4, 3, hidden=(5, 6), activation="linear", batch_norm="after")
    assert seen(model) == ["linear"] * 3


def test_an_activation_that_is_not_found_is_asked_for():
    other = [nn.Sequential(nn.Linear(4, 5), m, nn.Linear(5, 3)) for m in (nn.GELU(), nn.ELU(alpha=2.0))]
    for model in (Functional(), *other):
        with pytest.raises(UsageError) as error:
            seen(model)
        assert "the activation behind layer '" in str(error.value)
        assert "expected activation=tanh, logistic, relu, elu, linear" in str(error.value)
        assert "\n" not in str(error.value)


def test_an_activation_that_is_named_is_taken():
    assert seen(Functional(), activation="tanh") == ["tanh", "tanh", "linear"]
    named, found = Functional().double(), net()
    with torch.no_grad():
        for p, q in zip(named.parameters(), found.parameters(), strict=True):
            p.copy_(q)
    steps = []
    for model, options in ((named, {"activation": "tanh"}), (found, {})):
        mine = fisherlab.RNGD(model, "categorical", lr=0.1, inverse_period=1, **options)
        for step in range(3):
            mine.step(*batch_of("categorical", seed=step))
        steps.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert_close(steps[0], steps[1], 1e-12)


def rngd(model, **options):
    return fisherlab.RNGD(model, "categorical", **options)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda m: fisherlab.NaturalGradient(m, "categorical", kind="relative", structure="kronecker"),
            "structure=kronecker does not fit kind=relative (layer 'layer1'): expected unit, shared or pairs",
        ),
        (lambda m: fisherlab.NaturalGradient(m, "categorical", kind="relative"), "structure=smaller does not fit"),
        (lambda m: rngd(m, between="layer"), "structure=layer does not fit kind=relative (layer 'layer2')"),
        (
            lambda m: rngd(m, first="diagonal", damping_mode="tikhonov"),
            "structure=diagonal does not fit kind=relative (layer 'layer1')",
        ),
        (lambda m: rngd(m, between="unti"), "structure='unti' is unknown: did you mean 'unit'"),
        (lambda m: rngd(m, damping_mode="factored"), "damping_mode='factored' does not fit structure=shared"),
        (lambda m: rngd(m, activation="tahn"), "activation='tahn' is unknown: did you mean 'tanh'"),
        (lambda m: rngd(m, omega=0.0), "omega=0.0 is out of range: expected a number above 0"),
        (lambda m: rngd(m, iota=1.0), "iota=1.0 is out of range: expected a number in [0, 1)"),
        (lambda m: rngd(m, omega="wide"), "omega='wide' is out of range"),
        (lambda m: rngd(m, iota=0.2), "iota=0.2 has no effect, for no layer is seen as relu neurons: expected iota=0."),
        (lambda m: rngd(m, late="no"), "late='no': expected true or false"),
        (lambda m: rngd(m, inverse_early=-1), "inverse_early=-1 is no period"),
        (lambda m: Preconditioner("mc", late=True), "late=true does not fit kind=mc: expected kind=relative"),
    ],
)
def test_what_makes_no_sense_is_refused_at_construction(build, message):
    with pytest.raises(UsageError) as error:
        build(net())
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_late_pass_leaves_every_module_in_its_mode():
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, 3))
    model[2].eval()  # frozen by the user
    rngd(model).step(*batch_of("categorical", dtype=torch.float32))
    assert [m.training for m in model] == [True, True, False, True]
    assert model.training


def test_the_late_pass_is_one_of_evaluation():
    modes = []
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    model.register_forward_hook(lambda module, *_: modes.append(module.training))
    rngd(model, stats_period=2).step(*batch_of("categorical", dtype=torch.float32))
    assert modes == [True, False]
    rngd(model, late=False).step(*batch_of("categorical", dtype=torch.float32))
    assert modes == [True, False, True]


def test_a_matrix_that_cannot_be_inverted_is_named():
    model, (x, y) = net(), batch_of("categorical")
    mine = rngd(model, damping=0.0, ema_start="batch", ema=0.0, late=False)
    x[:, 0] = 0  # an input that is never active
    with pytest.raises(
        fisherlab.errors.SolveError, match=r"shared, unit, shared matrix of layer 'layer1' could not be"
    ):
        mine.step(x, y)


def test_it_tells_what_it_is():
    about = rngd(net()).describe()
    assert (about["kind"], about["structure"], about["damping_mode"]) == ("relative", "shared, unit, shared", "trace")
    assert about["plain_gradient"] == []


def test_it_draws_no_labels():
    paths = []
    for seed in (0, 1):
        model = net()
        mine = rngd(model, seed=seed, inverse_period=1)
        for step in range(2):
            mine.step(*batch_of("categorical", seed=step))
        paths.append(parameters(model))
    assert_same_bits(*paths)
