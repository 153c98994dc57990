"""Jobs from a program rather than from a command line: put into groups in a folder, and trained there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fisherlab.sweep.group import run_group
from fisherlab.sweep.plan import Job, alike, attempt, partition
from fisherlab.sweep.record import ENDED, Record


def make_job(name: str, cfg: DictConfig, values: Mapping[str, Any]) -> Job:
    """Make a job of a config.

    Args:
        name: Of its run directory.
        cfg: Not resolved.
        values: What tells it from others, for the record.

    Returns:
        The job.
    """
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    return Job(name, tuple(f"{key}={value!r}" for key, value in values.items()), json.loads(json.dumps(plain)))


def train_jobs(folder: Path, jobs: Sequence[Job], most: int = 64) -> Record:
    """Train jobs, or what is left of them.

    Args:
        folder: Where their groups and runs are.
        jobs: They.
        most: The most jobs of a group.

    Returns:
        The folder's record, which tells how each ended.

    Raises:
        UsageError: If a job of that name was recorded with another config.
        RuntimeError: If some have not ended: the disk is full, or another process trains them.
    """
    record = Record(folder)
    with record.locked():
        record.check(jobs)
        new = [one for one in jobs if one.name not in record.jobs]
        record.add(partition([attempt(group) for group in alike(new)], (), most, 1), 1)
        record.write([])
    for name in record.open_groups():
        run_group(folder / "groups" / name)
    left = [one.name for one in jobs if record.status(one.name).get("status") not in ENDED]
    if left:
        raise RuntimeError(f"{len(left)} runs in '{folder}' have not ended, {left[0]} the first: start it again")
    return record
