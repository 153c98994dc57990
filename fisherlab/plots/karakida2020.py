"""Figures."""

from pathlib import Path
from typing import Any


def figures(folder: Path) -> dict[str, Any]:
    return {}
