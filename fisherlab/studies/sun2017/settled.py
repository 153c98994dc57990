"""What evaluating by moving averages hides: runs evaluated by the statistics of the whole training set instead.

The authors evaluate by averages of decay 0.999, a thousand steps' memory: while weights move, these lag behind, by more
where a method moves them more. So the lag is a part of every curve of a net with batch normalisation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig

from fisherlab.models.normalise import settle
from fisherlab.studies.study import read_table
from fisherlab.studies.sun2017.settings import table_name
from fisherlab.studies.sun2017.watch import steps_of

MEASURES = ("objective", "train_error", "valid_error", "test_error")


def settled_table(net: str, method: str) -> str:
    """Name the table of a method's evaluations by the statistics of the training set."""
    return f"{table_name('settled', net, method)}.csv"


def settled(settings: Mapping[str, Any], runs: Mapping[int, tuple[DictConfig, Path]]) -> pd.DataFrame:
    """Evaluate runs at the epochs that are watched, each normalised by the whole training set's mean and variance.

    Args:
        settings: The scale's.
        runs: By seed, the config and the folder where the run left its weights at `steps_of`.

    Returns:
        A row per seed and epoch; not numbers from where a run has diverged.
    """
    from fisherlab.training.compare import checkpoints, load
    from fisherlab.training.evaluate import evaluate
    from fisherlab.training.setup import prepare, resolve

    rows = []
    for seed, (cfg, folder) in runs.items():
        experiment, kept = prepare(resolve(cfg)), checkpoints(folder)
        everything, _ = experiment.rows("train", slice(None))
        for epoch, step in steps_of(settings).items():
            row: dict[str, float] = dict.fromkeys(MEASURES, math.nan)
            if step in kept:
                load(experiment.model, kept[step])
                settle(experiment.model, everything)
                found = evaluate(experiment)[0]
                row |= {name: found.get(name, math.nan) for name in MEASURES}
            rows.append({"seed": seed, "epoch": epoch, **row})
    return pd.DataFrame(rows, columns=["seed", "epoch", *MEASURES])


def settled_of(folder: Path, net: str, method: str) -> Any | None:
    """Read a method's evaluations by the statistics of the training set.

    Args:
        folder: The study's.
        net: A key of `NETS`.
        method: A key of `METHODS` or `VARIANTS`.

    Returns:
        The table; None where it is not there, or empty because every learning rate diverged.
    """
    path = folder / settled_table(net, method)
    table = read_table(path) if path.exists() else ()
    return table if len(table) else None


def settled_accuracy(folder: Path, net: str, method: str, split: str = "valid") -> Any | None:
    """Read how accurate a method's runs are at their end, without the lag.

    Args:
        folder: The study's.
        net: A key of `NETS`.
        method: A key of `METHODS` or `VARIANTS`.
        split: valid or test.

    Returns:
        By seed, at the last epoch that is watched; None where there is no table, or no run in it.
    """
    table = settled_of(folder, net, method)
    if table is None:
        return None
    return 1 - table[table["epoch"] == table["epoch"].max()].set_index("seed")[f"{split}_error"].astype(float)
