"""Figures 2, 3, 5 and 6 of Martens and Grosse (2015): |entries| of matrices, white is large, one cap for a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fisherlab.studies.martens2015.matrices import TABLES, difference

CAP = 0.99  # quantile of a figure's first matrix that is white
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
        "figure_6": _grid(shown, [[INVERSE, way, difference(INVERSE, way)] for way in inverses], layers),
    }


def _told(name: str) -> str:
    one, _, other = name.partition(" - ")
    return f"|{NAMES[one]} - {NAMES[other].split(' (')[0]}|" if other else NAMES[name]


def _image(axis: Axes, m: Any, cap: float, layers: int, title: str) -> Any:
    image = axis.imshow(m, cmap="gray", vmin=0, vmax=cap, interpolation="nearest", extent=(0, layers, layers, 0))
    for edge in range(1, layers):
        axis.axhline(edge, color="tab:red", lw=0.5)
        axis.axvline(edge, color="tab:red", lw=0.5)
    middle = np.arange(layers) + 0.5
    axis.set_xticks(middle, [str(i + 2) for i in range(layers)])
    axis.set_yticks(middle, [str(i + 2) for i in range(layers)])
    axis.tick_params(length=0)
    axis.set_title(title, fontsize="medium")
    return image


def _grid(shown: dict[str, Any], rows: list[list[str]], layers: int) -> Figure:
    figure = Figure(figsize=(10, 3.4 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), 3, squeeze=False)
    cap = float(np.quantile(shown[rows[0][0]], CAP))
    image: Any = None
    for line, names in zip(axes, rows, strict=True):
        for axis, name in zip(line, names, strict=True):
            image = _image(axis, shown[name], cap, layers, _told(name))
        line[0].set_ylabel("layer")
    for axis in axes[-1]:
        axis.set_xlabel("layer")
    figure.colorbar(image, ax=list(axes.flat), label=f"mean |entry| (white: {CAP:.0%} quantile)", shrink=0.9)
    return figure


def _inverse(shown: dict[str, Any], blocks: Any, layers: int) -> Figure:
    """Figure 3: F-tilde, its inverse, and the inverse's blocks."""
    figure = Figure(figsize=(10.5, 3.4), layout="constrained")
    axes = figure.subplots(1, 3)
    for axis, name in zip(axes, (OWN, INVERSE), strict=False):
        image = _image(axis, shown[name], float(np.quantile(shown[name], CAP)), layers, _told(name))
        figure.colorbar(image, ax=axis, shrink=0.8)
        axis.set(xlabel="layer", ylabel="layer")
    own = blocks[blocks["matrix"] == INVERSE].pivot(index="row", columns="column", values="mean").to_numpy()
    _image(axes[2], np.log10(own / own.max()) + 3, 3, layers, r"mean |entry| of the blocks of $\tilde F^{-1}$")
    for i in range(layers):
        for j in range(layers):
            dark = np.log10(own[i, j] / own.max()) + 3 < 1.8
            axes[2].text(
                j + 0.5, i + 0.5, f"{own[i, j]:.1e}", ha="center", va="center", fontsize=8, color="w" if dark else "k"
            )
    axes[2].set(xlabel="layer (grey: logarithm)", ylabel="layer")
    return figure
