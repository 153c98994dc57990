"""What the empirical Fisher makes of the cases: how much each of a batch weighs in EF-NGD's step.

The part of the step's direction that is not L2's is u = sum c_n g_n / (B lambda), of the cases' gradients g_n and
c = lambda (K / B + lambda I)^-1 1, where K holds their products; lambda includes L2. A case whose gradient is
orthogonal to the others' has the weight lambda / (lambda + |g_n|^2 / B): the larger its gradient, the less of it is
left. And c_n = 1 - g_n u: the less, the closer the step comes to taking one nat, times the learning rate, off the
case's loss; off one with a large loss no more than that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from fisherlab.fisher import Capture, Gram, Kind, statistics
from fisherlab.likelihood import Likelihood
from fisherlab.studies.study import read_table
from fisherlab.studies.sun2017.settings import table_name
from fisherlab.studies.sun2017.watch import steps_of

GROUPS = ("right", "wrong")
MEASURES = ("wrong", *(f"{what}_{of}" for what in ("weight", "square") for of in GROUPS), "of_gradient", "of_step")


def cases_table(net: str, method: str) -> str:
    """Name the table of how much the cases weigh."""
    return f"{table_name('cases', net, method)}.csv"


def cases_of(folder: Path, net: str) -> Any | None:
    """Read how much the cases weigh in EF-NGD's step.

    Args:
        folder: The study's.
        net: A key of `NETS`.

    Returns:
        The table; None where it is not there, or empty because every learning rate diverged.
    """
    path = folder / cases_table(net, "efngd")
    table = read_table(path) if path.exists() else ()
    return table if len(table) else None


def cases(settings: Mapping[str, Any], runs: Mapping[int, tuple[DictConfig, Path]]) -> pd.DataFrame:
    """Take how much the cases weigh, at the epochs that are watched, in whole batches of the training set.

    Args:
        settings: The scale's.
        runs: By seed, EF-NGD's config, without normalisation, and the folder of its weights at `steps_of`.

    Returns:
        A row per seed and epoch: the fraction of cases that are classified wrongly; the mean weights of right and wrong
        ones, 1 being a case's in the gradient; the medians of their squared gradients; and which part wrong ones are of
        the sum of all |g|, and of all |c g|. Not numbers where there is no such case, and from where a run diverged.
    """
    from fisherlab.training.compare import checkpoints, load, plain
    from fisherlab.training.setup import prepare, resolve

    rows: list[dict[str, float]] = []
    for seed, (cfg, folder) in runs.items():
        experiment, kept = prepare(resolve(cfg)), checkpoints(folder)
        net, split = plain(experiment), experiment.dataset.splits["train"]
        damping, size, most = experiment.optimizer.ridge.flatten(), settings["batch"], settings["watch_cases"]
        starts = range(0, max(most - most % size, size), size)
        for epoch, step in ({0: 0} | steps_of(settings)).items():
            found = [torch.full((3, 1), math.nan)]
            if step in kept:
                load(net, kept[step])
            if step in (0, *kept):
                batches = [(split.x[i : i + size].double(), split.y[i : i + size]) for i in starts]
                found = [weighed(net, experiment.likelihood, *batch, damping) for batch in batches]
            rows.append({"seed": seed, "epoch": epoch, **_summed(torch.cat(found, 1))})
    return pd.DataFrame(rows, columns=["seed", "epoch", *MEASURES])


def weighed(net: nn.Module, likelihood: Likelihood, x: Tensor, y: Tensor, damping: Tensor) -> Tensor:
    """Weigh the cases of a batch.

    Args:
        net: Without replica axes, and without normalisation, in float64.
        likelihood: Of its outputs, categorical.
        x: Inputs [B, in].
        y: Classes [B].
        damping: lambda, one number.

    Returns:
        [3, B]: whether a case is classified wrongly, its weight c, and its squared gradient.
    """
    captured, gram = Capture(net)(x), Gram()
    observed, _ = captured.backward(likelihood.residual(captured.output, y))
    gram.update(statistics(Kind.EMPIRICAL, captured, likelihood, y, observed), 0.0)
    k = gram.kernel()
    ones = torch.ones_like(k[0])
    weights, _ = torch.linalg.solve_ex(k / len(x) + damping * torch.diag(ones), damping * ones)
    wrong = captured.output.argmax(-1) != y
    return torch.stack([wrong.double(), weights, k.diagonal()])


def _summed(found: Tensor) -> dict[str, float]:
    """Sum up right and wrong cases; not numbers where there are none."""
    wrong, weight, square = found
    lengths = square.sqrt(), (weight * square.sqrt()).abs()
    parts = [float((length * wrong).sum() / length.sum()) for length in lengths]
    groups = [wrong == 0, wrong == 1]
    means = [float(weight[of].mean()) for of in groups]
    medians = [float(square[of].median()) if of.any() else math.nan for of in groups]
    return dict(zip(MEASURES, [float(wrong.mean()), *means, *medians, *parts], strict=True))
