"""Numbers on a log axis as one writes them."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.ticker import LogFormatter


class _Plain(LogFormatter):
    """0.1, for 10 to the -1."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def plain(axis: Axes, decades: float = 1.2) -> None:
    """Write the numbers of a log y axis plainly.

    Args:
        axis: Whose y axis is logarithmic.
        decades: As many of them, at most, have numbers between the powers.
    """
    axis.yaxis.set_major_formatter(_Plain())
    axis.yaxis.set_minor_formatter(_Plain(minor_thresholds=(decades, 0.4)))
