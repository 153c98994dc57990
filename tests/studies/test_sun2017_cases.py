"""Sun and Nielsen (2017): how much the cases weigh in EF-NGD's step."""

import math

import pandas as pd
import pytest
import torch
from torch.nn.functional import cross_entropy

from fisherlab import EFNGD, Categorical, mlp
from fisherlab.plots.sun2017 import figures
from fisherlab.studies import sun2017
from fisherlab.studies.sun2017 import runs
from fisherlab.studies.sun2017.cases import MEASURES, cases, cases_of, cases_table, weighed
from fisherlab.studies.sun2017.settings import configured
from fisherlab.training.compare import load, plain
from fisherlab.training.setup import prepare, resolve
from tests.studies.sun2017_tables import SETTINGS, curves, folder, make

DAMPING = 0.3
SHORT = SETTINGS | {"rates": [0.1], "seeds": 1, "epochs": 2, "watch_epochs": [1, 2], "watch_cases": 120}


def batch(size=20):
    x, y = torch.randn(size, 6, dtype=torch.float64), torch.randint(3, (size,))
    return mlp(6, 3, hidden=[5]).double(), x, y


def per_case(net, x, y):
    """The gradient of each case, by autograd."""
    parameters = list(net.parameters())
    grads = [torch.autograd.grad(cross_entropy(net(a[None]), b[None]), parameters) for a, b in zip(x, y, strict=True)]
    return torch.stack([torch.cat([g.flatten() for g in own]) for own in grads])


@pytest.mark.parametrize("l2", [0.0, 0.2])
def test_the_step_is_the_sum_of_the_cases_by_their_weights(l2):
    """And, where L2 counts as curvature, the inverse of L2's own gradient."""
    net, x, y = batch()
    g, ridge = per_case(net, x, y), torch.tensor(DAMPING + l2, dtype=torch.float64)
    before = flat(net)
    decayed = torch.cat([(p if p.ndim > 1 else 0 * p).detach().flatten() for p in net.parameters()])
    wrong, weights, square = weighed(net, Categorical(), x, y, ridge)
    assert torch.equal(wrong == 1, net(x).argmax(-1) != y)
    torch.testing.assert_close(square, g.square().sum(1))
    u = weights @ g / (len(x) * ridge)
    torch.testing.assert_close(weights, 1 - g @ u)
    rest = torch.linalg.solve(g.T @ g / len(x) + ridge * torch.eye(g.shape[1], dtype=torch.float64), l2 * decayed)
    EFNGD(net, Categorical(), lr=1.0, damping=DAMPING, l2=l2).step(x, y)
    torch.testing.assert_close(before - flat(net), u + rest)


def flat(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def test_a_case_alone_weighs_the_less_the_larger_its_gradient_is():
    net, x, y = batch(1)
    square = per_case(net, x, y).square().sum()
    weight = weighed(net, Categorical(), x, y, torch.tensor(DAMPING))[1, 0]
    torch.testing.assert_close(weight, DAMPING / (DAMPING + square))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Short runs of EF-NGD on both nets, the last batch of the watched cases not whole."""
    home = folder(tmp_path_factory.mktemp("cases"))
    for net in ("plain", "bna"):
        for part in reversed(runs.parts(net, "efngd", SHORT, home)):
            make(part, home)
    return home


def test_the_fraction_of_wrong_cases_is_the_training_error(home):
    told = pd.read_csv(home / runs.curves_table("plain", "efngd"))["train_error"]
    assert told.nunique() == 3
    found = cases(SHORT | {"watch_cases": 1000}, {1000: run_of(home)})
    assert found["wrong"].to_list() == pytest.approx(told.to_list())


def test_a_row_is_that_of_the_weights_then(home):
    row = pd.read_csv(home / cases_table("plain", "efngd")).set_index("epoch").loc[2]
    cfg, run = run_of(home)
    experiment = prepare(resolve(cfg))
    load(net := plain(experiment), run / "weights-40.pt")
    split, parts = experiment.dataset.splits["train"], []
    for i in (0, 50):
        x, y = split.x[i : i + 50].double(), split.y[i : i + 50]
        g, eye = per_case(net, x, y), torch.eye(50, dtype=torch.float64)
        weights = 1.001 * torch.linalg.inv(g @ g.T / 50 + 1.001 * eye).sum(1)
        parts.append(torch.stack([net(x).argmax(-1) != y, weights, g.square().sum(1)]))
    wrong, weights, square = torch.cat(parts, 1)
    length, wrong = square.sqrt(), wrong == 1
    expected = {"wrong": wrong.double().mean(), "of_gradient": length[wrong].sum() / length.sum()}
    expected |= {"of_step": (weights * length)[wrong].abs().sum() / (weights * length).abs().sum()}
    for name, of in (("right", ~wrong), ("wrong", wrong)):
        expected |= {f"weight_{name}": weights[of].mean(), f"square_{name}": square[of].median()}
    assert row[list(expected)].to_dict() == pytest.approx({k: float(v) for k, v in expected.items()}, rel=1e-9)


def run_of(home):
    """EF-NGD's config of a seed, and where it ran."""
    cfg = configured("plain", "efngd", 2, SHORT)
    cfg.seed = 1000
    return cfg, next((home / "runs" / "fresh_plain_efngd" / "runs").glob("*-1000"))


def test_with_normalisation_there_is_no_table(home):
    """There the gradient is not the sum of the cases' own."""
    assert (home / runs.curves_table("bna", "efngd")).exists()
    assert cases_of(home, "bna") is None
    assert cases_of(home, "plain") is not None


def by_seed(part, lost=()):
    rows = [
        {"seed": seed, "epoch": epoch, "wrong": 0.1, "weight_right": 0.9, "weight_wrong": -0.01}
        | {"square_right": 1.0, "square_wrong": 100.0, "of_gradient": 0.6, "of_step": part + 1e-3 * seed}
        for seed in range(10)
        for epoch in (0, 1)
    ]
    table = pd.DataFrame(rows)
    table.loc[table["seed"].isin(lost), list(MEASURES)] = math.nan
    return table


@pytest.mark.parametrize(
    ("part", "lost", "expected"),
    [(0.1, (), "reproduced"), (0.5, (), "contradicted"), (0.295, (), "inconclusive"), (0.1, (3,), "inconclusive")],
)
def test_the_verdict(tmp_path, part, lost, expected):
    home = folder(tmp_path, sgd=curves(0.1, 0.97))
    by_seed(part, lost).to_csv(home / cases_table("plain", "efngd"), index=False)
    claim = next(c for c in sun2017.claims(home) if c.claim.startswith("EF-NGD, damping 1: cases"))
    assert claim.verdict == expected
    assert ("1 runs diverged" in claim.measured) == bool(lost)


@pytest.mark.parametrize(("rows", "drawn"), [(20, True), (0, False)])
def test_the_figure(tmp_path, rows, drawn):
    """None of an empty table: of a method that diverged at every learning rate."""
    home = folder(tmp_path)
    by_seed(0.1, (3,)).head(rows).to_csv(home / cases_table("plain", "efngd"), index=False)
    found = figures(home)
    assert ("cases_plain" in found) == drawn
    for name, figure in found.items():
        figure.savefig(tmp_path / f"{name}.png")
