"""Loss and error of a model over whole splits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fisherlab.optim.averaging import Average

if TYPE_CHECKING:
    from fisherlab.training.setup import Experiment

CHUNK = 2500  # examples per forward pass; fixed, so that sums are the same however a run is cut


def l2_terms(experiment: Experiment) -> list[float]:
    """The L2 part of the objective of every replica, 0.5 * l2 * ||W||^2.

    Args:
        experiment: The runs.

    Returns:
        One number per replica, row-major; 0 where there is no L2.
    """
    lead = len(experiment.replicas)
    l2_biases = experiment.cfg.l2_biases
    strengths = [cfg.l2 for cfg in experiment.cfgs]
    if not any(strengths):
        return [0.0] * len(strengths)
    weights = [p.detach() for p in experiment.model.parameters() if l2_biases or p.ndim > lead + 1]
    squares = sum(w.double().square().flatten(lead).sum(-1).flatten().cpu() for w in weights)
    return [0.5 * l2 * float(square) for l2, square in zip(strengths, torch.as_tensor(squares), strict=True)]


@torch.no_grad()
def evaluate(experiment: Experiment) -> list[dict[str, float]]:
    """Mean nll and error of every split, in float64 sums; synchronises.

    `error` is the fraction misclassified; where the target is the input, the squared reconstruction error summed over
    pixels; for regression the squared residual.

    Args:
        experiment: The runs.

    Returns:
        For each replica, row-major: `train_loss`, `train_error`, and the same for the other splits; `average_error`,
        the training error of the averaged iterates, where there are any; `objective` where there is L2.
    """
    training = experiment.model.training
    experiment.model.eval()
    found: list[dict[str, float]] = [{} for _ in experiment.cfgs]
    for name in experiment.dataset.splits:
        for row, loss, error in zip(found, *_means(experiment, name), strict=True):
            row[f"{name}_loss"], row[f"{name}_error"] = loss, error
    average = getattr(experiment.optimizer, "average", None)
    if isinstance(average, Average) and average.values:
        with average.swapped(experiment.optimizer.parameters):
            for row, error in zip(found, _means(experiment, "train")[1], strict=True):
                row["average_error"] = error
    experiment.model.train(training)
    for row, cfg, term in zip(found, experiment.cfgs, l2_terms(experiment), strict=True):
        if cfg.l2:
            row["objective"] = row["train_loss"] + term
    return found


def _means(experiment: Experiment, name: str) -> tuple[list[float], list[float]]:
    """Mean nll and error of a split, by replica."""
    split = experiment.dataset.splits[name]
    total = torch.zeros((), dtype=torch.float64, device=experiment.device)
    for start in range(0, len(split), CHUNK):  # one after another: a sum over chunks at once would round otherwise
        total = total + _sums(experiment, name, slice(start, start + CHUNK))
    loss, error = (total / len(split)).reshape(2, -1).tolist()
    return loss, error


def _sums(experiment: Experiment, name: str, rows: slice) -> Tensor:
    """Summed nll and error of some rows of a split, [2, *replicas]."""
    likelihood = experiment.likelihood
    x, y = experiment.rows(name, rows)
    f = experiment.model(x)
    error = (likelihood.mean(f) - y).square().sum(-1) if experiment.reconstructs else likelihood.error(f, y)
    return torch.stack([likelihood.nll(f, y).double().sum(-1), error.double().sum(-1)])
