"""`fisherlab compare`: along a training, and on an existing run's checkpoints."""

import pandas as pd
import pytest

from fisherlab.cli import main

SMALL = ["dataset=digits", "model.hidden=[8]", "steps=6", "batch_size=50", "threads=1"]
QUICK = ["compare.batch=10", "compare.dampings=[0.1]", "compare.probes=2"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_along_a_training(here, capsys):
    assert main(["compare", *SMALL, *QUICK, "optimizer=kfac", "compare.steps=[0,2,6]", "hydra.run.dir=run"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "run"
    table = pd.read_csv("run/fisher.csv")
    first = ["step", "layer", "lambda", "match", "control", "batch", "cosine", "trace_fisher", "trace_ef"]
    assert list(table)[: len(first)] == first
    assert sorted(table["step"].unique()) == [0, 2, 6]
    assert sorted(table["layer"].unique()) == ["all", "layer1", "layer2"]
    assert set(table["batch"]) == {"same", "independent"}
    assert table["loss"].iloc[-1] < table["loss"].iloc[0]
    assert set(pd.read_csv("run/fisher_spectrum.csv")["matrix"]) == {"fisher", "ef", "mc", "kfac", "kfac_ef"}
    assert (here / "run" / "fisher.png").exists()


def test_on_an_existing_run(here):
    assert main(["train", *SMALL, "optimizer=sgd", "checkpoints=[3]", "hydra.run.dir=run"]) == 0
    assert main(["compare", "compare.run=run", *QUICK]) == 0
    then = pd.read_csv("run/fisher.csv")
    assert sorted(then["step"].unique()) == [0, 3, 6]
    assert main(["compare", *SMALL, *QUICK, "optimizer=sgd", "compare.steps=[0,3,6]", "hydra.run.dir=again"]) == 0
    pd.testing.assert_frame_equal(then, pd.read_csv("again/fisher.csv"))


def test_a_run_that_diverges_is_compared_as_far_as_it_went(here, capsys):
    options = ["optimizer=sgd", "lr=1e8", "compare.steps=[0,1,6]", "hydra.run.dir=run"]
    assert main(["compare", *SMALL, *QUICK, *options]) == 0
    assert 0 in set(pd.read_csv("run/fisher.csv")["step"])
    assert "diverged" in capsys.readouterr().out


def test_a_reconstruction_takes_a_sampled_fisher(here):
    model = ["model=autoencoder", "model.hidden=[6,3]", "target=input", "likelihood=bernoulli", "optimizer=sgd"]
    auto = [*SMALL[:1], *SMALL[2:], *model, *QUICK, "compare.steps=[0]", "compare.samples=3", "hydra.run.dir=run"]
    assert main(["compare", *auto]) == 0
    assert len(pd.read_csv("run/fisher.csv"))


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["compare.batch=0"], "compare.batch=0"),
        (["compare.batch=9999"], "expected at most 1437"),
        (["compare.batch=1400"], "use a smaller compare.batch, or compare.samples=8"),
        (["compare.dampings=[]"], "compare.dampings=[]"),
        (["compare.dampings=[0]"], "compare.dampings=[0]: expected a list of numbers above 0"),
        (["compare.steps=[7]"], "step 7 is beyond the training's 6"),
        (["compare.bach=3"], "did you mean 'batch'?"),
        (["lr=-1"], "lr=-1"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_trained(args, says, here, capsys):
    assert main(["compare", *SMALL, *args]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1
    assert not list(here.iterdir())


def test_a_run_is_taken_as_it_is(here, capsys):
    assert main(["compare", "compare.run=nowhere"]) == 2
    assert "is no run directory" in capsys.readouterr().err
    assert main(["compare", "compare.run=nowhere", "lr=1"]) == 2
    assert "lr=1: compare.run takes a run as it is" in capsys.readouterr().err
