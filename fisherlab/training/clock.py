"""Where a run's seconds go."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch


class Clock:
    """Time by phase, divided by the runs that share it; CUDA is synchronised where one phase ends.

    Wall time counts what else the machine does meanwhile; processor time, of all threads of this process, does not.

    Args:
        device: Where the work runs.
        sharers: How many runs train side by side.
    """

    def __init__(self, device: torch.device, sharers: int = 1) -> None:
        self.device = device
        self.sharers = sharers
        self.seconds = {"training": 0.0, "evaluation": 0.0, "recording": 0.0}
        self.cpu_seconds = dict(self.seconds)
        self._phase, self._since = "recording", _now()

    def enter(self, phase: str) -> str:
        """Begin a phase.

        Args:
            phase: training, evaluation or recording.

        Returns:
            The phase that ended.
        """
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now, before = _now(), self._phase
        for spent, then, until in zip((self.seconds, self.cpu_seconds), self._since, now, strict=True):
            spent[before] += (until - then) / self.sharers
        self._phase, self._since = phase, now
        return before

    def share(self, sharers: int) -> None:
        """Divide by another number from now on.

        Args:
            sharers: How many runs still train.
        """
        self.enter(self._phase)
        self.sharers = max(1, sharers)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Spend a block in a phase, then go back.

        Args:
            name: The phase.

        Yields:
            None.
        """
        before = self.enter(name)
        try:
            yield
        finally:
            self.enter(before)

    def state(self) -> dict[str, dict[str, float]]:
        """What a checkpoint needs.

        Returns:
            Seconds by phase.
        """
        return {"seconds": dict(self.seconds), "cpu_seconds": dict(self.cpu_seconds)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint.

        Args:
            state: Holds what `state` returned; one from before processor time was kept has none.
        """
        self.seconds.update(state["seconds"])
        self.cpu_seconds.update(state.get("cpu_seconds", {}))


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()
