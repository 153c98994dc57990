"""`fisherlab figures`: every figure of every study, drawn anew from its tables; nothing is trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fisherlab.errors import UsageError, did_you_mean


def main(args: Sequence[str]) -> int:
    """Run `fisherlab figures`.

    Args:
        args: Names of studies; none means all. `results=PATH` names another results folder.

    Returns:
        Exit status 0.

    Raises:
        UsageError: If there is no such study, or nothing to draw from.
    """
    from fisherlab.studies import STUDIES, report, study

    results = Path(next((arg.partition("=")[2] for arg in args if arg.startswith("results=")), "results"))
    names = [arg for arg in args if not arg.startswith("results=")]
    for name in names:
        if name not in STUDIES:
            raise UsageError(f"there is no study '{name}'; {did_you_mean(name, STUDIES)}")
    found = [f for f in report.folders(results) if f.parent.name in (names or STUDIES)]
    if not found:
        raise UsageError(f"'{results}/studies' holds no tables to draw from: run `fisherlab study NAME` first")
    for folder in found:
        study.draw(folder.parent.name, folder)
        print(folder)
    print(report.write(results))
    return 0
