"""Schedules: the learning rate as a fraction of its start, and the batch size, by step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fisherlab.streams import Streams


@dataclass(frozen=True)
class LearningRate:
    """The learning rate of a step, as a fraction of the configured one.

    Attributes:
        name: constant, linear or cosine.
        end_fraction: Fraction reached at the last step (linear, cosine); a tensor has one per replica.
        warmup_steps: Steps over which the rate rises linearly before that.
        total: Number of steps of the run.
    """

    name: str
    end_fraction: float | Tensor
    warmup_steps: int
    total: int

    def __call__(self, step: int) -> float | Tensor:
        """Evaluate the schedule.

        Args:
            step: Counted from 0.

        Returns:
            A factor on the learning rate, or one per replica.
        """
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        if self.name == "constant":
            return 1.0
        done = (step - self.warmup_steps) / max(1, self.total - 1 - self.warmup_steps)
        fall = done if self.name == "linear" else 0.5 * (1 - math.cos(math.pi * done))
        return 1.0 - (1.0 - self.end_fraction) * fall


@dataclass(frozen=True)
class BatchSize:
    """The batch size of a step.

    Attributes:
        first: Size at step 0.
        examples: Size of the training set, the largest batch.
        until_step: None keeps the size; else it grows exponentially to the whole training set at this step, as
            m_k = min(floor(m_1 exp((k - 1) / b)), N) with k counted from 1 (Martens and Grosse 2015, Section 13).
    """

    first: int
    examples: int
    until_step: int | None = None

    def __call__(self, step: int) -> int:
        """Evaluate the schedule.

        Args:
            step: Counted from 0.

        Returns:
            Number of examples.
        """
        if self.until_step is None or self.first == self.examples:
            return self.first
        if step + 1 >= self.until_step:
            return self.examples
        rate = math.log(self.examples / self.first) / (self.until_step - 1)
        return min(math.floor(self.first * math.exp(step * rate)), self.examples)


class Batches:
    """The order of the data, which depends on the data seed alone; a batch never holds an example twice.

    Either one permutation an epoch, of which what does not fill a batch at its end is dropped; or each batch drawn
    anew. Where batches are a large part of the data the two differ: successive batches of one permutation have nothing
    in common, so that at half of the data each one's gradient is off by the opposite of what its predecessor's was.

    Args:
        size: The batch-size schedule.
        streams: The data's random streams (purpose `order`; of batches drawn anew, `batch`).
        independent: Whether each batch is drawn anew; an epoch is then as many steps as it would be else.
    """

    def __init__(self, size: BatchSize, streams: Streams, *, independent: bool = False) -> None:
        self.size = size
        self.streams = streams
        self.independent = independent
        self.step, self.epoch, self.position, self.examples = 0, 0, 0, 0
        self._order: Tensor | None = None

    def _advance(self) -> tuple[int, int]:
        """Move the cursor by one batch; returns where the batch starts, and its size."""
        batch = self.size(self.step)
        if self.position + batch > self.size.examples:
            self.epoch, self.position, self._order = self.epoch + 1, 0, None
        start = self.position
        self.step, self.position, self.examples = self.step + 1, start + batch, self.examples + batch
        return start, batch

    def next(self) -> Tensor | None:
        """Take the next batch.

        Returns:
            Row indices [B], or [S, B] with a stream axis; None for the whole training set in its own order.
        """
        start, batch = self._advance()
        if batch == self.size.examples:
            return None
        if self.independent:
            return self.streams.permutation("batch", self.step, self.size.examples)[..., :batch]
        if self._order is None:
            self._order = self.streams.permutation("order", self.epoch, self.size.examples)
        return self._order[..., start : start + batch]

    @property
    def epoch_ends(self) -> bool:
        """Whether the next batch starts another epoch."""
        return self.position + self.size(self.step) > self.size.examples

    def steps(self, epochs: float) -> int:
        """Count the steps of a number of epochs.

        Args:
            epochs: Passes over the training set; a fraction counts whole steps, at least one.

        Returns:
            Number of steps.
        """
        if self.size.until_step is None:
            return max(1, int(epochs * (self.size.examples // self.size.first)))
        probe = Batches(self.size, Streams(0, torch.device("meta")))
        while not (probe.epoch + probe.epoch_ends >= epochs and probe.step):
            probe._advance()
        return probe.step

    def state(self) -> dict[str, int]:
        """The cursor.

        Returns:
            Plain numbers.
        """
        return {"step": self.step, "epoch": self.epoch, "position": self.position, "examples": self.examples}

    def load(self, state: dict[str, int]) -> None:
        """Put the cursor where it was.

        Args:
            state: As `state` returned it.
        """
        self.step, self.epoch = state["step"], state["epoch"]
        self.position, self.examples = state["position"], state["examples"]
        self._order = None
