"""Take turns, and compare: every ratio is that of two tasks in one round."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence

import torch

Seconds = dict[str, list[float]]
# Hundreds of steps on one batch would fit it until gradients are denormal numbers, on which processors are slow.
LR = 1e-6


def interleaved(tasks: dict[str, Callable[[], float]], rounds: int) -> Seconds:
    """Run every task once per round, in turn; each returns its seconds."""
    seconds: Seconds = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, task in tasks.items():
            gc.collect()
            seconds[name].append(task())
    return seconds


def timed(step: Callable[[], object], steps: int) -> float:
    """Seconds per step."""
    began = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - began) / steps


def quartiles(values: Sequence[float]) -> list[float]:
    """Lower quartile, median, upper quartile; one value is all three."""
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3


def compare(
    what: str, against: str, bar: float | None, seconds: Seconds, mine: str, other: str, replicas: int | None = None
) -> dict[str, object]:
    """A row of the ratio table: medians, and the quartiles of the ratio over rounds."""
    ratio_q1, ratio, ratio_q3 = quartiles([a / b for a, b in zip(seconds[mine], seconds[other], strict=True)])
    return {
        "what": what, "against": against, "ms": 1e3 * statistics.median(seconds[mine]),
        "against_ms": 1e3 * statistics.median(seconds[other]), "ratio": ratio, "ratio_q1": ratio_q1,
        "ratio_q3": ratio_q3, "bar": bar, "rounds": len(seconds[mine]), "threads": torch.get_num_threads(),
        "replicas": replicas,
    }  # fmt: skip
