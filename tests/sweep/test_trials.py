"""What a search leaves: the table of its trials, what matters, the best one as a config, and the figure."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pandas as pd
import pytest
from omegaconf import OmegaConf
from optuna.samplers import RandomSampler
from optuna.trial import TrialState

from fisherlab.cli import main
from fisherlab.sweep.space import Dimension
from fisherlab.sweep.trials import trials_table, write_trials
from tests.sweep.searches import search
from tests.training.conftest import start

CHOICES = {"dataset": "digits", "model": "mlp", "optimizer": "sgd"}


def told(found, values) -> None:
    """Trials that ended so, without any training."""
    found.study.sampler = RandomSampler(len(found.trials))  # a seed, or the draws would be others each time
    for value in values:
        trial = found.study.ask()
        lr, *_ = [dimension.suggest(trial) for dimension in found.space]
        if value is None:
            found.study.tell(trial, state=TrialState.PRUNED)
        else:
            found.study.tell(trial, value + abs(math.log(lr)))


def test_one_row_per_trial(tmp_path):
    found = search(tmp_path, space=[Dimension("lr", 1e-3, 1e7, log=True)], parallel=6)
    found.run(6)
    trial = found.study.ask()
    table = write_trials(found, CHOICES)
    written = pd.read_csv(tmp_path / "trials.csv")
    assert list(written.columns) == list(table.columns)
    facts = ["number", "state", "value", "lr", "status", "step", "seconds", "message"]
    metrics = ["train_loss", "train_error", "test_loss", "test_error"]
    assert list(table.columns) == [*facts, *metrics, "run"]
    assert list(table["number"]) == list(range(7))
    assert set(table["state"]) == {"complete", "pruned", "running"}
    complete = table[table["state"] == "complete"]
    assert (complete["value"] == complete["train_loss"]).all()
    assert set(complete["status"]) == {"finished"}
    assert set(complete["step"]) == {3}
    assert (complete["seconds"] >= 0).all()
    assert complete["message"].isna().all()
    pruned = table[table["state"] == "pruned"]
    assert pruned["value"].isna().all()
    assert pruned["message"].str.startswith("diverged at step").all()
    assert all((tmp_path / run / "status.json").exists() for run in table["run"][:6])
    assert table["state"][trial.number] == "running"


def test_the_runs_of_several_seeds_are_joined(tmp_path):
    found = search(tmp_path, seeds=2)
    told(found, [1.0])
    assert list(trials_table(found)["run"]) == ["runs/00000-0 runs/00000-1"]


def test_without_trials_there_is_an_empty_table_and_nothing_else(tmp_path):
    found = search(tmp_path)
    assert write_trials(found, CHOICES).empty
    told(found, [None])
    assert len(write_trials(found, CHOICES)) == 1
    assert not {p.name for p in tmp_path.iterdir()} & {"best.yaml", "importances.csv", "search.png"}


def test_importances_where_there_are_enough_trials_and_numbers(tmp_path):
    found = search(tmp_path / "a")
    told(found, [1.0] * 9 + [None])
    write_trials(found, CHOICES)
    assert not (tmp_path / "a" / "importances.csv").exists()
    told(found, [1.0] * 11)
    write_trials(found, CHOICES)
    table = pd.read_csv(tmp_path / "a" / "importances.csv")
    assert set(table["key"]) == {"lr", "momentum"}
    assert table["importance"].sum() == pytest.approx(1)
    assert table["key"][0] == "lr"  # the values depend on nothing else
    assert (tmp_path / "a" / "search.png").stat().st_size > 1000
    alone = search(tmp_path / "b", space=[Dimension("lr", 1e-3, 1.0)])
    told(alone, [1.0] * 12)
    write_trials(alone, CHOICES)
    assert not (tmp_path / "b" / "importances.csv").exists()


@pytest.mark.parametrize("seeds", [1, 2])
def test_the_best_trial_can_be_run_again_to_the_same_losses(tmp_path, monkeypatch, seeds):
    monkeypatch.chdir(tmp_path)
    splits = "+dataset.splits={train: 1000, valid: 300, test: -1}"
    found = search(tmp_path / "search", splits, "steps=12", "resume=null", objective="valid_loss", seeds=seeds)
    found.run(4)
    write_trials(found, CHOICES)
    text = (tmp_path / "search" / "best.yaml").read_text()
    head, command = text.splitlines()[:2]
    assert head.startswith(f"# The best of 4 trials: number {found.best.number}, valid_loss {found.best.value:.6g}.")
    assert command == f"# fisherlab train --config-dir {tmp_path / 'search'} --config-name best"
    assert main([*command.split()[2:], "hydra.run.dir=again", "checkpoints=[3]"]) == 0
    then = pd.read_csv(tmp_path / "search" / "runs" / found.runs(found.best)[0] / "steps.csv")
    now = pd.read_csv(tmp_path / "again" / "steps.csv")
    assert len(now) == 12
    assert list(now["loss"]) == list(then["loss"])
    assert now["grad_norm"].notna().all()
    assert {p.name for p in (tmp_path / "again").iterdir()} >= {"checkpoint.pt", "weights-3.pt", "curves.png"}


def test_the_best_is_the_least_and_settles_what_was_left_open(tmp_path):
    found = search(tmp_path, "threads=null", parallel=3)
    found.run(3)
    write_trials(found, CHOICES)
    best, run = OmegaConf.load(tmp_path / "best.yaml"), tmp_path / "runs" / found.runs(found.best)[0]
    least = min(found.trials, key=lambda t: t.value)
    assert {"lr": best.lr, "momentum": best.momentum} == least.params
    assert isinstance(best.threads, int)
    assert (best.threads, best.device) == tuple(OmegaConf.load(run / "config.yaml")[k] for k in ("threads", "device"))


def write(folder: Path) -> None:
    from fisherlab.sweep import trials

    trials._draw = lambda *_: None
    found = search(folder)
    for _ in range(25):
        write_trials(found, CHOICES)
    os._exit(0)


def test_processes_that_share_a_search_write_in_turn(tmp_path):
    told(search(tmp_path), [1.0, 2.0])
    processes = [start(write, tmp_path) for _ in range(2)]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(pd.read_csv(tmp_path / "trials.csv")) == 2


def test_a_figure_that_cannot_be_drawn_costs_no_search(tmp_path, capsys):
    found = search(tmp_path)
    told(found, [1.0])
    (tmp_path / "search.png").mkdir()
    assert len(write_trials(found, CHOICES)) == 1
    assert capsys.readouterr().err.count("\n") == 1
