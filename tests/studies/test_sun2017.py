"""Sun and Nielsen (2017): the study runs end to end, verdicts turn with the numbers, what is watched is right."""

import json
import math

import pandas as pd
import pytest
import torch

from fisherlab.cli import main
from fisherlab.studies import sun2017
from fisherlab.studies.study import begin
from fisherlab.studies.sun2017 import runs, verdicts, watch
from fisherlab.studies.sun2017.settings import METHODS, configured
from fisherlab.training.setup import prepare, resolve

SPLITS = {"train": 1000, "valid": 400, "test": 397}
SETTINGS = {"dataset": "digits", "splits": SPLITS, "batch": 50, "l2": 1e-3, "nets": ["plain"], "variants": []}
SETTINGS |= {"methods": list(METHODS), "rates": [1.0, 0.1, 0.01]}
FIGURES = ["curves_bna", "curves_plain", "learning_rates", "matrices", "seconds_bna", "seconds_plain", "zones"]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    results = tmp_path_factory.mktemp("sun")
    assert main(["study", "sun2017", "scale=smoke", "threads=1", f"results={results}"]) == 0
    return results / "studies" / "sun2017" / "smoke"


def test_the_smoke_scale_makes_all_parts_tables_and_figures(smoke):
    record = json.loads((smoke / "study.json").read_text())
    assert list(record["parts"]) == record["planned"]
    assert sorted(p.stem for p in smoke.glob("*.png")) == sorted(p.stem for p in smoke.glob("*.pdf")) == FIGURES
    claims = pd.read_csv(smoke / "claims.csv")
    assert not claims.duplicated(["claim", "setting"]).any()
    assert set(claims["verdict"]) <= {"reproduced", "contradicted", "inconclusive"}
    summary = pd.read_csv(smoke / "summary.csv")
    assert len(summary) == 2 * len(METHODS)
    assert (summary["test_accuracy"] > 0.1).all()


def test_every_seed_has_a_split_and_a_start_of_its_own_and_all_methods_share_them(smoke):
    tables = [pd.read_csv(smoke / runs.curves_table("plain", m)).query("epoch == 0") for m in METHODS]
    starts = [table.set_index("seed")["objective"] for table in tables]
    assert starts[0].nunique() == len(starts[0]) == 2
    for other in starts[1:]:
        assert other.to_dict() == pytest.approx(starts[0].to_dict(), rel=1e-6)


def test_the_matrix_of_the_data_stands_still_and_the_hidden_ones_move(smoke):
    table = pd.read_csv(smoke / "matrices_plain.csv").query("epoch == 2").set_index("layer")
    assert table.loc[1, "since_start"] < 1e-12
    assert (table.loc[2:4, "since_start"] > 1e-2).all()
    assert table["matrices"].to_list() == [1, 80, 80, 1]


def test_the_watched_matrices_are_the_closed_forms():
    experiment = prepare(resolve(configured("plain", "rngd", 1, SETTINGS)))
    x, _ = experiment.rows("train", slice(30))
    found = watch._matrices(experiment, x)
    layers = [m for m in experiment.model if hasattr(m, "weight")]
    a = x.flatten(0, -3)[0] if x.ndim > 2 else x
    for i, (layer, m) in enumerate(zip(layers, found, strict=True)):
        inputs = torch.cat([a, torch.ones(30, 1)], -1).double()
        w, b = layer.weight.flatten(0, -3), layer.bias.flatten(0, -2)
        z = a @ w[0].T + b[0]
        nu = torch.ones_like(z) if i in (0, 3) else torch.sigmoid(z).square()
        for unit in (0, len(m) - 1):
            expected = (inputs * nu[:, unit, None].double()).T @ inputs / 30
            assert torch.allclose(m[unit], expected, rtol=1e-4, atol=1e-7)
        a = z.relu().detach()


def curves(level, accuracy, *, rate=0.1, epochs=100, status="finished", seeds=10, spread=1e-4):
    """Runs whose objective falls to a level by a rate."""
    rows = []
    for seed in range(seeds):
        for epoch in range(epochs + 1):
            error = 1 - accuracy - spread * (seed - (seeds - 1) / 2)
            objective = level * (1 + 20 * math.exp(-rate * (1 + 0.02 * seed) * epoch))
            numbers = {"objective": objective, "train_loss": objective, "train_error": error, "seconds": epoch}
            rows.append({"epoch": epoch, "step": epoch, "valid_error": error, "test_error": error, **numbers})
            rows[-1] |= {"seed": 1000 + seed, "lr": 0.1, "status": status}
    return pd.DataFrame(rows)


def folder(tmp_path, best=0.1, **tables):
    """A study's folder with hand-made curves of PLAIN, by method; the best learning rate may be an end of the grid."""
    home = tmp_path / "paper"
    begin(home, SETTINGS, {})
    for method, table in tables.items():
        table.to_csv(home / runs.curves_table("plain", method), index=False)
        grid = [{"lr": lr, "seed": 0, "valid_error": 0.02 + abs(math.log10(lr / best))} for lr in SETTINGS["rates"]]
        pd.DataFrame(grid).to_csv(home / runs.grid_table("plain", method), index=False)
    return home


def verdict(home, start):
    found = [claim.verdict for claim in sun2017.claims(home) if claim.claim.startswith(start)]
    return found[0] if found else None


@pytest.mark.parametrize(
    ("accuracy", "expected"), [(0.972, "reproduced"), (0.98, "contradicted"), (0.96, "contradicted")]
)
def test_the_range_of_the_figure(tmp_path, accuracy, expected):
    home = folder(tmp_path, sgd=curves(0.1, accuracy))
    assert verdict(home, "SGD's validation accuracy lies in") == expected


@pytest.mark.parametrize(
    ("rate", "best", "expected"),
    [(0.3, 0.1, "reproduced"), (0.03, 0.1, "contradicted"), (0.1, 0.1, "contradicted"), (0.3, 1.0, "inconclusive")],
)
def test_fewer_epochs_than_sgd(tmp_path, rate, best, expected):
    home = folder(tmp_path, best, sgd=curves(0.1, 0.97), rngd=curves(0.1, 0.97, rate=rate, epochs=400))
    assert verdict(home, "RNGD reaches a low cost in fewer epochs") == expected


@pytest.mark.parametrize(
    ("accuracy", "expected"), [(0.974, "reproduced"), (0.9725, "reproduced"), (0.97, "contradicted")]
)
def test_competitive_with_adam(tmp_path, accuracy, expected):
    home = folder(tmp_path, adam=curves(0.1, 0.973), rngd=curves(0.1, accuracy, spread=2e-4))
    assert verdict(home, "RNGD is competitive with Adam") == expected


def test_a_method_of_which_a_run_diverged_decides_nothing(tmp_path):
    table = curves(0.1, 0.974)
    table.loc[table["seed"] == 1003, "status"] = "diverged"
    home = folder(tmp_path, adam=curves(0.1, 0.973), rngd=table)
    assert verdict(home, "RNGD is competitive with Adam") == "inconclusive"
    assert verdict(home, "RNGD's validation accuracy lies in") == "inconclusive"


def test_the_learning_rate_is_the_best_one_of_those_that_never_diverged(tmp_path):
    home = folder(tmp_path, sgd=curves(0.1, 0.97))
    rows = [(1.0, 0, 0.01), (1.0, 1, None), (0.1, 0, 0.03), (0.1, 1, 0.02), (0.01, 0, 0.05), (0.01, 1, 0.01)]
    grid = pd.DataFrame(rows, columns=["lr", "seed", "valid_error"])
    grid.to_csv(home / runs.grid_table("plain", "sgd"), index=False)
    assert runs.chosen(home, "plain", "sgd") == 0.1
    grid.assign(valid_error=None).to_csv(home / runs.grid_table("plain", "sgd"), index=False)
    with pytest.raises(RuntimeError, match="every run of sgd on plain diverged"):
        runs.chosen(home, "plain", "sgd")


def test_a_step_counts_its_share_of_the_factorisations():
    cost = pd.DataFrame({"net": ["plain"] * 3, "method": ["rngd"] * 3, "ms": [1.0, 2.0, 9.0], "refresh_ms": [50.0] * 3})
    assert (
        verdicts.milliseconds(cost, SETTINGS)["plain"]["rngd"] == 2.0 + 50 / 20
    )  # 20 steps an epoch, so as many refreshes
    large = SETTINGS | {"splits": SPLITS | {"train": 50000}}
    assert verdicts.milliseconds(cost, large)["plain"]["rngd"] == 2.5


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("nets=[plian]", "nets=[plian]: expected a list, each entry plain or bna"),
        ("rates=[]", "rates=[]: expected a list"),
        ("methods=[sgd,sgd]", "none twice"),
        ("dataset=mnits", "did you mean 'mnist'?"),
        ("seeds=0", "seeds=0: expected a whole number of at least 1"),
    ],
)
def test_wrong_settings_are_one_line_and_write_nothing(override, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["study", "sun2017", "scale=smoke", f"study.scales.smoke.{override}"]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())
