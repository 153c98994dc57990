"""`fisherlab figures`: studies' figures drawn anew from their tables, or runs beside each other; trains nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from fisherlab.errors import UsageError, did_you_mean


def main(args: Sequence[str]) -> int:
    """Run `fisherlab figures`.

    Args:
        args: Names of studies; none means all. Or run directories, which are laid beside each other. `results=PATH`
            names another results folder.

    Returns:
        Exit status 0.

    Raises:
        UsageError: If there is no such study, or nothing to draw from.
    """
    from fisherlab.studies import STUDIES, report, study
    from fisherlab.studies.sharing import alone

    results = Path(next((arg.partition("=")[2] for arg in args if arg.startswith("results=")), "results"))
    names = [arg for arg in args if not arg.startswith("results=")]
    if runs := [Path(name) for name in names if name not in STUDIES and Path(name).is_dir()]:
        return _beside(runs, names, results)
    for name in names:
        if name not in STUDIES:
            raise UsageError(f"there is no study '{name}'; {did_you_mean(name, STUDIES)}")
    found = [f for f in report.folders(results) if f.parent.name in (names or STUDIES)]
    if not found:
        raise UsageError(f"'{results}/studies' holds no tables to draw from: run `fisherlab study NAME` first")
    for folder in found:
        with alone(folder):
            study.draw(folder.parent.name, folder)
        print(folder)
    print(report.write(results))
    return 0


def _beside(runs: Sequence[Path], names: Sequence[str], results: Path) -> int:
    """Lay runs beside each other."""
    from fisherlab.plots.beside import draw_beside

    for name in names:
        if not (Path(name) / "config.yaml").is_file() or not (Path(name) / "metrics.csv").is_file():
            raise UsageError(f"'{name}' is no run directory: expected a folder with config.yaml and metrics.csv")
    key = hashlib.sha256("\n".join(str(run.resolve()) for run in runs).encode()).hexdigest()[:10]
    for path in draw_beside(runs, results / "beside" / key):
        print(path)
    return 0
