"""One run of a group: its configuration, its tables, how it stands."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from fisherlab.training.recorder import Recorder, StepColumns


@dataclass
class Lane:
    """One run among those that train side by side; alone, it is the only one.

    Attributes:
        cfg: Its resolved configuration.
        recorder: Its tables.
        at: Its place on the replica axes.
        limit: The loss above which it counts as diverged.
        status: running; finished, diverged or failed once it has ended.
        step: The step at which it ended.
        message: Why it diverged or failed, in one line.
    """

    cfg: DictConfig
    recorder: Recorder
    at: tuple[int, ...]
    limit: float = math.inf
    status: str = "running"
    step: int = 0
    message: str = ""

    @property
    def live(self) -> bool:
        """Whether it still trains."""
        return self.status == "running"

    def end(self, status: str, step: int, message: str = "") -> None:
        """Note how it ended.

        Args:
            status: finished, diverged or failed.
            step: The last step that counts.
            message: Why, in one line.
        """
        self.status, self.step, self.message = status, step, message

    def record(self, rows: StepColumns, failed: tuple[int, str] | None) -> None:
        """Write the rows of its steps, up to the one at which it diverged or failed, where it did.

        Args:
            rows: Its steps since the last time.
            failed: Last step that counts, and why a solve failed there.
        """
        until = math.inf if failed is None else failed[0]
        steps, losses = rows.columns[0], rows.columns[1]
        assert steps is not None
        assert losses is not None
        kept, diverged = 0, False
        for step, loss in zip(steps, losses, strict=True):
            if step > until or diverged:
                break
            kept, diverged = kept + 1, self.beyond(loss)
        self.recorder.steps_taken(rows.first(kept))
        if diverged:
            self.diverge(int(steps[kept - 1]), losses[kept - 1])
        elif failed is not None:
            self.end("failed", *failed)

    def beyond(self, loss: float) -> bool:
        """Whether a loss counts as divergence.

        Args:
            loss: Mean nll.

        Returns:
            True above the limit, or where it is not finite.
        """
        return not math.isfinite(loss) or loss > self.limit

    def diverge(self, step: int, loss: float) -> None:
        """Note a divergence.

        Args:
            step: Where.
            loss: The loss there.
        """
        reason = f"loss {loss:.4g}, above {self.limit:.4g} or not finite"
        self.end("diverged", step, f"diverged at step {step}: {reason}")

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs.

        Returns:
            Plain values.
        """
        about = {"limit": self.limit, "status": self.status, "step": self.step, "message": self.message}
        return about | {"recorder": self.recorder.state()}

    def load(self, state: dict[str, Any]) -> None:
        """Go back to a checkpoint; the tables of a run that has ended since stay as they are.

        Args:
            state: As `state` returned it.
        """
        self.limit = state["limit"]
        if self.live:
            self.end(state["status"], state["step"], state["message"])
            self.recorder.load(state["recorder"])
