"""One group of a sweep, from its record to run directories that have ended: side by side, or one by one."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fisherlab.errors import BusyError, UsageError
from fisherlab.sweep.claim import Claim, claim
from fisherlab.sweep.together import FULL, Job, progress, together
from fisherlab.training import checkpoint
from fisherlab.training.ending import ENDED, plot
from fisherlab.training.run import resume, train
from fisherlab.training.setup import resolve
from fisherlab.training.trainer import Trainer

GROUP, APART = "group.json", "apart.txt"


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
            together(jobs, shape, folder, mine)
        except Exception as error:
            if isinstance(error, BusyError) or _is_full(error) or jobs[0].cfg.debug:
                raise
            _part(jobs, folder)
    for job in jobs:
        if not job.ended:
            _alone(job, progress(folder, mine), wait=len(jobs) == 1)


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
