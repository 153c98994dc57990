"""A sweep on the command line that is killed, or whose disk is full: started again, it ends as if nothing had been."""

import os
import resource
import signal
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from fisherlab.cli import main
from tests.training.conftest import start, tables

SMALL = ["dataset=digits", "figures=false", "model.hidden=[16]", "threads=1", "batch_size=100", "histogram_steps=[]"]
KFAC = ["optimizer=kfac", "optimizer.inverse_period=5", "lr=0.1"]


def sweep_in(folder: Path, overrides: list[str], limit: int | None) -> None:
    """Sweep in a process of its own, with the most bytes that it may write to one file; what it says goes beside."""
    os.chdir(folder.parent)
    os.dup2(os.open(errors_of(folder), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.exit(main(["train", "-m", *SMALL, *overrides, f"hydra.sweep.dir={folder}"]))


def begin(folder: Path, *overrides: str, limit: int | None = None):
    """Start a sweep; the arguments are those of `sweep_in`."""
    return start(sweep_in, folder, list(overrides), limit)


def end(process) -> int:
    """The exit status of a sweep, at which it is waited for."""
    process.join(200)
    return process.exitcode


def errors_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.txt")


def rows(folder: Path) -> int:
    """Steps on disk, of all runs together."""
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("runs/*/steps.csv"))


def outcome(folder: Path) -> tuple[pd.DataFrame, dict[str, dict[str, str]]]:
    """The sweep's table but for the clock, and the tables of all runs."""
    table = pd.read_csv(folder / "sweep.csv").drop(columns="seconds")
    return table, {name: tables(folder / "runs" / name) for name in table["job"]}


@pytest.mark.slow
def test_killed_three_times_a_sweep_ends_as_undisturbed(tmp_path):
    sweep = [*KFAC, "epochs=25", "checkpoint_every=0.2", "evaluate_every=100", "hydra.sweeper.max_replicas=5"]
    sweep += ["damping=1e-4,1e-2,1e0,1e2,1e9", "seed=0,1"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert end(begin(whole, *sweep)) == 0
    kills = 0
    for share in (0.1, 0.4, 0.7):
        process = begin(killed, *sweep)
        while process.is_alive() and rows(killed) < share * rows(whole):
            time.sleep(0.01)
        process.kill()
        kills += end(process) == -signal.SIGKILL
    assert kills == 3, "the sweep was too short to be killed"
    assert end(begin(killed, *sweep)) == 0
    (table, runs), (expected, expected_runs) = outcome(killed), outcome(whole)
    pd.testing.assert_frame_equal(table, expected)
    assert runs == expected_runs
    assert len(table) == 10


@pytest.mark.slow
@pytest.mark.parametrize("seeds", ["0", "0,1"])  # groups of one, and of two
def test_a_full_disk_costs_no_finished_job(tmp_path, seeds):
    place, jobs = tmp_path / "sweep", 2 * len(seeds.split(","))
    sweep = ["optimizer=sgd", "lr=0.1", "steps=40,800", f"seed={seeds}", "evaluate_every=400"]
    assert end(begin(place, *sweep, limit=30_000)) == 1
    err = errors_of(place).read_text()
    assert "start the same command again" in err
    assert "Traceback" not in err
    before, kept = outcome(place)
    finished = before.loc[before["status"] == "finished", "job"]
    assert len(finished) == jobs // 2
    assert not (before["status"] == "failed").any()
    assert end(begin(place, *sweep)) == 0, errors_of(place).read_text()
    after, found = outcome(place)
    assert list(after["status"]) == ["finished"] * jobs
    assert {name: found[name] for name in finished} == {name: kept[name] for name in finished}
    assert all(pd.read_csv(place / "runs" / n / "steps.csv")["step"].is_monotonic_increasing for n in after["job"])
