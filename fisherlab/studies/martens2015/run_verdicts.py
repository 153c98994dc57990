"""Claims on the training runs: the authors' own numbers, one method against another, and what the machine must do."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fisherlab.studies.judge import Effect, between, holds, prediction, verdicts
from fisherlab.studies.martens2015.baseline import RATES, rivals
from fisherlab.studies.martens2015.problems import AVERAGED, DRAWN, METHODS, PROBLEMS, kfac_told
from fisherlab.studies.martens2015.runs import TIMED, TIMED_THREADS
from fisherlab.studies.martens2015.tables import (
    at,
    commit,
    data_name,
    derived,
    early_end,
    evaluations,
    processor,
    reached,
    took,
)
from fisherlab.studies.study import Claim

TRI, DIAGONAL, NO_MOMENTUM, BASELINE = METHODS
LEAST = 5  # runs, below which to lie in their prediction interval decides nothing
MINUTES = {300: 15, 500: 75}  # of computing to an iteration, at most
SHARE, MEMORY = 0.5, 8  # of the rate of products, at least; GiB, below


def run_claims(folder: Path, settings: dict[str, Any], decisive: bool) -> Iterator[Claim]:
    """Judge by the runs that there are.

    Args:
        folder: The study's folder.
        settings: The scale's.
        decisive: Whether it is the paper's.

    Yields:
        The claims, problem by problem, then what the first problem's runs took.
    """
    summary = derived(folder).get("runs.csv")
    for problem in settings["problems"]:
        yield from _official(folder, problem, settings["early_seeds"], decisive)
        yield from _inverses(folder, problem, settings)
        if summary is not None and (summary["problem"] == problem).any():
            yield _ended(data_name(folder, problem), summary[summary["problem"] == problem])
    first = settings["problems"][0]
    yield from _minutes(folder, first, decisive)
    if summary is not None:
        yield from _machine(folder, first, summary[summary["problem"] == first], settings["seeds"], decisive)


def where(folder: Path, problem: str) -> str:
    """Tell a claim's setting, of the runs with the growing batch."""
    return f"{data_name(folder, problem)}, growing batch; {kfac_told(problem)}, {AVERAGED}, {DRAWN}"


def _official(folder: Path, problem: str, seeds: int, decisive: bool) -> Iterator[Claim]:
    runs = [run for seed in range(seeds) if (run := evaluations(folder, problem, TRI, seed)) is not None]
    ends = early_end(folder, *((problem, TRI, seed) for seed in range(seeds)))
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
            mean = float(np.exp(np.log(found).mean()))
            # The interval of a few runs is so wide that to lie inside it says little.
            inside = "reproduced" if len(found) >= LEAST and not ends else "inconclusive"
            yield Claim(
                f"{which} error at iteration {step} as in the authors' run", "the authors' log",
                f"{where(folder, problem)}; {TRI}", f"{value:g}",
                f"{mean:.4g}, {mean / value:.3f} times the log's, from {min(found):.4g} to {max(found):.4g}{ends}",
                len(found),
                f"95 % prediction interval [{low:.4g}, {high:.4g}] of one more run{_one(runs, step, column)}",
                inside if low <= value <= high else holds(False, decisive=decisive),
            )  # fmt: skip


def _one(runs: list[Any], step: int, column: str) -> str:
    """How much one iteration is about a step: the log does not say on which side of the update it counts."""
    before = [[at(run, s, column) for s in (step - 10, step)] for run in runs]
    falls = [math.log(a / b) / 10 for a, b in before if a and b]
    return f"; the log may count before or after the update, here {np.mean(falls):.1%} of error" if falls else ""


def _inverses(folder: Path, problem: str, settings: dict[str, Any]) -> Iterator[Claim]:
    """The two inverses: pairs by seed to the early iteration, one pair or a few to the end."""
    early, every, last = (settings[key] for key in ("early", "every", "iterations"))
    names = [((problem, TRI, s), (problem, DIAGONAL, s)) for s in range(settings["early_seeds"])]
    pairs = [(evaluations(folder, *one), evaluations(folder, *other)) for one, other in names]
    setting = where(folder, problem) + early_end(folder, *(name for pair in names for name in pair))
    middle = (early + last) // 2 // every * every
    both = _to(pairs, early)
    if len(both) > 1:
        yield _ahead(setting, early, both)
    # Each range for itself: at the start gamma is so large that both inverses nearly are one.
    ranges = ((0, early), (early * 2 // 5 // every * every, early), (early, middle), (middle, last))
    for start, end in dict.fromkeys(ranges):
        yield from _fewer(setting, start, end, _to(pairs, end))
    # What another version of the code took is no measure of this one.
    alike = [pair for two, pair in zip(names, pairs, strict=True) if len({commit(folder, *one) for one in two}) == 1]
    if timed := _to(alike, early):
        yield _per_second(folder, setting, early, timed, pairs[0])


def _to(pairs: list[tuple[Any, Any]], step: int) -> list[tuple[Any, Any]]:
    """The pairs in which both have come to a step."""
    return [(a, b) for a, b in pairs if all(run is not None and at(run, step) is not None for run in (a, b))]


def _ahead(setting: str, early: int, both: list[tuple[Any, Any]]) -> Claim:
    effect = Effect([math.log(at(b, early) / at(a, early)) for a, b in both])  # type: ignore[operator]
    return Claim(
        "block-tridiagonal K-FAC is ahead of block-diagonal per iteration", "Section 13, Figure 11",
        f"{setting}; iteration {early}, paired seeds", "a lower error",
        f"block-diagonal's error is {math.exp(float(np.mean(effect.values))):.3f} times the other's", len(both),
        f"of the log ratio: {effect.told}", verdicts([effect])[0],
    )  # fmt: skip


def fewer(tri: Any, diagonal: Any, start: int, end: int) -> float | None:
    """How many iterations fewer one run takes from the other's error at a step to its error at another.

    Args:
        tri: The one's evaluations.
        diagonal: The other's.
        start: Where the other begins.
        end: Where it ends.

    Returns:
        The share of the other's; None where that one gets no further in between.
    """
    first, last = at(diagonal, start), at(diagonal, end)
    if first is None or last is None or last >= first:
        return None
    began, until = reached(tri, first, "step"), reached(tri, last, "step")
    if began is None or until is None:
        # It is behind when it ends: how far is not known, so that it is none, at best.
        return min(0.0, 1 - (float(tri["step"].iloc[-1]) - (began or 0.0)) / (end - start))
    return 1 - (until - began) / (end - start)


def _fewer(setting: str, start: int, end: int, pairs: list[tuple[Any, Any]]) -> Iterator[Claim]:
    found = [share for a, b in pairs if (share := fewer(a, b, start, end)) is not None]
    if not found or start == end:
        return
    effect = Effect(found)
    yield Claim(
        "block-tridiagonal K-FAC's rate of progress is 25 to 40 % larger: 20 to 30 % fewer iterations", "Section 13",
        f"{setting}; from block-diagonal's error at iteration {start} to that at {end}", "0.2 to 0.3 fewer",
        f"{abs(effect.mean):.3f} {'fewer' if effect.mean >= 0 else 'more'}", len(found),
        effect.told.partition(", against")[0], between(effect, 0.2, 0.3),
    )  # fmt: skip


def _per_second(folder: Path, setting: str, early: int, both: list[tuple[Any, Any]], first: tuple[Any, Any]) -> Claim:
    ratios = [_time(a, b.loc[b["step"] <= early]) for a, b in both]
    effect = Effect(ratios)
    whole = "" if any(run is None for run in first) else f"; seed 0 to its last error: {_time(*first):.3f}"
    return Claim(
        "block-tridiagonal K-FAC is only moderately better per second: 0.7 to 1 times the time",
        "Section 13, Figure 10",
        f"{setting}; {processor(folder)}, to block-diagonal's error at iteration {early}, pairs of one commit",
        "0.7 to 1",
        f"{np.mean(ratios):.3f} of its {processor(folder)}{whole}", len(both),
        effect.told.partition(", against")[0], between(effect, 0.7, 1.0),
    )  # fmt: skip


def _time(tri: Any, diagonal: Any) -> float:
    """The time that one takes to the other's last error, as a share; at least its whole time where it never does."""
    level, whole = float(diagonal["error"].iloc[-1]), float(diagonal["cpu_seconds"].iloc[-1])
    return (reached(tri, level, "cpu_seconds") or max(whole, float(tri["cpu_seconds"].iloc[-1]))) / whole


def _ended(setting: str, runs: Any) -> Claim:
    wrong = [row for _, row in runs[runs["status"] != "finished"].iterrows()]
    names = [f"{r['method']} {r['batch']} seed {r['seed']}: {r.get('message', r['status'])}" for r in wrong]
    return Claim(
        "every run comes to its end: none diverges, none meets a matrix that it cannot factorise", "ours",
        f"{setting}; all methods and batches, the baseline's too", "all of them",
        "; ".join([f"{len(runs) - len(wrong)} of {len(runs)}", *names]), len(runs), "each run's status",
        holds(not wrong),
    )  # fmt: skip


def _minutes(folder: Path, problem: str, decisive: bool) -> Iterator[Claim]:
    """What the issue asks of the machine's time."""
    run = evaluations(folder, problem, TRI, TIMED)
    if run is None:
        return
    setting = f"{where(folder, problem)}; {TRI}, {TIMED_THREADS} threads; evaluation is not counted"
    for step, most in MINUTES.items():
        passed, worked = (at(run, step, column) for column in ("seconds", "cpu_seconds"))
        if passed is None or worked is None:
            continue
        least = worked / TIMED_THREADS / 60
        yield Claim(
            f"iteration {step} within {most} minutes of computing on two cores", "ours", setting, f"at most {most}",
            f"{passed / 60:.1f} minutes", 1,
            f"one run; were nothing beside it and no thread idle, it would be {least:.1f}: contradicted above {most}",
            holds(passed / 60 <= most, decisive=decisive and least > most),
        )  # fmt: skip


def _machine(folder: Path, problem: str, summary: Any, seeds: int, decisive: bool) -> Iterator[Claim]:
    """What the issue asks of the products' rate and of the memory."""
    setting = f"{where(folder, problem)}; {TRI}, {processor(folder)}; evaluation is not counted"
    own = summary[summary["status"] == "finished"]
    whole = own[(own["method"] == TRI) & (own["batch"] == "growing") & (own["seed"].isin(map(str, range(seeds))))]
    if len(whole) and "share_of_product_rate" in whole and whole["share_of_product_rate"].notna().any():
        share = whole["share_of_product_rate"].dropna()
        yield Claim(
            "at least half of the measured rate of products over the whole run", "ours", setting, f"at least {SHARE}",
            f"{share.min():.3f}, the least of {len(share)}", len(share),
            "operations counted in products, factorisations not; the rate is the best of 2000 x 2000 products before "
            "and after the runs, in processor seconds too",
            holds(bool(share.min() >= SHARE), decisive=decisive),
        )  # fmt: skip
    if len(own) and "peak_gib" in own and own["peak_gib"].notna().any():
        peak = own["peak_gib"].dropna()
        yield Claim(
            "memory below 8 GiB", "ours", f"{data_name(folder, problem)}, all runs; the process's peak, data included",
            f"below {MEMORY}", f"{peak.max():.2f} GiB, the most of {len(peak)}", len(peak), "over all sessions",
            holds(bool(peak.max() < MEMORY), decisive=decisive),
        )  # fmt: skip


def baseline_told(folder: Path, problem: str) -> str:
    """Tell the setting that the baseline's grid chose, its nearest rival, and whether it lies on the grid's bound."""
    own = took(folder, problem, BASELINE, 0)
    if "lr" not in own:
        return ""
    bound = "; on the grid's bound" if own["lr"] in (max(RATES), min(RATES)) else ""
    chosen = f"lr {own['lr']:g}, mu_max {own['momentum']:g}{rivals(folder, problem)}"
    return f"{chosen}, batches of {PROBLEMS[problem].baseline_batch}{bound}"
