"""The paper's claims held against the tables."""

from __future__ import annotations

from pathlib import Path

from fisherlab.studies.study import Claim


def claims(folder: Path) -> list[Claim]:
    return []
