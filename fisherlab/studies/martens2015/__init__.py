"""Martens and Grosse (2015): K-FAC, its block-diagonal and block-tridiagonal inverse, and deep autoencoders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fisherlab.errors import UsageError
from fisherlab.schema import check, name, some, whole
from fisherlab.studies.martens2015 import baseline, gamma, invariance, matrices, runs
from fisherlab.studies.martens2015.operations import OPERATIONS, operations
from fisherlab.studies.martens2015.problems import METHODS, PROBLEMS
from fisherlab.studies.martens2015.tables import derived, threads_of
from fisherlab.studies.martens2015.verdicts import claims
from fisherlab.studies.study import RECORD, Part

__all__ = ["PIECEWISE", "claims", "derived", "parts"]

PIECEWISE = True  # claims and figures after every part: the whole takes many hours
TRI, DIAGONAL, NO_MOMENTUM, BASELINE = METHODS
RULES = {"dataset": name("mnist", "digits"), "problems": some(name(*PROBLEMS)), "fixed_batches": some(whole(1))}
RULES |= dict.fromkeys(("matrix_cases", "iterations", "early", "every", "seeds", "early_seeds"), whole(1))
RULES |= dict.fromkeys(("diagonal_seeds", "fixed_cases", "fixed_updates", "fixed_evaluations"), whole(1))
RULES |= dict.fromkeys(("grid_updates", "gammas", "baseline_every", "baseline_later"), whole(1))


def parts(settings: Mapping[str, Any], folder: Path) -> list[Part]:
    """List what there is to be made at a scale, the most wanted first.

    Args:
        settings: The scale's.
        folder: Where the tables of earlier parts are.

    Returns:
        The matrices; the invariance; the first problem's methods, Figure 7 and its seeds; its Figure 9, which tells the
        others' batch without momentum; its time on two threads; the other problems. What reads the checkpoint of a run
        comes right behind it, for git does not keep runs.

    Raises:
        UsageError: If the settings do not fit, or other threads than those that the study was begun with.
    """
    _check(settings)
    _check_threads(folder)
    first, *others = settings["problems"]
    whole, *methods = _methods(first, settings, folder)
    found = [matrices.part(settings), invariance.part(settings), whole, gamma.part(first, settings, folder), *methods]
    found += [*_early(first, settings, folder), *_late(first, settings, folder), *_figure_9(first, settings, folder)]
    found.append(runs.timed(first, TRI, settings, folder))
    for problem in others:
        found += _methods(problem, settings, folder)
    # Which of the sizes is shown without momentum is known only once they are made, and changes none of them.
    held = tuple(key for key in settings if key != "no_momentum_batch")
    return [replace(part, settings=held) for part in found]


def _check(settings: Mapping[str, Any]) -> None:
    for key, rule in RULES.items():
        check(key, settings[key], rule)
    early, every, iterations = settings["early"], settings["every"], settings["iterations"]
    if early % every or early > iterations:
        raise UsageError(f"early={early}: expected a multiple of every={every}, at most iterations={iterations}")
    sizes, one = settings["fixed_batches"], settings["no_momentum_batch"]
    if one not in sizes:
        raise UsageError(f"no_momentum_batch={one}: expected one of fixed_batches={sizes}")
    later, often = settings["baseline_later"], settings["baseline_every"]
    if later % often:
        raise UsageError(f"baseline_later={later}: expected a multiple of baseline_every={often}")


def _check_threads(folder: Path) -> None:
    """Figures against seconds are of one number of threads, and a run that is gone on with keeps its own."""
    then = threads_of(folder) if (folder / RECORD).exists() else None
    now = torch.get_num_threads()
    if then not in (None, now):
        raise UsageError(f"threads={now}: '{folder}' was begun with threads={then}: expected threads={then}")


def _methods(problem: str, settings: Mapping[str, Any], folder: Path) -> list[Part]:
    """Both inverses, the baseline, and K-FAC without momentum."""
    return [
        *(runs.grown(problem, method, 0, settings, folder) for method in (TRI, DIAGONAL)),
        *baseline.parts(problem, settings, folder),
        Part(f"{problem}, operations", (OPERATIONS(problem),), partial(operations, problem, list(METHODS))),
        runs.fixed(problem, NO_MOMENTUM, settings["no_momentum_batch"], settings, folder),
    ]


def _figure_9(problem: str, settings: Mapping[str, Any], folder: Path) -> list[Part]:
    """Batches of several sizes, less the one that is made for every problem."""
    sizes = settings["fixed_batches"]
    pairs = [(NO_MOMENTUM, batch) for batch in sizes if batch != settings["no_momentum_batch"]]
    pairs += [(TRI, batch) for batch in sizes]
    found = [runs.fixed(problem, method, batch, settings, folder) for method, batch in pairs]
    return [*found, *(baseline.fixed(problem, batch, settings, folder) for batch in sizes)]


def _early(problem: str, settings: Mapping[str, Any], folder: Path) -> list[Part]:
    """More seeds of both inverses to an early iteration."""
    found = []
    for method, whole_runs in ((TRI, settings["seeds"]), (DIAGONAL, settings["diagonal_seeds"])):
        short = range(whole_runs, settings["early_seeds"])
        found += [runs.grown(problem, method, seed, settings, folder, settings["early"]) for seed in short]
    return found


def _late(problem: str, settings: Mapping[str, Any], folder: Path) -> list[Part]:
    """More seeds to the end."""
    counts = ((TRI, settings["seeds"]), (DIAGONAL, settings["diagonal_seeds"]))
    return [runs.grown(problem, method, seed, settings, folder) for method, n in counts for seed in range(1, n)]
