"""Kunstner, Balles and Hennig (2019), Limitations of the empirical Fisher approximation: Figures 1 to 6.

Where the paper and its code contradict each other, the code is followed, and the claim's setting says so: step size and
covariances of Figures 1 and 2, the breast cancer data, the damping in the cosine.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fisherlab.studies.kunstner2019 import grids, nets, toys
from fisherlab.studies.kunstner2019.verdicts import claims
from fisherlab.studies.study import Part

__all__ = ["claims", "parts"]

FIELD = ("field.csv", "paths.csv", "field_data.csv", "field_optimum.csv")
QUADRATIC = ("quadratic.csv", *(f"quadratic_{name}.csv.gz" for name in ("null", "loss", "data")))


def parts(settings: Mapping[str, Any], folder: Path) -> list[Part]:
    """List what there is to be made at a scale.

    Args:
        settings: The scale's.
        folder: Where the tables of earlier parts are.

    Returns:
        Figure 1; Figures 2 and 4; one problem each of Figures 3 and 5; Figure 6; the nets.
    """
    convex = [grids.part(name, settings) for name in settings["problems"]]
    return [
        Part("vector fields", FIELD, lambda bar: toys.fields(settings, bar)),
        Part("quadratic approximations", QUADRATIC, lambda bar: toys.approximations(settings, bar)),
        *convex,
        Part("starting points", ("starts.csv",), lambda bar: grids.starts(folder, bar)),
        Part("vanishing residual", ("nets.csv",), lambda bar: nets.vanishing(settings, bar)),
    ]
