"""Reading the study's tables: the runs that there are, one row each, and when they reached an error."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fisherlab.studies.martens2015.problems import METHODS, label
from fisherlab.studies.martens2015.runs import OPERATIONS, error, tables_of
from fisherlab.studies.study import Tables, read_table, settings_of


def evaluations(folder: Path, *names: Any) -> Any | None:
    """Read a run's evaluations.

    Args:
        folder: The study's.
        *names: Problem, method, and what tells the run from others.

    Returns:
        The table with a column `error`, the paper's measure; None where the run is not there.
    """
    path = folder / tables_of(label(*names))[0]
    if not path.exists():
        return None
    table = read_table(path)
    return table.assign(error=error(table))


def steps(folder: Path, *names: Any) -> Any | None:
    """Read what a run's recipe did at every step; the arguments are those of `evaluations`."""
    path = folder / tables_of(label(*names))[1]
    return read_table(path).set_index("step") if path.exists() else None


def at(table: Any, step: int, column: str = "error") -> float | None:
    """The value at a step.

    Args:
        table: Evaluations.
        step: Which.
        column: Which.

    Returns:
        None where it was not evaluated then.
    """
    found = table[table["step"] == step]
    return float(found[column].iloc[0]) if len(found) and column in found else None


def reached(table: Any, level: float, column: str) -> float | None:
    """Where a run's error first falls to a level, between two evaluations by the logarithm.

    Args:
        table: Evaluations.
        level: The error.
        column: step, examples or seconds.

    Returns:
        None where it never does.
    """
    errors, where = table["error"].to_numpy(), table[column].to_numpy()
    below = np.flatnonzero(errors <= level)
    if not len(below) or below[0] == 0:
        return float(where[0]) if len(below) else None
    i = below[0]
    share = math.log(errors[i - 1] / level) / math.log(errors[i - 1] / errors[i])
    return float(where[i - 1] + share * (where[i] - where[i - 1]))


def derived(folder: Path) -> Tables:
    """Sum the runs up.

    Args:
        folder: The study's.

    Returns:
        runs.csv: a row per run: what it is, where it ended, what it took, and the rate of its products.
    """
    rows = []
    for problem in settings_of(folder)["problems"]:
        path = folder / OPERATIONS(problem)
        counted = read_table(path).set_index("method") if path.exists() else None
        for method in METHODS:
            name = label(problem, method)
            for took in sorted(folder.glob(f"took_{name}_*.csv")):
                rest = took.stem.removeprefix(f"took_{name}_")
                if rest.removeprefix("batch_").isdigit():
                    rows.append(_row(folder, took, problem, method, rest, counted))
    return {"runs.csv": pd.DataFrame(rows)} if rows else {}


def _row(folder: Path, took: Path, problem: str, method: str, rest: str, counted: Any) -> dict[str, Any]:
    own = {"seed": rest} if rest.isdigit() else {"seed": "0", "batch": rest.removeprefix("batch_")}
    run, cost = evaluations(folder, problem, method, rest), read_table(took).iloc[0]
    assert run is not None
    last = run.iloc[-1]
    row: dict[str, Any] = {
        "problem": problem,
        "method": method,
        "batch": "growing" if method != "baseline" else "",
        **own,
    }
    row |= {"iterations": int(last["step"]), "cases": int(last["examples"]), "seconds": last["seconds"]}
    row |= {"error": last["error"], "test_error": last["test_error"], **cost.to_dict()}
    if counted is not None and last["seconds"] > 0:
        operations = counted.loc[method]
        total = operations["per_case"] * last["examples"] + operations["per_step"] * last["step"]
        row |= {"giga_operations": round(total), "rate": round(total / last["seconds"], 2)}
        row |= {"share_of_product_rate": round(total / last["seconds"] / cost["product_rate"], 3)}
    return row
