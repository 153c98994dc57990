"""Claims of K-FAC against the baseline, and on the size of the batch: one run each, so their numbers decide nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fisherlab.studies.martens2015.problems import AVERAGED_FIXED, BASELINE_TOLD, DRAWN, KFAC_TOLD
from fisherlab.studies.martens2015.run_verdicts import BASELINE, NO_MOMENTUM, TRI, baseline_told, where
from fisherlab.studies.martens2015.tables import at, data_name, early_end, evaluations, processor, reached
from fisherlab.studies.study import Claim

ONE = "one run each, below 10 seeds inconclusive"
# Figure 9: what is claimed, what it leads to expect, and within which powers of the batch the cases then lie.
POWERS = {
    TRI: ("progress per iteration grows superlinearly with the batch", "fewer cases", -math.inf, -0.05),
    NO_MOMENTUM: ("progress per iteration grows at most linearly with the batch", "as many cases or more", -0.05, 0.5),
    BASELINE: ("progress per iteration barely grows with the batch", "cases in proportion", 0.7, 1.3),
}


def baseline_claims(folder: Path, settings: dict[str, Any]) -> Iterator[Claim]:
    """Tell what one run of each method shows.

    Args:
        folder: The study's folder.
        settings: The scale's.

    Yields:
        The claims, problem by problem, then on the size of the batch.
    """
    batch = settings["fixed_batches"][-1]
    for problem in settings["problems"]:
        tri, baseline = (evaluations(folder, problem, method, 0) for method in (TRI, BASELINE))
        without = evaluations(folder, problem, NO_MOMENTUM, "batch", batch)
        against = f"{BASELINE_TOLD}, {baseline_told(folder, problem)}"
        if tri is not None and baseline is not None:
            ends = early_end(folder, (problem, TRI, 0), (problem, BASELINE, 0))
            yield _orders(f"{where(folder, problem)}; {against}{ends}", tri, baseline, settings)
        if without is not None and baseline is not None:
            ends = early_end(folder, (problem, NO_MOMENTUM, "batch", batch), (problem, BASELINE, 0))
            setting = f"{data_name(folder, problem)}, batches of {batch}; {KFAC_TOLD}, {AVERAGED_FIXED}, {DRAWN}"
            setting += f"; {against}{ends}"
            yield _without_momentum(setting, processor(folder), without, baseline)
    yield from _batches(folder, settings["problems"][0], settings["fixed_batches"])


def _orders(setting: str, tri: Any, baseline: Any, settings: dict[str, Any]) -> Claim:
    level = float(baseline["error"].min())
    updates = float(baseline["step"][baseline["error"].idxmin()])
    when = reached(tri, level, "step")
    told = f"never to its least error {level:.3g}"
    if when is not None:
        told = f"to its least error {level:.3g} in {when:.0f} against {updates:.0f} iterations"
        told += f", {updates / when:.0f} times fewer" if when else ""
    equal = [(k, at(baseline, k), at(tri, k)) for k in (settings["early"], settings["iterations"])]
    ratios = [f"{b / a:.3g} times its error at iteration {k}" for k, b, a in equal if a and b]
    more = f"; the baseline has {', '.join(ratios)}" if ratios else ""
    return Claim(
        "K-FAC with momentum takes orders of magnitude (100 times) fewer iterations than the baseline",
        "Section 13, Figure 11", setting, "100 times fewer or more", told + more, 1, ONE, "inconclusive",
    )  # fmt: skip


def _without_momentum(setting: str, seconds: str, without: Any, baseline: Any) -> Claim:
    level = float(without["error"].min())
    when, base = (reached(run, level, "cpu_seconds") for run in (without, baseline))
    assert when is not None  # it is its own least error
    told = f"{when:.3g} {seconds}, the baseline "
    told += "never as low" if base is None else f"{base:.3g}" + (f": {when / base:.2f} times its time" if base else "")
    return Claim(
        "without momentum K-FAC is not significantly faster than the baseline: at least half its time",
        "Section 13, Figures 10 and 11", f"{setting}; to an error of {level:.3g}", "0.5 times its time or more", told,
        1, ONE, "inconclusive",
    )  # fmt: skip


def _batches(folder: Path, problem: str, sizes: list[int]) -> Iterator[Claim]:
    """Figure 9: how the cases that are needed depend on the batch."""
    for method, (told, expected, least, most) in POWERS.items():
        runs = [evaluations(folder, problem, method, "batch", m) for m in sizes]
        if any(run is None for run in runs) or len(sizes) < 2:
            continue
        level = max(float(run["error"].min()) for run in runs)  # type: ignore[index]
        cases = [reached(run, level, "examples") for run in runs]
        if not all(cases):
            continue  # one of them never got below its first error
        slope = float(np.polyfit(np.log(sizes), np.log(cases), 1)[0])  # type: ignore[arg-type]
        own = BASELINE_TOLD if method == BASELINE else f"{KFAC_TOLD}, {AVERAGED_FIXED}, {DRAWN}"
        ends = early_end(folder, *((problem, method, "batch", m) for m in sizes))
        setting = f"{data_name(folder, problem)}, batches of {', '.join(map(str, sizes))}, to an error of {level:.3g}"
        yield Claim(
            f"{method}: {told}", "Section 13, Figure 9", f"{setting}; {own}{ends}",
            f"{expected}: a power from {least:g} to {most:g}", f"cases grow with the batch to the power {slope:.2f}", 1,
            ONE, "inconclusive",
        )  # fmt: skip
