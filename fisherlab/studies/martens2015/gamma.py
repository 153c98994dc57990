"""Figure 7: the improvement of one step against gamma, with and without rescaling, with and without momentum."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from fisherlab.optim.optimizer import FisherOptimizer
from fisherlab.optim.quadratic import QuadraticRule, Trial
from fisherlab.studies.martens2015.problems import label
from fisherlab.studies.martens2015.runs import tables_of
from fisherlab.studies.study import Part, Tables

TABLE = "gamma_{}.csv".format
DECADES = (-3.0, 3.0)  # of gamma


def part(problem: str, settings: Mapping[str, Any], folder: Path) -> Part:
    """Make the part of the study that goes through gamma at the end of the first run.

    Args:
        problem: A key of `PROBLEMS`.
        settings: The scale's.
        folder: The study's.

    Returns:
        The part.
    """
    name = label(problem, "block-tridiagonal", 0)
    make = partial(_tables, problem, settings["gammas"], folder / "runs" / name)
    return Part(f"{problem}, improvement against gamma", (TABLE(problem),), make, needs=tables_of(name))


class Probe(QuadraticRule):
    """The rule of a run, which tries many gammas and takes no step.

    Args:
        like: The run's rule, whose last step delta_0 is taken over.
        gammas: To try.
        bar: Progress.
    """

    def __init__(self, like: QuadraticRule, gammas: list[float], bar: tqdm[Any]) -> None:
        super().__init__(momentum=True, search=True)
        self.stride, self.gammas, self.bar = like.stride, gammas, bar
        self.kept, self.gamma = like.last, like.gamma
        self.rows: list[dict[str, Any]] = []

    def __call__(self, optimizer: FisherOptimizer, x: Tensor, direction: Tensor) -> Tensor:
        """Try all gammas on the batch; leaves the step at zero."""
        del direction
        before = objective(optimizer, x)
        for gamma in self.gammas:
            found = optimizer.resolve(torch.tensor(gamma**2, dtype=torch.float64))
            for told, last in (("rescaled, momentum", self.kept), ("rescaled", None)):
                self.last = last
                trial = self._try(optimizer, x, found, torch.tensor(gamma, dtype=torch.float64))
                self._note(told, trial, before - moved(optimizer, x, trial.v), -float(trial.predicted))
            self._note("not rescaled", trial, before - moved(optimizer, x, found), None)
            self.bar.update()
        optimizer.vectors.pairs[0][1].zero_()
        return torch.zeros((), device=x.device)

    def _note(self, step: str, trial: Trial, improvement: float, predicted: float | None) -> None:
        # Where the factors could not be factorised with this gamma, there is no such step.
        told = (math.nan, math.nan) if trial.failed.any() else (improvement, predicted)
        assert trial.gamma is not None
        row = {"step": step, "gamma": float(trial.gamma)}
        self.rows.append(row | dict(zip(("improvement", "predicted"), told, strict=True)))


def objective(optimizer: FisherOptimizer, x: Tensor) -> float:
    """The objective on a batch whose targets are its inputs, L2 included.

    Args:
        optimizer: Of an autoencoder.
        x: Inputs.

    Returns:
        h(theta).
    """
    squares = sum(p.detach().double().square().sum() for p in optimizer.parameters)
    return float(optimizer.passes.mean_nll(x, x)) + 0.5 * float(optimizer.l2) * float(squares)


def moved(optimizer: FisherOptimizer, x: Tensor, v: Tensor) -> float:
    """The objective after the step -v, which is taken back.

    Args:
        optimizer: Of an autoencoder.
        x: Inputs.
        v: Flat, [P].

    Returns:
        h(theta - v).
    """
    own = dict(optimizer.model.named_parameters())
    changes = optimizer.by_name(v)
    before = {name: own[name].detach().clone() for name in changes}
    for name, change in changes.items():
        own[name].data.sub_(change)
    value = objective(optimizer, x)
    for name, kept in before.items():
        own[name].data.copy_(kept)
    return value


def _tables(problem: str, count: int, run: Path, bar: tqdm[Any]) -> Tables:
    from omegaconf import OmegaConf

    from fisherlab.training import checkpoint
    from fisherlab.training.setup import prepare

    cfg: Any = OmegaConf.load(run / "config.yaml")
    state = checkpoint.load(run, checkpoint.fingerprint(cfg))
    if state is None:
        raise RuntimeError(f"'{run}' has no checkpoint: remove it, and the tables of that run, to make it again")
    experiment = prepare(cfg)
    experiment.model.load_state_dict(state["model"])
    experiment.optimizer.load_state_dict(state["optimizer"])
    experiment.batches.load(state["batches"])
    gammas = torch.logspace(*DECADES, count, dtype=torch.float64).tolist()
    bar.reset(count)
    optimizer = experiment.optimizer
    probe = Probe(optimizer.quadratic, gammas, bar)
    optimizer.quadratic = probe
    optimizer.step(*experiment.next_batch())
    used = None if probe.gamma is None else float(probe.gamma.now)
    return {TABLE(problem): pd.DataFrame(probe.rows).assign(iteration=state["step"], used=used)}
