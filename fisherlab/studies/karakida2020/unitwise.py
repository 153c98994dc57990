"""Figure 4 of the sheet: unit-wise convergence against rho, relative to each block's mean eigenvalue, and absolute."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import pandas as pd
from tqdm import tqdm

from fisherlab.ntk import grams, isotropy, make, theory
from fisherlab.ntk.solving import Damping
from fisherlab.studies.karakida2020.descent import descend
from fisherlab.studies.karakida2020.problem import Net, data, loss
from fisherlab.studies.study import Part, Tables

TABLE = "unitwise.csv"


def part(settings: Mapping[str, Any]) -> Part:
    """Make the part that varies rho.

    Args:
        settings: The scale's.

    Returns:
        The part.
    """
    return Part("unit-wise", (TABLE,), partial(tables, settings))


def tables(settings: Mapping[str, Any], bar: tqdm[Any]) -> Tables:
    """Form S and take steps, at every rho.

    An absolute rho is as large as the relative one at the smallest width, in the mean over all blocks: so that both
    scales begin alike, and only one keeps up with the width.

    Args:
        settings: The scale's.
        bar: Progress.

    Returns:
        unitwise.csv: a row per width, seed, scale and rho.
    """
    points, layers = data(settings), settings["layers"]
    rows = []
    widths = settings["unit_widths"]
    bar.reset(settings["seeds"] * len(widths) * 2 * len(settings["unit_rhos"]))
    for seed in range(settings["seeds"]):
        unit = 0.0
        for width in widths:
            net = Net("relu", points.x.shape[1], width, layers, seed)
            one = net.jacobian(points.x)
            own = grams(one)
            if not unit:
                hidden = own.layers[:-1]
                blocks = width * len(hidden)
                unit = sum(float(k.trace()) for k in hidden) / len(points.y) ** 2 / blocks
            for scale, factor in (("relative", 1.0), ("absolute", unit)):
                for rho in settings["unit_rhos"]:
                    damping = Damping(rho * factor, relative=scale == "relative")
                    s = make("unit", one, damping, own).kernel(own, one)
                    alpha = float(s.diagonal().mean())
                    start = theory.Path(one.outputs, one.outputs)
                    path = theory.linear(start, points.y, s, s, 1 / alpha, 1)
                    run = descend(net, points, "unit", damping, 1 / alpha, 1)
                    net.restore()
                    first = loss(one.outputs, points.y)
                    rows.append({
                        "width": width, "seed": seed, "scale": scale, "rho": rho, "damping": damping.rho,
                        "isotropy": isotropy(s), "alpha": alpha,
                        "alpha_theory": theory.alpha("unit", layers, width=width, slope=0.5),
                        "left": float(loss(run.train[1], points.y) / first),
                        "left_theory": float(loss(path.train[1], points.y) / first),
                    })  # fmt: skip
                    bar.update()
    return {TABLE: pd.DataFrame(rows)}
