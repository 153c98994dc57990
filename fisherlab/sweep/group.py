"""The runs of a sweep that train side by side: one program, one checkpoint, a run directory each."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fisherlab.errors import BusyError, UsageError
from fisherlab.files import make_folder, write_json
from fisherlab.sweep.claim import Claim, claim
from fisherlab.training import checkpoint
from fisherlab.training.ending import ENDED, close, plot
from fisherlab.training.environment import environment
from fisherlab.training.run import announce, begin, locked, recorder, resume, status_of, train
from fisherlab.training.setup import prepare, resolve
from fisherlab.training.trainer import Trainer

GROUP, PROGRESS, APART = "group.json", "progress.json", "apart.txt"
PROGRESS_EVERY = 1.0  # seconds
# A full or read-only disk, or a claim lost to another machine: no fault of any job.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EBUSY)


@dataclass
class Job:
    """One run of a group.

    Attributes:
        cfg: Its resolved configuration.
        directory: Its run directory.
    """

    cfg: DictConfig
    directory: Path

    @property
    def status(self) -> str:
        """What its directory says; nothing where it has not begun."""
        return str(status_of(self.directory).get("status", ""))

    @property
    def ended(self) -> bool:
        """Whether nothing is left to do; a failed one is tried again on request only."""
        return self.status in (*ENDED, "failed")

    def make(self, facts: str) -> None:
        """Make the run directory, where there is none yet.

        Args:
            facts: Text of `environment.json`.
        """
        if not (self.directory / "config.yaml").exists():
            make_folder(self.directory, {"config.yaml": OmegaConf.to_yaml(self.cfg), "environment.json": facts})

    def fail(self, error: Exception) -> None:
        """Tell in its directory what went wrong.

        Args:
            error: What was raised.
        """
        self.make("{}\n")
        said = str(error) if isinstance(error, UsageError) else f"{type(error).__name__}: {error}"
        failure = {"status": "failed", "error": " ".join(said.split()), "traceback": traceback.format_exc()}
        write_json(self.directory / "status.json", failure)


def run_group(folder: Path) -> None:
    """Train all runs of a group, or go on with those that have not ended.

    Where training them side by side raises, each is trained alone, so that the one at fault does not stop the others.

    Args:
        folder: Holds `group.json`; the run directories are `runs/<name>` two folders up.

    Raises:
        KeyboardInterrupt: If the user interrupts; the same command goes on from there.
        OSError: If the disk fails, other than by being full.
    """
    with claim(folder) as mine:
        if not mine:
            print(f"{folder}: another worker trains this group")
            return
        record = json.loads((folder / GROUP).read_text())
        jobs = [_job(folder.parent.parent / "runs" / one["name"], one["config"], record) for one in record["jobs"]]
        try:
            _train(jobs, tuple(record["shape"]), folder, mine)
        except BusyError as error:
            print(f"fisherlab: {error}: its group waits", file=sys.stderr)
            return
        except OSError as error:
            if not _is_full(error):
                raise
            print(f"fisherlab: {folder}: {error.strerror}; start the same command again", file=sys.stderr)
            return
        for job in jobs:
            if job.cfg.figures and job.status in ENDED and not (job.directory / "curves.png").exists():
                plot(job.directory)
        (folder / checkpoint.NAME).unlink(missing_ok=True)


def _train(jobs: list[Job], shape: tuple[int, int], folder: Path, mine: Claim) -> None:
    """Train side by side; what is alone, or could not be trained so, one by one."""
    if len(jobs) > 1 and not (folder / APART).exists():
        try:
            _together(jobs, shape, folder, mine)
        except Exception as error:
            if isinstance(error, BusyError) or _is_full(error) or jobs[0].cfg.debug:
                raise
            _part(jobs, folder)
    for job in jobs:
        if not job.ended:
            _alone(job, _progress(folder, mine), wait=len(jobs) == 1)


def _is_full(error: Exception) -> bool:
    """Whether it is no fault of any job: what has ended is safe, and the rest can go on."""
    return isinstance(error, OSError) and error.errno in FULL


def _part(jobs: list[Job], folder: Path) -> None:
    """Note that the jobs go on one by one, from their beginnings, and why."""
    for job in jobs:
        if not job.ended:  # weights that the group left just before it fell apart are nothing to resume from
            (job.directory / checkpoint.NAME).unlink(missing_ok=True)
    (folder / APART).write_text(traceback.format_exc())


def _job(directory: Path, config: dict[str, Any], record: dict[str, Any]) -> Job:
    """Settle a job's configuration: as it began, where it has begun."""
    cfg = resolve(OmegaConf.create(config), record["workers"])
    path = directory / "config.yaml"
    if path.exists():
        then = DictConfig(OmegaConf.load(path))
        # What was left open stays as the run settled it, also on a machine with other cores or devices.
        cfg.threads = then.threads if config["threads"] is None else cfg.threads
        cfg.device = then.device if config["device"] == "auto" else cfg.device
        if checkpoint.fingerprint(then) != checkpoint.fingerprint(cfg):
            raise UsageError(f"'{directory}' holds a run with another config; results=FOLDER makes a new sweep")
    return Job(cfg, directory)


def _together(jobs: list[Job], shape: tuple[int, int], folder: Path, mine: Claim) -> None:
    """Train as one program those that have not ended; the places of the others stay, frozen."""
    began = time.perf_counter()
    if all(job.ended for job in jobs):
        return
    begun = next((job.cfg for job in jobs if job.directory.exists()), jobs[0].cfg)
    cfgs = [OmegaConf.merge(job.cfg, {"threads": begun.threads, "device": begun.device}) for job in jobs]
    experiment = prepare([DictConfig(cfg) for cfg in cfgs], shape)
    facts = json.dumps(environment(experiment.device), indent=2) + "\n"
    for job in jobs:
        job.make(facts)
    saved = checkpoint.load(folder, checkpoint.fingerprint(*experiment.cfgs))
    setup = (time.perf_counter() - began) / len(jobs)
    with contextlib.ExitStack() as stack:
        for job in jobs:
            stack.enter_context(locked(job.directory))
        unwritten: list[str] = []
        trainer = Trainer(
            experiment,
            [recorder(job.cfg, job.directory) for job in jobs],
            folder,
            on_end=lambda trainer, lane: unwritten.append(close(trainer, lane, setup)),
            on_flush=_progress(folder, mine),
        )
        for job, lane in zip(jobs, trainer.lanes, strict=True):
            if job.ended:
                lane.end(job.status, 0)
        begin(trainer, saved, setup)
        announce(experiment, trainer.step)
        trainer.run()
    if trainer.signalled:
        raise KeyboardInterrupt
    if any(unwritten):
        raise OSError(errno.ENOSPC, next(filter(None, unwritten)))


def _progress(folder: Path, mine: Claim) -> Callable[[Trainer], None]:
    """Tell now and then how far the group is; stop before anything is written where the claim is lost."""
    told = -math.inf

    def tell(trainer: Trainer) -> None:
        nonlocal told
        if not mine:
            raise OSError(errno.EBUSY, "another machine has taken this group over")
        if (now := time.perf_counter()) - told < PROGRESS_EVERY:
            return
        told = now
        counts = Counter(lane.status for lane in trainer.lanes)
        stand = {status: counts[status] for status in ("running", "finished", "diverged", "failed")}
        write_json(folder / PROGRESS, {"step": trainer.step, "steps": trainer.experiment.steps, **stand})

    return tell


def _alone(job: Job, watch: Callable[[Trainer], None], *, wait: bool) -> None:
    """Train one run by itself; what goes wrong is told in its directory. A busy one is waited for, or passed over."""
    try:
        begun = (job.directory / "config.yaml").exists()
        result = (
            resume(job.directory, debug=job.cfg.debug, watch=watch)
            if begun
            else train(job.cfg, job.directory, watch=watch)
        )
    except Exception as error:
        if job.cfg.debug or _is_full(error) or (isinstance(error, BusyError) and wait):
            raise
        if isinstance(error, BusyError):
            print(f"fisherlab: {error}", file=sys.stderr)
            return
        job.fail(error)
        return
    if result.status == "interrupted":
        raise KeyboardInterrupt
