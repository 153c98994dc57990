"""One run from its configuration to its directory: begin, resume, end."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from fisherlab.errors import BusyError, UsageError
from fisherlab.files import check_writable, make_folder
from fisherlab.streams import key
from fisherlab.training import checkpoint
from fisherlab.training.ending import ENDED, close, plot, write_status
from fisherlab.training.environment import commit, environment
from fisherlab.training.recorder import Recorder
from fisherlab.training.setup import Experiment, prepare, resolve
from fisherlab.training.trainer import Trainer


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


Watch = Callable[[Trainer], None]


def train(cfg: DictConfig, directory: Path | None = None, *, watch: Watch | None = None) -> RunResult:
    """Train one run.

    Args:
        cfg: A composed configuration.
        directory: The run directory; `RESULTS/runs/<run id>` when None.
        watch: A sweep's look at the run, before rows are written, in place of a bar. An OSError, which it may raise
            too, then ends the run as it is, to be resumed: the sweep tells.

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
    return _go(experiment, folder, None, time.perf_counter() - began, watch)


def resume(directory: Path, *, debug: bool = False, watch: Watch | None = None) -> RunResult:
    """Go on with an interrupted or killed run, to the same tables as if it had not been.

    Args:
        directory: The run directory.
        debug: Whether an error is raised with its traceback.
        watch: As `train`.

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
        status = status_of(folder)
        from fisherlab.config import validate

        validate(cfg)
        cfg.debug = debug
    except UsageError as error:
        raise UsageError(f"'{path}' does not fit this version: {error}") from error
    except Exception as error:
        raise UsageError(f"resume={folder} is no readable run: {' '.join(str(error).split())}") from error
    if status.get("status") in ENDED:
        if cfg.figures and not (folder / "curves.png").exists():
            plot(folder)
        print(f"already {status['status']}: nothing to resume")
        print(folder)
        return RunResult(status["status"], folder, status.get("final", {}))
    if environment_then.get("commit") != commit():
        print(
            f"fisherlab: warning: {folder} began at commit {environment_then.get('commit')}, this is {commit()}",
            file=sys.stderr,
        )
    saved = checkpoint.load(folder, checkpoint.fingerprint(cfg))
    return _go(prepare(cfg), folder, saved, time.perf_counter() - began, watch)


def status_of(folder: Path) -> dict[str, Any]:
    """Read `status.json`.

    Args:
        folder: The run directory.

    Returns:
        What it holds; nothing where it does not exist yet.
    """
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


def _go(
    experiment: Experiment, folder: Path, saved: dict[str, Any] | None, setup: float, watch: Watch | None
) -> RunResult:
    """Train from a checkpoint, or from the start, to the end; leave status, checkpoint and plots."""
    with locked(folder):
        unwritten: list[str] = []
        trainer = Trainer(
            experiment,
            [recorder(experiment.cfg, folder)],
            folder,
            on_end=lambda trainer, lane: unwritten.append(close(trainer, lane, setup)),
            on_flush=watch or (lambda _: None),
            show_bar=watch is None and sys.stderr.isatty(),
        )
        begin(trainer, saved, setup)
        announce(experiment, trainer.step)
        lane = trainer.lanes[0]
        try:
            trainer.run()
        except Exception as error:
            if experiment.cfg.debug or (watch is not None and isinstance(error, OSError)):
                raise
            reason = str(error).splitlines()[0] if str(error) else ""
            lane.end("failed", trainer.step, f"{type(error).__name__}: {reason}")
            unwritten.append(close(trainer, lane, setup, traceback.format_exc()))
        if trainer.interrupted:
            lane.message = f"interrupted at step {trainer.step}"
            unwritten.append(close(trainer, lane, setup))
    status = "failed" if any(unwritten) else "interrupted" if trainer.interrupted else lane.status
    _report(status, "; ".join(filter(None, [lane.message, *unwritten])), trainer)
    return RunResult(status, folder, dict(lane.recorder.last))


def recorder(cfg: DictConfig, folder: Path) -> Recorder:
    """Make a run's tables, with as many digits as its floats have.

    Args:
        cfg: The run's configuration.
        folder: The run directory.

    Returns:
        The tables.
    """
    return Recorder(folder, 9 if cfg.dtype == "float32" else 17)


def begin(trainer: Trainer, saved: dict[str, Any] | None, setup: float) -> None:
    """Bring runs to where they stand, and say in their directories that they are running.

    Args:
        trainer: What is going to train them.
        saved: Their checkpoint, if there is one.
        setup: Seconds before the training.
    """
    if saved is not None:
        trainer.load(saved)
    else:
        # A user's model may draw from the global generator (dropout).
        torch.manual_seed(key(trainer.experiment.cfg.seed, "model"))
        for table in (table for lane in trainer.live for table in lane.recorder.tables):
            table.cut(0)
        trainer.freeze_ended()
    for lane in trainer.live:
        write_status(trainer, lane, setup)


def announce(experiment: Experiment, step: int) -> None:
    """Say what is trained, by which Fisher, and from where.

    Args:
        experiment: The run, or several.
        step: Where it goes on.
    """
    cfg, data = experiment.cfg, experiment.dataset
    about: dict[str, Any] = getattr(experiment.optimizer, "describe", dict)()
    sizes = ", ".join(f"{len(split)} {name}" for name, split in data.splits.items())
    count = sum(p.numel() for p in experiment.model.parameters()) // len(experiment.cfgs)
    model, optimizer = _short(cfg.model), _short(cfg.optimizer)
    many = f"{len(experiment.cfgs)} runs of " if len(experiment.cfgs) > 1 else ""
    print(f"{many}{data.name} ({sizes}) x {model} ({count} parameters) x {optimizer}, {experiment.steps} steps")
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


def _report(status: str, message: str, trainer: Trainer) -> None:
    lane = trainer.lanes[0]
    shown = ", ".join(
        f"{k.replace('_', ' ')} {v:.4g}" for k, v in lane.recorder.last.items() if isinstance(v, float) and k != "epoch"
    )
    step = trainer.step if lane.live else lane.step
    print(f"{status}: {step} steps in {trainer.clock.seconds['training']:.1f} s; {shown}")
    if message:
        print(f"fisherlab: {message}", file=sys.stderr)
    if status == "interrupted":
        print(f"go on with: fisherlab train resume={lane.recorder.folder}")
    print(lane.recorder.folder)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run directory: two processes must not train one run.

    Args:
        folder: The run directory.

    Yields:
        None.

    Raises:
        BusyError: If another process holds it.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(f"'{folder}' is being trained by another process") from None
        yield
    finally:
        os.close(handle)
