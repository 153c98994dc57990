"""Sun and Nielsen (2017): the study runs end to end, what is watched is right, learning rates are chosen as it says."""

import json
import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf

from fisherlab.cli import main
from fisherlab.studies import sun2017
from fisherlab.studies.study import begin
from fisherlab.studies.sun2017 import runs, timing, watch
from fisherlab.studies.sun2017.curves import accuracy
from fisherlab.studies.sun2017.settings import METHODS, VARIANTS, configured
from fisherlab.studies.sun2017.settled import settled_table
from fisherlab.training.compare import load
from fisherlab.training.setup import prepare, resolve
from tests.studies.sun2017_tables import SETTINGS, curves, folder, make

FIGURES = ["cases_plain", "curves_bna", "curves_plain", "learning_rates", "matrices_adam", "matrices_rngd"]
FIGURES += ["matrices_sgd", "seconds_bna", "seconds_plain", "settled", "variants_plain", "zones"]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    results = tmp_path_factory.mktemp("sun")
    assert main(["study", "sun2017", "scale=smoke", "threads=1", f"results={results}"]) == 0
    return results / "studies" / "sun2017" / "smoke"


def test_the_smoke_scale_makes_all_parts_tables_and_figures(smoke):
    record = json.loads((smoke / "study.json").read_text())
    assert sorted(record["parts"]) == sorted(record["planned"])
    assert sorted(p.stem for p in smoke.glob("*.png")) == sorted(p.stem for p in smoke.glob("*.pdf")) == FIGURES
    claims = pd.read_csv(smoke / "claims.csv")
    assert not claims.duplicated(["claim", "setting"]).any()
    assert set(claims["verdict"]) <= {"reproduced", "contradicted", "inconclusive"}
    summary = pd.read_csv(smoke / "summary.csv")
    assert len(summary) == 2 * len(METHODS) + 2
    assert (summary["finished"] == 2).all()
    assert (summary["test_accuracy"] > 0.1).all()


def test_every_seed_has_a_split_and_a_start_of_its_own_and_all_methods_share_them(smoke):
    tables = [pd.read_csv(smoke / runs.curves_table("plain", m)).query("epoch == 0") for m in METHODS]
    starts = [table.set_index("seed")["objective"] for table in tables]
    assert starts[0].nunique() == len(starts[0]) == 2
    for other in starts[1:]:
        assert other.to_dict() == pytest.approx(starts[0].to_dict(), rel=1e-6)
    paths = [(smoke / "runs" / f"fresh_plain_{m}" / "runs").glob(f"*-{seed}") for m in METHODS for seed in (1000, 1001)]
    rows = [prepare(OmegaConf.load(next(path) / "config.yaml")).rows("valid", slice(None))[0] for path in paths]
    assert not torch.equal(rows[0], rows[1])
    assert all(torch.equal(own, rows[i % 2]) for i, own in enumerate(rows))


@pytest.mark.parametrize("net", ["plain", "bna"])
@pytest.mark.parametrize("method", watch.WATCHED)
def test_the_matrix_of_the_data_stands_still_and_the_hidden_ones_move(smoke, net, method):
    table = pd.read_csv(smoke / watch.matrices_table(net, method))
    assert table["epoch"].unique().tolist() == [0, 1, 3]
    table = table[table["epoch"] == 3]
    assert table["seed"].nunique() == 2
    for _, own in table.set_index("layer").groupby("seed"):
        for column in ("since_start", "shape_since_start"):
            assert own.loc[1, column] < 1e-12
            assert (own.loc[2:4, column] > 1e-2).all()
        assert own["matrices"].to_list() == [1, 80, 80, 1, 1]
        assert own["size"].to_list() == [65, 81, 81, 81, 810]


def test_a_matrix_that_only_grows_does_not_change_its_shape():
    m = torch.randn(3, 5, 5, dtype=torch.float64)
    first = {(1, watch.UNITWISE): m @ m.mT}
    grown = {key: torch.tensor([[[2.0]], [[5.0]], [[0.1]]]) * value for key, value in first.items()}
    row = watch._rows(0, 1, grown, first, first, first)[0]
    assert row["since_start"] > 0.1
    assert row["shape_since_start"] < 1e-14
    values = torch.linalg.eigvalsh(grown[1, watch.UNITWISE])
    rank = (values.sum(-1) ** 2 / (values**2).sum(-1)).mean()
    assert row["effective_rank"] == pytest.approx(float(rank))


def test_the_settled_objective_is_that_of_the_training_set_as_one_batch(smoke):
    table = pd.read_csv(smoke / settled_table("bna", "sgd")).set_index(["seed", "epoch"])
    curve = pd.read_csv(smoke / runs.curves_table("bna", "sgd")).set_index(["seed", "epoch"])
    assert list(table.index) == [(seed, epoch) for seed in (1000, 1001) for epoch in (1, 3)]
    run = next((smoke / "runs" / "fresh_bna_sgd" / "runs").glob("*-1001"))
    experiment = prepare(OmegaConf.load(run / "config.yaml"))
    load(experiment.model, run / "weights-60.pt")
    x, y = experiment.rows("train", slice(None))
    weights = [p for name, p in experiment.model.named_parameters() if name.endswith("weight")]
    with torch.no_grad():
        f = experiment.model.train()(x)[0, 0]
        nll = torch.nn.functional.cross_entropy(f, y.flatten())
        l2 = 0.5e-3 * sum(w.square().sum() for w in weights)
    assert table.loc[(1001, 3), "objective"] == pytest.approx(float(nll + l2), rel=1e-5)
    assert table.loc[(1001, 3), "train_error"] == pytest.approx(float((f.argmax(-1) != y.flatten()).float().mean()))
    lag = curve.loc[(1001, 3), "objective"] - table.loc[(1001, 3), "objective"]
    assert lag > 0.05  # averages of decay 0.999 have hardly begun to move in 60 steps


def test_only_a_net_with_normalisation_is_settled(smoke):
    assert {p.name for p in smoke.glob("settled_*.csv")} == {settled_table("bna", m) for m in METHODS}


def test_the_batch_loss_is_the_mean_of_an_epoch_s_batches(smoke):
    curve = pd.read_csv(smoke / runs.curves_table("plain", "sgd")).query("seed == 1001").set_index("epoch")
    run = next((smoke / "runs" / "fresh_plain_sgd" / "runs").glob("*-1001"))
    loss = pd.read_csv(run / "steps.csv").set_index("step")["loss"]
    assert math.isnan(curve.loc[0, "batch_loss"])
    assert curve.loc[2, "batch_loss"] == pytest.approx(loss.loc[21:40].mean(), rel=1e-12)


def test_the_grid_s_curves_are_kept(smoke):
    grid = pd.read_csv(smoke / runs.grid_table("bna", "adam")).set_index(["lr", "seed"])["valid_error"]
    curve = pd.read_csv(smoke / runs.grid_curves_table("bna", "adam")).query("epoch > 0")
    pd.testing.assert_series_equal(grid.sort_index(), curve.groupby(["lr", "seed"])["valid_error"].mean())


def test_the_variant_tries_learning_rates_next_to_rngd_s(smoke):
    rates = [set(pd.read_csv(smoke / runs.grid_table("plain", m))["lr"]) for m in ("rngd", "rngd, softmax")]
    assert rates[1] == rates[0] == {0.1, 0.01}  # where there are but two


def normalised(a):
    return (a - a.mean(0)) / (a.var(0, unbiased=False) + 1e-3).sqrt()


@pytest.mark.parametrize("net", ["plain", "bna"])
def test_the_watched_matrices_are_the_closed_forms(net):
    experiment = prepare(resolve(configured(net, "rngd", 1, SETTINGS)))
    x, _ = experiment.rows("train", slice(30))
    found, a = watch._matrices(experiment, x), x[0, 0]
    softmax = found.pop((4, watch.SOFTMAX))[0]
    assert list(found) == [(1, watch.LINEAR), (2, watch.UNITWISE), (3, watch.UNITWISE), (4, watch.LINEAR)]
    layers = [m for m in experiment.model if isinstance(getattr(m, "weight", None), torch.Tensor)]
    for i, (layer, m) in enumerate(zip(layers, found.values(), strict=True)):
        inputs = torch.cat([a, torch.ones(30, 1)], -1).double()
        z = a @ layer.weight[0, 0].T + layer.bias[0, 0]
        nu = torch.ones_like(z) if i in (0, 3) else torch.sigmoid(z).square()
        for unit in (0, len(m) - 1):
            expected = (inputs * nu[:, unit, None].double()).T @ inputs / 30
            assert torch.allclose(m[unit], expected, rtol=1e-4, atol=1e-6)
        if i == 3:
            eta = torch.softmax(z.double(), -1)
            block = -(inputs * (eta[:, 2] * eta[:, 7])[:, None]).T @ inputs / 30
            assert torch.allclose(softmax[2 * 81 : 3 * 81, 7 * 81 : 8 * 81], block, rtol=1e-4, atol=1e-6)
        a = z.relu().detach() if net == "plain" else normalised(z.relu().detach())


def watched(tmp_path, net, rate, epochs=1, **settings):
    """The verdicts on a net that is watched until the end of a short training."""
    home = tmp_path / "paper"
    settings = SETTINGS | {"nets": [net], "epochs": epochs, "watch_epochs": [epochs]} | settings
    begin(home, settings, {})
    pd.DataFrame([{"lr": rate, "seed": 0, "valid_error": 0.1}]).to_csv(home / runs.grid_table(net, "rngd"), index=False)
    make(runs.parts(net, "rngd", settings, home)[0], home)
    claims = [claim for claim in sun2017.claims(home) if claim.claim.startswith("the geometry of layer")]
    assert [claim.claim.split()[4] for claim in claims] == ["2", "3", "4", "4"]
    assert {claim.n for claim in claims} == {settings["seeds"]}
    return {claim.verdict for claim in claims}


@pytest.mark.parametrize("net", ["plain", "bna"])
def test_where_nothing_is_trained_nothing_moves(tmp_path, net):
    assert watched(tmp_path, net, 1e-12) == {"contradicted"}


def test_where_it_is_trained_the_geometry_moves(tmp_path):
    assert watched(tmp_path, "bna", 0.5, epochs=2, watch_cases=400) == {"reproduced"}


def test_a_few_seeds_do_not_tell_whether_it_moves(tmp_path):
    assert watched(tmp_path, "plain", 0.1, seeds=3) == {"inconclusive"}


def test_the_untrained_net_is_no_part_of_a_mean():
    table = curves(0.1, 0.97, epochs=3, spread=0.0)
    table.loc[table["epoch"] == 0, "valid_error"] = 0.9
    assert accuracy(table).to_list() == pytest.approx([0.97] * 10)
    assert runs._end(runs.Trained("finished", table, Path()))["valid_error"] == pytest.approx(0.03)
    long = curves(0.1, 0.97, spread=0.0)
    long.loc[long["epoch"] <= 90, "valid_error"] = 0.9
    assert accuracy(long).to_list() == pytest.approx([0.97] * 10)  # the last ten
    long.loc[long["epoch"] == 91, "valid_error"] = 0.13
    assert accuracy(long).to_list() == pytest.approx([0.96] * 10)


def test_the_learning_rate_is_the_best_one_of_those_that_never_diverged(tmp_path):
    home = folder(tmp_path, sgd=curves(0.1, 0.97))
    rows = [(1.0, 0, 0.01), (1.0, 1, None), (0.1, 0, 0.03), (0.1, 1, 0.02), (0.01, 0, 0.05), (0.01, 1, 0.01)]
    grid = pd.DataFrame(rows, columns=["lr", "seed", "valid_error"])
    grid.to_csv(home / runs.grid_table("plain", "sgd"), index=False)
    assert runs.chosen(home, "plain", "sgd") == 0.1


def test_the_variant_by_objective_trains_at_rngd_s_rate_of_the_lowest_one(tmp_path, monkeypatch):
    home, settings = folder(tmp_path, rngd=curves(0.1, 0.97)), SETTINGS | {"variants": ["rngd, by objective"]}
    grid = pd.DataFrame({"lr": [1.0, 0.1, 0.01], "seed": 0, "valid_error": [0.3, 0.1, 0.2], "objective": [3, 2, 1]})
    grid.to_csv(home / runs.grid_table("plain", "rngd"), index=False)
    rates = []

    def trained(cfg, cells, *_):
        rates.extend(cell["lr"] for cell in cells)
        assert cfg.optimizer == configured("plain", "rngd", 100, settings).optimizer
        return [runs.Trained("finished", curves(0.1, 0.9, seeds=1), Path())] * len(cells)

    monkeypatch.setattr(runs, "_train", trained)
    planned = {part.name: part for part in sun2017.parts(settings, home)}
    assert "PLAIN, RNGD, rate by objective: grid" not in planned
    make(planned["PLAIN, RNGD, rate by objective: fresh seeds"], home)
    assert set(rates) == {0.01}
    assert runs.chosen(home, "plain", "rngd") == 0.1


@pytest.mark.parametrize(
    ("rngd", "best", "tried"),
    [
        (0.1, 0.1, {1.0, 0.1, 0.01}),
        (1.0, 1.0, {1.0, 0.1, 0.01}),
        (0.1, 1e-3, {1.0, 0.1, 0.01, 1e-3, 1e-4}),
        (0.01, 0.1, {1.0, 0.1, 0.01, 1e-3}),
        (0.01, 1e-4, {0.1, 0.01, 1e-3, 1e-4}),
        (1.0, 1e-4, {1.0, 0.1, 0.01, 1e-3, 1e-4}),  # where all of the first three diverge
        (1.0, 0.0, {1.0, 0.1, 0.01, 1e-3, 1e-4}),  # and all others too
    ],
)
def test_a_variant_s_grid_goes_on_from_rngd_s_best_until_its_own_lies_within(tmp_path, monkeypatch, rngd, best, tried):
    def trained(cfg, cells, *_):
        errors = [abs(math.log10(cell["lr"] / best)) if best else math.inf for cell in cells]
        ends = ["finished" if e < 3.5 else "diverged" for e in errors]
        tables = [curves(0.1, 1 - min(e, 9), epochs=2, seeds=1) for e in errors]
        return [runs.Trained(status, table, Path()) for status, table in zip(ends, tables, strict=True)]

    home, settings = folder(tmp_path, rngd, rngd=curves(0.1, 0.97)), SETTINGS | {"rates": [1.0, 0.1, 0.01, 1e-3, 1e-4]}
    monkeypatch.setattr(runs, "_train", trained)
    for method, expected in (("rngd, softmax", tried), ("sgd", set(settings["rates"]))):
        make(runs.parts("plain", method, settings, home)[1], home)
        assert set(pd.read_csv(home / runs.grid_table("plain", method))["lr"]) == expected


def test_what_needs_rngd_s_learning_rate_waits_for_it_and_what_takes_longest_comes_first(tmp_path):
    settings = SETTINGS | {"variants": list(VARIANTS), "nets": ["plain", "bna"]}
    planned = sun2017.parts(settings, tmp_path)
    tables = [table for part in planned for table in part.tables]
    assert len(tables) == len(set(tables))
    assert all(set(part.needs) <= set(tables) for part in planned)
    waiting = [part.name.removeprefix("PLAIN, ") for part in planned if runs.grid_table("plain", "rngd") in part.needs]
    expected = ["RNGD, batch start: grid", "RNGD, rate by objective: fresh seeds", "RNGD, softmax RFIM: grid"]
    expected += ["RNGD: fresh seeds"]
    assert sorted(waiting) == expected
    fresh = [part.name.split(":")[0] for part in planned if part.name.endswith("fresh seeds")]
    assert fresh[:2] == ["PLAIN, RNGD, softmax RFIM", "PLAIN, RNGD, batch start"]
    assert fresh[-1] == "BNA, SGD"


def test_without_rngd_nothing_asks_for_its_learning_rate(tmp_path):
    changed = ("methods=[sgd]", "nets=[plain]", "variants=[]", "rounds=1", "epochs=1", "watch_epochs=[1]")
    few = [f"study.scales.smoke.{setting}" for setting in changed]
    assert main(["study", "sun2017", "scale=smoke", "threads=1", f"results={tmp_path}", *few]) == 0
    home = tmp_path / "studies" / "sun2017" / "smoke"
    assert len(pd.read_csv(home / "claims.csv")) == 2
    assert (home / "curves_plain.png").exists()


def test_a_step_counts_its_share_of_the_factorisations():
    rows = {"net": ["plain"] * 2, "method": ["rngd", "sgd"], "round": [1, 1], "ms": [2.0, 1.0]}
    table = pd.DataFrame(rows | {"refresh_ms": [50.0, 0.0], "period": [100, 1]})
    assert timing.by_round(table, "plain").loc[1].to_dict() == {"rngd": 2.5, "sgd": 1.0}


def test_what_others_do_is_told_beside_the_timings(smoke):
    table = pd.read_csv(smoke / timing.TABLE)
    assert (table["threads"] == 1).all()
    assert table["others"].between(-0.1, 64).all()
    assert table.set_index("method")["period"].groupby("method").first().to_dict() == dict.fromkeys(
        ["adam", "efngd", "sgd"], 1
    ) | dict.fromkeys(["kfac", "rngd", "rngd, softmax"], 100)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("nets=[plian]", "nets=[plian]: expected a list, each entry plain or bna"),
        ("rates=[]", "rates=[]: expected a list"),
        ("methods=[sgd,sgd]", "none twice"),
        ("dataset=mnits", "did you mean 'mnist'?"),
        ("methods=[sgd]", "variants=['rngd, softmax', 'rngd, by objective'] are RNGD's: expected rngd among"),
        ("splits.train=many", "expected numbers of examples, whole and at least 1, for train, valid, test"),
        ("splits.valid=0", "expected numbers of examples, whole and at least 1, for train, valid, test"),
        ("splits.train=1001", "are 1798 examples: expected at most digits's 1797"),
        ("batch=1001", "batch=1001: expected at most the 1000 examples to train on"),
        ("watch_cases=501", "watch_cases=501 and as many others are more than the 1000 examples: expected at most 500"),
        ("watch_epochs=[1,4]", "watch_epochs=[1, 4]: expected at most epochs, 3"),
        ("watch_epochs=2", "watch_epochs=2: expected a list"),
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
