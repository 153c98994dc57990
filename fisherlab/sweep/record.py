"""What a sweep's folder says: its jobs and their groups, which are only ever added to, and how each job stands."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from fisherlab.errors import UsageError
from fisherlab.files import write_json
from fisherlab.schema import show
from fisherlab.sweep.plan import Config, Group, Job, swept

FORMAT = 1
ENDED = ("finished", "diverged", "failed")
# What changes no number, so that a sweep begun with another value is still the same.
INCIDENTAL = ("results", "debug", "resume")


@dataclass
class Entry:
    """A job in the record.

    Attributes:
        overrides: As on the command line.
        group: Name of its group.
    """

    overrides: list[str]
    group: str


@dataclass
class Record:
    """The record of a sweep, sweep.json, and what is found in its folder.

    Attributes:
        folder: The sweep's folder; it may not exist yet.
        jobs: By name, in the order in which they were added.
    """

    folder: Path
    jobs: dict[str, Entry] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Record:
        """Read the record of an earlier start.

        Args:
            folder: The sweep's folder.

        Returns:
            An empty record where there is none.

        Raises:
            UsageError: If it cannot be read.
        """
        path = folder / "sweep.json"
        if not path.exists():
            return cls(folder)
        try:
            found = json.loads(path.read_text())
            version = found["format"]
            jobs = {one["name"]: Entry(one["overrides"], one["group"]) for one in found["jobs"]}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"'{path}' is no record of a sweep: expected another hydra.sweep.dir") from error
        if version != FORMAT:
            raise UsageError(f"'{path}' has format {version!r}: this version reads format {FORMAT}")
        return cls(folder, jobs)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the record while it is added to, as it now is: another command may have added to it meanwhile.

        Yields:
            Nothing.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".lock"):
            self.jobs = Record.read(self.folder).jobs
            yield

    def check(self, jobs: Iterable[Job]) -> None:
        """See that the jobs recorded are the ones asked for: the same command may mean others once a default changes.

        Args:
            jobs: As planned now.

        Raises:
            UsageError: If one is not, names the first key that differs.
        """
        recorded = {
            one["name"]: one["config"]
            for group in {entry.group for entry in self.jobs.values()}
            for one in self.group(group)["jobs"]
        }
        for one in jobs:
            if one.name in self.jobs and (changed := difference(recorded.get(one.name, {}), one.config)):
                where = self.run(one.name)
                raise UsageError(f"'{where}' has another config ({changed}); results=FOLDER makes a new sweep")

    def add(self, groups: Sequence[Group], workers: int) -> None:
        """Record groups, their own files first: what a kill leaves without sweep.json is of no account.

        Args:
            groups: Of new jobs, or of jobs that start anew.
            workers: How many groups are trained at a time.
        """
        for group in groups:
            folder = self._fresh(group.name)
            folder.mkdir(parents=True, exist_ok=True)
            jobs = [{"name": j.name, "overrides": list(j.overrides), "config": j.config} for j in group.jobs]
            about = {"format": FORMAT, "shape": list(group.shape), "workers": workers, "steps": group.steps}
            write_json(folder / "group.json", about | {"jobs": jobs})
            self.jobs |= {one.name: Entry(list(one.overrides), folder.name) for one in group.jobs}

    def _fresh(self, name: str) -> Path:
        """A group's folder in which nothing was trained yet: failed jobs may start anew in the same group as before."""
        names = itertools.chain([name], (f"{name}-{attempt}" for attempt in itertools.count(2)))
        folders = (self.folder / "groups" / one for one in names)
        return next(f for f in folders if not f.exists() or {p.name for p in f.iterdir()} <= {"group.json"})

    def write(self, command: Sequence[str]) -> None:
        """Write sweep.json.

        Args:
            command: The overrides as typed.
        """
        order = [text.partition("=")[0].lstrip("+") for text in command]
        keys = sorted(
            swept(entry.overrides for entry in self.jobs.values()),
            key=lambda key: order.index(key) if key in order else len(order),
        )
        jobs = [{"name": name, "overrides": e.overrides, "group": e.group} for name, e in self.jobs.items()]
        about = {"format": FORMAT, "command": list(command), "swept": keys, "jobs": jobs}
        write_json(self.folder / "sweep.json", about)

    def run(self, name: str) -> Path:
        """The run directory of a job."""
        return self.folder / "runs" / name

    def group(self, name: str) -> dict[str, Any]:
        """Read a group's own file.

        Args:
            name: The group's.

        Returns:
            Its content.

        Raises:
            UsageError: If it cannot be read.
        """
        path = self.folder / "groups" / name / "group.json"
        try:
            return dict(json.loads(path.read_text()))
        except (OSError, ValueError) as error:
            raise UsageError(f"'{path}' cannot be read ({error}); results=FOLDER makes a new sweep") from error

    def status(self, name: str) -> dict[str, Any]:
        """Read how a job stands.

        Args:
            name: The job's.

        Returns:
            Its status.json; empty where there is none that can be read.
        """
        try:
            return dict(json.loads((self.run(name) / "status.json").read_text()))
        except (OSError, ValueError):
            return {}

    def open_groups(self) -> list[str]:
        """List the groups with jobs that have not ended, in the order of the record."""
        return list(dict.fromkeys(e.group for name, e in self.jobs.items() if self._state(name) not in ENDED))

    def named(self, state: str) -> list[str]:
        """List the jobs of a status, in the order of the record."""
        return [name for name in self.jobs if self._state(name) == state]

    def counts(self, within: Container[str] | None = None) -> Counter[str]:
        """Count the jobs by status.

        Args:
            within: Names of the groups that count; all where None.

        Returns:
            Also those that are `running`, or `waiting` where nothing was begun.
        """
        return Counter(self._state(name) for name, e in self.jobs.items() if within is None or e.group in within)

    def forget(self, names: Iterable[str]) -> None:
        """Delete run directories, so that the jobs start anew.

        Args:
            names: The jobs'.
        """
        for name in names:
            # By one rename, for a kill must not leave half a run directory.
            away = self.run(name).with_name(f".old-{name}-{os.getpid()}")
            os.rename(self.run(name), away)
            shutil.rmtree(away, ignore_errors=True)

    def _state(self, name: str) -> str:
        return str(self.status(name).get("status", "waiting"))


def difference(then: Config, now: Config, prefix: str = "") -> str:
    """Find the first key in which two configs differ.

    Args:
        then: One.
        now: The other.
        prefix: Of the keys.

    Returns:
        The key with both values; empty where there is none.
    """
    for key in dict.fromkeys([*then, *now]):
        old, new = then.get(key), now.get(key)
        if old == new or (not prefix and key in INCIDENTAL):
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            return difference(old, new, f"{prefix}{key}.")
        return f"{prefix}{key}={show(new)}, then {show(old)}"
    return ""
