"""What a run leaves on disk: its tables and its status."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fisherlab.files import write_json
from fisherlab.training.tables import Table, Value, cell

METRICS = ["step", "epoch", "examples", "seconds"]
METRICS += [f"{split}_{quantity}" for split in ("train", "valid", "test") for quantity in ("loss", "error")]
METRICS += ["objective", "average_error"]
STEPS = ["step", "loss", "grad_norm", "update_norm", "lr", "damping"]
HISTOGRAM = ["step", "layer", "bin_left", "bin_right", "count"]
# Half-decades of squared gradient entries; the first bin also takes what is smaller (and zero), the last what is more.
EXPONENTS = (-24.0, 8.0, 64)


class Recorder:
    """The tables of one run. Step rows wait on the device until `flush`, so that recording never synchronises.

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
        self._waiting: list[tuple[int, Tensor, dict[str, Tensor], float | None, float | None]] = []

    @property
    def tables(self) -> list[Table]:
        """Every table."""
        return [self.metrics, self.steps, self.histogram]

    def step(self, step: int, loss: Tensor, report: dict[str, Tensor], lr: float | None, damping: float | None) -> None:
        """Keep one step's row for the next flush.

        Args:
            step: Counted from 1.
            loss: Mean nll of the batch before the step, one element.
            report: What the optimizer reports, one element each.
            lr: Learning rate used, or None where the optimizer does not tell.
            damping: lambda used, or None.
        """
        self._waiting.append((step, loss, dict(report), lr, damping))

    def flush(self, limit: float, stop: int | None = None) -> tuple[int, float] | None:
        """Write the waiting rows, up to the first that diverged; synchronises.

        Args:
            limit: The loss above which a run counts as diverged.
            stop: Last step that may be written.

        Returns:
            Step and loss of the divergence, or None.
        """
        rows, diverged = self._rows(), None
        self._waiting.clear()
        kept: list[Sequence[Value]] = []
        for row in rows:
            if stop is not None and row[0] > stop:
                break
            kept.append(row)
            if not math.isfinite(row[1]) or row[1] > limit:
                diverged = (row[0], row[1])
                break
        self.steps.append(kept)
        return diverged

    def _rows(self) -> list[list[Any]]:
        if not self._waiting:
            return []
        names = [n for n in self._waiting[0][2] if n not in STEPS]
        self.steps.columns = STEPS + names
        columns = {n: self._host([w[2].get(n) for w in self._waiting]) for n in ("grad_norm", "update_norm", *names)}
        losses = self._host([w[1] for w in self._waiting])
        return [
            [
                w[0],
                losses[i],
                columns["grad_norm"][i],
                columns["update_norm"][i],
                w[3],
                w[4],
                *(columns[n][i] for n in names),
            ]
            for i, w in enumerate(self._waiting)
        ]

    @staticmethod
    def _host(values: list[Tensor | None]) -> list[Any]:
        """Bring one number per step to the host in a single transfer."""
        present = [v for v in values if v is not None]
        if len(present) < len(values):
            return [None if v is None else float(v) for v in values]
        return torch.stack(present).flatten().tolist()

    def metric(self, row: dict[str, Value]) -> None:
        """Write one evaluation, and remember the best of each quantity.

        Args:
            row: Values by column; missing columns stay empty.
        """
        self.metrics.append([[row.get(c) for c in METRICS]])
        self.last = {k: v for k, v in row.items() if k != "seconds"}
        for column in METRICS[4:]:
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
        low, high, bins = EXPONENTS
        width = (high - low) / bins
        edges = ["0", *(cell(10.0 ** (low + i * width), 9) for i in range(1, bins + 1))]
        rows: list[Sequence[Value]] = []
        for name, entries in layers.items():
            # The square's logarithm is twice the entry's: so a float32 square cannot underflow. histc leaves out NaN.
            exponents = entries.detach().flatten().abs().log10().mul_(2).clamp_(low, high - width / 2)
            counts = torch.histc(exponents, bins, low, high).long().tolist()
            rows += [[step, name, *bin_] for bin_ in zip(edges, edges[1:], counts, strict=False)]
        self.histogram.append(rows)

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
        self.best, self.last = state["best"], state["last"]
