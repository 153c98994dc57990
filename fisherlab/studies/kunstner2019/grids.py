"""Figures 3, 5 and 6: optimisation far from the optimum, every method at its best step size and damping."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from fisherlab.data import load_dataset
from fisherlab.data.dataset import Dataset, Split
from fisherlab.data.sources import data_folder
from fisherlab.streams import generator
from fisherlab.studies.kunstner2019.curvature import directions, losses
from fisherlab.studies.kunstner2019.descent import METHODS, Problem, Runs, descend, grid, problem, winner
from fisherlab.studies.study import Part, Tables

NEAR = 0.01  # the best step size is the set of those whose last loss is within 1 % of the best
MOVED, MOVE = 20, 1e-14  # starts beside zero, and their deviation from it
OWN_FILES = ("energy", "powerplant", "yacht")  # of the UCI repository
FACTORS = (0.875, 0.75, 0.5, 0.0)  # Figure 6: starts, in multiples of the optimum
START_ITERATIONS = 20


def own_file(name: str) -> Path:
    """Where a data set without a source of its own is looked for: a CSV without header, the target in the last column.

    Args:
        name: One of `OWN_FILES`.

    Returns:
        The path, in the folder of the data sets.
    """
    return data_folder() / "uci" / f"{name}.csv"


def convex(name: str) -> Problem:
    """Load one of the paper's problems; wine is regression on the class number, as there.

    Args:
        name: breast_cancer, boston, a1a, wine, or one of `OWN_FILES` whose file is there.

    Returns:
        The problem, all rows, unscaled.
    """
    if name in OWN_FILES:
        table = torch.from_numpy(np.loadtxt(own_file(name), delimiter=",", ndmin=2))
        return problem(Dataset(name, "gaussian", 1, {"train": Split(table[:, :-1], table[:, -1:])}))
    options: dict[str, Any] = {"task": "regression"} if name == "wine" else {}
    return problem(load_dataset(name, **options))


def part(name: str, settings: Mapping[str, Any]) -> Part:
    """Make everything about one problem.

    Args:
        name: The problem.
        settings: The scale's.

    Returns:
        A part that leaves the grid, the curves and what was selected.
    """
    files = (f"grid_{name}.csv.gz", f"curves_{name}.csv", f"selected_{name}.csv")
    return Part(f"grid {name}", files, lambda bar: dict(zip(files, search(convex(name), settings, bar), strict=True)))


def search(one: Problem, settings: Mapping[str, Any], bar: tqdm[Any]) -> tuple[pd.DataFrame, ...]:
    """Run the whole grid of every method, choose the best of each, and run these again with their paths.

    Args:
        one: The problem.
        settings: `gammas`, `lambdas`, `iterations`.
        bar: Progress.

    Returns:
        The grid (one row per run), the curves (method, iteration, loss, cosine) and the selection.
    """
    grids = {m: grid(tuple(settings["gammas"]), tuple(settings["lambdas"]), m) for m in METHODS}
    bar.reset(sum(len(gammas) for gammas, _ in grids.values()))
    rows, curves, selected = [], [], []
    for method, (gammas, lambdas) in grids.items():
        runs = descend(one, method, gammas, lambdas, settings["iterations"], tick=bar.update)
        table = _table(method, gammas, lambdas, runs)
        rows.append(table)
        i = winner(runs.last)
        best, at = table.iloc[i], (gammas[i : i + 1], lambdas[i : i + 1])
        curve, ends = _curve(one, method, *at, settings["iterations"])
        curves.append(curve)
        moved = _moved(one, method, *at, settings["iterations"])
        selected.append({"problem": one.name, **dict(best), **_near(table, best), **ends, **moved, **_least(one)})
    return pd.concat(rows), pd.concat(curves), pd.DataFrame(selected)


def _table(method: str, gammas: Tensor, lambdas: Tensor, runs: Runs) -> pd.DataFrame:
    """One row per run; the status is what ended it."""
    done = (~np.isnan(runs.losses)).sum(1) - 1
    status = np.where(np.isinf(runs.last), "failed", np.where(done < runs.losses.shape[1] - 1, "stopped", "finished"))
    columns = {"log_gamma": np.log10(gammas.numpy()).round(6), "log_lambda": _log(lambdas)}
    return pd.DataFrame({"method": method, **columns, "loss": runs.last, "iterations": done, "status": status})


def _log(lambdas: Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
    """log10 lambda; -inf for a method without one."""
    with np.errstate(divide="ignore"):
        found: np.ndarray[Any, np.dtype[np.float64]] = np.log10(lambdas.numpy()).round(6)
    return found


def _near(table: pd.DataFrame, best: pd.Series[Any]) -> dict[str, float]:
    """The step sizes within 1 % of the best, and by how much the next best run is worse."""
    near = table[table["loss"] <= (1 + NEAR) * best["loss"]]
    others = table["loss"].drop(best.name)
    bounds = {"log_gamma_from": near["log_gamma"].min(), "log_gamma_to": near["log_gamma"].max(), "near": len(near)}
    bounds |= {"log_lambda_from": near["log_lambda"].min(), "log_lambda_to": near["log_lambda"].max()}
    return bounds | {"runner_up": float(others.min() / best["loss"] - 1)}


def _curve(
    one: Problem, method: str, gamma: Tensor, damping: Tensor, iterations: int
) -> tuple[pd.DataFrame, dict[str, float]]:
    """The selected run's losses; on the EFGD path, the cosine between both damped directions (Figure 3, below)."""
    runs = descend(one, method, gamma, damping, iterations, keep_path=True)
    assert runs.path is not None
    frame = pd.DataFrame({"method": method, "iteration": range(iterations + 1), "loss": runs.losses[0]})
    if method == "EFGD":
        path = torch.from_numpy(runs.path[0])
        (ngd, gradient), (efgd, _) = (directions(one, path, kind, float(damping)) for kind in ("exact", "empirical"))
        frame["cosine"] = torch.cosine_similarity(ngd, efgd, -1).numpy()
        frame["cosine_efgd_gradient"] = torch.cosine_similarity(efgd, gradient, -1).numpy()
    return frame, {f"loss_{i}": float(runs.losses[0, i]) for i in (0, 10, 25, 50, 100) if i <= iterations}


def _moved(one: Problem, method: str, gamma: Tensor, damping: Tensor, iterations: int) -> dict[str, float]:
    """Where the selected run ends if its start is moved by no more than rounding: not every path is that stable."""
    random = generator(0, "start")
    start = MOVE * torch.randn(MOVED, one.parameters, generator=random, dtype=torch.float64)
    last = descend(one, method, gamma.expand(MOVED), damping.expand(MOVED), iterations, start=start).last
    return {"loss_moved_from": float(last.min()), "loss_moved_to": float(last.max())}


def _one(gamma: float, damping: float) -> tuple[Tensor, Tensor]:
    """The step size and damping of one run."""
    return torch.tensor([gamma], dtype=torch.float64), torch.tensor([damping], dtype=torch.float64)


def starts(tables: Path, bar: tqdm[Any]) -> Tables:
    """Make Figure 6: Boston from starts ever farther from the optimum, with the step sizes of Figure 3.

    Args:
        tables: The folder with `selected_boston.csv`.
        bar: Progress.

    Returns:
        starts.csv.
    """
    one, chosen = convex("boston"), pd.read_csv(tables / "selected_boston.csv").set_index("method")
    best = least_squares(one)
    bar.reset(2 * len(FACTORS))
    rows = []
    for method in ("NGD", "EFGD"):
        gamma, damping = 10 ** chosen.loc[method, ["log_gamma", "log_lambda"]].to_numpy(dtype=float)
        for factor in FACTORS:
            at = _one(float(gamma), float(damping))
            runs = descend(one, method, *at, iterations=START_ITERATIONS, start=factor * best[0])
            columns = {"iteration": range(START_ITERATIONS + 1), "loss": runs.losses[0]}
            rows.append(pd.DataFrame({"method": method, "factor": factor, **columns}))
            bar.update()
    table = pd.concat(rows)
    return {"starts.csv": table.assign(optimum=float(losses(one, best)[0]))}


def _least(one: Problem) -> dict[str, float]:
    """The smallest loss there is, where it is known exactly."""
    return {"optimum": float(losses(one, least_squares(one))[0])} if one.likelihood.name == "gaussian" else {}


def least_squares(one: Problem) -> Tensor:
    """Solve a linear regression exactly.

    Args:
        one: With a Gaussian likelihood.

    Returns:
        The optimum [1, P], the bias last.
    """
    x = torch.cat([one.x, torch.ones_like(one.x[:, :1])], -1)
    # Of unscaled features: QR with pivots (gelsy) keeps the digits that the normal equations would lose.
    return torch.linalg.lstsq(x, one.y, driver="gelsy").solution.mT
