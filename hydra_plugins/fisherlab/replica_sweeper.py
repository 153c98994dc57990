"""`hydra/sweeper=replica`: gives the launcher one job per group of replicas, so that any launcher runs groups."""

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

# Nothing of fisherlab here: Hydra imports its plugins also where no sweep is asked for.


@dataclass
class ReplicaSweeperConf:
    """The keys of `hydra.sweeper`.

    Attributes:
        max_replicas: The most jobs of a group.
        retry_failed: Whether failed jobs start anew.
    """

    _target_: str = "hydra_plugins.fisherlab.replica_sweeper.ReplicaSweeper"
    max_replicas: int = 64
    retry_failed: bool = False


ConfigStore.instance().store(group="hydra/sweeper", name="replica", node=ReplicaSweeperConf, provider="fisherlab")


class ReplicaSweeper(Sweeper):
    """Plans a sweep, records its groups, launches those with work left, and draws the outcome.

    Args:
        max_replicas: The most jobs of a group.
        retry_failed: Whether failed jobs start anew.
    """

    def __init__(self, max_replicas: int, retry_failed: bool) -> None:
        self.max_replicas = max_replicas
        self.retry_failed = retry_failed
        self.config: DictConfig
        self.launcher: Launcher

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """See `Sweeper.setup`."""
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run a sweep, or what is left of it; the process exits with status 1 if a job failed, or has not ended.

        Args:
            arguments: The overrides, without Hydra's own.

        Raises:
            UsageError: If a job makes no sense; nothing is written then.
            KeyboardInterrupt: If it was interrupted; what was trained until then is recorded.
        """
        from fisherlab.errors import UsageError
        from fisherlab.files import check_writable
        from fisherlab.sweep.plan import plan
        from fisherlab.sweep.record import Record

        if self.max_replicas < 1:
            raise UsageError(f"hydra.sweeper.max_replicas={self.max_replicas}: expected a whole number of at least 1")
        with _composing():
            trials = plan(arguments, _source(self.config))
        record = Record.read(Path(self.config.hydra.sweep.dir))
        record.check(job for trial in trials for job in trial.jobs)
        check_writable(record.folder)
        interrupted, complaints = False, []
        try:
            complaints = self._train(record, trials, [*arguments, *_own(self.config)])
        except KeyboardInterrupt:
            interrupted = True
        _outcome(record)
        well = _summarise(record, complaints)
        if interrupted:
            raise KeyboardInterrupt
        if not well:
            sys.exit(1)

    def _train(self, record: Any, trials: Sequence[Any], command: Sequence[str]) -> list[str]:
        """Put new jobs into groups and train what has work left; gives the complaints."""
        planned = {job.name for trial in trials for job in trial.jobs}
        failed = planned.intersection(record.named("failed")) if self.retry_failed else set()
        self._add(record, trials, command)
        complaints = self._launch(record)
        # A group that goes on may hold failed jobs too, so these leave it only when nothing of it is left to do.
        if failed and not record.open_groups():
            self._add(record, trials, command, failed)
            complaints += self._launch(record)
        return complaints

    def _add(self, record: Any, trials: Sequence[Any], command: Sequence[str], again: Set[str] = frozenset()) -> None:
        """Put jobs into groups: those that are new, and those that failed and start anew."""
        from fisherlab.sweep.plan import partition

        launcher = self.config.hydra.launcher
        with record.locked():
            again = again & set(record.named("failed"))
            groups = partition(trials, set(record.jobs) - again, self.max_replicas, _workers(launcher))
            record.add(groups, len(groups) if _at_once(launcher) else min(_workers(launcher), len(groups)))
            record.write(command)
            record.forget(again)

    def _launch(self, record: Any) -> list[str]:
        """Train the groups that have work left; gives what the launcher, or a group, complained about."""
        from fisherlab.sweep.progress import bar

        groups = record.open_groups()
        if not groups:
            return []
        overrides = [[*_first(record, name), f"hydra.sweep.subdir=groups/{name}"] for name in groups]
        try:
            with bar(record, groups):
                returns = self.launcher.launch(overrides, initial_job_idx=0)
        except Exception as error:
            if self.config.debug:
                traceback.print_exc()
            return [f"{type(error).__name__}: {error}"]
        return [
            f"{record.folder / 'groups' / name}: {type(one._return_value).__name__}: {one._return_value}"
            for name, one in zip(groups, returns, strict=True)
            if one.status is JobStatus.FAILED
        ]


@contextlib.contextmanager
def _composing() -> Iterator[None]:
    """Let Hydra compose inside of Hydra."""
    hydra, cfg = GlobalHydra.instance().hydra, HydraConfig.instance().cfg
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra, HydraConfig.instance().cfg = hydra, cfg


def _source(config: DictConfig) -> Any:
    from fisherlab.config import Source

    user = [Path(s.path) for s in config.hydra.runtime.config_sources if s.provider == "command-line"]
    return Source(user[0] if user else None, config.hydra.job.config_name)


def _own(config: DictConfig) -> list[str]:
    """What was typed for Hydra itself."""
    typed = map(str, config.hydra.overrides.hydra)
    return [text for text in typed if not text.startswith(("hydra.mode=", "hydra.searchpath="))]


def _workers(launcher: DictConfig) -> int:
    """How many groups a launcher trains at a time on this machine, as joblib counts."""
    jobs = OmegaConf.select(launcher, "n_jobs") or 1
    return int(jobs) if jobs > 0 else max(1, len(os.sched_getaffinity(0)) + 1 + int(jobs))


def _at_once(launcher: DictConfig) -> bool:
    """Whether a launcher starts all groups together on this machine."""
    return str(launcher.get("_target_")).endswith("submitit_launcher.LocalLauncher")


def _first(record: Any, group: str) -> list[str]:
    return next(list(entry.overrides) for entry in record.jobs.values() if entry.group == group)


def _outcome(record: Any) -> None:
    """Write the sweep's tables and figures; that they cannot be made costs no job."""
    try:
        from fisherlab.sweep.outcome import write_outcome

        write_outcome(record.folder)
    except Exception as error:
        _say(f"warning: no outcome for {record.folder}: {error}")


def _summarise(record: Any, complaints: Sequence[str]) -> bool:
    """Print how the jobs stand; gives whether all of them ended well."""
    from fisherlab.sweep.record import ENDED

    counts = record.counts()
    for name in (failed := record.named("failed")):
        _say(f"{record.run(name)}: {record.status(name).get('error', 'failed')}")
    for complaint in complaints:
        _say(complaint)
    if failed:
        _say("hydra.sweeper.retry_failed=true with the same command runs the failed jobs again")
    if left := sum(number for state, number in counts.items() if state not in ENDED):
        _say(f"{_jobs(left)} not ended; start the same command again")
    total = ", ".join(f"{number} {state}" for state, number in sorted(counts.items()))
    print(f"{_jobs(counts.total())}: {total}", record.folder, sep="\n", flush=True)
    return not (failed or left)


def _jobs(number: int) -> str:
    return f"{number} job{'s' * (number != 1)}"


def _say(text: str) -> None:
    print(f"fisherlab: {' '.join(text.split())}", file=sys.stderr)
