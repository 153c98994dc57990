"""Reading the study's tables: the runs that there are, one row each, and when they reached an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fisherlab.studies.crossing import crossing
from fisherlab.studies.martens2015.operations import CHUNK, OPERATIONS
from fisherlab.studies.martens2015.problems import METHODS, label
from fisherlab.studies.martens2015.runs import error, tables_of
from fisherlab.studies.study import RECORD, Tables, read_table, settings_of


def evaluations(folder: Path, *names: Any) -> Any | None:
    """Read a run's evaluations.

    Args:
        folder: The study's.
        *names: Problem, method, and what tells the run from others.

    Returns:
        The table with a column `error`, the paper's measure; None where the run is not there, or has no evaluation.
    """
    path = folder / tables_of(label(*names))[0]
    if not path.exists():
        return None
    table = read_table(path)
    return table.assign(error=error(table)) if len(table) else None


def took(folder: Path, *names: Any) -> dict[str, Any]:
    """Read what a run took, and how it ended; the arguments are those of `evaluations`; empty where it is not there."""
    path = folder / tables_of(label(*names))[2]
    found: dict[str, Any] = read_table(path).iloc[0].to_dict() if path.exists() else {}
    return found


def early_end(folder: Path, *runs: tuple[Any, ...]) -> str:
    """Tell which of some runs did not come to their end.

    Args:
        folder: The study's.
        *runs: The names of each, as `evaluations` takes them.

    Returns:
        "; NAME failed at step K" each; empty where all did.
    """
    ends = [(" ".join(map(str, names[1:])), took(folder, *names)) for names in runs]
    return "".join(
        f"; {name} {end['status']} at step {end['last_step']:.0f}"
        for name, end in ends
        if end.get("status", "finished") != "finished" and "last_step" in end
    )


def data_name(folder: Path, problem: str) -> str:
    """Name a problem's data, generated ones as such, as its runs found them; the problem where none tells."""
    found = (read_table(path) for path in sorted(folder.glob(f"took_{problem}_*.csv")))
    names = [table["data"].iloc[0] for table in found if "data" in table]
    return str(names[0]) if names else problem


def threads_of(folder: Path) -> int | None:
    """How many threads the study runs with; None where it tells nothing of them."""
    found: int | None = json.loads((folder / RECORD).read_text()).get("environment", {}).get("threads")
    return found


def commit(folder: Path, problem: str, method: str, seed: int) -> str | None:
    """Which version of the code trained a run with the growing batch; None where the study's record does not tell."""
    parts = json.loads((folder / RECORD).read_text()).get("parts", {})
    name = f"{problem}, {method}, seed {seed}"
    found = [part["commit"] for told, part in parts.items() if told.partition(" to iteration")[0] == name]
    return found[0] if found else None


def processor(folder: Path) -> str:
    """What its seconds are, in words."""
    threads = threads_of(folder) or 1
    return f"processor seconds at {'one thread' if threads == 1 else f'{threads} threads'}"


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
        column: step, examples, seconds or cpu_seconds.

    Returns:
        None where it never does.
    """
    return crossing(table["error"], table[column], level)


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
            for path in sorted(folder.glob(f"took_{name}_*.csv")):
                rest = path.stem.removeprefix(f"took_{name}_")
                if rest.removeprefix("batch_").isdigit():
                    rows.append(_row(folder, problem, method, rest, counted))
    return {"runs.csv": pd.DataFrame(rows)} if rows else {}


def _row(folder: Path, problem: str, method: str, rest: str, counted: Any) -> dict[str, Any]:
    own = {"seed": rest} if rest.isdigit() else {"seed": "0", "batch": rest.removeprefix("batch_")}
    run, cost = evaluations(folder, problem, method, rest), took(folder, problem, method, rest)
    row: dict[str, Any] = {"problem": problem, "method": method}
    row |= {"batch": "growing" if method != "baseline" else "", **own}
    if run is None:  # where there was no setting to train it with
        return row | cost
    last = run.iloc[-1]
    row |= {"iterations": int(last["step"]), "cases": int(last["examples"]), "seconds": last["seconds"]}
    row |= {"cpu_seconds": last["cpu_seconds"], "error": last["error"], "test_error": last["test_error"], **cost}
    if counted is not None and last["cpu_seconds"] > 0:
        total = _operations(run, counted.loc[method])
        rate = total / last["cpu_seconds"]
        row |= {"giga_operations": round(total), "rate": round(rate, 2)}
        row |= {"share_of_product_rate": round(rate / cost["product_rate"], 3)}
    return row


def _operations(run: Any, counted: Any) -> float:
    """Giga-operations of a run: batches that go through in chunks take others per case."""
    cases, iterations = run["examples"].diff()[1:], run["step"].diff()[1:]
    per_case = np.where(cases / iterations > CHUNK, counted["per_case_in_chunks"], counted["per_case"])
    return float((per_case * cases).sum() + counted["per_step"] * iterations.sum())
