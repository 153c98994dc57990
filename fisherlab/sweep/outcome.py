"""What a sweep came to: one row per job, from what its runs left on disk."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from fisherlab.errors import UsageError
from fisherlab.files import replace

NAME = "sweep.csv"
METRICS = [f"{split}_{quantity}" for split in ("train", "valid", "test") for quantity in ("loss", "error")]
METRICS += ["objective", "average_error"]


def outcome(folder: Path) -> pd.DataFrame:
    """Tabulate a sweep; the rows depend on what the runs left alone.

    Args:
        folder: A sweep folder, with `sweep.json`.

    Returns:
        One row per job in the order of `sweep.json`: `job`, a column per swept key with the value as it was typed
        (empty where the job does not have it), `overrides`, `status` (`waiting` before there is a run, `unreadable`
        where its status cannot be read), `step`, `final_<metric>`, `best_<metric>`, `best_<metric>_step` where any job
        has them, `seconds` of training, and `error`.
    """
    plan = _plan(folder / "sweep.json")
    ends = [_status(folder / "runs" / job["name"] / "status.json") for job in plan["jobs"]]
    columns: dict[str, Any] = {"job": [job["name"] for job in plan["jobs"]]}
    for key in plan["swept"]:
        columns[key] = [_typed(job["overrides"]).get(key, "") for job in plan["jobs"]]
    columns["overrides"] = [" ".join(job["overrides"]) for job in plan["jobs"]]
    columns["status"] = [end["status"] for end in ends]
    columns["step"] = _whole([end.get("step") for end in ends])
    columns |= _results(ends)
    columns["seconds"] = _real([_inside(end, "seconds", "training") for end in ends])
    columns["error"] = [" ".join(str(end.get("error") or end.get("message") or "").split()) for end in ends]
    return pd.DataFrame(columns)


def write_outcome(folder: Path) -> pd.DataFrame:
    """Write `sweep.csv`, and the figures; a figure that cannot be drawn costs a line on stderr and no more.

    Args:
        folder: A sweep folder, with `sweep.json`.

    Returns:
        The table, as `outcome` gives it.
    """
    with _one_writer(folder):
        table = outcome(folder)
        replace(folder / NAME, lambda path: table.to_csv(path, index=False))
        _draw(folder)
    return table


def _draw(folder: Path) -> None:
    try:
        from fisherlab.plots.sweep import draw_sweep

        draw_sweep(folder)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        print(f"fisherlab: warning: no figures for {folder}: {reason}", file=sys.stderr)


@contextlib.contextmanager
def _one_writer(folder: Path) -> Iterator[None]:
    """Workers that end together write one after the other: the last sees what all have left."""
    if not folder.is_dir():
        yield  # what is missing is said where it is read
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some shared file systems do not lock folders
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _plan(path: Path) -> dict[str, Any]:
    try:
        plan: dict[str, Any] = json.loads(path.read_text())
        jobs = [{"name": str(job["name"]), "overrides": [str(one) for one in job["overrides"]]} for job in plan["jobs"]]
        return {"swept": [str(key) for key in plan["swept"]], "jobs": jobs}
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"'{path.parent}' is no sweep: expected a folder with a readable {path.name}") from None


def _typed(overrides: list[str]) -> dict[str, str]:
    """Values by key; the last one counts, as it does for Hydra."""
    pairs = (override.lstrip("+~").partition("=") for override in overrides)
    return {key: value for key, _, value in pairs}


def _status(path: Path) -> dict[str, Any]:
    """The status of a run, which may be missing, torn or of another make."""
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return {"status": "waiting"}
    except (OSError, ValueError, RecursionError):
        return {"status": "unreadable"}
    return found if isinstance(found, dict) and isinstance(found.get("status"), str) else {"status": "unreadable"}


def _results(ends: list[dict[str, Any]]) -> dict[str, Any]:
    """Final and best values of the metrics that any job has."""
    columns: dict[str, Any] = {}
    for metric in METRICS:
        columns[f"final_{metric}"] = _real([_inside(end, "final", metric) for end in ends])
    for metric in METRICS:
        columns[f"best_{metric}"] = _real([_inside(end, "best", metric, "value") for end in ends])
        columns[f"best_{metric}_step"] = _whole([_inside(end, "best", metric, "step") for end in ends])
    return {name: column for name, column in columns.items() if bool(column.notna().any())}


def _inside(value: Any, *path: str) -> Any:
    """An entry of nested mappings, None where it is missing or something else stands in its place."""
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _number(value: Any) -> float | int | None:
    """A number that a column can hold."""
    fits = isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63)
    return value if fits else None


def _real(values: list[Any]) -> pd.Series:
    return pd.Series([_number(value) for value in values], dtype="float64")


def _whole(values: list[Any]) -> pd.Series:
    numbers = [_number(value) for value in values]
    return pd.Series([None if n is None or n % 1 != 0 or abs(n) >= 2**63 else int(n) for n in numbers], dtype="Int64")
