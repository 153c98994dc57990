"""Figures 2, 3, 5 and 6 of Martens and Grosse (2015): |entries| of matrices, white is large, one cap for a figure.

Grey is linear as in the paper; logarithmic where an inverse is shown, whose diagonal would leave all else black.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from fisherlab.studies.martens2015.matrices import TABLES, difference

CAP = 0.99  # quantile of a figure's first matrix that is white
DECADES = 3  # of a logarithmic grey, from white to black
OWN, INVERSE = "F tilde, damped", "F tilde, inverse"
NAMES = {
    "F": "$F$", "F tilde": r"$\tilde F$", OWN: r"$\tilde F$, damped", INVERSE: r"$\tilde F^{-1}$",
    "block-diagonal": r"$\breve F$ (block-diagonal)", "block-tridiagonal": r"$\hat F$ (inverse block-tridiagonal)",
    "block-diagonal, inverse": r"$\breve F^{-1}$ (block-diagonal)",
    "block-tridiagonal, inverse": r"$\hat F^{-1}$ (block-tridiagonal)",
}  # fmt: skip


def matrix_figures(folder: Path) -> dict[str, Figure]:
    """Draw the figures of matrices.

    Args:
        folder: The study's folder.

    Returns:
        By file name, without suffix; nothing where the matrices are not there.
    """
    if not (folder / TABLES[0]).exists():
        return {}
    table: Any = pd.read_csv(folder / TABLES[0])
    blocks: Any = pd.read_csv(folder / TABLES[1])
    shown = {name: part.drop(columns="matrix").to_numpy() for name, part in table.groupby("matrix")}
    layers = int(blocks["row"].max()) + 1
    compared = [["F", "F tilde", difference("F", "F tilde")]]
    ways = ("block-diagonal", "block-tridiagonal")
    inverses = [f"{way}, inverse" for way in ways]
    return {
        "figure_2": _grid(shown, compared, layers),
        "figure_3": _inverse(shown, blocks, layers),
        "figure_5": _grid(shown, [[OWN, way, difference(OWN, way)] for way in ways], layers),
        "figure_6": _grid(shown, [[INVERSE, way, difference(INVERSE, way)] for way in inverses], layers, log=True),
    }


def _told(name: str) -> str:
    one, _, other = name.partition(" - ")
    return f"|{NAMES[one]} - {NAMES[other].split(' (')[0]}|" if other else NAMES[name]


def _grey(cap: float, *, log: bool) -> Normalize:
    return LogNorm(cap / 10**DECADES, cap) if log else Normalize(0, cap)


def _image(axis: Axes, m: Any, grey: Normalize, layers: int, title: str) -> Any:
    m = np.maximum(m, grey.vmin or 0)  # black too where there is no logarithm
    image = axis.imshow(m, cmap="gray", norm=grey, interpolation="nearest", extent=(0, layers, layers, 0))
    for edge in range(1, layers):
        axis.axhline(edge, color="tab:red", lw=0.5)
        axis.axvline(edge, color="tab:red", lw=0.5)
    middle = np.arange(layers) + 0.5
    axis.set_xticks(middle, [str(i + 2) for i in range(layers)])
    axis.set_yticks(middle, [str(i + 2) for i in range(layers)])
    axis.tick_params(length=0)
    axis.set_title(title, fontsize="medium")
    return image


def _grid(shown: dict[str, Any], rows: list[list[str]], layers: int, *, log: bool = False) -> Figure:
    figure = Figure(figsize=(10, 3.4 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), 3, squeeze=False)
    grey = _grey(float(np.quantile(shown[rows[0][0]], CAP)), log=log)
    image: Any = None
    for line, names in zip(axes, rows, strict=True):
        for axis, name in zip(line, names, strict=True):
            image = _image(axis, shown[name], grey, layers, _told(name))
        line[0].set_ylabel("layer")
    for axis in axes[-1]:
        axis.set_xlabel("layer")
    told = f"mean |entry|{', logarithmic' if log else ''} (white: {CAP:.0%} quantile)"
    figure.colorbar(image, ax=list(axes.flat), label=told, shrink=0.9)
    return figure


def _inverse(shown: dict[str, Any], blocks: Any, layers: int) -> Figure:
    """Figure 3: F-tilde, its inverse, and the inverse's blocks."""
    figure = Figure(figsize=(10.5, 3.4), layout="constrained")
    axes = figure.subplots(1, 3)
    for axis, name, log in zip(axes, (OWN, INVERSE), (False, True), strict=False):
        grey = _grey(float(np.quantile(shown[name], CAP)), log=log)
        image = _image(axis, shown[name], grey, layers, _told(name) + (" (grey: logarithm)" if log else ""))
        figure.colorbar(image, ax=axis, shrink=0.8)
    own = blocks[blocks["matrix"] == INVERSE].pivot(index="row", columns="column", values="mean").to_numpy()
    grey = _grey(float(own.max()), log=True)
    _image(axes[2], own, grey, layers, "mean |entry| of the blocks of\n" + r"$\tilde F^{-1}$ (grey: logarithm)")
    for (i, j), value in np.ndenumerate(own):
        colour = "w" if grey(value) < 0.6 else "k"
        axes[2].text(j + 0.5, i + 0.5, f"{value:.1e}", ha="center", va="center", fontsize=8, color=colour)
    for axis in axes:
        axis.set(xlabel="layer", ylabel="layer")
    return figure
