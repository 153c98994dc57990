"""Figure 3 of the sheet: how far S = J G^-1 J^T / N is from a multiple of the identity, by width, depth and damping."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from fisherlab.errors import UsageError
from fisherlab.ntk import VARIANTS, grams, isotropy, make, theory
from fisherlab.ntk.solving import Damping
from fisherlab.studies.karakida2020.descent import damping_of
from fisherlab.studies.karakida2020.problem import Net, data
from fisherlab.studies.study import Part, Tables

TABLE, SPECTRA, MATRICES = "isotropy.csv", "spectra.csv", "matrices.csv"
NUMBERS = ("isotropy", "alpha", "alpha_theory", "largest", "smallest", "diagonal_spread")
SHOWN = 40  # rows and columns of S in a figure


def part(settings: Mapping[str, Any]) -> Part:
    """Make the part that forms S of every variant.

    Args:
        settings: The scale's.

    Returns:
        The part.
    """
    return Part("isotropy", (TABLE, SPECTRA, MATRICES), partial(tables, settings))


def cells(settings: Mapping[str, Any]) -> Iterator[tuple[str, int, int, float | None]]:
    """What is varied: axis, width, layers, and rho relative to each block's mean eigenvalue (None: each its own)."""
    middle, layers = settings["middle_width"], settings["layers"]
    yield from (("width", width, layers, None) for width in settings["widths"])
    yield from (("layers", middle, depth, None) for depth in settings["depths"])
    yield from (("damping", middle, layers, rho) for rho in settings["dampings"])


def tables(settings: Mapping[str, Any], bar: tqdm[Any]) -> Tables:
    """Form S along each axis.

    Args:
        settings: The scale's.
        bar: Progress.

    Returns:
        isotropy.csv; for seed 0 of the largest width the spectra and corners of S, over its mean diagonal.
    """
    points = data(settings)
    axes = list(cells(settings))
    bar.reset(settings["seeds"] * len(axes))
    rows: list[dict[str, Any]] = []
    kept: dict[str, Tensor] = {}
    for seed in range(settings["seeds"]):
        for axis, width, layers, rho in axes:
            net = Net("relu", points.x.shape[1], width, layers, seed)
            one = net.jacobian(points.x)
            own = grams(one)
            for variant in VARIANTS:
                if (variant == "tridiagonal" and layers % 3 == 2 and not rho) or (variant == "gd" and rho):
                    continue  # no rate exists there; gradient descent has nothing to damp
                damping = damping_of(variant, settings["unit_rho"]) if rho is None else Damping(rho, relative=True)
                try:
                    s = make(variant, one, damping, own).kernel(own, one)
                except UsageError:  # two examples that a narrow layer does not tell apart
                    s = torch.full_like(own.total, torch.nan)
                told = {"axis": axis, "seed": seed, "variant": variant, "width": width, "layers": layers}
                rows.append(told | {"rho": damping.rho} | _numbers(s, variant, net))
                drawn = axis == "width" and not seed and width == max(settings["widths"])
                if drawn and not bool(s.isnan().any()):
                    kept[variant] = s / s.diagonal().mean()
            bar.update()
    return {TABLE: pd.DataFrame(rows), SPECTRA: _spectra(kept), MATRICES: _corners(kept, points.y)}


def _numbers(s: Tensor, variant: str, net: Net) -> dict[str, float]:
    if bool(s.isnan().any()):
        return dict.fromkeys(NUMBERS, float("nan"))
    values = torch.linalg.eigvalsh(s)
    mean = float(s.diagonal().mean())
    known = variant not in ("gd", "diagonal") and (variant, net.layers % 3) != ("tridiagonal", 2)
    options: dict[str, Any] = {"examples": len(s), "width": net.width, "slope": 0.5}
    limit = theory.alpha(variant, net.layers, **options) if known else float("nan")
    shape = (float(v) / mean for v in (values[-1], values[0], s.diagonal().std()))
    return dict(zip(NUMBERS, (isotropy(s), mean, limit, *shape), strict=True))


def _spectra(kept: Mapping[str, Tensor]) -> pd.DataFrame:
    """Eigenvalues of S over its mean eigenvalue, in decreasing order."""
    frames = []
    for variant, s in kept.items():
        values = torch.linalg.eigvalsh(s).flip(0).tolist()
        frames.append(pd.DataFrame({"variant": variant, "rank": range(1, len(values) + 1), "value": values}))
    return pd.concat(frames, ignore_index=True)


def _corners(kept: Mapping[str, Tensor], y: Tensor) -> pd.DataFrame:
    """S over its mean diagonal for as many examples of one class as of the other, to three digits."""
    half = SHOWN // 2
    order = torch.cat([torch.nonzero(y > 0)[:half, 0], torch.nonzero(y < 0)[:half, 0]])
    frames = []
    for variant, s in kept.items():
        corner = pd.DataFrame([[float(f"{v:.3g}") for v in row] for row in s[order][:, order].tolist()])
        frames.append(corner.assign(variant=variant))
    return pd.concat(frames, ignore_index=True)
