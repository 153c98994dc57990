"""What a run leaves on disk: its tables and its status."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fisherlab.files import write_json
from fisherlab.training.tables import Table, Value, cell

QUANTITIES = [f"{split}_{quantity}" for split in ("train", "valid", "test") for quantity in ("loss", "error")]
QUANTITIES += ["objective", "average_error"]
METRICS = ["step", "epoch", "examples", "seconds", *QUANTITIES, "cpu_seconds"]
CLOCKS = ("seconds", "cpu_seconds")  # all that differs between equal runs
STEPS = ["step", "loss", "grad_norm", "update_norm", "lr", "damping"]
HISTOGRAM = ["step", "layer", "bin_left", "bin_right", "count"]
# Half-decades of squared gradient entries; the first bin also takes what is smaller (and zero), the last what is more.
LOW, HIGH, BINS = -24.0, 8.0, 64
EDGES = ["0", *(cell(10.0 ** (LOW + i * (HIGH - LOW) / BINS), 9) for i in range(1, BINS + 1))]

Hyper = float | Tensor | None


@dataclass(frozen=True)
class StepColumns:
    """Rows of `steps.csv`, by column.

    Attributes:
        names: Of the columns.
        columns: Values, equally long; None for an empty column.
    """

    names: list[str]
    columns: list[list[Any] | None]

    def first(self, n: int) -> StepColumns:
        """Keep the first rows.

        Args:
            n: How many.

        Returns:
            The rows.
        """
        return StepColumns(self.names, [None if c is None else c[:n] for c in self.columns])


class StepLog:
    """Rows of steps that wait on the device, all replicas in one tensor, so that recording never synchronises.

    Args:
        replicas: The replica axes.
    """

    def __init__(self, replicas: Sequence[int]) -> None:
        self.replicas = torch.Size(replicas)
        self._waiting: list[tuple[int, Tensor, dict[str, Tensor], Hyper, Hyper]] = []

    def add(self, step: int, loss: Tensor, report: dict[str, Tensor], lr: Hyper, damping: Hyper) -> None:
        """Keep one step's row.

        Args:
            step: Counted from 1.
            loss: Mean nll of the batch before the step, [*replicas].
            report: What the optimizer reports, [*replicas] each.
            lr: Learning rate used, or None where the optimizer does not tell.
            damping: lambda used, or None.
        """
        self._waiting.append((step, loss, dict(report), lr, damping))

    def take(self) -> list[StepColumns]:
        """Bring the rows to the host; synchronises.

        Returns:
            One per replica, row-major; none where nothing waits.
        """
        if not self._waiting:
            return []
        waiting, self._waiting = self._waiting, []
        reported = list(waiting[0][2])
        names = STEPS + [n for n in reported if n not in STEPS]
        values = {"loss": self._numbers([w[1] for w in waiting])}
        values |= {n: self._numbers([w[2].get(n, torch.full_like(w[1], torch.nan)) for w in waiting]) for n in reported}
        values |= {"lr": self._hypers([w[3] for w in waiting]), "damping": self._hypers([w[4] for w in waiting])}
        steps = [w[0] for w in waiting]
        lanes = range(self.replicas.numel())
        return [StepColumns(names, [steps, *(values[n][i] if n in values else None for n in names[1:])]) for i in lanes]

    def _numbers(self, values: list[Tensor]) -> list[Any]:
        """One list per replica."""
        # A policy's first values may lie on the host still.
        rows = torch.stack([value.to(values[-1].device) for value in values], -1)
        return rows.expand(*self.replicas, -1).reshape(self.replicas.numel(), -1).tolist()

    def _hypers(self, values: list[Hyper]) -> list[Any]:
        if any(v is None for v in values):
            return [None] * self.replicas.numel()
        if not any(isinstance(v, Tensor) for v in values):
            return [values] * self.replicas.numel()
        return self._numbers([torch.as_tensor(v, dtype=torch.float64).expand(self.replicas) for v in values])


class Recorder:
    """The tables and the status of one run.

    Args:
        folder: The run directory.
        digits: Significant digits of the floats.
    """

    def __init__(self, folder: Path, digits: int) -> None:
        self.folder = folder
        self.metrics = Table(folder / "metrics.csv", METRICS)
        self.steps = Table(folder / "steps.csv", STEPS, digits)
        self.histogram = Table(folder / "gradient_histogram.csv", HISTOGRAM, digits)
        self.best: dict[str, dict[str, float]] = {}
        self.last: dict[str, Value] = {}

    @property
    def tables(self) -> list[Table]:
        """Every table."""
        return [self.metrics, self.steps, self.histogram]

    def steps_taken(self, rows: StepColumns) -> None:
        """Write rows of `steps.csv`.

        Args:
            rows: In order.
        """
        self.steps.columns = rows.names
        self.steps.append_columns(rows.columns)

    def metric(self, row: dict[str, Value]) -> None:
        """Write one evaluation, and remember the best of each quantity.

        Args:
            row: Values by column; missing columns stay empty.
        """
        self.metrics.append([[row.get(c) for c in self.metrics.columns]])
        self.last = {k: v for k, v in row.items() if k not in CLOCKS}
        for column in QUANTITIES:
            value = row.get(column)
            if (
                isinstance(value, float)
                and math.isfinite(value)
                and value < self.best.get(column, {}).get("value", math.inf)
            ):
                self.best[column] = {"value": value, "step": int(row["step"] or 0)}

    def gradients(self, step: int, layers: dict[str, Tensor]) -> None:
        """Write histograms of squared gradient entries; synchronises.

        Args:
            step: Counted from 1.
            layers: Gradient entries by layer, any shape.
        """
        names: list[str] = []
        counts: list[int] = []
        for name, entries in layers.items():
            # The square's logarithm is twice the entry's: so a float32 square cannot underflow. histc leaves out NaN.
            exponents = entries.detach().flatten().abs().log10().mul_(2).clamp_(LOW, HIGH - (HIGH - LOW) / 2 / BINS)
            counts += torch.histc(exponents, BINS, LOW, HIGH).long().tolist()
            names += [name] * BINS
        n = len(layers)
        self.histogram.append_columns([[step] * n * BINS, names, EDGES[:-1] * n, EDGES[1:] * n, counts])

    def status(self, status: str, **more: Any) -> None:
        """Write `status.json`.

        Args:
            status: running, finished, diverged or failed.
            **more: Further entries.
        """
        write_json(self.folder / "status.json", {"status": status, "final": self.last, "best": self.best, **more})

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs: the tables' lengths, and the best metrics.

        Returns:
            Plain values.
        """
        return {"lengths": {t.path.name: t.length() for t in self.tables}, "best": self.best, "last": self.last}

    def load(self, state: dict[str, Any]) -> None:
        """Cut the tables back to a checkpoint.

        Args:
            state: As `state` returned it.
        """
        lengths = [(table, state["lengths"][table.path.name]) for table in self.tables]
        # A table that lacks something is told before any is cut.
        for table, length in sorted(lengths, key=lambda pair: pair[0].length() >= pair[1]):
            table.cut(length)
        self.metrics.columns = self.metrics.header() or METRICS  # fewer where an older version began
        self.best, self.last = state["best"], state["last"]
