"""Loss and error of a model over whole splits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from fisherlab.training.setup import Experiment

CHUNK = 10_000  # examples per forward pass; fixed, so that sums are the same however a run is cut


def l2_term(experiment: Experiment) -> float:
    """The L2 part of the objective, 0.5 * l2 * ||W||^2.

    Args:
        experiment: The run.

    Returns:
        0 where there is no L2.
    """
    cfg = experiment.cfg
    if not cfg.l2:
        return 0.0
    lead = len(experiment.replicas)
    squares = [
        p.detach().double().square().sum() for p in experiment.model.parameters() if cfg.l2_biases or p.ndim > lead + 1
    ]
    return 0.5 * cfg.l2 * float(torch.stack(squares).sum()) if squares else 0.0


@torch.no_grad()
def evaluate(experiment: Experiment) -> dict[str, float]:
    """Mean nll and error of every split, in float64 sums; synchronises.

    `error` is the fraction misclassified; where the target is the input, the squared reconstruction error summed over
    pixels; for regression the squared residual.

    Args:
        experiment: The run.

    Returns:
        `train_loss`, `train_error`, and the same for the other splits; `objective` where there is L2.
    """
    training = experiment.model.training
    experiment.model.eval()
    sums: dict[str, Tensor] = {}
    for name, split in experiment.dataset.splits.items():
        targets = experiment.targets(split)
        parts = [_sums(experiment, x, y) for x, y in zip(split.x.split(CHUNK), targets.split(CHUNK), strict=True)]
        sums[name] = torch.stack(parts).sum(0) / len(split)
    experiment.model.train(training)
    found: dict[str, float] = {}
    for name, value in sums.items():
        found[f"{name}_loss"], found[f"{name}_error"] = value.tolist()
    if experiment.cfg.l2:
        found["objective"] = found["train_loss"] + l2_term(experiment)
    return found


def _sums(experiment: Experiment, x: Tensor, y: Tensor) -> Tensor:
    likelihood = experiment.likelihood
    y = experiment.beside(y)
    f = experiment.model(experiment.beside(x))
    error = (likelihood.mean(f) - y).square().sum(-1) if experiment.reconstructs else likelihood.error(f, y)
    return torch.stack([likelihood.nll(f, y).double().sum(), error.double().sum()])
