"""Figures 1 and 2 of the sheet: training and test dynamics of every variant, against two theories."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
from tqdm import tqdm

from fisherlab.ntk import VARIANTS, Grams, theory
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
    points = data(settings)
    kernels = infinite("relu", points, settings["layers"])
    bar.reset(settings["seeds"] * len(VARIANTS))
    rows: list[pd.DataFrame] = []
    outputs: list[pd.DataFrame] = []
    for seed in range(settings["seeds"]):
        net = Net("relu", points.x.shape[1], settings["width"], settings["layers"], seed)
        for variant in VARIANTS:
            told = {"seed": seed, "variant": variant, "width": net.width, "layers": net.layers}
            for factor, eta, paths in _runs(net, points, variant, kernels, settings):
                rows.append(_losses(told | {"factor": factor, "eta": eta}, paths, points))
                if factor == 1:
                    outputs.append(_outputs(paths, points).assign(seed=seed, variant=variant))
            bar.update()
    return {TABLE: pd.concat(rows, ignore_index=True), OUTPUTS: pd.concat(outputs, ignore_index=True)}


def _runs(
    net: Net, points: Data, variant: str, kernels: tuple[Grams, Grams], settings: Mapping[str, Any]
) -> Iterator[tuple[float, float, dict[str, theory.Path]]]:
    """Train at both rates.

    Yields:
        The share of the best rate, eta, and outputs as measured and as each theory has them.
    """
    net.restore()
    damping = damping_of(variant, settings["unit_rho"])
    here = linearise(net, points, variant, damping)
    limit = infinite_width(kernels, net, points, variant)
    start = theory.Path(net.outputs(points.x), net.outputs(points.x_test))
    for factor, steps in ((1.0, settings["steps"]), (settings["slow"], settings["slow_steps"])):
        if factor != 1 and variant not in (*ISOTROPIC, "gd"):
            continue  # the slow rate is for what has a closed form
        eta = factor * here.eta
        paths = {"measured": theory.Path(*descend(net, points, variant, damping, eta, steps))}
        # S held where it began; that of infinite width; and the released code's prediction of gradient descent.
        paths["theory"] = theory.linear(start, points.y, here.s, here.s_test, eta, steps)
        if limit is not None:
            rate = eta if variant == "gd" else factor * limit.eta  # no alpha sets gradient descent's
            paths["limit"] = theory.linear(start, points.y, limit.s, limit.s_test, rate, steps)
        if variant == "gd":  # S = Theta / N
            theta, across = here.s * len(points.y), here.s_test * len(points.y)
            paths["flow"] = theory.flow(start, points.y, theta, across, eta, steps)
        yield factor, eta, paths


def _outputs(paths: Mapping[str, theory.Path], points: Data) -> pd.DataFrame:
    """The first and the last outputs at each test example."""
    last = {name: path.test[-1].tolist() for name, path in paths.items() if name != "flow"}
    told = {"target": points.y_test.tolist(), "start": paths["measured"].test[0].tolist()}
    return pd.DataFrame(told | last).round(6).assign(example=range(len(points.y_test)))


def _losses(told: dict[str, Any], paths: Mapping[str, theory.Path], points: Data) -> pd.DataFrame:
    """Losses, test errors, and how far test outputs are from each theory, by step."""
    frame = pd.DataFrame({"step": range(len(paths["measured"].train))}).assign(**told)
    for name, path in paths.items():
        tail = "" if name == "measured" else f"_{name}"
        frame[f"train_loss{tail}"] = loss(path.train, points.y).tolist()
        frame[f"test_loss{tail}"] = loss(path.test, points.y_test).tolist()
        frame[f"train_error{tail}"] = (path.train * points.y <= 0).double().mean(-1).tolist()
        frame[f"test_error{tail}"] = (path.test * points.y_test <= 0).double().mean(-1).tolist()
        if name != "measured":
            apart = (paths["measured"].test - path.test).square().mean(-1).sqrt()
            frame[f"test_apart{tail}"] = apart.tolist()
    return frame
