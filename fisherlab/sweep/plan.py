"""From a sweep's overrides to its jobs: expanded, composed, validated and tried, all before anything is written."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from fisherlab.composition import FAULTS, digest
from fisherlab.config import Source, compose, job, jobs, validate
from fisherlab.errors import UsageError
from fisherlab.explain import has, parse
from fisherlab.sweep.partition import rectangles, shape, stream

if TYPE_CHECKING:
    from fisherlab.training.setup import Experiment

Config = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Attributes:
        name: Hash of its overrides, the name of its run directory.
        overrides: As on the command line, without keys that it does not use.
        config: Composed and plain, with interpolations resolved, but device and threads as asked for.
    """

    name: str
    overrides: tuple[str, ...]
    config: Config


@dataclass(frozen=True)
class Trial:
    """What trying one job told of all that are compatible with it.

    Attributes:
        jobs: They.
        steps: How many steps each has.
        capacity: How many replicas the memory holds when nothing else runs; 1 where they cannot be replicated.
    """

    jobs: tuple[Job, ...]
    steps: int
    capacity: int


@dataclass(frozen=True)
class Group:
    """Jobs that train as one program.

    Attributes:
        name: Hash of its jobs' names, the name of its folder.
        rows: The jobs of each stream, all of the same number.
        steps: How many steps each job has.
    """

    name: str
    rows: tuple[tuple[Job, ...], ...]
    steps: int

    @property
    def shape(self) -> tuple[int, int]:
        """The replica axes [S, H]."""
        return len(self.rows), len(self.rows[0])

    @property
    def jobs(self) -> list[Job]:
        """The jobs, row-major."""
        return [job for row in self.rows for job in row]


def plan(overrides: Sequence[str], source: Source | None = None) -> list[Trial]:
    """Find the jobs of a sweep.

    Args:
        overrides: As on the command line, without Hydra's own.
        source: Where the configs come from.

    Returns:
        The jobs, those of each shape together.

    Raises:
        UsageError: If anything about any job is wrong; in one line.
    """
    source = source or Source()
    for text in overrides:
        parsed = parse(text, source)
        if parsed.is_sweep_override() and not parsed.is_discrete_sweep():
            raise UsageError(f"{text}: has no values to list; expected values with commas, or range(FROM,TO,STEP)")
        if parsed.get_key_element() == "resume" and parsed.value() is not None:
            raise UsageError(f"{text}: a sweep goes on by itself when its command is given again; resume stands alone")
    every = jobs(overrides, source)
    if not every:
        raise UsageError(f"{' '.join(overrides)}: a sweep over no values; expected at least one")
    return [attempt(group) for group in alike(_Composer(source).jobs(every))]


def partition(trials: Iterable[Trial], known: Iterable[str], most: int, workers: int) -> list[Group]:
    """Put jobs into groups; the same jobs always into the same ones, as far as memory allows.

    Args:
        trials: All jobs of the sweep.
        known: Names of jobs that have their groups already.
        most: The most jobs of a group.
        workers: How many groups are trained at a time; there are at least as many, if there are as many jobs.

    Returns:
        The groups of the new jobs.
    """
    known = set(known)
    new = [Trial(tuple(j for j in t.jobs if j.name not in known), t.steps, t.capacity) for t in trials]
    share = -(-sum(len(trial.jobs) for trial in new) // workers)
    groups = []
    for trial in new:
        rows: dict[tuple[int, int], list[Job]] = {}
        for one in trial.jobs:
            rows.setdefault(stream(one.config), []).append(one)
        limit = max(1, min(most, share, trial.capacity // workers))
        groups += [_group(block, trial.steps) for block in rectangles(list(rows.values()), limit)]
    return groups


def _group(rows: Sequence[Sequence[Job]], steps: int) -> Group:
    names = "\n".join(one.name for row in rows for one in row)
    return Group(hashlib.sha256(names.encode()).hexdigest()[:10], tuple(map(tuple, rows)), steps)


def swept(every: Iterable[Sequence[str]]) -> list[str]:
    """Find the keys that have more than one value.

    Args:
        every: The overrides of each job.

    Returns:
        The keys, in the order of the command line.
    """
    values: dict[str, set[str]] = {}
    for text in (text for overrides in every for text in overrides):
        key, _, value = text.partition("=")
        values.setdefault(key.lstrip("+"), set()).add(value)
    return [key for key, found in values.items() if len(found) > 1]


class _Composer:
    """Composes the jobs of a sweep: the choice of parts once for all jobs that choose alike, then each job's values."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._groups = set(source.groups())
        self._parsed: dict[str, Override] = {}
        self._bases: dict[tuple[str, ...], DictConfig] = {}

    def jobs(self, every: Sequence[Sequence[str]]) -> list[Job]:
        """Compose and validate every job; jobs with the same config are one."""
        bases = [self._base(one) for one in every]
        used = {self._key(o) for one, base in zip(every, bases, strict=True) for o in one if self._uses(base, o)}
        found: dict[str, Job] = {}
        for one, base in zip(every, bases, strict=True):
            # What no job uses stays, and is refused when it is composed.
            kept = tuple(o for o in one if self._uses(base, o) or self._key(o) not in used)
            config = self._compose(base, kept)
            found.setdefault(json.dumps(config, sort_keys=True), Job(digest(kept), kept, config))
        return list(found.values())

    def _parse(self, text: str) -> Override:
        if text not in self._parsed:
            self._parsed[text] = parse(text, self.source)
        return self._parsed[text]

    def _key(self, text: str) -> str:
        return str(self._parse(text).key_or_group)

    def _chooses(self, text: str) -> bool:
        override = self._parse(text)
        return override.key_or_group in self._groups and not isinstance(override.value(), dict)

    def _base(self, one: Sequence[str]) -> DictConfig:
        """A job's config with its parts as chosen, but without its values."""
        choices = tuple(filter(self._chooses, one))
        if choices not in self._bases:
            self._bases[choices] = compose(choices, self.source)
        return self._bases[choices]

    def _uses(self, base: DictConfig, text: str) -> bool:
        override = self._parse(text)
        optional = not (override.is_add() or override.is_force_add() or override.is_delete())
        return self._chooses(text) or not optional or has(base, override.key_or_group)

    def _compose(self, base: DictConfig, one: Sequence[str]) -> Config:
        cfg = copy.deepcopy(job(base))
        try:
            ConfigLoaderImpl._apply_overrides_to_config([self._parse(o) for o in one if not self._chooses(o)], cfg)
        except FAULTS:
            cfg = job(compose(one, self.source))  # says what is wrong
        validate(cfg)
        # By way of JSON, so that it is equal to what a record gives back.
        return dict(json.loads(json.dumps(OmegaConf.to_container(cfg, resolve=True))))


def alike(every: Iterable[Job]) -> list[list[Job]]:
    """Put jobs of the same shape together.

    Args:
        every: Any jobs.

    Returns:
        Those that can be replicas of one program, together.
    """
    found: dict[str, list[Job]] = {}
    for one in every:
        found.setdefault(shape(one.config, _per_replica(one.config["optimizer"])), []).append(one)
    return list(found.values())


def _per_replica(optimizer: Mapping[str, Any]) -> tuple[str, ...]:
    import hydra.utils

    try:
        target = hydra.utils.get_object(optimizer["_target_"])
    except Exception:  # the trial says what is wrong with it
        return ()
    return tuple(getattr(target, "per_replica", ()))


def attempt(group: Sequence[Job]) -> Trial:
    """Build one of the jobs, then the optimizer of each: numbers change nothing else.

    Args:
        group: Jobs of one shape.

    Returns:
        What that told.
    """
    from fisherlab.sweep.memory import available, footprint
    from fisherlab.training.setup import draws, prepare, resolve

    experiment = prepare(resolve(OmegaConf.create(group[0].config)))
    for optimizer in _distinct(one.config["optimizer"] for one in group[1:]):
        _try_optimizer(experiment, optimizer)
    free = bool(experiment.replicas and _per_replica(group[0].config["optimizer"]) and not draws(experiment))
    capacity = footprint(experiment).capacity(available(experiment.device)) if free else 1
    return Trial(tuple(group), experiment.steps, capacity)


def _distinct(values: Iterable[Config]) -> Iterator[Config]:
    yield from {json.dumps(value, sort_keys=True): value for value in values}.values()


def _try_optimizer(experiment: Experiment, optimizer: Config) -> None:
    from fisherlab.training.setup import build

    seed = [0] if experiment.replicas else 0
    node = OmegaConf.create(optimizer)
    build(node, "optimizer", model=experiment.model, likelihood=experiment.likelihood, seed=seed)
