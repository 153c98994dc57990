"""What the solvers say where the theory has no answer: a singular depth, duplicated and dependent inputs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from fisherlab.errors import UsageError
from fisherlab.ntk import grams, make
from fisherlab.studies.karakida2020.problem import Net, data
from fisherlab.studies.study import Part, Tables

TABLE = "refusals.csv"


def part(settings: Mapping[str, Any]) -> Part:
    """Make the part that asks for what has no answer.

    Args:
        settings: The scale's.

    Returns:
        The part.
    """
    return Part("refusals", (TABLE,), partial(tables, settings))


def tables(settings: Mapping[str, Any], bar: tqdm[Any]) -> Tables:
    """Ask.

    Args:
        settings: The scale's.
        bar: Progress.

    Returns:
        refusals.csv: case and what was said; empty where a solution was given.
    """
    x = data(settings).x
    cases: dict[str, tuple[str, Tensor, int]] = {
        "block-tridiagonal Fisher, 5 layers": ("tridiagonal", x, 5),
        "an example twice, whole Fisher": ("exact", torch.cat([x, x[:1]]), settings["layers"]),
        "the sum of two examples, K-FAC": ("kfac", torch.cat([x, x[:1] + x[1:2]]), settings["layers"]),
    }
    bar.reset(len(cases))
    rows = []
    for name, (variant, examples, layers) in cases.items():
        one = Net("relu", x.shape[1], settings["middle_width"], layers, 0).jacobian(examples)
        said = ""
        try:
            make(variant, one).kernel(grams(one), one)
        except UsageError as error:
            said = str(error)
        rows.append({"case": name, "said": said})
        bar.update()
    return {TABLE: pd.DataFrame(rows)}
