"""What the empirical Fisher makes of the cases: how much each of a batch counts in EF-NGD's step.

The step's direction is the sum of the cases' gradients g_n, each times an entry of (K / B + lambda I)^-1 1, where K
holds their products. Of a case whose gradient is orthogonal to the others' that is 1 / (lambda + |g_n|^2 / B): the
larger its gradient, the less it counts.
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
from fisherlab.studies.sun2017.settings import configured, table_name
from fisherlab.studies.sun2017.watch import steps_of

MEASURES = ("wrong", "weight_right", "weight_wrong", "square_right", "square_wrong")


def cases_table(net: str, method: str) -> str:
    """Name the table of how much the cases count."""
    return f"{table_name('cases', net, method)}.csv"


def cases(settings: Mapping[str, Any], runs: Mapping[int, tuple[DictConfig, Path]]) -> pd.DataFrame:
    """Take how much the cases count, at the epochs that are watched, in batches of the training set.

    Args:
        settings: The scale's.
        runs: By seed, the config and the folder where a run without normalisation left its weights at `steps_of`.

    Returns:
        A row per seed and epoch: the fraction of cases that are classified wrongly; the means of what right and wrong
        ones count, in units of 1 / lambda, so that 1 is what each counts in the gradient alone; the medians of their
        squared gradients. Not numbers where there is no such case, and from where a run has diverged.
    """
    from fisherlab.training.compare import checkpoints, load, plain
    from fisherlab.training.setup import prepare, resolve

    damping = float(configured("plain", "efngd", settings["epochs"], settings).damping) + settings["l2"]
    rows: list[dict[str, float]] = []
    for seed, (cfg, folder) in runs.items():
        experiment, kept = prepare(resolve(cfg)), checkpoints(folder)
        net, split = plain(experiment), experiment.dataset.splits["train"]
        x, y = (t[: settings["watch_cases"]].split(settings["batch"]) for t in (split.x.double(), split.y))
        for epoch, step in ({0: 0} | steps_of(settings)).items():
            found = [torch.full((3, 1), math.nan)]
            if step in kept:
                load(net, kept[step])
            if step in (0, *kept):
                found = [weighed(net, experiment.likelihood, *batch, damping) for batch in zip(x, y, strict=True)]
            rows.append({"seed": seed, "epoch": epoch, **_summed(torch.cat(found, 1))})
    return pd.DataFrame(rows, columns=["seed", "epoch", *MEASURES])


def weighed(net: nn.Module, likelihood: Likelihood, x: Tensor, y: Tensor, damping: float) -> Tensor:
    """Weigh the cases of a batch.

    Args:
        net: Without replica axes, and without normalisation.
        likelihood: Of its outputs, categorical.
        x: Inputs [B, in].
        y: Classes [B].
        damping: lambda.

    Returns:
        Float64 [3, B]: whether a case is classified wrongly; what it counts, times lambda; its squared gradient.
    """
    captured, gram = Capture(net)(x), Gram()
    observed, _ = captured.backward(likelihood.residual(captured.output, y))
    gram.update(statistics(Kind.EMPIRICAL, captured, likelihood, y, observed), 0.0)
    k = gram.kernel()
    ones = torch.ones_like(k[0])
    counts = damping * torch.linalg.solve(k / len(x) + damping * torch.diag(ones), ones)
    wrong = captured.output.argmax(-1) != y
    return torch.stack([wrong.double(), counts, k.diagonal()])


def _summed(found: Tensor) -> dict[str, float]:
    """Sum up right and wrong cases; not numbers where there are none."""
    wrong, counts, square = found
    groups = {"right": wrong == 0, "wrong": wrong == 1}
    row = {"wrong": wrong.mean()} | {f"weight_{name}": counts[of].mean() for name, of in groups.items()}
    row |= {f"square_{name}": square[of].nanmedian() for name, of in groups.items() if of.any()}
    return {name: float(row.get(name, math.nan)) for name in MEASURES}
