"""A group killed at any moment goes on to the same tables; one job's error or a full disk stops no other."""

import contextlib
import errno
import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from fisherlab.models import mlp
from fisherlab.optim import SGD
from fisherlab.sweep.claim import claim
from fisherlab.sweep.group import run_group
from fisherlab.training.recorder import Recorder
from fisherlab.training.run import locked, resume, train
from fisherlab.training.setup import draws, prepare, resolve
from tests.sweep.test_group import group, name, runs
from tests.training.conftest import config, start, tables

LONG = ["epochs=40", "batch_size=100", "checkpoint_every=0.05", "evaluate_every=50", "lr_schedule.name=linear"]
KFAC = ["optimizer=kfac", "damping=1e-3", "optimizer.stats_period=2", "optimizer.inverse_period=7"]
# The last diverges at its second step, the one before it at some fifteenth.
GRID = [[*LONG, "epochs=25", *KFAC, f"lr={lr}", f"seed={seed}"] for seed in (0, 1) for lr in (0.01, 0.1, 1e9)]


def _kill_after(process, table: Path, rows: int) -> bool:
    while process.is_alive():
        if table.exists() and table.read_bytes().count(b"\n") > rows:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            return True
        time.sleep(0.002)
    return False


def test_sigkill_and_restart_give_the_same_tables(tmp_path):
    whole, killed = group(tmp_path / "whole", [2, 3], GRID), group(tmp_path / "killed", [2, 3], GRID)
    run_group(whole)
    process, kills = start(run_group, killed), 0
    for rows in (1, 100, 200):
        kills += _kill_after(process, runs(killed) / name(GRID[0]) / "steps.csv", rows)
        process = start(run_group, killed)
    process.join()
    assert kills >= 2, "the group was too short to be killed"
    for overrides in GRID:
        a, b = runs(whole) / name(overrides), runs(killed) / name(overrides)
        assert tables(a) == tables(b)
        assert {p.name for p in a.iterdir()} == {p.name for p in b.iterdir()}
        statuses = [json.loads((d / "status.json").read_text()) for d in (a, b)]
        assert {**statuses[0], "seconds": 0} == {**statuses[1], "seconds": 0}
    ends = [json.loads((runs(killed) / name(one) / "status.json").read_text()) for one in GRID]
    assert [end["status"] for end in ends] == ["finished", "diverged", "diverged"] * 2
    assert all(2 < end["step"] < 100 for end in ends[1::3])  # after the first kill, before the second


@pytest.mark.parametrize("ends", [0, 1, 2])
def test_a_group_killed_among_its_ends_trains_nothing_again(tmp_path, monkeypatch, ends):
    from fisherlab.training import ending

    grid, real, seen = [[f"lr={lr}", "figures=true"] for lr in (0.01, 0.02, 0.03)], ending.keep, []

    def die(*args) -> None:
        seen.append(args)
        if len(seen) > ends:
            raise KeyboardInterrupt
        real(*args)

    place = group(tmp_path, [1, 3], grid)
    monkeypatch.setattr(ending, "keep", die)
    with pytest.raises(KeyboardInterrupt):
        run_group(place)
    monkeypatch.undo()
    before = [tables(runs(place) / name(o)) for o in grid]
    monkeypatch.setattr(torch.Tensor, "addcmul_", None)  # a step would need it
    run_group(place)
    for overrides, kept in zip(grid, before, strict=True):
        assert tables(runs(place) / name(overrides)) == kept
        assert json.loads((runs(place) / name(overrides) / "status.json").read_text())["status"] == "finished"
        assert (runs(place) / name(overrides) / "curves.png").exists()


def test_ctrl_c_keeps_a_checkpoint_and_the_same_call_goes_on(tmp_path):
    grid = GRID[:2]
    whole, broken = group(tmp_path / "whole", [1, 2], grid), group(tmp_path / "broken", [1, 2], grid)
    run_group(whole)
    process = start(run_group, broken)
    steps = runs(broken) / name(grid[0]) / "steps.csv"
    while process.is_alive() and not steps.exists():
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGINT)
    process.join()
    assert process.exitcode != 0
    assert (broken / "checkpoint.pt").exists()
    run_group(broken)
    for overrides in grid:
        assert tables(runs(broken) / name(overrides)) == tables(runs(whole) / name(overrides))


class Fragile(SGD):
    """Raises for the whole group where one of its learning rates is too large."""

    def step(self, x, y):
        lr = torch.as_tensor(self.param_groups[0]["lr"])
        if bool((lr > 0.5).any()):
            raise RuntimeError("a user's mistake")
        return super().step(x, y)


def test_where_one_job_raises_the_others_finish_alone(tmp_path):
    own = "optimizer._target_=tests.sweep.test_group_resume.Fragile"
    grid = [["optimizer=sgd", own, f"lr={lr}"] for lr in (0.01, 0.9, 0.02)]
    place = group(tmp_path, [1, 3], grid)
    run_group(place)
    told = [json.loads((runs(place) / name(o) / "status.json").read_text()) for o in grid]
    assert [t["status"] for t in told] == ["finished", "failed", "finished"]
    assert "a user's mistake" in told[1]["error"]
    assert "in step" in told[1]["traceback"]
    plain = group(tmp_path / "plain", [1, 1], [["optimizer=sgd", "lr=0.01"]])
    run_group(plain)
    assert tables(runs(plain) / "optimizer=sgd_lr=0.01") == tables(runs(place) / name(grid[0]))


@pytest.mark.parametrize("grid", [[["lr=0.01"], ["lr=0.02"], ["lr=1e9"]], [["lr=0.01"]]])
def test_a_full_disk_loses_nothing_and_the_same_call_goes_on(tmp_path, monkeypatch, capsys, grid):
    shape = [1, len(grid)]
    whole, place = group(tmp_path / "whole", shape, grid), group(tmp_path / "full", shape, grid)
    run_group(whole)
    real, calls = Recorder.metric, []

    def full(self, row) -> None:
        calls.append(row)
        if len(calls) > 1 + len(grid):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, row)

    monkeypatch.setattr(Recorder, "metric", full)
    run_group(place)
    assert "No space left on device; start the same command again" in capsys.readouterr().err
    monkeypatch.undo()
    run_group(place)
    for overrides in grid:
        assert tables(runs(place) / name(overrides)) == tables(runs(whole) / name(overrides))


def test_a_group_of_one_is_resumed_as_a_run(tmp_path, capsys):
    place, overrides = group(tmp_path, [1, 1], [LONG]), LONG
    process, directory = start(run_group, place), runs(place) / name(LONG)
    while process.is_alive() and not (directory / "checkpoint.pt").exists():
        time.sleep(0.002)
    assert process.is_alive(), "the run was too short to be interrupted"
    os.kill(process.pid, signal.SIGINT)
    process.join()
    assert resume(directory).status == "finished"
    assert "resumed at step" in capsys.readouterr().out
    run_group(place)
    assert tables(directory) == tables(train(config(*overrides), tmp_path / "alone").directory)


@pytest.mark.parametrize("grid", [[["lr=0.01"]], [["lr=0.01"], ["lr=0.02"]]])
def test_who_has_lost_the_claim_writes_nothing_more(tmp_path, monkeypatch, capsys, grid):
    class Lost:
        def __bool__(self) -> bool:
            written = runs(place) / name(grid[0]) / "steps.csv"
            return not written.exists()

    whole, place = group(tmp_path / "whole", [1, len(grid)], grid), group(tmp_path / "lost", [1, len(grid)], grid)
    run_group(whole)
    monkeypatch.setattr("fisherlab.sweep.group.claim", lambda folder: contextlib.nullcontext(Lost()))
    run_group(place)
    assert "another machine has taken this group over; start the same command again" in capsys.readouterr().err
    first, again = (tables(runs(place) / name(o))["steps.csv"] for o in (grid[0], grid[-1]))
    assert len(first.splitlines()) == len(again.splitlines()) == 4  # up to the histogram at step 3, the first rows
    monkeypatch.undo()
    run_group(place)
    for overrides in grid:
        assert tables(runs(place) / name(overrides)) == tables(runs(whole) / name(overrides))


def test_a_claimed_group_is_left_alone(tmp_path, capsys):
    place = group(tmp_path, [1, 2], [["lr=0.01"], ["lr=0.02"]])
    with claim(place) as mine:
        assert mine
        process = start(run_group, place)
        process.join()
        assert process.exitcode == 0
    assert not runs(place).exists()
    run_group(place)
    assert len(list(runs(place).iterdir())) == 2


def test_a_run_with_another_config_is_refused(tmp_path):
    from fisherlab.errors import UsageError

    grid = [["lr=0.01"], ["lr=0.02"]]
    place = group(tmp_path, [1, 2], grid)
    run_group(place)
    record = json.loads((place / "group.json").read_text())
    record["jobs"][0]["config"]["batch_size"] = 77
    (place / "group.json").write_text(json.dumps(record))
    with pytest.raises(UsageError, match="holds a run with another config"):
        run_group(place)


def test_a_busy_run_makes_its_group_wait(tmp_path, capsys):
    grid = [["lr=0.01"], ["lr=0.02"]]
    place = group(tmp_path, [1, 2], grid)
    run_group(place)
    whole = [tables(runs(place) / name(o)) for o in grid]
    for overrides in grid:
        told = runs(place) / name(overrides) / "status.json"
        told.write_text(json.dumps({"status": "running"}))
    with locked(runs(place) / name(grid[0])):
        run_group(place)
    assert "is being trained by another process: its group waits" in capsys.readouterr().err
    assert not (place / "apart.txt").exists()
    run_group(place)
    assert [tables(runs(place) / name(o)) for o in grid] == whole


def test_a_group_that_falls_apart_keeps_no_weights_of_unended_runs(tmp_path):
    own = "optimizer._target_=tests.sweep.test_group_resume.Fragile"
    grid = [["optimizer=sgd", own, f"lr={lr}"] for lr in (0.01, 0.9)]
    place = group(tmp_path, [1, 2], grid)
    run_group(place)
    first = runs(place) / name(grid[0])
    whole = tables(first)
    # As a kill between weights and status leaves it, in a group that then raises.
    (first / "status.json").write_text(json.dumps({"status": "running"}))
    (place / "apart.txt").unlink()
    run_group(place)
    assert json.loads((first / "status.json").read_text())["status"] == "finished"
    assert tables(first) == whole


class Noisy(torch.nn.Sequential):
    """Dropout before an mlp: its masks come from torch's global generator."""

    def __init__(self, inputs, outputs, generator) -> None:
        super().__init__(torch.nn.Dropout(0.2), mlp(inputs, outputs, hidden=(8,), generator=generator))


def test_a_model_that_draws_is_reproducible_and_never_grouped(tmp_path):
    node, found = {"_target_": "tests.sweep.test_group_resume.Noisy"}, []
    for i in range(2):
        cfg = config("optimizer=sgd", "lr=0.05")
        cfg.model = node
        assert draws(prepare(resolve(cfg)))
        torch.rand(i + 1)  # whatever was drawn before
        train(cfg, tmp_path / str(i))
        found.append(tables(tmp_path / str(i)))
    assert found[0] == found[1]
    assert not draws(prepare(resolve(config("optimizer=sgd"))))
