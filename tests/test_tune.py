"""`fisherlab tune` on the command line: what it refuses, what it leaves, and that a kill costs nothing."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from fisherlab.cli import main
from tests.training.conftest import start

ROOT = Path(__file__).resolve().parents[1]
TINY = ["tune", "dataset=digits", "model.hidden=[8]", "optimizer=sgd", "steps=3", "threads=1"]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def unplotted(monkeypatch) -> None:
    """Spare the figure, which takes longer than these trials."""
    monkeypatch.setattr("fisherlab.sweep.trials._draw", lambda *_: None)


def tuned(here: Path) -> list[Path]:
    return sorted((here / "results" / "tune").iterdir())


def table(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "trials.csv").drop(columns="seconds")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["+space.lrr={low:0,high:1}"], "space.lrr: the config has no such key; did you mean 'lr'?"),
        (["space.lr.low=2"], "space.lr: low=2, high=1.0: expected low below high"),
        (["space.lr.low=0"], "space.lr.low=0: expected a number above 0, because its logarithm is searched"),
        (["space.momentum.high=1"], "momentum=1: expected a number from 0 to below 1"),
        (["lr_schedule.name=constant"], "end_fraction has no effect with lr_schedule.name=constant: expected linear"),
        (["+space.damping={low:0,high:1}"], "space.damping: the config has no such key; expected one of: "),
        (["+space.batch_size={low:9,high:9999}"], "batch_size=9999 is more than the 1437 training examples"),
        (["optimizer=kfac", "+space.optimizer.inverse_period={low:0,high:5}"], "inverse_period=0"),
        (["space=3"], "space=3: 'space' is a section; expected space.lr.low=1e-3"),
        (["space.lr=3"], "space.lr=3: expected low and high"),
        (["~space.lr", "~space.momentum", "~space.lr_schedule"], "expected at least one number to search"),
        (["tune=3"], "tune=3: 'tune' is a section"),
        (["tune.sampler=rnadom"], "tune.sampler=rnadom: expected tpe or random; did you mean 'random'?"),
        (["tune.at=finl"], "tune.at=finl: expected final or best; did you mean 'final'?"),
        (["tune.objective=tran_loss"], "tune.objective=tran_loss: expected train_loss, train_error, "),
        (["tune.objective=valid_error"], "tune.objective=valid_error: 'digits' has no valid split; did you mean 't"),
        (["tune.objective=objective"], "tune.objective=objective: without l2 it is the training loss"),
        (["tune.objective=average_error"], "tune.objective=average_error: expected an optimizer that averages"),
        (["tune.parallel=0"], "tune.parallel=0: expected a whole number of at least 1"),
        (["tune.seeds=1.5"], "tune.seeds=1.5: expected a whole number"),
        (["tune.storage=nowhere"], "tune.storage=nowhere cannot be opened ("),
        (["tune.storage=sqlite:///no/such.db"], "tune.storage=sqlite:///no/such.db cannot be opened ("),
        (["tune.paralel=3"], "did you mean 'parallel'?"),
        (["trials=0"], "trials=0: expected a whole number of at least 1"),
        (["lr=0.1,0.2"], "lr=0.1,0.2"),
        (["-m", "lr=0.1"], "-m: expected KEY=VALUE"),
        (["keep=nothin"], "keep=nothin: expected weights, all or nothing; did you mean 'nothing'?"),
        (["resume=there"], "resume=there: expected null"),
        (["--config-dir", "nowhere"], "no such folder"),
    ],
)
def test_wrong_usage_is_one_line_and_writes_nothing(args, says, here, capsys):
    assert main([*TINY, *args]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fisherlab: ")
    assert err.count("\n") == 1
    assert says in err
    assert not list(here.iterdir())


def test_an_objective_that_will_be_there_is_taken(here, unplotted):
    splits = "+dataset.splits={train: 1000, valid: 300, test: -1}"
    assert main([*TINY, "trials=1", splits, "tune.objective=valid_error", "tune.at=best"]) == 0
    assert main([*TINY, "trials=1", "l2=0.1", "tune.objective=objective"]) == 0
    assert main([*TINY, "trials=1", "+space.l2={low:0.0,high:0.1}", "tune.objective=objective"]) == 0


def test_what_a_search_leaves(here, capsys):
    assert main([*TINY, "trials=3", "tune.parallel=2"]) == 0
    (folder,) = tuned(here)
    out = capsys.readouterr().out.splitlines()
    assert "2/3 trials, best train_loss " in "\n".join(out)
    assert out[-3] == "3 complete"
    assert out[-2].startswith("3/3 trials, best train_loss ")
    assert out[-1] == str(folder.relative_to(here))
    assert {p.name for p in folder.iterdir() if not p.name.endswith("lock")} == {
        "search.json", "optuna.journal", "sweep.json", "groups", "batches", "runs",
        "trials.csv", "best.yaml", "search.png",
    }  # fmt: skip
    assert {p.name for p in folder.glob("runs/*/*")} == {
        "config.yaml", "environment.json", "metrics.csv", "steps.csv", "status.json",
    }  # fmt: skip
    best = table(folder).sort_values("value").iloc[0]
    assert f"(trial {best['number']}: lr={best['lr']:.4g}, " in out[-2]


def test_the_best_of_a_model_of_ones_own_is_found_in_the_search_s_folder(here, unplotted):
    (here / "ours" / "model").mkdir(parents=True)
    own = "_target_: fisherlab.models.mlp\nhidden: [5]\nactivation: tanh\n"
    (here / "ours" / "model" / "ours.yaml").write_text(own)
    tiny = [key for key in TINY if not key.startswith("model.")]
    assert main([*tiny, "--config-dir", "ours", "model=ours", "trials=2"]) == 0
    (folder,) = tuned(here)
    assert main([*tiny, "--config-dir", str(folder), "model=ours", "trials=2"]) == 0  # onto itself
    shutil.rmtree(here / "ours")
    assert main(["train", "--config-dir", str(folder), "--config-name", "best", "hydra.run.dir=again"]) == 0
    best = table(folder).sort_values("value").iloc[0]
    assert json.loads((here / "again" / "status.json").read_text())["final"]["train_loss"] == best["train_loss"]


def test_the_same_command_goes_on_to_more_trials(here, unplotted, capsys):
    assert main([*TINY, "trials=2", "tune.parallel=2"]) == 0
    (folder,) = tuned(here)
    first = table(folder)
    assert main([*TINY, "++trials=4", "tune.parallel=2"]) == 0
    assert main([*TINY, "trials=4", "tune.parallel=2", "debug=false"]) == 0
    assert tuned(here) == [folder]
    assert len(table(folder)) == 4
    pd.testing.assert_frame_equal(table(folder)[:2], first, check_dtype=False)
    assert main([*TINY, "trials=4", "tune.parallel=2", "seed=1"]) == 0
    assert len(tuned(here)) == 2


def test_a_search_begun_otherwise_is_refused(here, unplotted, capsys):
    assert main([*TINY, "trials=1", "hydra.run.dir=mine"]) == 0
    capsys.readouterr()
    for args, says in (
        ("space.lr.high=2", "space.lr=[0.0001,2,true], then [0.0001,1.0,true]"),
        ("l2=1", "config.l2=1"),
    ):
        assert main([*TINY, "trials=2", "hydra.run.dir=mine", args]) == 2
        err = capsys.readouterr().err
        assert f"the search 'mine' was begun otherwise ({says}" in err
        assert err.count("\n") == 1
    assert len(table(here / "mine")) == 1


def test_in_the_folder_one_stands_in(here, unplotted):
    assert main([*TINY, "trials=1", "hydra.run.dir=."]) == 0
    assert json.loads((here / "search.json").read_text())["name"] == here.name


def test_a_number_that_the_optimizer_does_not_have(here, unplotted, capsys):
    assert main([*TINY, "optimizer=adam", "trials=1"]) == 0
    assert "space.momentum is left out: the optimizer has no momentum\n" in capsys.readouterr().out
    assert "momentum" not in table(tuned(here)[0]).columns
    assert main([*TINY, "optimizer=adam", "trials=1", "space.momentum.high=0.5"]) == 2
    assert "space.momentum: the config has no such key" in capsys.readouterr().err


def test_a_database_instead_of_a_journal(here, unplotted):
    for trials in (2, 3):
        assert main([*TINY, f"trials={trials}", "tune.storage=sqlite:///some.db", "tune.name=mine"]) == 0
    (folder,) = tuned(here)
    assert (here / "some.db").exists()
    assert not (folder / "optuna.journal").exists()
    assert list(table(folder)["state"]) == ["complete"] * 3


def test_where_all_fail_it_exits_with_1_and_a_table(here, unplotted, monkeypatch, capsys):
    def broken(*_, **__):
        raise RuntimeError("boom")

    monkeypatch.setattr("fisherlab.sweep.together.prepare", broken)
    monkeypatch.setattr("fisherlab.sweep.group.train", broken)
    assert main([*TINY, "trials=2"]) == 1
    err = capsys.readouterr().err
    assert (
        err == "fisherlab: RuntimeError: all 2 trials of a batch failed: RuntimeError: boom (debug=true shows where)\n"
    )
    assert list(table(tuned(here)[0])["message"]) == ["RuntimeError: boom"] * 2


def begin(*args: str) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "fisherlab", *args]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=environment, text=True, start_new_session=True, **pipes)


def test_killed_while_it_trains_a_search_ends_as_undisturbed(here, unplotted):
    command = [*TINY[:-2], "threads=1", "steps=800", "evaluate_every=400", "checkpoint_every=0.1", "tune.parallel=3"]
    command += ["trials=5", "hydra.run.dir=killed"]
    process = begin(*command)
    running = here / "killed" / "runs" / "00003" / "steps.csv"  # of the second batch
    while process.poll() is None and not (running.exists() and running.stat().st_size > 5000):
        time.sleep(0.002)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "the search was too short to be killed"
    assert main(command) == 0
    assert main([*command[:-1], "hydra.run.dir=whole"]) == 0
    found = table(here / "killed")
    assert list(found["state"]) == ["complete"] * 5
    assert found["lr"].is_unique
    pd.testing.assert_frame_equal(found, table(here / "whole"))
    assert list(pd.read_csv(running)["step"]) == list(range(1, 801))


def take_part(here: Path, command: list[str], number: int) -> None:
    """One of two processes: both open the storage at once, and hesitate between counting and asking."""
    from fisherlab.sweep import search, storage, trials

    opened, numbered = storage._open, search.Search._new_batch

    def together(*args):
        (here / f"ready{number}").touch()
        end = time.perf_counter() + 30
        while len(list(here.glob("ready*"))) < 2 and time.perf_counter() < end:
            time.sleep(0.0001)
        return opened(*args)

    def slowly(self):
        time.sleep(0.2)
        return numbered(self)

    storage._open, search.Search._new_batch, trials._draw = together, slowly, lambda *_: None
    os.chdir(here)
    os._exit(main(command))


@pytest.mark.parametrize("storage", ["null", "sqlite:///some.db"])
def test_two_at_once_share_one_search(here, unplotted, storage):
    command = [*TINY, "steps=50", "tune.parallel=3", "trials=5", "hydra.run.dir=both", f"tune.storage={storage}"]
    processes = [start(take_part, here, command, number) for number in range(2)]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert main(command) == 0  # nothing is left; who ended last has written the same table
    found = table(here / "both")
    assert list(found["state"]) == ["complete"] * 5
    assert found["lr"].is_unique
    groups = [json.loads(path.read_text()) for path in here.glob("both/groups/*/group.json")]
    trained = [f"runs/{one['name']}" for group in groups for one in group["jobs"]]
    assert sorted(trained) == sorted(found["run"])
    assert all(len(pd.read_csv(path)) == 50 for path in here.glob("both/runs/*/steps.csv"))
