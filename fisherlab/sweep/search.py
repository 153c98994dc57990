"""A search over numbers of a training: batches of trials are asked for, trained side by side, and told.

Any number of processes may share one search: each batch is a folder that is claimed, so a batch whose process died is
taken up by whoever comes next, from its checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from omegaconf import DictConfig, OmegaConf

from fisherlab.errors import UsageError
from fisherlab.files import write_json
from fisherlab.schema import show
from fisherlab.streams import key
from fisherlab.sweep.claim import claim
from fisherlab.sweep.group import run_group
from fisherlab.sweep.plan import Job, Trial, alike, attempt, partition
from fisherlab.sweep.progress import bar
from fisherlab.sweep.record import ENDED, Record
from fisherlab.sweep.space import Dimension, with_values
from fisherlab.sweep.storage import open_study

ORPHAN = 60.0  # seconds after which a trial of a shared storage that belongs to no batch has lost its process
POLL = 2.0  # seconds between looks at what another process trains
ABOUT = "search.json"


@dataclass
class Search:
    """What is searched, and where.

    Attributes:
        cfg: Config of a training, not resolved.
        space: The numbers that are searched.
        folder: The search's folder.
        objective: Column of `metrics.csv` that is made small.
        at: `final` or `best`.
        sampler: `tpe` or `random`.
        sampler_seed: Of the sampler.
        parallel: Trials that are asked for at a time.
        seeds: How many seeds each trial has.
        storage: URL of an Optuna storage, a `.journal` file, or None for a journal in the folder.
        name: Of the search in its storage.
    """

    cfg: DictConfig
    space: Sequence[Dimension]
    folder: Path
    objective: str = "train_loss"
    at: str = "final"
    sampler: str = "tpe"
    sampler_seed: int = 0
    parallel: int = 20
    seeds: int = 1
    storage: str | None = None
    name: str | None = None
    _capacities: dict[str, tuple[int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.name = self.name or self.folder.resolve().name
        # The storage first: where it is refused, nothing is written.
        self.study = open_study(self.storage, self.folder, self.name, self._about())
        self.folder.mkdir(parents=True, exist_ok=True)
        self.identity = self._identity()
        self._check_runs()

    def locked(self) -> FileLock:
        """The lock under which a process asks for trials, and writes tables."""
        return FileLock(self.folder / ".lock")

    def _identity(self) -> str:
        """Name this folder: another machine that shares the storage may have batches of the same number."""
        path = self.folder / ABOUT
        with self.locked():
            if not path.exists():
                write_json(path, {"identity": uuid.uuid4().hex[:12], "name": self.name, **self._about()})
            return str(json.loads(path.read_text())["identity"])

    def _check_runs(self) -> None:
        """See that the folder's runs are this search's: those of another would be taken for its own."""
        then = json.loads((self.folder / ABOUT).read_text()).get("name", self.name)
        recorded = set(Record.read(self.folder).jobs)  # first: another process may ask and record meanwhile
        own = (t for t in self.trials if t.user_attrs.get("batch", "").startswith(f"{self.identity}/"))
        if not recorded <= {run for trial in own for run in self.runs(trial)}:
            raise UsageError(
                f"'{self.folder}' holds runs of '{then}' that '{self.name}' in tune.storage={show(self.storage)} does "
                "not know: expected the tune.name and tune.storage it was begun with, or another results="
            )

    def _about(self) -> dict[str, Any]:
        """What processes that share a search must agree in."""
        plain: Any = OmegaConf.to_container(self.cfg, resolve=True)
        for incidental in ("results", "debug", "threads", "device", "figures"):
            plain.pop(incidental, None)
        space = {d.key: [d.low, d.high, d.log] for d in self.space}
        return {"objective": self.objective, "at": self.at, "seeds": self.seeds, "space": space, "config": plain}

    def run(self, trials: int, after: Callable[[], None] = lambda: None) -> None:
        """Search until so many trials have ended, those of earlier starts and of other processes included.

        What other processes in this folder still train is waited for, and taken up where they die; not what those in
        other folders on the same storage do.

        Args:
            trials: How many.
            after: Called after each batch.

        Raises:
            KeyboardInterrupt: If the user interrupts; the next start goes on.
            RuntimeError: If all trials of a batch failed; they would fail for ever.
        """
        held = self.finish_stale()
        while (outcomes := self._batch(trials)) or held:
            if not outcomes:
                time.sleep(POLL)
            else:
                after()
                if all(trial.state.name == "FAIL" for trial in outcomes):
                    message = outcomes[0].user_attrs.get("message")
                    raise RuntimeError(f"all {len(outcomes)} trials of a batch failed: {message}")
            held = self.finish_stale()

    @property
    def trials(self) -> list[Any]:
        """All trials, as Optuna's `FrozenTrial`."""
        return list(self.study.get_trials(deepcopy=False))

    @property
    def best(self) -> Any | None:
        """The trial with the least objective; None where none is complete."""
        complete = [t for t in self.trials if t.state.name == "COMPLETE"]
        return min(complete, key=lambda t: t.value, default=None)

    def config(self, trial: Any, seed: int = 0) -> DictConfig:
        """Config of a trial.

        Args:
            trial: A trial.
            seed: Which of its seeds.

        Returns:
            Not resolved.
        """
        return with_values(self.cfg, {"seed": self.cfg.seed + seed, **trial.params})

    def runs(self, trial: Any) -> list[str]:
        """Names of a trial's runs, one per seed."""
        return [f"{trial.number:05d}" + (f"-{seed}" if self.seeds > 1 else "") for seed in range(self.seeds)]

    def _count(self, *states: str) -> int:
        return sum(trial.state.name in states for trial in self.trials)

    def _batch(self, trials: int) -> list[Any]:
        """Ask for the next of so many trials, train them, tell how they ended; none where all are asked for."""
        with contextlib.ExitStack() as stack:
            with self.locked():  # or two processes would both ask for the last ones
                size = min(self.parallel, trials - self._count("COMPLETE", "PRUNED", "RUNNING"))
                if size <= 0:
                    return []
                number = self._new_batch()
                stack.enter_context(claim(self.folder / "batches" / number))
                asked = self._counted(self._ask(number, size), trials)
            self._record([t for t in self.trials if t.number in asked])
            self._finish(number)
        return [t for t in self.trials if t.number in asked]

    def _ask(self, number: str, size: int) -> list[int]:
        self.study.sampler = self._sampler(int(number))
        asked = []
        for _ in range(size):
            trial = self.study.ask()
            trial.set_user_attr("batch", f"{self.identity}/{number}")
            for dimension in self.space:
                dimension.suggest(trial)
            asked.append(trial.number)
        return asked

    def _counted(self, asked: Sequence[int], trials: int) -> list[int]:
        """Give back what is beyond so many trials: processes in other folders do not wait for this lock."""
        first = {t.number for t in [t for t in self.trials if t.state.name not in ("FAIL", "WAITING")][:trials]}
        for number in asked:
            if number not in first:
                self.study.tell(number, state=_state("FAIL"))
        return [number for number in asked if number in first]

    def _new_batch(self) -> str:
        """Make the next batch's folder; no two processes make the same."""
        (self.folder / "batches").mkdir(exist_ok=True)
        number = 0
        while True:
            try:
                (self.folder / "batches" / f"{number:04d}").mkdir()
                return f"{number:04d}"
            except FileExistsError:
                number += 1

    def _sampler(self, number: int) -> Any:
        """A sampler of its own for each batch: a search that goes on draws what it would have drawn."""
        from optuna.samplers import RandomSampler, TPESampler

        # Folders that share a storage must not begin with the same draws.
        purpose = f"tune/{self.identity}" if self.storage else "tune"
        purpose += "/random" if self.sampler == "random" else ""
        seed = key(self.sampler_seed, purpose, number) % 2**32
        return RandomSampler(seed) if self.sampler == "random" else TPESampler(seed=seed, constant_liar=True)

    def _jobs(self, trial: Any) -> list[Job]:
        jobs = []
        for seed, name in enumerate(self.runs(trial)):
            plain: Any = OmegaConf.to_container(self.config(trial, seed), resolve=True)
            values = {"seed": plain["seed"], **trial.params}
            jobs.append(Job(name, tuple(f"{k}={v!r}" for k, v in values.items()), json.loads(json.dumps(plain))))
        return jobs

    def _record(self, trials: Sequence[Any]) -> None:
        """Put trials into groups that train as one program."""
        found = alike(job for trial in trials for job in self._jobs(trial))
        groups = partition(map(self._sized, found), (), self.parallel * self.seeds, 1)
        record = Record(self.folder)
        with record.locked():
            record.add(groups, 1)
            record.write([])

    def _sized(self, jobs: Sequence[Job]) -> Trial:
        """How many of such jobs the memory holds; tried once for each number of steps and size of batch."""
        config = jobs[0].config
        shape = json.dumps({k: config[k] for k in ("steps", "epochs", "batch_size", "model", "dataset")})
        if shape not in self._capacities:
            tried = attempt(jobs)
            self._capacities[shape] = (tried.steps, tried.capacity)
        return Trial(tuple(jobs), *self._capacities[shape])

    def finish_stale(self) -> bool:
        """Take up what processes that died have left: batches are trained to their end, the rest is asked for again.

        Returns:
            Whether others still train batches of this folder.
        """
        held = False
        alive = ORPHAN if self.storage else 0.0  # in a journal of its own nobody asks without the folder's lock
        with self.locked():
            for trial in self.trials:
                if trial.state.name == "RUNNING" and "batch" not in trial.user_attrs and _age(trial) > alive:
                    self._again(trial)
        running = [t for t in self.trials if t.state.name == "RUNNING"]
        for batch in sorted({t.user_attrs.get("batch", "") for t in running}):
            identity, _, number = batch.partition("/")
            if identity == self.identity:
                with claim(self.folder / "batches" / number) as mine:
                    if mine:
                        self._finish(number)
                    held |= not mine
        return held

    def _finish(self, number: str) -> None:
        """Train what a batch has left, and tell its trials."""
        record = Record.read(self.folder)
        for trial in self._running(number):
            if not set(self.runs(trial)) <= set(record.jobs):  # killed before they were put into a group
                self._again(trial)
        mine = {record.jobs[run].group for t in self._running(number) for run in self.runs(t)}
        groups = [name for name in record.open_groups() if name in mine]
        with bar(record, groups):
            for name in groups:
                run_group(self.folder / "groups" / name)
        for trial in self._running(number):
            self._tell(trial, record)

    def _running(self, number: str) -> list[Any]:
        batch = f"{self.identity}/{number}"
        return [t for t in self.trials if t.state.name == "RUNNING" and t.user_attrs.get("batch") == batch]

    def _again(self, trial: Any) -> None:
        """Fail a trial that was never trained, and ask for the same values again."""
        self.study.tell(trial.number, state=_state("FAIL"))
        if len(trial.params) == len(self.space):
            self.study.enqueue_trial(trial.params)

    def _tell(self, frozen: Any, record: Record) -> None:
        """Tell how a trial ended; nothing where it has not."""
        from optuna.trial import Trial as Told

        ends = [record.status(run) for run in self.runs(frozen)]
        if not all(end.get("status") in ENDED for end in ends):
            return
        values = [_value(end, self.objective, self.at) for end in ends]
        for name, value in _facts(ends).items():
            Told(self.study, frozen._trial_id).set_user_attr(name, value)
        value = float(np.mean(values))
        if any(end["status"] == "failed" and "traceback" in end for end in ends):
            self.study.tell(frozen.number, state=_state("FAIL"))
        elif math.isfinite(value):
            self.study.tell(frozen.number, value)
        else:  # it diverged, or a damped matrix could not be factorised
            self.study.tell(frozen.number, state=_state("PRUNED"))


def _state(name: str) -> Any:
    from optuna.trial import TrialState

    return TrialState[name]


def _age(trial: Any) -> float:
    began: datetime | None = trial.datetime_start
    return math.inf if began is None else time.time() - began.timestamp()


def _value(end: Mapping[str, Any], objective: str, at: str) -> float:
    """The objective of one run; not a number where it has not finished."""
    if end["status"] != "finished":
        return math.nan
    found = end["final"].get(objective) if at == "final" else end["best"].get(objective, {}).get("value")
    return math.nan if found is None else float(found)


def _facts(ends: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What is kept of a trial beside its value: metrics as means over its seeds."""
    messages = [str(end.get("error") or end.get("message")) for end in ends if end.get("error") or end.get("message")]
    statuses = [str(end["status"]) for end in ends]
    facts: dict[str, Any] = {"status": max(statuses, key=("finished", "diverged", "failed").index)}
    facts |= {"message": " ".join(messages[0].split())} if messages else {}
    facts["step"] = min(int(end.get("step", 0)) for end in ends)
    facts["seconds"] = sum(float(end.get("seconds", {}).get("training", 0.0)) for end in ends)
    names = [n for n, v in ends[0].get("final", {}).items() if isinstance(v, float) and n != "epoch"]
    metrics = {n: [end.get("final", {}).get(n) for end in ends] for n in names}
    return facts | {n: float(np.mean(values)) for n, values in metrics.items() if None not in values}
