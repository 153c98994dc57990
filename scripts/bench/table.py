"""The table of ratios and the machine it was made on, by section."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

PEERS = ("asdfghjkl", "curvlinops-for-pytorch", "singd")
Rows = list[dict[str, object]]


def record(
    folder: Path, sections: Sequence[str], section: str, rows: Rows, machine: Mapping[str, object]
) -> pd.DataFrame:
    """Put a section's rows, and what it ran on, in the place of its former ones; those of the others stay.

    Args:
        folder: Holds bench.csv and environment.json.
        sections: All of them, in the order of the table.
        section: The one that was measured.
        rows: Its rows.
        machine: What it ran on.

    Returns:
        The whole table.
    """
    table, environments = folder / "bench.csv", folder / "environment.json"
    new = pd.DataFrame([{"section": section} | row for row in rows])
    old = pd.read_csv(table) if table.exists() else pd.DataFrame(columns=new.columns)
    kept = [new if name == section else old[old["section"] == name] for name in sections]
    merged = pd.concat([part for part in kept if len(part)], ignore_index=True)
    merged["replicas"] = merged["replicas"].astype("Int64")
    merged.to_csv(table, index=False, float_format="%.4g")
    known = json.loads(environments.read_text()) if environments.exists() else {}
    known[section] = dict(machine)
    ordered = {name: known[name] for name in sections if name in known}
    environments.write_text(json.dumps(ordered, indent=2) + "\n")
    return merged


def peers() -> dict[str, str]:
    """Versions of the packages that are compared with."""
    return {name: importlib.metadata.version(name) for name in PEERS}
