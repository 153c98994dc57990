"""Claims of K-FAC against the baseline, and on the size of the batch: one run each, so their numbers decide nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fisherlab.studies.martens2015.problems import AVERAGED_FIXED, DRAWN, kfac_told, nag_told
from fisherlab.studies.martens2015.run_verdicts import BASELINE, NO_MOMENTUM, TRI, baseline_told, where
from fisherlab.studies.martens2015.tables import at, data_name, early_end, evaluations, processor, reached
from fisherlab.studies.study import Claim

ONE = "one run each, below 10 seeds inconclusive"
LATE = 1.5  # times the error to which all sizes of the batch come: where what is late begins
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
    batch = settings["no_momentum_batch"]
    for problem in settings["problems"]:
        tri, baseline = (evaluations(folder, problem, method, 0) for method in (TRI, BASELINE))
        without = evaluations(folder, problem, NO_MOMENTUM, "batch", batch)
        against = f"{nag_told(problem)}, {baseline_told(folder, problem)}"
        if tri is not None and baseline is not None:
            ends = early_end(folder, (problem, TRI, 0), (problem, BASELINE, 0))
            yield _orders(f"{where(folder, problem)}; {against}{ends}", tri, baseline, settings)
        if without is not None and baseline is not None:
            ends = early_end(folder, (problem, NO_MOMENTUM, "batch", batch), (problem, BASELINE, 0))
            setting = (
                f"{data_name(folder, problem)}, batches of {batch}; {kfac_told(problem)}, {AVERAGED_FIXED}, {DRAWN}"
            )
            setting += f"; {against}{ends}"
            yield _without_momentum(setting, processor(folder), without, baseline)
    yield from _batches(folder, settings["problems"][0], settings["fixed_batches"])


def _orders(setting: str, tri: Any, baseline: Any, settings: dict[str, Any]) -> Claim:
    """At errors on the baseline's way: the further it has come, the slower it is. And what it never reaches."""
    least, first = (float(v) for v in (baseline["error"].min(), baseline["error"].iloc[0]))
    ratios = []
    for level in (first ** (1 - share) * least**share for share in (0.8, 0.9, 1.0)):
        when, base = (reached(run, level, "step") for run in (tri, baseline))
        if when is None or base is None:
            ratios.append(f"never to {level:.3g}")
        elif when:
            ratios.append(f"to {level:.3g} in {when:.0f} against {base:.0f} iterations, {base / when:.1f} times fewer")
    own, last = float(tri["error"].min()), float(baseline["step"].max())
    if own < least:
        best = float(tri["step"][tri["error"].idxmin()])
        ratios.append(f"to {own:.3g}, where the baseline never is, in {best:.0f}, over {last / best:.1f} times fewer")
    equal = [(k, at(baseline, k), at(tri, k)) for k in (settings["early"], settings["iterations"])]
    ratios += [f"the baseline has {b / a:.3g} times its error at iteration {k}" for k, b, a in equal if a and b]
    return Claim(
        "K-FAC with momentum takes orders of magnitude (100 times) fewer iterations than the baseline",
        "Section 13, Figure 11", setting, "100 times fewer or more", "; ".join(ratios), 1, ONE, "inconclusive",
    )  # fmt: skip


def _without_momentum(setting: str, seconds: str, without: Any, baseline: Any) -> Claim:
    told = []
    for share in (0.25, 0.5, 1.0):  # of its iterations: to what it has reached by then
        level = float(without.loc[without["step"] <= share * without["step"].max(), "error"].min())
        when, base = (reached(run, level, "cpu_seconds") for run in (without, baseline))
        assert when is not None  # it is its own error
        other = "never as low" if base is None else f"{base:.3g}" + (f": {when / base:.2f} times" if base else "")
        told.append(f"to {level:.3g} in {when:.3g} {seconds}, the baseline {other}")
    return Claim(
        "without momentum K-FAC is not significantly faster than the baseline: at least half its time",
        "Section 13, Figures 10 and 11", setting, "0.5 times its time or more", "; ".join(told), 1, ONE, "inconclusive",
    )  # fmt: skip


def _batches(folder: Path, problem: str, sizes: list[int]) -> Iterator[Claim]:
    """Figure 9: how the cases that are needed depend on the batch, from the start, and late, where the paper looks."""
    # At first K-FAC's damping falls by iterations, whatever the batch, so that a larger one only costs more cases.
    for method, (told, expected, least, most) in POWERS.items():
        runs = [evaluations(folder, problem, method, "batch", m) for m in sizes]
        if any(run is None for run in runs) or len(sizes) < 2:
            continue
        level = max(float(run["error"].min()) for run in runs)  # type: ignore[index]
        late = _power(runs, sizes, LATE * level, level)
        if late is None:
            continue  # one of them never got below its first error
        whole = _power(runs, sizes, math.inf, level)
        spans = ["{:.0f} to {:.0f}".format(*(reached(r, e, "step") for e in (LATE * level, level))) for r in runs]
        own = f"{kfac_told(problem)}, {AVERAGED_FIXED}, {DRAWN}"
        if method == BASELINE:
            own = f"{nag_told(problem)}, {baseline_told(folder, problem)}, the same with all sizes"
        ends = early_end(folder, *((problem, method, "batch", m) for m in sizes))
        yield Claim(
            f"{method}: {told}", "Section 13, Figure 9",
            f"{data_name(folder, problem)}, batches of {', '.join(map(str, sizes))}; {own}{ends}",
            f"{expected}: a power from {least:g} to {most:g}, late",
            f"from an error of {LATE * level:.3g} to {level:.3g}, in iterations {', '.join(spans)}, cases grow with "
            f"the batch to the power {late:.2f}; from the start {whole:.2f}", 1, ONE, "inconclusive",
        )  # fmt: skip


def _power(runs: list[Any], sizes: list[int], start: float, level: float) -> float | None:
    """By which power of the batch the cases between two errors grow; None where a run needs none."""
    cases = [_between(run, start, level) for run in runs]
    return float(np.polyfit(np.log(sizes), np.log(cases), 1)[0]) if all(cases) else None


def _between(run: Any, start: float, level: float) -> float:
    began, ended = reached(run, start, "examples"), reached(run, level, "examples")
    assert began is not None  # the level is one that all runs get to
    assert ended is not None
    return ended - began
