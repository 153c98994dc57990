"""`train -m` by the replica sweeper: groups are launched, skipped, resumed and retried, and the exit status tells."""

import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pandas as pd
import pytest
from omegaconf import OmegaConf

from fisherlab.cli import main
from hydra_plugins.fisherlab.replica_sweeper import _workers

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["dataset=toy_gaussian", "figures=false", "steps=3", "threads=1", "model.hidden=[4]"]
SMALL += ["optimizer=sgd", "histogram_steps=[]"]
SWEEP = ["train", "-m", *SMALL, "lr=0.001,0.002", "seed=0,1", "hydra.sweep.dir=sweep"]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Groups:
    """Stands in for what trains a group: remembers the jobs, and ends those with seed 13 badly."""

    def __init__(self) -> None:
        self.trained: list[list[str]] = []
        self.bad = "failed"

    def run_group(self, folder: Path) -> None:
        self.trained.append([])
        for one in json.loads((folder / "group.json").read_text())["jobs"]:
            directory = folder.parents[1] / "runs" / one["name"]
            if (directory / "status.json").exists():
                continue
            self.trained[-1].append(one["name"])
            directory.mkdir(parents=True)
            status = self.bad if one["config"]["seed"] == 13 else "finished"
            if status == "interrupted":
                raise KeyboardInterrupt
            if status == "broken":
                raise MemoryError("no room\nfor it")
            error = {"error": "ValueError: thirteen"} if status == "failed" else {}
            (directory / "status.json").write_text(json.dumps({"status": status, **error}))


@pytest.fixture
def groups(here, monkeypatch) -> Groups:
    groups = Groups()
    module = types.ModuleType("fisherlab.sweep.group")
    module.run_group = groups.run_group  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    outcome = types.ModuleType("fisherlab.sweep.outcome")
    outcome.write_outcome = lambda folder: (folder / "sweep.csv").touch()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, outcome.__name__, outcome)
    return groups


def read(path: Path) -> dict:
    return json.loads(path.read_text())


# --- with everything real ---------------------------------------------------------------------------------------------


def test_a_sweep_is_one_program_and_leaves_each_job_its_directory(here, capsys):
    assert main(SWEEP) == 0
    out, err = capsys.readouterr()
    assert (out.splitlines()[-2:], err) == (["4 jobs: 4 finished", "sweep"], "")
    assert "Launching" not in out
    assert "HYDRA" not in out
    said = read(here / "sweep" / "sweep.json")
    assert said["swept"] == ["lr", "seed"]
    (group,) = {one["group"] for one in said["jobs"]}
    assert read(here / "sweep" / "groups" / group / "group.json")["shape"] == [2, 2]
    for one in said["jobs"]:
        assert read(here / "sweep" / "runs" / one["name"] / "status.json")["status"] == "finished"
    assert list(pd.read_csv(here / "sweep" / "sweep.csv").status) == ["finished"] * 4
    assert {path.name for path in here.iterdir()} == {"sweep"}


def test_a_finished_sweep_trains_nothing_and_more_values_only_the_new(here, capsys):
    assert main(SWEEP) == 0
    runs = {path: path.stat().st_mtime_ns for path in (here / "sweep" / "runs").glob("*/metrics.csv")}
    record = read(here / "sweep" / "sweep.json")["jobs"]
    assert main(SWEEP) == 0
    assert main([word.replace("seed=0,1", "seed=0,1,2") for word in SWEEP]) == 0
    assert capsys.readouterr().out.splitlines()[-2] == "6 jobs: 6 finished"
    assert {path: path.stat().st_mtime_ns for path in runs} == runs
    assert read(here / "sweep" / "sweep.json")["jobs"][:4] == record
    assert len(list((here / "sweep" / "groups").iterdir())) == 2


def test_the_name_of_a_sweep_is_the_hash_of_what_was_asked(here):
    assert main(["train", "-m", *SMALL, "seed=0,1"]) == 0
    assert main(["train", "-m", "seed=0,1", *SMALL, "debug=false"]) == 0
    (folder,) = (here / "results" / "sweeps").iterdir()
    assert len(folder.name) == 10


# --- with stand-ins ---------------------------------------------------------------------------------------------------


def test_shapes_form_groups_of_their_own(groups):
    assert main(["train", "-m", *SMALL[:-2], "optimizer=sgd,adam", "seed=0,1", "hydra.sweep.dir=s"]) == 0
    assert list(map(len, groups.trained)) == [2, 2]
    assert main(["train", "-m", *SMALL, "seed=range(6)", "hydra.sweep.dir=t", "hydra.sweeper.max_replicas=4"]) == 0
    assert list(map(len, groups.trained[2:])) == [3, 3]


def test_a_key_that_only_a_swept_part_has(groups):
    assert main(["train", "-m", *SMALL[:-2], "optimizer=sgd,adam", "optimizer.beta1=0.8", "hydra.sweep.dir=s"]) == 0
    jobs = [one["overrides"][-2:] for one in read(Path("s/sweep.json"))["jobs"]]
    assert jobs == [["model.hidden=[4]", "optimizer=sgd"], ["optimizer=adam", "optimizer.beta1=0.8"]]


@pytest.mark.parametrize(("asked", "workers"), [(None, 1), (1, 1), (3, 3), (-1, 8), (-2, 7), (-99, 1)])
def test_workers_are_counted_as_joblib_does(asked, workers, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    assert _workers(OmegaConf.create({} if asked is None else {"n_jobs": asked})) == workers


def test_a_failed_job_is_told_and_retried_on_request_only(groups, capsys):
    sweep = ["train", "-m", *SMALL, "seed=0,13", "hydra.sweep.dir=s"]
    assert main(sweep) == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[-2:] == ["2 jobs: 1 failed, 1 finished", "s"]
    assert "ValueError: thirteen" in err
    assert "s/runs/" in err
    assert "retry_failed=true" in err
    assert Path("s/sweep.csv").exists()
    assert main(sweep) == 1
    assert len(groups.trained) == 1
    groups.bad = "diverged"
    assert main([*sweep, "hydra.sweeper.retry_failed=true"]) == 0
    assert list(map(len, groups.trained)) == [2, 1]
    assert len({one["group"] for one in read(Path("s/sweep.json"))["jobs"]}) == 2
    assert main([*sweep, "hydra.sweeper.retry_failed=true"]) == 0
    assert len(groups.trained) == 2


def test_a_group_is_finished_before_its_failed_jobs_are_retried(groups):
    sweep = ["train", "-m", *SMALL, "seed=13,0", "hydra.sweep.dir=s"]
    assert main(sweep) == 1
    (left,) = (one["name"] for one in read(Path("s/sweep.json"))["jobs"] if "seed=0" in one["overrides"])
    Path("s/runs", left, "status.json").write_text('{"status": "running"}')
    # The group goes on, but does not end: its failed job stays where it is.
    assert main([*sweep, "hydra.sweeper.retry_failed=true"]) == 1
    assert groups.trained[1:] == [[]]
    assert len(list(Path("s/groups").iterdir())) == 1


def test_an_interrupted_sweep_says_how_to_go_on(groups, capsys):
    groups.bad = "interrupted"
    sweep = ["train", "-m", *SMALL, "seed=0,13,1", "hydra.sweep.dir=s"]
    assert main(sweep) == 130
    out, err = capsys.readouterr()
    assert "2 jobs not ended; start the same command again" in err
    assert out.splitlines()[-1] == "s"
    assert Path("s/sweep.csv").exists()
    (Path("s/runs") / groups.trained[0][1]).rmdir()
    groups.bad = "finished"
    assert main(sweep) == 0
    assert list(map(len, groups.trained)) == [2, 2]


def test_a_group_that_breaks_does_not_stop_the_others(groups, capsys):
    groups.bad = "broken"
    assert main(["train", "-m", *SMALL, "seed=13,0", "hydra.sweep.dir=s", "hydra.sweeper.max_replicas=1"]) == 1
    out, err = capsys.readouterr()
    assert "MemoryError: no room for it" in err
    assert "Traceback" not in err
    assert "2 jobs: 1 finished, 1 waiting" in out


def test_a_sweep_without_an_outcome_is_a_sweep(groups, monkeypatch, capsys):
    def full(folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys.modules["fisherlab.sweep.outcome"], "write_outcome", full)
    assert main(["train", "-m", *SMALL, "seed=0,1"]) == 0
    assert "No space left" in capsys.readouterr().err


def test_the_same_command_with_another_default_is_refused(groups, capsys):
    folder = Path("mine/model")
    folder.mkdir(parents=True)
    (folder / "own.yaml").write_text("_target_: fisherlab.models.mlp\nhidden: [3]\n")
    sweep = ["train", "--config-dir", "mine", "-m", "model=own", "dataset=toy_gaussian", "steps=2", "seed=0,1"]
    assert main(sweep) == 0
    (folder / "own.yaml").write_text("_target_: fisherlab.models.mlp\nhidden: [5]\n")
    assert main(sweep) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "another config (model.hidden=[5], then [3])" in err


def test_a_folder_that_cannot_be_written_is_wrong_usage(groups, capsys):
    Path("file").touch()
    assert main(["train", "-m", *SMALL, "seed=0,1", "results=file"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not groups.trained


# --- other launchers, in processes of their own -----------------------------------------------------------------------


def start(*args: str, cwd: Path) -> subprocess.Popen:
    environment = {k: v for k, v in os.environ.items() if k != "MKL_CBWR"} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "fisherlab.cli", *args]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=cwd, env=environment, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [["joblib", "hydra.launcher.n_jobs=2"], ["submitit_local"]])
def test_workers_run_groups(launcher, here):
    pytest.importorskip(f"hydra_plugins.hydra_{launcher[0].partition('_')[0]}_launcher")
    (here / "mymod.py").write_text(
        "from fisherlab.models import mlp\ndef my(inputs, outputs):\n    return mlp(inputs, outputs, hidden=[3])\n"
    )
    (here / "mine" / "model").mkdir(parents=True)
    (here / "mine" / "model" / "own.yaml").write_text("_target_: mymod.my\n")
    engine = [f"hydra/launcher={launcher[0]}", *launcher[1:], "hydra.sweep.dir=s"]
    sweep = ["--config-dir", "mine", "model=own", "dataset=toy_gaussian", "steps=3", "optimizer=sgd,adam", "seed=0,1"]
    sweep += ["figures=false"]
    process = start("train", "-m", *sweep, *engine, cwd=here)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out.splitlines()[-2:] == ["4 jobs: 4 finished", "s"]
    assert [read(path)["workers"] for path in here.glob("s/groups/*/group.json")] == [2, 2]
    # What must be told to the linear algebra before torch is imported reached the workers.
    told = [read(path) for path in here.glob("s/runs/*/environment.json")]
    assert [one["MKL_CBWR"] for one in told] == ["AUTO,STRICT"] * 4
    assert [one["threads"] for one in told] == [max(1, len(os.sched_getaffinity(0)) // 2)] * 4


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        found += [int(path.parent.name)] if parent == pid else []
    return found


@pytest.mark.slow
def test_a_sweep_survives_the_death_of_a_worker(here):
    engine = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=s"]
    sweep = [*SMALL, "steps=1500", "lr=1e-6", "checkpoint_every=0.1", "evaluate_every=500", "seed=0,1", *engine]
    process = start("train", "-m", *sweep, cwd=here)
    deadline = time.monotonic() + 60
    while len(list(here.glob("s/runs/*/status.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    busy = [pid for pid in children(process.pid) if b"popen_loky" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(busy[0], signal.SIGKILL)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "start the same command again" in err
    assert "Traceback" not in err
    assert out.splitlines()[-1] == "s"
    assert (here / "s" / "sweep.csv").exists()
    process = start("train", "-m", *sweep, cwd=here)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    table = pd.read_csv(here / "s" / "sweep.csv")
    assert list(table.status) == ["finished"] * 2
    assert list(table.step) == [1500] * 2
