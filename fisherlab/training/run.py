"""One run from its configuration to its directory: begin, resume, end."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fisherlab.errors import UsageError
from fisherlab.files import check_writable, make_folder
from fisherlab.training import checkpoint
from fisherlab.training.environment import commit, environment
from fisherlab.training.recorder import Recorder
from fisherlab.training.setup import Experiment, prepare, resolve
from fisherlab.training.trainer import Stop, Trainer


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
        status: finished, diverged, failed or interrupted.
        directory: The run directory.
        metrics: Values of the last evaluation.
    """

    status: str
    directory: Path
    metrics: dict[str, Any]


def train(cfg: DictConfig, directory: Path | None = None) -> RunResult:
    """Train one run.

    Args:
        cfg: A composed configuration.
        directory: The run directory; `RESULTS/runs/<run id>` when None.

    Returns:
        How it ended. A diverged run is an outcome, not an error.

    Raises:
        UsageError: If the configuration cannot run; nothing is written then.
    """
    began = time.perf_counter()
    cfg = resolve(cfg)
    check_writable(directory or Path(cfg.results) / "runs")
    experiment = prepare(cfg)
    facts = json.dumps(environment(experiment.device), indent=2) + "\n"
    files = {"config.yaml": OmegaConf.to_yaml(cfg), "environment.json": facts}
    folder = make_folder(directory, files) if directory else _make_default(cfg, files)
    return _go(experiment, folder, None, time.perf_counter() - began)


def resume(directory: Path, *, debug: bool = False) -> RunResult:
    """Go on with an interrupted or killed run, to the same tables as if it had not been.

    Args:
        directory: The run directory.
        debug: Whether an error is raised with its traceback.

    Returns:
        How it ended; at once where it had finished or diverged before.

    Raises:
        UsageError: If the folder is no run, is in use, or its checkpoint does not fit.
    """
    began = time.perf_counter()
    folder = Path(directory)
    path = folder / "config.yaml"
    if not path.is_file():
        raise UsageError(f"resume={folder} is no run directory: expected a folder with config.yaml")
    try:
        cfg: Any = OmegaConf.load(path)
        environment_then = json.loads((folder / "environment.json").read_text())
        status = _status(folder)
        from fisherlab.config import validate

        validate(cfg)
        cfg.debug = debug
    except UsageError as error:
        raise UsageError(f"'{path}' does not fit this version: {error}") from error
    except Exception as error:
        raise UsageError(f"resume={folder} is no readable run: {' '.join(str(error).split())}") from error
    if status.get("status") in ("finished", "diverged"):
        if not (folder / "curves.png").exists():
            _plot(folder)
        print(f"already {status['status']}: nothing to resume")
        print(folder)
        return RunResult(status["status"], folder, status.get("final", {}))
    if environment_then.get("commit") != commit():
        print(
            f"fisherlab: warning: the run began at commit {environment_then.get('commit')}, this is {commit()}",
            file=sys.stderr,
        )
    saved = checkpoint.load(folder, cfg)
    return _go(prepare(cfg), folder, saved, time.perf_counter() - began)


def _status(folder: Path) -> dict[str, Any]:
    path = folder / "status.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def _make_default(cfg: DictConfig, files: dict[str, str]) -> Path:
    """RESULTS/runs/<UTC time>-<hash>, made unique where two runs begin in the same second."""
    name = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{checkpoint.fingerprint(cfg)}"
    runs = Path(cfg.results) / "runs"
    for i in range(1, 1000):
        folder = runs / (name if i == 1 else f"{name}-{i}")
        try:
            return make_folder(folder, files)
        except UsageError:
            if not folder.is_dir():
                raise
    raise UsageError(f"'{runs}' holds a thousand runs of this second: expected hydra.run.dir=PATH")


def _go(experiment: Experiment, folder: Path, saved: dict[str, Any] | None, setup: float) -> RunResult:
    """Train from a checkpoint, or from the start, to the end; leave status, checkpoint and plots."""
    cfg = experiment.cfg
    with _locked(folder):
        recorder = Recorder(folder, 9 if cfg.dtype == "float32" else 17)
        trainer = Trainer(experiment, recorder, show_bar=sys.stderr.isatty())
        about: dict[str, Any] = getattr(experiment.optimizer, "describe", dict)()
        if saved is None:
            for table in recorder.tables:
                table.cut(0)
        else:
            trainer.load(saved)
        _announce(experiment, about, trainer.step)
        recorder.status("running", step=trainer.step, optimizer=about)
        status, message, trace = _train(trainer)
        times = {"setup": round(setup, 3)} | {k: round(v, 3) for k, v in trainer.clock.seconds.items()}
        end = {"step": trainer.step, "seconds": times, "optimizer": about}
        if message:
            end["error" if status == "failed" else "message"] = message
        if trace:
            end["traceback"] = trace
        try:
            # The status first: whatever a kill cuts off after it is not needed for a resume.
            recorder.status("running" if status == "interrupted" else status, **end)
            if status != "interrupted":
                _keep(trainer, status)
                _plot(folder)
        except OSError as error:
            # A full disk: what the run has left so far can be resumed when there is room.
            status, message = "failed", "; ".join(filter(None, [message, f"its end was not written: {error.strerror}"]))
    _report(status, message, trainer, times, folder)
    return RunResult(status, folder, dict(recorder.last))


def _train(trainer: Trainer) -> tuple[str, str, str]:
    """Run the loop; every way it can end becomes a status."""
    try:
        trainer.run()
    except Stop as stop:
        return stop.status, str(stop), ""
    except Exception as error:
        if trainer.experiment.cfg.debug:
            raise
        reason = str(error).splitlines()[0] if str(error) else ""
        return "failed", f"{type(error).__name__}: {reason}", traceback.format_exc()
    return "finished", "", ""


def _keep(trainer: Trainer, status: str) -> None:
    """A finished run keeps its weights only, unless asked; a failed one its last checkpoint, to be resumed from."""
    cfg, folder = trainer.experiment.cfg, trainer.recorder.folder
    if status == "failed":
        return
    if status == "diverged":  # its weights are from whenever the divergence was noticed
        (folder / checkpoint.NAME).unlink(missing_ok=True)
    elif cfg.keep == "all":
        trainer.save()
    else:
        weights = {"model": trainer.experiment.model.state_dict(), "step": trainer.step}
        checkpoint.save(folder, cfg, weights)


def _plot(folder: Path) -> None:
    """Draw the run's figures; a figure that cannot be drawn never costs a run."""
    from fisherlab.plots.run import draw_run

    try:
        draw_run(folder)
    except Exception as error:
        print(f"fisherlab: warning: no figures for {folder}: {error}", file=sys.stderr)


def _announce(experiment: Experiment, about: dict[str, Any], step: int) -> None:
    cfg, data = experiment.cfg, experiment.dataset
    sizes = ", ".join(f"{len(split)} {name}" for name, split in data.splits.items())
    count = sum(p.numel() for p in experiment.model.parameters())
    model, optimizer = _short(cfg.model), _short(cfg.optimizer)
    print(f"{data.name} ({sizes}) x {model} ({count} parameters) x {optimizer}, {experiment.steps} steps")
    if "kind" in about:
        plain = ", ".join(about["plain_gradient"]) or "none"
        print(
            f"Fisher: {about['kind']}, {about['structure']}, {about['damping_mode']} damping, {about['scale']}; "
            f"{len(about['preconditioned'])} parameters preconditioned, by the plain gradient: {plain}"
        )
    if step:
        print(f"resumed at step {step}")
    sys.stdout.flush()


def _short(node: DictConfig) -> str:
    return str(node["_target_"]).rpartition(".")[2].lower()


def _report(status: str, message: str, trainer: Trainer, times: dict[str, float], folder: Path) -> None:
    last = trainer.recorder.last
    shown = ", ".join(
        f"{k.replace('_', ' ')} {v:.4g}" for k, v in last.items() if isinstance(v, float) and k != "epoch"
    )
    print(f"{status}: {trainer.step} steps in {times['training']:.1f} s; {shown}")
    if message:
        print(f"fisherlab: {message}", file=sys.stderr)
    if status == "interrupted":
        print(f"go on with: fisherlab train resume={folder}")
    print(folder)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the run directory: two processes must not train one run."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"'{folder}' is being trained by another process") from None
        yield
    finally:
        os.close(handle)
