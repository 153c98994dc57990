"""Claims on the training runs: the authors' own numbers, one method against another, and the size of the batch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from fisherlab.studies.judge import LEVEL, Effect, holds, verdicts
from fisherlab.studies.martens2015.problems import METHODS, PROBLEMS
from fisherlab.studies.martens2015.tables import at, evaluations, reached
from fisherlab.studies.study import Claim

TRI, DIAGONAL, NO_MOMENTUM, BASELINE = METHODS
LEAST = 3  # seeds of a prediction interval
# Figure 9: what is claimed, what it leads to expect, and within which powers of the batch the cases then lie.
POWERS = {
    TRI: ("progress per iteration grows superlinearly with the batch", "fewer cases", -math.inf, -0.05),
    NO_MOMENTUM: ("progress per iteration grows at most linearly with the batch", "as many cases or more", -0.05, 0.5),
    BASELINE: ("progress per iteration barely grows with the batch", "cases in proportion", 0.7, 1.3),
}


def run_claims(folder: Path, settings: dict[str, Any], decisive: bool) -> Iterator[Claim]:
    """Judge by the runs that there are.

    Args:
        folder: The study's folder.
        settings: The scale's.
        decisive: Whether it is the paper's.

    Yields:
        The claims, problem by problem, then on the size of the batch.
    """
    for problem in settings["problems"]:
        yield from _official(folder, problem, settings["early_seeds"])
        yield from _methods(folder, problem, settings, decisive)
    yield from _batches(folder, settings["problems"][0], settings, decisive)


def prediction(values: Sequence[float]) -> tuple[float, float]:
    """Where one more run would lie, with 95 % probability, were logarithms normal.

    Args:
        values: Of independent runs.

    Returns:
        The interval.
    """
    logs = np.log(values)
    half = stats.t.ppf(1 - LEVEL / 2, len(logs) - 1) * logs.std(ddof=1) * math.sqrt(1 + 1 / len(logs))
    return math.exp(logs.mean() - half), math.exp(logs.mean() + half)


def _official(folder: Path, problem: str, seeds: int) -> Iterator[Claim]:
    runs = [run for seed in range(seeds) if (run := evaluations(folder, problem, TRI, seed)) is not None]
    logs = (
        ("training", "train_error", PROBLEMS[problem].official),
        ("test", "test_error", PROBLEMS[problem].official_test),
    )
    for which, column, official in logs:
        for step, value in official.items():
            found = [v for run in runs if (v := at(run, step, column)) is not None]
            if len(found) < LEAST:
                continue
            low, high = prediction(found)
            yield Claim(
                f"{which} error at iteration {step} as in the authors' run", "the authors' log", f"{problem}, {TRI}",
                f"{value:g}", f"{np.exp(np.log(found).mean()):.4g}, from {min(found):.4g} to {max(found):.4g}",
                len(found), f"95 % prediction interval [{low:.4g}, {high:.4g}] of one more run",
                holds(low <= value <= high),
            )  # fmt: skip


def _methods(folder: Path, problem: str, settings: dict[str, Any], decisive: bool) -> Iterator[Claim]:
    early = settings["early"]
    pairs = [
        (evaluations(folder, problem, TRI, s), evaluations(folder, problem, DIAGONAL, s))
        for s in range(settings["early_seeds"])
    ]
    both = [(a, b) for a, b in pairs if a is not None and b is not None and at(b, early) is not None]
    if len(both) > 1:
        yield _ahead(problem, early, both)
        yield from _fewer(problem, early, both)
    tri, diagonal = pairs[0]
    if tri is not None and diagonal is not None:
        yield from _per_second(problem, tri, diagonal, decisive)
    baseline = evaluations(folder, problem, BASELINE, 0)
    if tri is not None and baseline is not None:
        yield _orders(problem, tri, baseline, decisive)
    batch = settings["fixed_batches"][-1]
    without = evaluations(folder, problem, NO_MOMENTUM, "batch", batch)
    if without is not None and baseline is not None:
        yield from _without_momentum(problem, batch, without, baseline, decisive)


def _ahead(problem: str, early: int, both: list[tuple[Any, Any]]) -> Claim:
    effect = Effect([math.log(at(b, early) / at(a, early)) for a, b in both])  # type: ignore[operator]
    return Claim(
        "block-tridiagonal K-FAC is ahead of block-diagonal per iteration", "Section 13, Figure 11",
        f"{problem}, iteration {early}, paired seeds", "a lower error",
        f"block-diagonal's error is {math.exp(float(np.mean(effect.values))):.3f} times the other's", len(both),
        f"of the log ratio: {effect.told}", verdicts([effect])[0],
    )  # fmt: skip


def _fewer(problem: str, early: int, both: list[tuple[Any, Any]]) -> Iterator[Claim]:
    needed = [reached(a, at(b, early), "step") for a, b in both]  # type: ignore[arg-type]
    fewer = [1 - n / early for n in needed if n is not None]
    if len(fewer) < len(both):
        return
    effect = Effect(fewer)
    low, high = effect.interval
    decided = "reproduced" if low <= 0.3 and high >= 0.2 else "contradicted"
    yield Claim(
        "block-tridiagonal K-FAC's rate of progress is 25 to 40 % larger: 20 to 30 % fewer iterations", "Section 13",
        f"{problem}, to block-diagonal's error at iteration {early}, growing batch", "0.2 to 0.3 fewer",
        f"{np.mean(fewer):.3f} fewer", len(fewer), effect.told, decided if len(fewer) >= 10 else "inconclusive",
    )  # fmt: skip


def _per_second(problem: str, tri: Any, diagonal: Any, decisive: bool) -> Iterator[Claim]:
    level = float(diagonal["error"].iloc[-1])
    when = reached(tri, level, "seconds")
    if when is None:
        return
    ratio = when / float(diagonal["seconds"].iloc[-1])
    yield Claim(
        "block-tridiagonal K-FAC is only moderately better per second", "Section 13, Figure 10",
        f"{problem}, to block-diagonal's last error {level:.3g}, seed 0", "somewhat below 1",
        f"{ratio:.2f} of its seconds", 1, "one run each; reproduced from 0.7 to 1",
        holds(0.7 <= ratio <= 1, decisive=decisive),
    )  # fmt: skip


def _orders(problem: str, tri: Any, baseline: Any, decisive: bool) -> Claim:
    level, updates = float(baseline["error"].min()), int(baseline["step"].iloc[-1])
    when = reached(tri, level, "step")
    ratio = 0.0 if when is None else updates / when
    told = (
        f"not to {level:.3g}"
        if when is None
        else f"to {level:.3g} in {when:.0f} against {updates} iterations, {ratio:.0f} times fewer"
    )
    return Claim(
        "K-FAC with momentum takes orders of magnitude fewer iterations than the baseline", "Section 13, Figure 11",
        f"{problem}, seed 0, to the baseline's last error", "a factor of 100 or more", told, 1, "one run each",
        holds(ratio >= 100, decisive=decisive and not 10 <= ratio < 100),
    )  # fmt: skip


def _without_momentum(problem: str, batch: int, without: Any, baseline: Any, decisive: bool) -> Iterator[Claim]:
    level = float(without["error"].min())
    when, base = (reached(run, level, "seconds") for run in (without, baseline))
    if when is None or base is None:
        return
    yield Claim(
        "without momentum K-FAC is not significantly faster than the baseline", "Section 13, Figures 10 and 11",
        f"{problem}, batches of {batch}, to its last error {level:.3g}, in seconds", "about 1 or more",
        f"{when / base:.2f} of the baseline's seconds", 1, "one run each; reproduced from 0.5 on",
        holds(when / base >= 0.5, decisive=decisive),
    )  # fmt: skip


def _batches(folder: Path, problem: str, settings: dict[str, Any], decisive: bool) -> Iterator[Claim]:
    """Figure 9: how the cases that are needed depend on the batch."""
    sizes = settings["fixed_batches"]
    for method, (told, expected, least, most) in POWERS.items():
        runs = [evaluations(folder, problem, method, "batch", m) for m in sizes]
        if any(run is None for run in runs) or len(sizes) < 2:
            continue
        level = max(float(run["error"].min()) for run in runs)  # type: ignore[index]
        cases = [reached(run, level, "examples") for run in runs]
        slope = float(np.polyfit(np.log(sizes), np.log([c or math.nan for c in cases]), 1)[0])
        yield Claim(
            f"{method}: {told}", "Section 13, Figure 9",
            f"{problem}, batches of {', '.join(map(str, sizes))}, to an error of {level:.3g}",
            expected, f"cases grow with the batch to the power {slope:.2f}", len(sizes),
            f"reproduced from {least:g} to {most:g}",
            holds(least <= slope <= most, decisive=decisive),
        )  # fmt: skip
