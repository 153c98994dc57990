"""Runs that train side by side: one program, one checkpoint, a run directory each; a smaller program as runs end."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import math
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fisherlab.errors import UsageError
from fisherlab.files import make_folder, write_json
from fisherlab.sweep.claim import Claim
from fisherlab.training import checkpoint
from fisherlab.training.ending import ENDED, close
from fisherlab.training.environment import environment
from fisherlab.training.run import announce, begin, locked, recorder, status_of
from fisherlab.training.setup import Experiment, prepare
from fisherlab.training.trainer import Trainer

PROGRESS, PROGRESS_EVERY = "progress.json", 1.0  # seconds
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


def together(jobs: Sequence[Job], shape: tuple[int, int], folder: Path, mine: Claim) -> None:
    """Train as one program those that have not ended.

    The places of those that have stay, frozen, until so few train that a smaller program does it sooner.

    Args:
        jobs: Row-major on the replica axes.
        shape: The replica axes [S, H].
        folder: Takes their checkpoint.
        mine: The claim on it.

    Raises:
        KeyboardInterrupt: If the user interrupts.
        OSError: If the end of a run could not be written.
    """
    if all(job.ended for job in jobs):
        return
    begun = next((job.cfg for job in jobs if job.directory.exists()), jobs[0].cfg)
    cfgs = [DictConfig(OmegaConf.merge(job.cfg, {"threads": begun.threads, "device": begun.device})) for job in jobs]
    group = _Group(jobs, cfgs, shape, folder, mine)
    saved = checkpoint.load(folder, group.fingerprint)
    places = saved["places"] if saved else [list(range(n)) for n in shape]
    experiment = group.prepare(places)
    with contextlib.ExitStack() as held:
        for directory in group.make(experiment):
            held.enter_context(locked(directory))
        announce(experiment, saved["step"] if saved else 0)
        trainer = group.train(experiment, places, saved)
        while trainer.thinned and not trainer.signalled:
            places = [[own[i] for i in left] for own, left in zip(places, trainer.places, strict=True)]
            saved = trainer.rest()
            del experiment, trainer  # and their tensors, before others are made
            experiment = group.prepare(places)
            trainer = group.train(experiment, places, saved)
    if trainer.signalled:
        raise KeyboardInterrupt
    if any(group.unwritten):
        raise OSError(errno.ENOSPC, next(filter(None, group.unwritten)))


class _Group:
    """What stays the same while a group's program gets smaller."""

    def __init__(
        self, jobs: Sequence[Job], cfgs: Sequence[DictConfig], shape: tuple[int, int], folder: Path, mine: Claim
    ) -> None:
        self.jobs, self.cfgs, self.shape, self.folder, self.mine = jobs, cfgs, shape, folder, mine
        self.fingerprint = checkpoint.fingerprint(*cfgs)
        self.unwritten: list[str] = []
        self.setup = 0.0

    def prepare(self, places: Sequence[Sequence[int]]) -> Experiment:
        """Build the runs at some places of the replica axes."""
        began = time.perf_counter()
        rows, columns = places
        experiment = prepare([self.cfgs[i] for i in self._kept(places)], (len(rows), len(columns)))
        self.setup += (time.perf_counter() - began) / len(self.jobs)
        return experiment

    def _kept(self, places: Sequence[Sequence[int]]) -> list[int]:
        return [row * self.shape[1] + column for row, column in itertools.product(*places)]

    def make(self, experiment: Experiment) -> Iterator[Path]:
        """Make every run directory."""
        facts = json.dumps(environment(experiment.device), indent=2) + "\n"
        for job in self.jobs:
            job.make(facts)
            yield job.directory

    def train(self, experiment: Experiment, places: list[list[int]], saved: dict[str, Any] | None) -> Trainer:
        """Train from a checkpoint, or from the start, to the end of all runs or of so many that the rest is thinned."""
        kept, setup = self._kept(places), self.setup
        jobs = [self.jobs[i] for i in kept]
        left = Counter(job.status for i, job in enumerate(self.jobs) if i not in kept)
        trainer = Trainer(
            experiment,
            [recorder(job.cfg, job.directory) for job in jobs],
            self.folder,
            fingerprint=self.fingerprint,
            stamp={"places": places},
            thins=True,
            on_end=lambda trainer, lane: self.unwritten.append(close(trainer, lane, setup)),
            on_flush=progress(self.folder, self.mine, left),
        )
        for job, lane in zip(jobs, trainer.lanes, strict=True):
            if job.ended:
                lane.end(job.status, 0)
        begin(trainer, saved, setup)
        trainer.run()
        return trainer


def progress(folder: Path, mine: Claim, left: Mapping[str, int] = MappingProxyType({})) -> Callable[[Trainer], None]:
    """Make what tells now and then how far a group is.

    Args:
        folder: The group's.
        mine: The claim on it.
        left: How many runs had ended, by status, before those that the program holds.

    Returns:
        To be called with the trainer; it raises OSError, before anything is written, where the claim is lost.
    """
    told = -math.inf

    def tell(trainer: Trainer) -> None:
        nonlocal told
        if not mine:
            raise OSError(errno.EBUSY, "another machine has taken this group over")
        if (now := time.perf_counter()) - told < PROGRESS_EVERY:
            return
        told = now
        counts = Counter(lane.status for lane in trainer.lanes) + Counter(left)
        stand = {status: counts[status] for status in ("running", "finished", "diverged", "failed")}
        write_json(folder / PROGRESS, {"step": trainer.step, "steps": trainer.experiment.steps, **stand})

    return tell
