"""Beyond the theory: the empirical Fisher in place of the Fisher. Is its function-space gradient isotropic?

With residuals r its rows are r_n times the Fisher's, so that undamped and exact J G^-1 J^T / N = diag(1 / r_n^2): a
multiple of the identity only while all residuals are of equal size, as they nearly are where training begins.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from fisherlab.errors import UsageError
from fisherlab.ntk import Jacobian, grams, isotropy, make
from fisherlab.ntk.solving import NONE
from fisherlab.studies.karakida2020.descent import ISOTROPIC, best_rate, damping_of
from fisherlab.studies.karakida2020.problem import Data, Net, data, loss
from fisherlab.studies.study import Part, Tables

ALONG, RUNS = "empirical_isotropy.csv", "empirical_runs.csv"
VARIANTS = (*ISOTROPIC, "unit", "diagonal")


def part(settings: Mapping[str, Any]) -> Part:
    """Make the part that compares both Fishers.

    Args:
        settings: The scale's.

    Returns:
        The part.
    """
    return Part("empirical Fisher", (ALONG, RUNS), partial(tables, settings))


def tables(settings: Mapping[str, Any], bar: tqdm[Any]) -> Tables:
    """Look at both along one path, and train with each.

    Args:
        settings: The scale's.
        bar: Progress.

    Returns:
        empirical_isotropy.csv: along the path of exact natural gradients, a row per seed, step, kind and variant;
        empirical_runs.csv: a row per seed, variant, kind and step of training.
    """
    points = data(settings)
    bar.reset(settings["seeds"] * 2)
    along: list[dict[str, Any]] = []
    runs: list[dict[str, Any]] = []
    for seed in range(settings["seeds"]):
        net = Net("relu", points.x.shape[1], settings["middle_width"], settings["layers"], seed)
        told = {"seed": seed, "width": net.width}
        along += [told | row for row in _along(net, points, settings)]
        bar.update()
        for variant in ISOTROPIC:
            for kind in ("Fisher", "empirical"):
                net.restore()
                own = told | {"variant": variant, "kind": kind}
                runs += [own | row for row in _train(net, points, variant, kind, settings)]
        bar.update()
    return {ALONG: pd.DataFrame(along), RUNS: pd.DataFrame(runs)}


def _along(net: Net, points: Data, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Isotropy of J G^-1 J^T / N, and the cosine of what it makes of the residuals with them."""
    rows = []
    for step in range(settings["empirical_steps"] + 1):
        one = net.jacobian(points.x)
        r = one.outputs - points.y
        for variant in VARIANTS:
            for kind in ("Fisher", "empirical"):
                s = kernel(one, r if kind == "empirical" else torch.ones_like(r), variant, settings["unit_rho"])
                rows.append({"step": step, "variant": variant, "kind": kind} | _shape(s, r))
        net.move(make("exact", one).step(one, r), settings["empirical_rate"])
    return rows


def _shape(s: Tensor, r: Tensor) -> dict[str, float]:
    """Isotropy of S, the cosine of S r with r, and the spread of the squared residuals."""
    moved = s @ r
    return {
        "isotropy": isotropy(s),
        "cosine": float(moved @ r / (moved.norm() * r.norm())),
        "spread": float(r.square().std() / r.square().mean()),
    }


def kernel(one: Jacobian, weights: Tensor, variant: str, unit_rho: float) -> Tensor:
    """J G^-1 J^T / N with G of the rows times weights: the residuals make it the empirical Fisher.

    Args:
        one: J.
        weights: One per row, none of them zero.
        variant: A key of `fisherlab.ntk.VARIANTS`.
        unit_rho: rho of unit-wise blocks, relative to the mean eigenvalue of each.

    Returns:
        Tensor [N, N].
    """
    scaled = one.weighted(weights)
    s = make(variant, scaled, damping_of(variant, unit_rho)).kernel(grams(scaled), scaled)
    return s / weights[:, None] / weights


def _train(net: Net, points: Data, variant: str, kind: str, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Steps with one kind, both with the same first step but for its spread: eta = rate / the mean eigenvalue of S."""
    rows: list[dict[str, Any]] = []
    eta = 0.0
    for step in range(settings["empirical_steps"] + 1):
        one = net.jacobian(points.x)
        r = one.outputs - points.y
        size = r.abs()
        told = {"step": step, "loss": float(loss(one.outputs, points.y))}
        rows.append(told | {"least": float(size.min()), "most": float(size.max())})
        if not float(size.max()) < 1e3:
            break
        weights = r if kind == "empirical" else torch.ones_like(r)
        scaled = one.weighted(weights)
        try:
            found = make(variant, scaled, NONE)
        except UsageError:
            break
        rows[-1] |= _shape(found.kernel(grams(scaled), scaled) / weights[:, None] / weights, r)
        if not eta:
            eta = settings["empirical_rate"] * best_rate(variant, r, net.layers)
            eta *= float(r.square().mean()) if kind == "empirical" else 1.0
        net.move(found.step(scaled, r / weights), eta)
    return rows
