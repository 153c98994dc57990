"""`results/README.md`: what was reproduced, at which scale, from which commit, in what time; from the tables."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from fisherlab.files import replace
from fisherlab.studies.study import RECORD, VERDICTS

HEAD = """\
# Results

Written by `fisherlab study` and `fisherlab figures` from the tables beside it; `make figures` draws every figure anew.
Only what really ran is here. A claim holds under the setting that its row in `claims.csv` names.

"""


def folders(results: Path) -> list[Path]:
    """List the studies' folders that hold a study.

    Args:
        results: The results folder.

    Returns:
        `studies/<name>/<scale>` each, sorted; one that has not come to its claims yet is left out.
    """
    return sorted(
        path.parent for path in results.glob(f"studies/*/*/{RECORD}") if (path.parent / "claims.csv").exists()
    )


def write(results: Path) -> Path:
    """Write the report.

    Args:
        results: The results folder.

    Returns:
        The file.
    """
    done = folders(results)
    rows = "\n".join(_row(folder) for folder in done)
    head = f"| study | scale | {' | '.join(VERDICTS)} | commit | minutes |\n|---|---|{'---|' * (len(VERDICTS) + 2)}\n"
    text = HEAD + head + rows + "\n" + "".join(_claims(folder) for folder in done)
    path = results / "README.md"
    replace(path, lambda p: p.write_text(text))
    return path


def _row(folder: Path) -> str:
    record = json.loads((folder / RECORD).read_text())
    counts = pd.read_csv(folder / "claims.csv")["verdict"].value_counts()
    parts, planned = record["parts"].values(), record.get("planned", record["parts"])
    commits = ", ".join(sorted({_short(str(part["commit"])) for part in parts}))
    minutes = sum(part["seconds"] for part in parts) / 60
    name = f"[{folder.parent.name}](studies/{folder.parent.name}/{folder.name}) | {folder.name}"
    name += f" ({len(parts)} of {len(planned)} parts)" if len(parts) < len(planned) else ""
    verdicts = " | ".join(str(counts.get(verdict, 0)) for verdict in VERDICTS)
    return f"| {name} | {verdicts} | {commits} | {minutes:.1f} |"


def _short(commit: str) -> str:
    head, dirty, _ = commit.partition("+dirty")
    return head[:9] + dirty


def _claims(folder: Path) -> str:
    claims = pd.read_csv(folder / "claims.csv").fillna("")
    shown = claims[["claim", "source", "setting", "measured", "verdict"]]
    rows = "".join(f"| {' | '.join(map(str, row))} |\n" for row in shown.itertuples(index=False))
    title = f"\n## {folder.parent.name}, scale {folder.name}\n\n"
    return title + "| claim | source | setting | measured | verdict |\n|---|---|---|---|---|\n" + rows
