"""Where a curve first falls to a level."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def crossing(values: Any, where: Any, level: float) -> float | None:
    """Find where a falling curve first is at a level, between two of its points by the logarithm.

    Args:
        values: The curve, above 0; an array or a column.
        where: The abscissa, equally long.
        level: The level.

    Returns:
        None where it never gets there; the first abscissa where it begins there.
    """
    values, where = np.asarray(values, float), np.asarray(where, float)
    below = np.flatnonzero(values <= level)
    if not len(below) or below[0] == 0:
        return float(where[0]) if len(below) else None
    i = below[0]
    share = math.log(values[i - 1] / level) / math.log(values[i - 1] / values[i])
    return float(where[i - 1] + share * (where[i] - where[i - 1]))
