"""Reading the study's tables: what there is so far, and slopes against width."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fisherlab.studies.study import read_table, settings_of

NAMES = {"exact": "the whole Fisher", "layer": "layer-wise", "tridiagonal": "block-tridiagonal", "kfac": "K-FAC"}


def found(folder: Path, name: str) -> Any | None:
    """Read a table.

    Args:
        folder: The study's.
        name: Its file.

    Returns:
        The table; None where it is not there yet.
    """
    return read_table(folder / name) if (folder / name).exists() else None


def widths(folder: Path, name: Any) -> Any | None:
    """Join the tables that there are of all widths.

    Args:
        folder: The study's.
        name: Makes a file name of a width, `gap.GAP` or `gap.KERNELS`.

    Returns:
        One table; None where there is none yet.
    """
    tables = [read_table(folder / name(w)) for w in settings_of(folder)["gap_widths"] if (folder / name(w)).exists()]
    tables = [table for table in tables if len(table)]
    return pd.concat(tables, ignore_index=True) if tables else None


def slopes(table: Any, value: str, least: int = 0) -> list[float]:
    """Fit log(value) = slope * log(width) + constant for each seed.

    Args:
        table: With columns width and seed.
        value: The column.
        least: The smallest width that counts.

    Returns:
        A slope per seed; not a number where a value is not finite, or there is one width only.
    """
    slopes = []
    for _, own in table[table["width"] >= least].groupby("seed"):
        own = own.groupby("width")[value].mean()
        x, y = np.log(own.index.to_numpy(float)), np.log(own.to_numpy(float))
        fit = len(x) > 1 and np.isfinite(y).all()
        slopes.append(float(np.polyfit(x, y, 1)[0]) if fit else float("nan"))
    return slopes
