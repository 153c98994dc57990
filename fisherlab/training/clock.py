"""Where a run's seconds go."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Clock:
    """Wall time by phase, divided by the runs that share it; CUDA is synchronised where one phase ends.

    Args:
        device: Where the work runs.
        sharers: How many runs train side by side.
    """

    def __init__(self, device: torch.device, sharers: int = 1) -> None:
        self.device = device
        self.sharers = sharers
        self.seconds = {"training": 0.0, "evaluation": 0.0, "recording": 0.0}
        self._phase, self._since = "recording", time.perf_counter()

    def enter(self, phase: str) -> str:
        """Begin a phase.

        Args:
            phase: training, evaluation or recording.

        Returns:
            The phase that ended.
        """
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now, before = time.perf_counter(), self._phase
        self.seconds[before] += (now - self._since) / self.sharers
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
