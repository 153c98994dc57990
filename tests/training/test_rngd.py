"""RNGD from the command line, with and without batch normalisation."""

import itertools
import json
import os
import signal
from pathlib import Path

import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

import fisherlab
from fisherlab.cli import main
from fisherlab.training.run import resume, train
from fisherlab.training.setup import prepare
from tests.training.conftest import config, start, tables

SMALL = ["dataset=digits", "model.hidden=[12,11]", "epochs=2", "batch_size=50", "threads=1", "figures=false"]
RNGD = [*SMALL, "optimizer=rngd", "optimizer.inverse_period=10", "lr=0.5", "l2=1e-3"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("norm", ["none", "after"])
def test_it_trains(here, norm):
    more = [f"model.batch_norm={norm}", "histogram_steps=[1]", "hydra.run.dir=run"]
    assert main(["train", *RNGD, *more]) == 0
    status = json.loads((here / "run" / "status.json").read_text())
    assert status["status"] == "finished"
    about = status["optimizer"]
    assert (about["kind"], about["structure"], about["damping_mode"]) == ("relative", "shared, unit, shared", "trace")
    expected = [f"norm{i}.{what}" for i in (1, 2) for what in ("scale", "shift")]
    assert about["plain_gradient"] == (expected if norm == "after" else [])
    loss = pd.read_csv("run/steps.csv")["loss"]  # a short run's evaluation is still by the averages' start
    assert loss.iloc[-10:].mean() < 0.8 * loss.iloc[0]
    counted = pd.read_csv("run/gradient_histogram.csv").groupby("layer")["count"].sum()
    assert counted["layer1"] == 65 * 12


def test_evaluation_is_by_the_running_averages(here):
    assert main(["train", *RNGD, "model.batch_norm=after", "hydra.run.dir=run"]) == 0
    weights = torch.load("run/checkpoint.pt", weights_only=True)["model"]
    model = fisherlab.mlp(64, 10, hidden=[12, 11], batch_norm="after")
    model.load_state_dict({name: value.view(value.shape[2:]) for name, value in weights.items()})
    x, y = prepare(OmegaConf.load("run/config.yaml")).rows("train", slice(None))
    losses = [nn.functional.cross_entropy(model.train(mode)(x.flatten(0, -2)), y.flatten()) for mode in (False, True)]
    told = pd.read_csv("run/metrics.csv")["train_loss"].iloc[-1]
    assert losses[0].item() == pytest.approx(told, rel=1e-5)
    assert abs(losses[1].item() - told) > 1e-3


def _train_until(number: int, overrides: list[str], folder: Path) -> None:
    """Train; the process kills itself at some step."""
    step, calls = fisherlab.RNGD.step, itertools.count()

    def last(self, x, y):
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, x, y)

    fisherlab.RNGD.step = last
    train(config(*overrides), folder)


def test_a_killed_run_goes_on_to_the_same_tables(tmp_path):
    overrides = [*RNGD, "model.batch_norm=after", "checkpoint_every=0.001"]
    train(config(*overrides), tmp_path / "whole")
    process = start(_train_until, 33, overrides, tmp_path / "cut")  # between two factorisations
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert 0 < torch.load(tmp_path / "cut" / "checkpoint.pt", weights_only=True)["step"] <= 33
    resume(tmp_path / "cut")
    assert tables(tmp_path / "cut") == tables(tmp_path / "whole")
    kept = [torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)["model"] for name in ("cut", "whole")]
    assert all(torch.equal(kept[0][name], kept[1][name]) for name in kept[1])


def test_list_shows_it(capsys):
    assert main(["list", "optimizer"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("  rngd "))
    assert "Sun and Nielsen 2017" in line


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["optimizer.omega=0"], "omega=0 is out of range: expected a number above 0"),
        (["optimizer.iota=1.5"], "iota=1.5 is out of range: expected a number in [0, 1)"),
        (["optimizer.between=untit"], "structure='untit' is unknown: did you mean 'unit'"),
        (["optimizer.between=kronecker"], "structure=kronecker does not fit kind=relative (layer 'layer2')"),
        (["optimizer.between=layer"], "structure=layer does not fit kind=relative (layer 'layer2')"),
        (["optimizer.activation=rellu"], "activation='rellu' is unknown: did you mean 'relu'"),
        (["optimizer.first=pairs", "optimizer.between=pairs", "model.hidden=[300,300]"], "structure=pairs needs a"),
        (["model.batch_norm=before"], "batch_norm='before' is unknown: expected one of: after, none"),
        (["optimizer.kind=mc"], "optimizer.kind"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(here, args, says, capsys):
    assert main(["train", *RNGD, *args]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1
    assert not list(here.iterdir())
