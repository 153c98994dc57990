"""What a finite width adds: the loss left after one step, the kernels' distance from infinite width, their change."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from fisherlab.ntk import Grams, grams
from fisherlab.ntk.solving import NONE
from fisherlab.studies.karakida2020.descent import ISOTROPIC, advance, best_rate
from fisherlab.studies.karakida2020.problem import Data, Net, data, infinite, loss
from fisherlab.studies.study import Part, Tables

GAP, KERNELS = "gap_{}.csv".format, "kernels_{}.csv".format
LAST = 1e3  # a loss above so many times the first has diverged


def parts(settings: Mapping[str, Any]) -> list[Part]:
    """Make a part per width.

    Args:
        settings: The scale's.

    Returns:
        The parts.
    """
    return [
        Part(f"gap, width {width}", (GAP(width), KERNELS(width)), partial(_width, settings, width))
        for width in settings["gap_widths"]
    ]


def _width(settings: Mapping[str, Any], width: int, bar: tqdm[Any]) -> Tables:
    """One step of each undamped variant for every network, and its kernels."""
    bar.reset(settings["seeds"] * len(settings["networks"]))
    rows: list[dict[str, Any]] = []
    kernels: list[dict[str, Any]] = []
    for network in settings["networks"]:
        if network != "relu" and width > settings["other_width"]:
            bar.update(settings["seeds"])
            continue
        points = data(settings, network)
        limit, limit_test = infinite(network, points, settings["layers"])
        for seed in range(settings["seeds"]):
            net = Net(network, points.x.shape[1], width, settings["layers"], seed)
            told = {"network": network, "width": width, "layers": settings["layers"], "seed": seed}
            one, two = net.jacobian(points.x), net.jacobian(points.x_test)
            own = grams(one)
            for where, found, expected in (("train", own, limit), ("test", grams(two, one), limit_test)):
                kernels += [told | {"examples": where} | row for row in _distances(found, expected)]
            rows += [told | _one_step(net, points, own, variant) for variant in ISOTROPIC]
            bar.update()
    return {GAP(width): pd.DataFrame(rows), KERNELS(width): pd.DataFrame(kernels)}


def _distances(found: Grams, limit: Grams) -> list[dict[str, Any]]:
    """Relative Frobenius distance of every layer's A, B and Theta from infinite width; B of the last layer is 1."""
    rows = []
    named = (("A", found.inputs, limit.inputs), ("B", found.gradients, limit.gradients))
    for name, ours, theirs in (*named, ("Theta", found.layers, limit.layers), ("total", [found.total], [limit.total])):
        for layer, (k, expected) in enumerate(zip(ours, theirs, strict=True), start=1):
            rows.append({"kernel": name, "layer": 0 if name == "total" else layer, "distance": _apart(k, expected)})
    return rows


def _apart(k: Tensor, expected: Tensor) -> float:
    return float(torch.linalg.norm(k - expected) / torch.linalg.norm(expected))


def _one_step(net: Net, points: Data, own: Grams, variant: str) -> dict[str, Any]:
    """The loss left after one step at the best rate, and how far the kernel has moved; infinite where it diverged."""
    net.restore()
    eta = best_rate(variant, own.total, net.layers)
    before = float(loss(net.outputs(points.x), points.y))
    moved = advance(net, points, variant, NONE, eta)
    left = float(loss(net.outputs(points.x), points.y)) / before if moved else float("inf")
    change = float("inf")
    if left < LAST:
        change = _apart(grams(net.jacobian(points.x)).total, own.total)
    net.restore()
    return {"variant": variant, "eta": eta, "left": left, "kernel_change": change}
