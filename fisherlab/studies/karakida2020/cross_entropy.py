"""Beyond the theory: natural gradients of the cross-entropy of two classes, whose output Fisher h = p (1 - p) moves.

Undamped and of full rank every variant would move the outputs by alpha h^-1 (p - y): the isotropy of the squared loss
in the metric of the outputs. K-FAC's last layer adds h_n / mean(h) in place of 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from fisherlab.errors import UsageError
from fisherlab.ntk import grams, isotropy, make
from fisherlab.studies.karakida2020.descent import ISOTROPIC, best_rate, damping_of
from fisherlab.studies.karakida2020.problem import Data, Net, data
from fisherlab.studies.study import Part, Tables

TABLE = "cross_entropy.csv"
VARIANTS = (*ISOTROPIC, "unit")


def part(settings: Mapping[str, Any]) -> Part:
    """Make the part that trains by cross-entropy.

    Args:
        settings: The scale's.

    Returns:
        The part.
    """
    return Part("cross-entropy", (TABLE,), partial(tables, settings))


def tables(settings: Mapping[str, Any], bar: tqdm[Any]) -> Tables:
    """Train at eta = 1/alpha.

    Args:
        settings: The scale's.
        bar: Progress.

    Returns:
        cross_entropy.csv: a row per seed, variant and step.
    """
    points = data(settings)
    bar.reset(settings["seeds"] * len(VARIANTS))
    frames = []
    for seed in range(settings["seeds"]):
        net = Net("relu", points.x.shape[1], settings["width"], settings["layers"], seed)
        for variant in VARIANTS:
            net.restore()
            rows = _train(net, points, variant, settings)
            frames.append(pd.DataFrame(rows).assign(seed=seed, variant=variant, width=settings["width"]))
            bar.update()
    return {TABLE: pd.concat(frames, ignore_index=True)}


def _train(net: Net, points: Data, variant: str, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Steps of one variant, beside the recursion that theory would have."""
    labels, damping = (points.y > 0).double(), damping_of(variant, settings["unit_rho"])
    predicted = net.outputs(points.x)
    rows: list[dict[str, Any]] = []
    alpha = eta = 0.0
    for step in range(settings["steps"] + 1):
        one = net.jacobian(points.x)
        f = one.outputs
        p = torch.sigmoid(f)
        root = (p * (1 - p)).sqrt()
        apart = float((f - predicted).square().mean().sqrt())
        row = {"step": step, "loss": nll(f, labels), "loss_theory": nll(predicted, labels), "apart": apart}
        rows.append(row | {"train_error": float(((f > 0) != (labels > 0)).double().mean())})
        if not float(f.abs().max()) < 1e3:
            break
        fisher = one.weighted(root)  # the Fisher's own rows
        try:
            found = make(variant, fisher, damping)
        except UsageError:
            break
        if not step or variant != "unit":  # the costly one is looked at once, for its rate
            s = found.kernel(grams(fisher), fisher)
            rows[-1]["isotropy"] = isotropy(s)
            alpha = float(s.diagonal().mean())
        eta = eta or best_rate(variant, s, net.layers)
        net.move(found.step(fisher, (p - labels) / root), eta)
        q = torch.sigmoid(predicted)
        predicted = predicted - eta * alpha * (q - labels) / (q * (1 - q))
    return rows


def nll(f: Tensor, labels: Tensor) -> float:
    """Mean cross-entropy.

    Args:
        f: Logits [N].
        labels: 0 or 1, [N].

    Returns:
        Nats per example.
    """
    return float(F.binary_cross_entropy_with_logits(f, labels))
