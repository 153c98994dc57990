"""An average of the iterates beside the training (Martens and Grosse 2015, Section 13)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fisherlab.errors import UsageError


class Average:
    """theta-bar <- w theta-bar + (1 - w) theta with w = min(1 - 1/j, xi) at the j-th averaged step.

    Args:
        xi: The largest weight of the past, in (0, 1).
        start: Steps before the averaging begins; the authors' code has 200, the paper none.

    Raises:
        UsageError: If xi is out of range.
    """

    def __init__(self, xi: float, start: int = 0) -> None:
        if isinstance(xi, bool) or not isinstance(xi, (int, float)) or not 0 < xi < 1:
            raise UsageError(f"average={xi!r} is out of range: expected a number between 0 and 1, or null")
        self.xi, self.start = xi, start
        self.steps = 0
        self.values: list[Tensor] = []

    @torch.no_grad()
    def update(self, parameters: Sequence[Tensor]) -> None:
        """Take in the iterate after a step.

        Args:
            parameters: Always the same.
        """
        self.steps += 1
        j = self.steps - self.start
        if j < 1:
            return
        if j == 1:
            self.values = [p.detach().clone() for p in parameters]
            return
        weight = min(1 - 1 / j, self.xi)
        for mean, p in zip(self.values, parameters, strict=True):
            mean.lerp_(p.detach(), 1 - weight)

    @contextmanager
    def swapped(self, parameters: Sequence[Tensor]) -> Iterator[None]:
        """Put the average in the parameters' place for a while.

        Args:
            parameters: Those that `update` was given.

        Yields:
            None.
        """
        own = [p.detach().clone() for p in parameters]
        with torch.no_grad():
            for p, mean in zip(parameters, self.values, strict=True):
                p.copy_(mean)
        try:
            yield
        finally:
            with torch.no_grad():
                for p, value in zip(parameters, own, strict=True):
                    p.copy_(value)

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return {"steps": self.steps, "values": self.values}

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned.

        Args:
            state: As `state` returned it.
        """
        self.steps, self.values = state["steps"], list(state["values"])
