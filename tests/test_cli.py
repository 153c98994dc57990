"""The command line: what it prints, what it calls, what it exits with; and that a mistake leaves nothing behind."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from fisherlab.cli import COMMANDS, main
from fisherlab.commands.completion import query
from fisherlab.sweep.plan import Trial
from fisherlab.training.setup import resolve

ROOT = Path(__file__).resolve().parents[1]


def shell(*args: str, cwd: Path, **env: str) -> subprocess.CompletedProcess:
    """Run the command line in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    command = [sys.executable, "-m", "fisherlab.cli", *args]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Runs:
    """Stands in for fisherlab.training.run and group, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.trained: list[tuple] = []
        self.resumed: list[Path] = []
        self.outcome = "finished"

    def train(self, cfg, directory):
        self.trained.append((cfg, directory))
        if cfg.seed == 13:
            raise RuntimeError("thirteen\nis many lines")
        return types.SimpleNamespace(status=self.outcome, directory=directory)

    def run_group(self, folder):
        for one in json.loads((folder / "group.json").read_text())["jobs"]:
            directory = folder.parents[1] / "runs" / one["name"]
            directory.mkdir(parents=True)
            try:
                status, error = self.train(OmegaConf.create(one["config"]), directory).status, ""
            except RuntimeError as raised:
                status, error = "failed", f"RuntimeError: {raised}"
            if status == "interrupted":
                raise KeyboardInterrupt
            (directory / "status.json").write_text(json.dumps({"status": status, "error": error}))

    def resume(self, directory, *, debug):
        self.resumed.append(directory)
        return types.SimpleNamespace(status=self.outcome, directory=directory)


@pytest.fixture
def runs(monkeypatch) -> Runs:
    runs = Runs()
    module = types.ModuleType("fisherlab.training.run")
    module.train, module.resume = runs.train, runs.resume  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fisherlab.training.run", module)
    for name, function in (("sweep.group", runs.run_group), ("sweep.outcome", lambda folder: None)):
        module = types.ModuleType(f"fisherlab.{name}")
        module.run_group = module.write_outcome = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, f"fisherlab.{name}", module)
    monkeypatch.setattr("fisherlab.sweep.plan.attempt", lambda alike: Trial(tuple(alike), steps=1, capacity=64))
    return runs


# --- words that compute nothing, and wrong ones -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["--help"],
        ["train", "--help"],
        ["tune", "--help"],
        ["list"],
        ["train", "lr=0"],
        ["train", "-m", "lr=0,1"],
        ["--version"],
    ],
)
def test_what_computes_nothing_imports_no_torch(args, here):
    code = f"import sys; from fisherlab.cli import main; main({args}); sys.exit('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=here, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60, check=False
    )
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["trian"], "did you mean 'train'?"),
        (["list", "optimizr"], "did you mean 'optimizer'?"),
        (["study", "sun2017", "scale=papr", "--help"], "did you mean 'paper'?"),
        (["study", "sun2071", "--help"], "did you mean 'sun2017'?"),
        (["list", "--config-dir"], "expected a folder"),
        (["list", "--config-dir", "nowhere"], "no such folder"),
        (["train", "--mulitrun"], "did you mean '--multirun'?"),
        (["train", "--cfg", "jobs"], "invalid choice: 'jobs'"),
        (["train", "--config-dir", "nowhere"], "no such folder"),
        (["train", "--config-name", "trian"], "did you mean 'train'?"),
        (["train", "--cfg", "job", "optimiser=3"], "did you mean 'optimizer'?"),
        (["train", "-m", "damping=1e0,-1"], "damping=-1"),
        (["train", "-m", "optimizer=glob(z*)"], "a sweep over no values"),
        (["train", "-m", "damping="], "damping=: expected a number"),
        (["train", "-m", "lr=interval(0,1)"], "expected values with commas"),
        (["train", "-m", "optimiser=sgd,kfac"], "did you mean 'optimizer'?"),
        (["train", "-m", "optimizer=sgd", "damping=1,2"], "damping is not used by optimizer 'sgd'"),
        (["train", "-m", "optimizer=kfca", "seed=0,1"], "did you mean 'kfac'?"),
        (["train", "-m", "~seeds", "lr=1,2"], "did you mean 'seed'?"),
        (["train", "-m", "seed=0,1", "hydra.sweeper.max_replicas=0"], "at least 1"),
        (["train", "-m", "seed=0,1", "hydra.sweeper.max_replicas=many"], "many"),
        (["train", "-m", "seed=0,1", "hydra.sweep.dri=x"], "did you mean 'dir'?"),
        (["train", "-m", "hydra.launcher.n_jobs=1,2"], "expected one value"),
        (["train", "resume=there", "lr=1"], "resume=there lr=1"),
        (["train", "resume=there", "resume=here"], "resume=there resume=here"),
        (["train", "-m", "resume=there"], "resume=there"),
        (["data", "mnits"], "did you mean 'mnist'?"),
        (["doctor", "who"], "who"),
        (["-sc"], "install=SHELL"),
        (["-sc", "install=bsh"], "did you mean 'bash'?"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(args, says, here, runs, capsys):
    assert main(args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fisherlab: ")
    assert err.count("\n") == 1
    assert says in err
    assert not runs.trained
    assert not list(here.iterdir())


@pytest.mark.parametrize("line", ["damping=-1", "optimiser=kfac", "-m seed=0,a"])
def test_wrong_usage_in_a_process_of_its_own(line, here):
    done = shell("train", *line.split(), cwd=here)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert not list(here.iterdir())


# --- train ------------------------------------------------------------------------------------------------------------


def test_train_composes_checks_and_runs(here, runs):
    assert main(["train", "optimizer=sgd", "lr=0.5"]) == 0
    ((cfg, directory),) = runs.trained
    assert (cfg.lr, cfg.optimizer.lr, directory, "hydra" in cfg) == (0.5, 0.5, None, False)
    assert main(["train", "hydra.run.dir=some/where"]) == 0
    assert runs.trained[1][1] == Path("some/where")
    assert not list(here.iterdir())


@pytest.mark.parametrize(("outcome", "status"), [("finished", 0), ("diverged", 0), ("failed", 1), ("interrupted", 130)])
def test_exit_status_tells_the_outcome(outcome, status, here, runs):
    runs.outcome = outcome
    assert main(["train"]) == status
    assert main(["train", "resume=there"]) == status


def test_resume_stands_alone(here, runs):
    assert main(["train", "resume=results/runs/some run", "debug=true"]) == 0
    assert main(["train", "resume='quoted'"]) == 0
    assert main(["train", "resume=null"]) == 0
    assert runs.resumed == [Path("results/runs/some run"), Path("quoted")]
    assert len(runs.trained) == 1


def test_a_traceback_only_with_debug(here, runs, capsys):
    assert main(["train", "seed=13"]) == 1
    assert capsys.readouterr().err == "fisherlab: RuntimeError: thirteen is many lines (debug=true shows where)\n"
    assert main(["train", "seed=13", "debug=true"]) == 1
    assert "Traceback" in capsys.readouterr().err
    assert main(["train", "lr=0", "debug=true"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c(here, runs, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["fisherlab.training.run"], "train", interrupt)
    assert main(["train"]) == 130


def test_the_linear_algebra_is_told_before_torch_is_imported(here, monkeypatch):
    monkeypatch.delenv("MKL_CBWR", raising=False)
    assert "ok    MKL_CBWR                AUTO,STRICT" in shell("doctor", cwd=here).stdout
    assert "warn  MKL_CBWR                COMPATIBLE" in shell("doctor", cwd=here, MKL_CBWR="COMPATIBLE").stdout


def test_a_closed_pipe_is_no_error(here):
    command = f"{sys.executable} -m fisherlab.cli list | head -1; exit ${{PIPESTATUS[0]}}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    done = subprocess.run(
        ["bash", "-c", command], cwd=here, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


# --- sweeps and what else Hydra does ----------------------------------------------------------------------------------


def test_a_sweep_runs_each_job_in_a_folder_of_its_own(here, runs):
    assert main(["train", "optimizer=sgd", "-m", "lr=0.1,0.2", "seed=0,1"]) == 0
    assert sorted((cfg.lr, cfg.seed) for cfg, _ in runs.trained) == [(0.1, 0), (0.1, 1), (0.2, 0), (0.2, 1)]
    folders = {directory for _, directory in runs.trained}
    assert len(folders) == 4
    assert len({folder.parents[1] for folder in folders}) == 1
    assert all(folder.parents[2] == here / "results" / "sweeps" for folder in folders)
    # The same sweep, written otherwise, finds the same folders; another one does not.
    assert main(["train", "-m", "seed=0,1", "lr=0.1,0.2", "optimizer=sgd", "debug=false"]) == 0
    assert len(runs.trained) == 4
    main(["train", "-m", "seed=0,1", "lr=0.1,0.3", "optimizer=sgd", "results=other"])
    assert len(runs.trained) == 8
    assert runs.trained[-1][1].is_relative_to(here / "other" / "sweeps")


BASIC = "hydra/sweeper=basic"  # Hydra's own, one job after another


def test_hydras_own_sweeper_runs_job_by_job(here, runs):
    assert main(["train", "optimizer=sgd", "-m", BASIC, "lr=0.1,0.2", "seed=0,1"]) == 0
    assert [(cfg.lr, cfg.seed) for cfg, _ in runs.trained] == [(0.1, 0), (0.1, 1), (0.2, 0), (0.2, 1)]
    assert {directory.parents[2] for _, directory in runs.trained} == {here / "results" / "sweeps"}


def test_the_same_sweep_goes_on_where_it_was(here, runs, monkeypatch, capsys):
    sweep = ["train", "-m", BASIC, "dataset=digits", "seed=0,1"]
    assert main(sweep) == 0
    for cfg, directory in runs.trained:
        OmegaConf.save(resolve(cfg), directory / "config.yaml")
    assert main([*sweep, "debug=true"]) == 0
    assert runs.resumed == [directory for _, directory in runs.trained]
    assert len(runs.trained) == 2
    OmegaConf.save({"lr": 3, "threads": 1, "device": "cpu"}, runs.resumed[0] / "config.yaml")
    assert main(sweep) == 1
    assert "the folder holds a run with another config" in capsys.readouterr().err


def test_a_sweep_goes_on_with_another_number_of_cores(here, runs, monkeypatch):
    sweep = ["train", "-m", BASIC, "dataset=digits", "seed=0,1"]
    assert main(sweep) == 0
    for cfg, directory in runs.trained:
        OmegaConf.save(resolve(cfg), directory / "config.yaml")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(99)))
    assert main(sweep) == 0
    assert len(runs.resumed) == 2


def test_a_sweep_that_cannot_run_is_refused_as_a_whole(here, capsys):
    assert main(["train", "-m", "dataset=digits", "optimizer=sgd", "batch_size=100,100000"]) == 2
    out = capsys.readouterr()
    assert out.out == ""
    assert len(out.err.splitlines()) == 1
    assert "batch_size=100000 is more than the 1437 training examples" in out.err
    assert not list(here.iterdir())


@pytest.mark.parametrize("what", ["model", "optimizer", "dataset"])
def test_a_target_that_cannot_be_imported_is_one_line(what, here):
    done = subprocess.run(
        [sys.executable, "-m", "fisherlab", "train", "dataset=toy_gaussian", f"{what}._target_=mymod.my"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert f"{what}._target_='mymod.my' cannot be imported" in done.stderr
    assert "No module named 'mymod'" in done.stderr
    assert not list(here.iterdir())


def test_a_users_own_class_beside_the_user_is_found(here, capsys):
    (here / "mymod.py").write_text(
        "from torch import nn\ndef my(inputs, outputs):\n    return nn.Sequential(nn.Linear(inputs, outputs))\n"
    )
    (here / "mine" / "model").mkdir(parents=True)
    (here / "mine" / "model" / "own.yaml").write_text("_target_: mymod.my\n")
    args = ["train", "--config-dir", "mine", "model=own", "dataset=digits", "steps=2", "threads=1"]
    assert main(args) == 0
    assert "x my (650 parameters) x kfac" in capsys.readouterr().out


@pytest.mark.parametrize("sweeper", ["replica", "basic"])
def test_a_failing_job_does_not_stop_the_others(sweeper, here, runs, capsys):
    assert main(["train", "-m", f"hydra/sweeper={sweeper}", "seed=13,0"]) == 1
    assert [cfg.seed for cfg, _ in runs.trained] == [13, 0]
    err = capsys.readouterr().err
    assert "RuntimeError: thirteen" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("sweeper", ["replica", "basic"])
def test_an_interrupted_job_ends_the_sweep(sweeper, here, runs):
    runs.outcome = "interrupted"
    assert main(["train", "-m", f"hydra/sweeper={sweeper}", "seed=0,1"]) == 130
    assert len(runs.trained) == 1


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--cfg", "job", "optimizer=sgd"], "_target_: fisherlab.optim.SGD"),
        (["--cfg", "job", "--resolve", "-p", "optimizer", "lr=0.75"], "lr: 0.75"),
        (["--cfg", "hydra"], "searchpath:"),
        (["--info", "defaults"], "optimizer/kfac"),
        (["--hydra-help"], "Hydra"),
    ],
)
def test_hydra_shows_its_configs(args, says, here, runs, capsys):
    assert main(["train", *args]) == 0
    assert says in capsys.readouterr().out
    assert not runs.trained
    assert not list(here.iterdir())


def test_users_own_configs_reach_runs_sweeps_and_lists(here, runs, capsys):
    folder = here / "mine"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "tiny.yaml").write_text("# A tiny net.\n_target_: torch.nn.Linear\n")
    (folder / "start.yaml").write_text("defaults: [train, _self_]\nseed: 7\n")
    user = ["--config-dir", "mine", "--config-name", "start"]
    assert main(["train", *user, "model=tiny"]) == 0
    assert main(["train", "model=tiny", "-m", "lr=1,2", *user]) == 0
    assert [(cfg.seed, cfg.model._target_) for cfg, _ in runs.trained] == [(7, "torch.nn.Linear")] * 3
    capsys.readouterr()
    assert main(["list", "model", "--config-dir", "mine"]) == 0
    assert "  tiny                A tiny net.\n" in capsys.readouterr().out


# --- list, doctor, completion -----------------------------------------------------------------------------------------


def test_list_has_a_line_for_everything(capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for kind in ("dataset", "model", "optimizer"):
        names = [path.stem for path in (ROOT / "conf" / kind).glob("*.yaml")]
        assert names
        assert all(f"\n  {name:<16}" in out for name in names)
    assert main(["list", "optimizer"]) == 0
    assert capsys.readouterr().out.startswith("optimizer\n  adam ")


def test_doctor_says_what_is_wrong(here, monkeypatch, capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert {line.split()[0] for line in out.splitlines()} <= {"ok", "warn"}
    assert "data mnist" in out
    (here / "results").write_text("a file in its place")
    assert main(["doctor"]) == 1
    assert "FAIL  results" in capsys.readouterr().out
    assert [path.name for path in here.iterdir()] == ["results"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("fisherlab ", list(COMMANDS)),
        ("fisherlab tr", ["train"]),
        ("fisherlab train optimizer=s", ["optimizer=sgd"]),
        ("fisherlab train lr_schedule.n", ["lr_schedule.name="]),
        ("fisherlab train optimizer=sgd mom", ["momentum="]),
        ("fisherlab train optimizer=sgd dampi", []),
        ("fisherlab train optimizer=kfac dampi", ["damping="]),
        ("fisherlab train -m dataset=boston,mnist model=mlp opti", ["optimizer.", "optimizer="]),
        ("fisherlab train --mul", ["--multirun"]),
        ("fisherlab train lr=[ ", []),
        ("fisherlab data mn", ["mnist"]),
        ("fisherlab list opt", ["optimizer"]),
        ("fisherlab doctor ", []),
    ],
)
def test_completion(line, expected, monkeypatch, capsys):
    monkeypatch.setenv("COMP_LINE", line)
    assert main(["-sc", "query=bash"]) == 0
    out, err = capsys.readouterr()
    assert (out.split(), err) == (expected, "")


def test_completion_sees_users_own_configs(here):
    (here / "mine" / "model").mkdir(parents=True)
    (here / "mine" / "model" / "tiny.yaml").write_text("_target_: torch.nn.Linear\n")
    assert query("fisherlab train --config-dir mine model=t") == ["model=tiny"]


@pytest.mark.parametrize("install", ["-sc install=bash", "train -sc install=bash"])
def test_the_bash_script_completes(install, here):
    program = here / "fisherlab"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m fisherlab.cli "$@"\n')
    program.chmod(0o755)
    script = f"""
        eval "$(fisherlab {install})"
        complete -p fisherlab
        COMP_LINE="fisherlab train optimizer=s" COMP_POINT=27 COMP_CWORD=2
        hydra_bash_completion; echo "${{COMPREPLY[@]}}"
        COMP_LINE="fisherlab do" COMP_POINT=12 COMP_CWORD=1
        hydra_bash_completion; echo "${{COMPREPLY[@]}}"
    """
    environment = {**os.environ, "PATH": f"{here}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", script], cwd=here, env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    rule, *answers = done.stdout.splitlines()
    assert "hydra_bash_completion fisherlab" in rule
    assert answers == ["optimizer=sgd", "doctor"]
