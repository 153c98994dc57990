"""Martens and Grosse (2015): K-FAC, its block-diagonal and block-tridiagonal inverse, and deep autoencoders."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fisherlab.errors import UsageError
from fisherlab.schema import check, name, some, whole
from fisherlab.studies.martens2015 import baseline, gamma, invariance, matrices, runs
from fisherlab.studies.martens2015.problems import METHODS, PROBLEMS
from fisherlab.studies.martens2015.tables import derived
from fisherlab.studies.martens2015.verdicts import claims
from fisherlab.studies.study import Part

__all__ = ["PIECEWISE", "claims", "derived", "parts"]

PIECEWISE = True  # claims and figures after every part: the whole takes many hours
TRI, DIAGONAL, NO_MOMENTUM, BASELINE = METHODS
RULES = {"dataset": name("mnist", "digits"), "problems": some(name(*PROBLEMS)), "fixed_batches": some(whole(1))}
RULES |= dict.fromkeys(("matrix_cases", "iterations", "early", "every", "seeds", "early_seeds"), whole(1))
RULES |= dict.fromkeys(("diagonal_seeds", "fixed_iterations", "grid_updates", "baseline_every", "gammas"), whole(1))


def parts(settings: Mapping[str, Any], folder: Path) -> list[Part]:
    """List what there is to be made at a scale, the most important first.

    Args:
        settings: The scale's.
        folder: Where the tables of earlier parts are.

    Returns:
        The matrices; the invariance; then for each problem the two inverses, the baseline, and batches of one size;
        for the first one also Figure 7, Figure 9 and fresh seeds.
    """
    _check(settings)
    found = [matrices.part(settings), invariance.part(settings)]
    first = settings["problems"][0]
    for problem in settings["problems"]:
        count = partial(runs.operations, problem, list(METHODS), settings)
        found += [runs.grown(problem, method, 0, settings, folder) for method in (TRI, DIAGONAL)]
        found += [gamma.part(problem, settings, folder)] if problem == first else []
        found += [
            *baseline.parts(problem, settings, folder),
            Part(f"{problem}, operations", (runs.OPERATIONS(problem),), count),
        ]
        found += [runs.fixed(problem, NO_MOMENTUM, settings["fixed_batches"][-1], settings, folder)]
    return [*found, *_figure_9(first, settings, folder), *_seeds(first, settings, folder)]


def _check(settings: Mapping[str, Any]) -> None:
    for key, rule in RULES.items():
        check(key, settings[key], rule)
    early, every, iterations = settings["early"], settings["every"], settings["iterations"]
    if early % every or early > iterations:
        raise UsageError(f"early={early}: expected a multiple of every={every}, at most iterations={iterations}")


def _figure_9(problem: str, settings: Mapping[str, Any], folder: Path) -> list[Part]:
    """Batches of several sizes, less the one that is made for every problem."""
    largest, found = settings["fixed_batches"][-1], []
    for batch in settings["fixed_batches"]:
        methods = [TRI] if batch == largest else [TRI, NO_MOMENTUM]
        found += [runs.fixed(problem, method, batch, settings, folder) for method in methods]
    return [*found, *(baseline.fixed(problem, batch, settings, folder) for batch in settings["fixed_batches"])]


def _seeds(problem: str, settings: Mapping[str, Any], folder: Path) -> list[Part]:
    """More seeds: some to the end, all of them to an early iteration."""
    found = []
    for method, whole_runs in ((TRI, settings["seeds"]), (DIAGONAL, settings["diagonal_seeds"])):
        short = range(whole_runs, settings["early_seeds"])
        found += [runs.grown(problem, method, seed, settings, folder, settings["early"]) for seed in short]
    for method, whole_runs in ((TRI, settings["seeds"]), (DIAGONAL, settings["diagonal_seeds"])):
        found += [runs.grown(problem, method, seed, settings, folder) for seed in range(1, whole_runs)]
    return found
