"""Figures 1 and 2 of the sheet: training and test dynamics of every variant, against two theories."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from tqdm import tqdm

from fisherlab.ntk import VARIANTS, theory
from fisherlab.studies.karakida2020.descent import ISOTROPIC, damping_of, descend, infinite_width, linearise
from fisherlab.studies.karakida2020.problem import Data, Net, data, infinite, loss
from fisherlab.studies.study import Part, Tables

TABLE, OUTPUTS = "dynamics.csv", "predictions.csv.gz"


def part(settings: Mapping[str, Any]) -> Part:
    """Make the part that trains every variant at two rates.

    Args:
        settings: The scale's.

    Returns:
        The part.
    """

    def make(bar: tqdm[Any]) -> Tables:
        return tables(settings, bar)

    return Part("dynamics", (TABLE, OUTPUTS), make)


def tables(settings: Mapping[str, Any], bar: tqdm[Any]) -> Tables:
    """Train, and predict.

    Args:
        settings: The scale's.
        bar: Progress.

    Returns:
        dynamics.csv: a row per seed, variant, rate and step; predictions.csv.gz: last outputs at each test example.
    """
    points, layers, width = data(settings), settings["layers"], settings["width"]
    kernels = infinite("relu", points, layers)
    rates = {1.0: settings["steps"], settings["slow"]: settings["slow_steps"]}
    bar.reset(settings["seeds"] * len(VARIANTS))
    rows: list[pd.DataFrame] = []
    outputs: list[pd.DataFrame] = []
    for seed in range(settings["seeds"]):
        net = Net("relu", points.x.shape[1], width, layers, seed)
        for variant in VARIANTS:
            net.restore()
            told = {"seed": seed, "variant": variant, "width": width, "layers": layers}
            damping = damping_of(variant, settings["unit_rho"])
            here = linearise(net, points, variant, damping)
            limit = infinite_width(kernels, net, points, variant)
            start = theory.Path(net.outputs(points.x), net.outputs(points.x_test))
            for factor, steps in rates.items():
                if factor != 1 and variant not in (*ISOTROPIC, "gd"):
                    continue  # the slow rate is for what has a closed form
                run = descend(net, points, variant, damping, factor * here.eta, steps)
                paths = {"theory": theory.linear(start, points.y, here.s, here.s_test, factor * here.eta, steps)}
                if limit is not None:
                    paths["limit"] = theory.linear(start, points.y, limit.s, limit.s_test, factor * limit.eta, steps)
                if variant == "gd":
                    # S = Theta / N, so this is the flow of the released code's prediction.
                    theta, across = here.s * len(points.y), here.s_test * len(points.y)
                    paths["flow"] = theory.flow(start, points.y, theta, across, factor * here.eta, steps)
                one = told | {"factor": factor, "eta": factor * here.eta}
                rows.append(_losses(one, {"measured": theory.Path(*run), **paths}, points))
                if factor == 1:
                    last = {"measured": run.test[-1]} | {name: path.test[-1] for name, path in paths.items()}
                    shown = {name: f.tolist() for name, f in last.items() if name != "flow"}
                    frame = pd.DataFrame({"target": points.y_test.tolist(), "start": start.test.tolist(), **shown})
                    outputs.append(frame.assign(seed=seed, variant=variant, example=range(len(frame))).round(6))
            bar.update()
    return {TABLE: pd.concat(rows, ignore_index=True), OUTPUTS: pd.concat(outputs, ignore_index=True)}


def _losses(told: dict[str, Any], paths: Mapping[str, theory.Path], points: Data) -> pd.DataFrame:
    """Losses, test errors, and how far test outputs are from each theory, by step."""
    frame = pd.DataFrame({"step": range(len(paths["measured"].train))}).assign(**told)
    for name, path in paths.items():
        tail = "" if name == "measured" else f"_{name}"
        frame[f"train_loss{tail}"] = loss(path.train, points.y).tolist()
        frame[f"test_loss{tail}"] = loss(path.test, points.y_test).tolist()
        frame[f"test_error{tail}"] = (path.test * points.y_test <= 0).double().mean(-1).tolist()
        if name != "measured":
            apart = (paths["measured"].test - path.test).square().mean(-1).sqrt()
            frame[f"test_apart{tail}"] = apart.tolist()
    return frame
