"""Runs of Kunstner et al.'s a1a grid: side by side, against one after another with dense numpy matrices (their way)."""

from __future__ import annotations

import numpy as np
import torch

from fisherlab.studies.kunstner2019.descent import Problem, descend
from fisherlab.studies.kunstner2019.grids import convex
from scripts.bench.timing import compare, interleaved, timed

ITERATIONS, LANES = 20, 512
GAMMA, DAMPING = 0.1, 1e-2


def alone(one: Problem, method: str) -> float:
    """One run as the authors' code makes it; its last loss."""
    x = np.concatenate([one.x.numpy(), np.ones((len(one.x), 1))], 1)
    y, n, theta = one.y.numpy()[:, 0], len(x), np.zeros(x.shape[1])
    loss = np.nan
    for _ in range(ITERATIONS):
        p = np.clip(1 / (1 + np.exp(-(x @ theta))), 1e-8, 1 - 1e-8)
        loss = -np.mean(y * np.log(p) + (1 - y) * np.log(1 - p))
        w = p * (1 - p) if method == "NGD" else (p - y) ** 2
        m = x.T @ (w[:, None] * x) / n + DAMPING * np.eye(len(theta))
        theta = theta - GAMMA * np.linalg.solve(m, x.T @ (p - y) / n)
    return float(loss)


def together(one: Problem, method: str) -> float:
    """As many equal runs as stand side by side; the last loss of the first."""
    gammas, lambdas = (torch.full((LANES,), v, dtype=torch.float64) for v in (GAMMA, DAMPING))
    return float(descend(one, method, gammas, lambdas, ITERATIONS).losses[0, ITERATIONS - 1])


def bench(rounds: int) -> list[dict[str, object]]:
    """Seconds per run and step, by method."""
    one, rows = convex("a1a"), []
    for method in ("NGD", "EFGD"):
        if abs(together(one, method) / alone(one, method) - 1) > 1e-9:
            raise ArithmeticError(f"{method}: both ways must give the same loss")
        tasks = {
            "together": lambda m=method: timed(lambda: together(one, m), 1) / LANES / ITERATIONS,
            "alone": lambda m=method: timed(lambda: alone(one, m), 3) / ITERATIONS,
        }
        what = f"{method} on a1a (1605 x 120, float64), {LANES} runs side by side, per run and step"
        rows.append(
            compare(what, "one after another, dense numpy", None, interleaved(tasks, rounds), "together", "alone")
        )
    return rows
