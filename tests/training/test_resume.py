"""Killed at any moment and resumed gives the same tables as uninterrupted, byte for byte but for the clock."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from fisherlab.errors import UsageError
from fisherlab.training import checkpoint
from fisherlab.training.run import Watch, resume, train
from tests.training.conftest import config, start, tables

OPTIMIZERS = {
    "sgd": ["optimizer=sgd", "lr=0.02"],
    "adam": ["optimizer=adam"],
    "kfac": ["optimizer=kfac", "damping=0.3", "optimizer.stats_period=2", "optimizer.inverse_period=7"],
    "kfac_eigen": ["optimizer=kfac", "optimizer.damping_mode=tikhonov", "optimizer.ema_start=identity", "damping=0.1"],
    "efngd": ["optimizer=efngd", "momentum=0.5"],
}
LONG = ["epochs=60", "batch_size=100", "checkpoint_every=0.05", "checkpoints=[333]", "model.hidden=[16]", "l2=1e-3"]
SCHEDULES = ["lr_schedule.name=linear", "evaluate_every=50", "histogram_steps=[100,400]"]


def _train(overrides: list[str], folder: Path) -> None:
    train(config(*overrides), folder)


def _resume(folder: Path) -> None:
    resume(folder)


def _kill_after(process, folder: Path, rows: int) -> bool:
    """SIGKILL once the run has written so many step rows; False where it ended before."""
    steps = folder / "steps.csv"
    while process.is_alive():
        if steps.exists() and steps.read_bytes().count(b"\n") > rows:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            return True
        time.sleep(0.002)
    return False


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_sigkill_and_resume_give_the_same_tables(tmp_path, name):
    overrides = [*OPTIMIZERS[name], *LONG, *SCHEDULES]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    _train(overrides, whole)
    process = start(_train, overrides, killed)
    kills = 0
    for rows in (1, 200, 500):
        kills += _kill_after(process, killed, rows)
        assert json.loads((killed / "status.json").read_text())["status"] in ("running", "finished")
        process = start(_resume, killed)
    process.join()
    assert kills >= 2, "the run was too short to be killed"
    assert tables(killed) == tables(whole)
    assert sorted(p.name for p in killed.iterdir()) == sorted(p.name for p in whole.iterdir())
    final = [torch.load(f / "checkpoint.pt", weights_only=True)["model"] for f in (whole, killed)]
    assert all(torch.equal(final[0][k], final[1][k]) for k in final[0])


@pytest.mark.parametrize("name", ["kfac_martens", "kfac_tridiag"])
def test_the_recipe_interrupted_and_resumed_gives_the_same_tables(tmp_path, name):
    overrides = [f"optimizer={name}", "optimizer.average_from=7", "steps=45", "evaluate_every=5"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"

    def until(step: int) -> Watch:
        return lambda trainer: setattr(trainer, "signalled", trainer.step >= step)

    _train(overrides, whole)
    train(config(*overrides), cut, watch=until(10))  # gamma is searched at steps 20 and 40: before that,
    resume(cut, watch=until(25))  # and with the winner's inverse
    assert torch.load(cut / "checkpoint.pt", weights_only=True)["step"] == 25
    resume(cut)
    assert tables(cut) == tables(whole)
    final = [torch.load(f / "checkpoint.pt", weights_only=True)["model"] for f in (whole, cut)]
    assert all(torch.equal(final[0][k], final[1][k]) for k in final[0])


def test_a_run_killed_before_its_first_checkpoint_starts_again(tmp_path):
    overrides = ["optimizer=kfac", "checkpoint_every=1000"]
    _train(overrides, tmp_path / "whole")
    _train(overrides, tmp_path / "killed")
    (tmp_path / "killed" / "checkpoint.pt").unlink()
    status = json.loads((tmp_path / "killed" / "status.json").read_text())
    (tmp_path / "killed" / "status.json").write_text(json.dumps(status | {"status": "running"}))
    with (tmp_path / "killed" / "steps.csv").open("a") as file:
        file.write("23,0.5")  # a torn last line
    resume(tmp_path / "killed")
    assert tables(tmp_path / "killed") == tables(tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_a_resumable_run(tmp_path, number):
    overrides = [*OPTIMIZERS["kfac"], *LONG, "checkpoint_every=1000"]
    process = start(_train, overrides, tmp_path / "run")
    while not (tmp_path / "run" / "steps.csv").exists():
        time.sleep(0.005)
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == 0
    assert json.loads((tmp_path / "run" / "status.json").read_text())["status"] == "running"
    step = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"]
    assert 0 < step < 840
    resume(tmp_path / "run")
    _train(overrides, tmp_path / "whole")
    assert tables(tmp_path / "run") == tables(tmp_path / "whole")


def test_a_finished_run_is_left_alone(run, capsys):
    folder = run("optimizer=sgd").directory
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert resume(folder).status == "finished"
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert capsys.readouterr().out.rstrip().endswith(str(folder))


def test_keep_all_keeps_what_a_resume_needs(run):
    weights = torch.load(run("optimizer=kfac", name="a").directory / "checkpoint.pt", weights_only=True)
    everything = torch.load(run("optimizer=kfac", "keep=all", name="b").directory / "checkpoint.pt", weights_only=True)
    assert "optimizer" not in weights
    assert everything["optimizer"]["preconditioner"]["structure"]["a"]


@pytest.fixture
def interrupted(run):
    """A run that claims to have been interrupted."""
    folder = run("optimizer=kfac", "keep=all").directory
    status = json.loads((folder / "status.json").read_text())
    (folder / "status.json").write_text(json.dumps(status | {"status": "running"}))
    return folder


def _no_config(folder: Path) -> None:
    (folder / "config.yaml").unlink()


def _other_config(folder: Path) -> None:
    cfg = OmegaConf.load(folder / "config.yaml")
    cfg.damping = 0.7
    OmegaConf.save(cfg, folder / "config.yaml")


def _invalid_config(folder: Path) -> None:
    cfg = OmegaConf.load(folder / "config.yaml")
    cfg.batch_size = -4
    OmegaConf.save(cfg, folder / "config.yaml")


def _torn_checkpoint(folder: Path) -> None:
    data = (folder / "checkpoint.pt").read_bytes()
    (folder / "checkpoint.pt").write_bytes(data[: len(data) // 2])


def _other_format(folder: Path) -> None:
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    torch.save(state | {"format": 99}, folder / "checkpoint.pt")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_no_config, "is no run directory: expected a folder with config.yaml"),
        (_other_config, "belongs to configuration"),
        (_invalid_config, "does not fit this version: batch_size=-4"),
        (_torn_checkpoint, "is damaged"),
        (_other_format, "has checkpoint format 99: this version reads format 2"),
    ],
)
def test_resume_refuses_what_does_not_fit(interrupted, spoil, says):
    spoil(interrupted)
    before = {p.name: p.read_bytes() for p in interrupted.iterdir()}
    with pytest.raises(UsageError, match=says) as error:
        resume(interrupted)
    assert "\n" not in str(error.value)
    assert {p.name: p.read_bytes() for p in interrupted.iterdir()} == before


def test_resume_of_no_folder(tmp_path):
    with pytest.raises(UsageError, match="is no run directory"):
        resume(tmp_path / "nowhere")


def test_another_commit_is_only_a_warning(interrupted, monkeypatch, capsys):
    monkeypatch.setattr("fisherlab.training.run.commit", lambda: "0123abc")
    assert resume(interrupted).status == "finished"
    assert f"warning: {interrupted} began at commit" in capsys.readouterr().err


def test_two_processes_do_not_train_one_run(tmp_path):
    overrides = [*OPTIMIZERS["sgd"], *LONG, "epochs=3000"]
    process = start(_train, overrides, tmp_path / "run")
    while not (tmp_path / "run" / "checkpoint.pt").exists():
        time.sleep(0.005)
    with pytest.raises(UsageError, match="is being trained by another process"):
        resume(tmp_path / "run")
    process.kill()
    process.join()


def test_the_fingerprint_counts_only_what_changes_numbers():
    cfg = config("optimizer=kfac")
    assert checkpoint.fingerprint(cfg) == checkpoint.fingerprint(config("optimizer=kfac", "debug=true"))
    assert checkpoint.fingerprint(cfg) != checkpoint.fingerprint(config("optimizer=kfac", "seed=1"))


@pytest.mark.parametrize("place", ["keep", "plot"])
def test_a_run_killed_while_it_ends_is_finished(tmp_path, monkeypatch, place):
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"fisherlab.training.ending.{place}", die)
    with pytest.raises(KeyboardInterrupt):
        _train(["optimizer=kfac", "figures=true"], tmp_path / "run")
    monkeypatch.undo()
    assert resume(tmp_path / "run").status == "finished"
    assert (tmp_path / "run" / "curves.png").exists()


def test_a_table_shorter_than_its_checkpoint_is_named(interrupted):
    with (interrupted / "steps.csv").open("r+b") as file:
        file.truncate(100)
    metrics = (interrupted / "metrics.csv").read_bytes()
    with pytest.raises(UsageError, match=r"steps.csv' has 100 bytes, fewer than"):
        resume(interrupted)
    assert (interrupted / "metrics.csv").read_bytes() == metrics


def _empty_checkpoint(folder: Path) -> None:
    (folder / "checkpoint.pt").write_bytes(b"")


def _weights_only(folder: Path) -> None:
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    torch.save({k: v for k, v in state.items() if k != "optimizer"}, folder / "checkpoint.pt")


@pytest.mark.parametrize(("spoil", "says"), [(_empty_checkpoint, "is damaged"), (_weights_only, "holds weights only")])
def test_a_checkpoint_without_content_is_refused(interrupted, spoil, says):
    spoil(interrupted)
    with pytest.raises(UsageError, match=says):
        resume(interrupted)
