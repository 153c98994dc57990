"""Claims on the training runs: the authors' own numbers, one method against another, and the size of the batch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fisherlab.studies.judge import Effect, holds, prediction, verdicts
from fisherlab.studies.martens2015.problems import METHODS, PROBLEMS
from fisherlab.studies.martens2015.tables import at, evaluations, reached
from fisherlab.studies.study import Claim

TRI, DIAGONAL, NO_MOMENTUM, BASELINE = METHODS
LEAST = 5  # runs, below which to lie in their prediction interval decides nothing
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
        yield from _official(folder, problem, settings["early_seeds"], decisive)
        yield from _methods(folder, problem, settings, decisive)
    yield from _batches(folder, settings["problems"][0], settings, decisive)


def _official(folder: Path, problem: str, seeds: int, decisive: bool) -> Iterator[Claim]:
    runs = [run for seed in range(seeds) if (run := evaluations(folder, problem, TRI, seed)) is not None]
    logs = (
        ("training", "train_error", PROBLEMS[problem].official),
        ("test", "test_error", PROBLEMS[problem].official_test),
    )
    for which, column, official in logs:
        for step, value in official.items():
            found = [v for run in runs if (v := at(run, step, column)) is not None]
            if len(found) < 2:
                continue
            low, high = prediction(found)
            # The interval of a few runs is so wide that to lie inside it says little.
            inside = "reproduced" if len(found) >= LEAST else "inconclusive"
            yield Claim(
                f"{which} error at iteration {step} as in the authors' run", "the authors' log", f"{problem}, {TRI}",
                f"{value:g}", f"{np.exp(np.log(found).mean()):.4g}, from {min(found):.4g} to {max(found):.4g}",
                len(found), f"95 % prediction interval [{low:.4g}, {high:.4g}] of one more run",
                inside if low <= value <= high else holds(False, decisive=decisive),
            )  # fmt: skip


def _methods(folder: Path, problem: str, settings: dict[str, Any], decisive: bool) -> Iterator[Claim]:
    early = settings["early"]
    pairs = [
        (evaluations(folder, problem, TRI, s), evaluations(folder, problem, DIAGONAL, s))
        for s in range(settings["early_seeds"])
    ]
    both = [(a, b) for a, b in pairs if all(run is not None and at(run, early) is not None for run in (a, b))]
    if len(both) > 1:
        yield _ahead(problem, early, both)
        yield _fewer(problem, early, both)
    tri, diagonal = pairs[0]
    if tri is not None and diagonal is not None:
        yield _per_second(problem, tri, diagonal, decisive)
    baseline = evaluations(folder, problem, BASELINE, 0)
    if tri is not None and baseline is not None:
        yield _orders(problem, tri, baseline, decisive)
    batch = settings["fixed_batches"][-1]
    without = evaluations(folder, problem, NO_MOMENTUM, "batch", batch)
    if without is not None and baseline is not None:
        yield _without_momentum(problem, batch, without, baseline, decisive)


def _ahead(problem: str, early: int, both: list[tuple[Any, Any]]) -> Claim:
    effect = Effect([math.log(at(b, early) / at(a, early)) for a, b in both])  # type: ignore[operator]
    return Claim(
        "block-tridiagonal K-FAC is ahead of block-diagonal per iteration", "Section 13, Figure 11",
        f"{problem}, iteration {early}, paired seeds", "a lower error",
        f"block-diagonal's error is {math.exp(float(np.mean(effect.values))):.3f} times the other's", len(both),
        f"of the log ratio: {effect.told}", verdicts([effect])[0],
    )  # fmt: skip


def _fewer(problem: str, early: int, both: list[tuple[Any, Any]]) -> Claim:
    # A run that has not come as far when it ends has at least so many iterations.
    needed = [reached(a, at(b, early), "step") or float(a["step"].iloc[-1]) for a, b in both]  # type: ignore[arg-type]
    effect = Effect([1 - n / early for n in needed])
    low, high = effect.interval
    inside, apart = low >= 0.2 and high <= 0.3, high < 0.2 or low > 0.3
    decided = "reproduced" if inside else "contradicted" if apart else "inconclusive"
    return Claim(
        "block-tridiagonal K-FAC's rate of progress is 25 to 40 % larger: 20 to 30 % fewer iterations", "Section 13",
        f"{problem}, to block-diagonal's error at iteration {early}, growing batch", "0.2 to 0.3 fewer",
        f"{np.mean(effect.values):.3f} fewer", len(both), effect.told.partition(", against")[0],
        decided if len(both) >= 10 else "inconclusive",
    )  # fmt: skip


def _per_second(problem: str, tri: Any, diagonal: Any, decisive: bool) -> Claim:
    level = float(diagonal["error"].iloc[-1])
    when, whole = reached(tri, level, "seconds"), float(diagonal["seconds"].iloc[-1])
    told = "never as low" if when is None else f"{when / whole:.2f} of its seconds"
    return Claim(
        "block-tridiagonal K-FAC is only moderately better per second", "Section 13, Figure 10",
        f"{problem}, to block-diagonal's last error {level:.3g}, seed 0", "somewhat below 1",
        told, 1, "one run each; reproduced from 0.7 to 1",
        holds(when is not None and 0.7 <= when / whole <= 1, decisive=decisive),
    )  # fmt: skip


def _orders(problem: str, tri: Any, baseline: Any, decisive: bool) -> Claim:
    level = float(baseline["error"].min())
    updates = float(baseline["step"][baseline["error"].idxmin()])
    when = reached(tri, level, "step")
    ratio = 0.0 if when is None else updates / when if when else 1.0
    told = (
        f"not to {level:.3g}"
        if when is None
        else f"to {level:.3g} in {when:.0f} against {updates:.0f} iterations, {ratio:.0f} times fewer"
    )
    return Claim(
        "K-FAC with momentum takes orders of magnitude fewer iterations than the baseline", "Section 13, Figure 11",
        f"{problem}, seed 0, to the baseline's least error", "a factor of 100 or more", told, 1,
        "one run each; inconclusive from 10 to 100", holds(ratio >= 100, decisive=decisive and not 10 <= ratio < 100),
    )  # fmt: skip


def _without_momentum(problem: str, batch: int, without: Any, baseline: Any, decisive: bool) -> Claim:
    level = float(without["error"].min())
    when, base = (reached(run, level, "seconds") for run in (without, baseline))
    assert when is not None  # it is its own least error
    slower = base is not None and when >= 0.5 * base
    told = f"{when:.3g} s, the baseline never as low" if base is None else f"{when:.3g} s, the baseline {base:.3g} s"
    return Claim(
        "without momentum K-FAC is not significantly faster than the baseline", "Section 13, Figures 10 and 11",
        f"{problem}, batches of {batch}, to its least error {level:.3g}", "at least about as long", told, 1,
        "one run each; reproduced from half of its seconds on", holds(slower, decisive=decisive and level > 0),
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
        if not all(cases):
            continue  # one of them never got below its first error
        slope = float(np.polyfit(np.log(sizes), np.log(cases), 1)[0])  # type: ignore[arg-type]
        yield Claim(
            f"{method}: {told}", "Section 13, Figure 9",
            f"{problem}, batches of {', '.join(map(str, sizes))}, to an error of {level:.3g}",
            expected, f"cases grow with the batch to the power {slope:.2f}", len(sizes),
            f"one run each; reproduced from {least:g} to {most:g}",
            holds(least <= slope <= most, decisive=decisive),
        )  # fmt: skip
