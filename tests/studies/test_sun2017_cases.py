"""Sun and Nielsen (2017): how much the cases count in EF-NGD's step."""

import math

import pandas as pd
import pytest
import torch
from torch.nn.functional import cross_entropy

from fisherlab import EFNGD, Categorical, mlp
from fisherlab.studies.sun2017 import runs
from fisherlab.studies.sun2017.cases import cases, cases_table, weighed
from fisherlab.studies.sun2017.settings import configured
from tests.studies.sun2017_tables import SETTINGS, curves, folder, make, verdict

DAMPING = 0.3


def batch(size=20):
    x, y = torch.randn(size, 6, dtype=torch.float64), torch.randint(3, (size,))
    return mlp(6, 3, hidden=[5]).double(), x, y


def per_case(net, x, y):
    """The gradient of each case, by autograd."""
    parameters = list(net.parameters())
    grads = [torch.autograd.grad(cross_entropy(net(a[None]), b[None]), parameters) for a, b in zip(x, y, strict=True)]
    return torch.stack([torch.cat([g.flatten() for g in own]) for own in grads])


def test_the_step_is_the_sum_of_the_cases_by_what_they_count():
    net, x, y = batch()
    g = per_case(net, x, y)
    wrong, counts, square = weighed(net, Categorical(), x, y, DAMPING)
    assert torch.equal(wrong == 1, net(x).argmax(-1) != y)
    torch.testing.assert_close(square, g.square().sum(1))
    before = torch.cat([p.detach().flatten() for p in net.parameters()])
    EFNGD(net, Categorical(), lr=1.0, damping=DAMPING).step(x, y)
    after = torch.cat([p.detach().flatten() for p in net.parameters()])
    torch.testing.assert_close(before - after, counts @ g / (len(x) * DAMPING))


def test_a_case_alone_counts_the_less_the_larger_its_gradient_is():
    net, x, y = batch(1)
    square = per_case(net, x, y).square().sum()
    torch.testing.assert_close(weighed(net, Categorical(), x, y, DAMPING)[1, 0], DAMPING / (DAMPING + square))


def test_along_a_training(tmp_path):
    settings = SETTINGS | {"methods": ["sgd", "efngd"], "rates": [0.1], "seeds": 1, "epochs": 2, "watch_epochs": [1, 2]}
    home = folder(tmp_path)
    table = {name: weighed_along(home, settings, name) for name in ("plain", "bna")}
    assert table["bna"] is None  # there the gradient is not the cases' own
    assert table["plain"]["epoch"].to_list() == [0, 1, 2]
    run = next((home / "runs" / "fresh_plain_efngd" / "runs").glob("*-1000"))
    cfg = configured("plain", "efngd", 2, settings)
    cfg.seed = 1000
    again = cases(settings | {"watch_epochs": [2]}, {1000: (cfg, run)})
    pd.testing.assert_frame_equal(again.tail(1).reset_index(drop=True), table["plain"].tail(1).reset_index(drop=True))
    assert table["plain"].notna().all(axis=None)


def weighed_along(home, settings, net):
    """The table of EF-NGD's fresh seeds."""
    for part in reversed(runs.parts(net, "efngd", settings, home)):
        make(part, home)
    path = home / cases_table(net, "efngd")
    return pd.read_csv(path) if path.exists() else None


@pytest.mark.parametrize(
    ("counts", "expected"), [(0.1, "reproduced"), (0.8, "contradicted"), (math.nan, "inconclusive")]
)
def test_the_verdict(tmp_path, counts, expected):
    home = folder(tmp_path, sgd=curves(0.1, 0.97))
    rows = [
        {"seed": seed, "epoch": epoch, "wrong": 0.1, "weight_right": 0.9, "weight_wrong": counts + 1e-3 * seed}
        | {"square_right": 1.0, "square_wrong": 100.0}
        for seed in range(10)
        for epoch in (0, 1)
    ]
    pd.DataFrame(rows).to_csv(home / cases_table("plain", "efngd"), index=False)
    assert verdict(home, "EF-NGD, damping 1: the cases that are classified wrongly") == expected
