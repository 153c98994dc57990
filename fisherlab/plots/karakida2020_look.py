"""How a variant looks in every figure of the study, in grey print too."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

NAMES = {
    "gd": "gradient descent", "exact": "whole Fisher", "layer": "layer-wise", "tridiagonal": "block-tridiagonal",
    "kfac": "K-FAC", "unit": "unit-wise", "diagonal": "entry-wise diagonal",
}  # fmt: skip
LOOK: dict[str, dict[str, Any]] = {
    "gd": {"color": "0.45", "marker": ".", "ls": ":"},
    "exact": {"color": "k", "marker": "o", "ls": "-"},
    "layer": {"color": "tab:blue", "marker": "s", "ls": "--"},
    "tridiagonal": {"color": "tab:green", "marker": "^", "ls": "-."},
    "kfac": {"color": "tab:red", "marker": "D", "ls": (0, (5, 1))},
    "unit": {"color": "tab:orange", "marker": "v", "ls": (0, (3, 1, 1, 1))},
    "diagonal": {"color": "tab:purple", "marker": "x", "ls": (0, (1, 1))},
}


def look(variant: str, **more: Any) -> dict[str, Any]:
    """Keyword arguments of a variant's line.

    Args:
        variant: A key of `LOOK`.
        more: What differs.

    Returns:
        The arguments, its name as label.
    """
    return LOOK[variant] | {"label": NAMES[variant], "lw": 1.2, "mfc": "none"} | more


def band(axis: Axes, table: Any, x: str, y: str, variant: str, *, shift: float = 0.0, **more: Any) -> None:
    """Draw the median over seeds, and bars from the least to the most.

    Args:
        axis: Where.
        table: Rows of one variant, a row per seed and abscissa.
        x: Column of the abscissa.
        y: Column of the ordinate.
        variant: A key of `LOOK`.
        shift: To the right, so that bars of several variants can be told apart.
        more: What differs from the variant's look.
    """
    finite = table[np.isfinite(table[y])]
    grouped = finite.groupby(x)[y]
    middle = grouped.median()
    bars = [(middle - grouped.min()).to_numpy(), (grouped.max() - middle).to_numpy()]
    style = look(variant, ms=5, capsize=2, elinewidth=0.8) | more
    axis.errorbar(middle.index.to_numpy(float) + shift, middle.to_numpy(), yerr=bars, **style)


def sizes_on(axis: Axes, sizes: Any) -> None:
    """Tick a logarithmic axis of widths where there are measurements.

    Args:
        axis: Where.
        sizes: The widths.
    """
    axis.set_xticks([float(s) for s in sizes], [f"{int(s)}" for s in sizes], rotation=45)
    axis.xaxis.set_minor_locator(NullLocator())
