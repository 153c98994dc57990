"""Beyond the theory: mini-batches, whose steps fit a batch and move the other examples as its kernel has it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from fisherlab.ntk import grams, make, theory
from fisherlab.ntk.solving import NONE
from fisherlab.streams import generator
from fisherlab.studies.karakida2020.descent import ISOTROPIC, advance
from fisherlab.studies.karakida2020.problem import Data, Net, data, loss
from fisherlab.studies.study import Part, Tables

TABLE = "minibatch.csv"


def part(settings: Mapping[str, Any]) -> Part:
    """Make the part that trains by mini-batches.

    Args:
        settings: The scale's.

    Returns:
        The part.
    """
    return Part("mini-batches", (TABLE,), partial(tables, settings))


def tables(settings: Mapping[str, Any], bar: tqdm[Any]) -> Tables:
    """Train at a fraction of each batch's own best rate.

    Args:
        settings: The scale's.
        bar: Progress.

    Returns:
        minibatch.csv: a row per seed, variant, batch size and epoch: the loss on all examples, and what kernels that
        stand still predict.
    """
    points = data(settings)
    bar.reset(settings["seeds"] * len(ISOTROPIC) * len(settings["batches"]))
    rows: list[dict[str, Any]] = []
    for seed in range(settings["seeds"]):
        net = Net("relu", points.x.shape[1], settings["middle_width"], settings["layers"], seed)
        for variant in ISOTROPIC:
            for batch in settings["batches"]:
                net.restore()
                told = {"seed": seed, "variant": variant, "batch": batch, "width": net.width}
                rows += [told | row for row in _train(net, points, variant, batch, seed, settings)]
                bar.update()
    return {TABLE: pd.DataFrame(rows)}


def _train(
    net: Net, points: Data, variant: str, batch: int, seed: int, settings: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Epochs of one variant."""
    alpha = theory.alpha(variant, net.layers, examples=batch)
    eta = settings["slow"] / alpha
    start = net.jacobian(points.x)
    frozen, alive = start.outputs, True
    rows = [{"epoch": 0, "loss": float(loss(frozen, points.y)), "loss_frozen": float(loss(frozen, points.y))}]
    for epoch in range(1, settings["epochs"] + 1):
        order = torch.randperm(len(points.x), generator=generator(seed, "order", epoch))
        for index in order.split(batch):
            part = Data(points.x[index], points.y[index], points.x_test, points.y_test)
            alive = alive and advance(net, part, variant, NONE, eta)
            one = start.rows(index)
            s = make(variant, one).kernel(grams(start, one), start)
            frozen = frozen - eta * (s @ (frozen[index] - part.y))
        now = float(loss(net.outputs(points.x), points.y)) if alive else float("inf")
        rows.append({"epoch": epoch, "loss": now, "loss_frozen": float(loss(frozen, points.y))})
    return rows
