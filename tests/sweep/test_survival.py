"""A sweep on the command line that is killed, or whose disk is full: started again, it ends as if nothing had been."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from tests.training.conftest import tables

SMALL = ["dataset=digits", "figures=false", "model.hidden=[16]", "threads=1", "batch_size=100", "histogram_steps=[]"]
KFAC = ["optimizer=kfac", "optimizer.inverse_period=5", "lr=0.1"]


def begin(folder: Path, *overrides: str, limit: int | None = None) -> subprocess.Popen:
    """Start a sweep, with the most bytes that it may write to one file."""
    command = [sys.executable, "-m", "fisherlab", "train", "-m", *SMALL, *overrides, f"hydra.sweep.dir={folder}"]

    def restrict() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=folder.parent, env=environment, text=True, start_new_session=True, preexec_fn=restrict, **pipes
    )


def rows(folder: Path) -> int:
    """Steps on disk, of all runs together."""
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("runs/*/steps.csv"))


def outcome(folder: Path) -> tuple[pd.DataFrame, dict[str, dict[str, str]]]:
    """The sweep's table but for the clock, and the tables of all runs."""
    table = pd.read_csv(folder / "sweep.csv").drop(columns="seconds")
    return table, {name: tables(folder / "runs" / name) for name in table["job"]}


@pytest.mark.slow
def test_killed_three_times_a_sweep_ends_as_undisturbed(tmp_path):
    sweep = [*KFAC, "epochs=50", "checkpoint_every=0.2", "evaluate_every=100", "hydra.sweeper.max_replicas=5"]
    sweep += ["damping=1e-4,1e-2,1e0,1e2,1e9", "seed=0,1"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = begin(whole, *sweep)
    assert process.communicate(timeout=200)
    assert process.returncode == 0
    kills = 0
    for share in (0.1, 0.4, 0.7):
        process = begin(killed, *sweep)
        while process.poll() is None and rows(killed) < share * rows(whole):
            time.sleep(0.01)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        process.communicate()
    assert kills == 3, "the sweep was too short to be killed"
    process = begin(killed, *sweep)
    assert process.communicate(timeout=200)
    assert process.returncode == 0
    (table, runs), (expected, expected_runs) = outcome(killed), outcome(whole)
    pd.testing.assert_frame_equal(table, expected)
    assert runs == expected_runs
    assert len(table) == 10


@pytest.mark.slow
@pytest.mark.parametrize("seeds", ["0", "0,1"])  # groups of one, and of two
def test_a_full_disk_costs_no_finished_job(tmp_path, seeds):
    place, jobs = tmp_path / "sweep", 2 * len(seeds.split(","))
    sweep = ["optimizer=sgd", "lr=0.1", "steps=40,2000", f"seed={seeds}", "evaluate_every=1000"]
    process = begin(place, *sweep, limit=60_000)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "start the same command again" in err
    assert "Traceback" not in err
    before, kept = outcome(place)
    finished = before.loc[before["status"] == "finished", "job"]
    assert len(finished) == jobs // 2
    assert not (before["status"] == "failed").any()
    process = begin(place, *sweep)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    after, found = outcome(place)
    assert list(after["status"]) == ["finished"] * jobs
    assert {name: found[name] for name in finished} == {name: kept[name] for name in finished}
    assert all(pd.read_csv(place / "runs" / n / "steps.csv")["step"].is_monotonic_increasing for n in after["job"])
