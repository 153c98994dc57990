"""Kunstner, Balles and Hennig (2019), Limitations of the empirical Fisher approximation: Figures 1 to 6.

Where the paper and its code contradict each other, the code is followed, and the claim's setting says so: step size and
covariances of Figures 1 and 2, the breast cancer data, the damping in the cosine.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fisherlab.errors import UsageError
from fisherlab.schema import Rule, check, each, name, number, whole
from fisherlab.studies.kunstner2019 import grids, nets, toys
from fisherlab.studies.kunstner2019.verdicts import claims
from fisherlab.studies.study import Part

__all__ = ["claims", "parts"]

KNOWN = ("breast_cancer", "boston", "a1a", "wine")
NUMBER = number("a number", lambda _: True)
AXIS = Rule("[log10 of the first, log10 of the last, their number]", lambda v: each(NUMBER).accepts(v) and _axis(v))
RULES = {"gammas": AXIS, "lambdas": AXIS, "problems": each(name(*KNOWN, *grids.OWN_FILES))}
RULES |= dict.fromkeys(("iterations", "path_steps", "redraws", "seeds", "net_steps"), whole(1))
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
    _check(settings)
    convex = [grids.part(name, settings) for name in settings["problems"]]
    starts = Part("starting points", ("starts.csv",), lambda bar: grids.starts(folder, bar))
    return [
        Part("vector fields", FIELD, lambda bar: toys.fields(settings, bar)),
        Part("quadratic approximations", QUADRATIC, lambda bar: toys.approximations(settings, bar)),
        *convex,
        *([starts] if "boston" in settings["problems"] else []),
        Part("vanishing residual", ("nets.csv",), lambda bar: nets.vanishing(settings, bar)),
    ]


def _axis(values: list[Any]) -> bool:
    return len(values) == 3 and whole(1).accepts(values[2])


def _check(settings: Mapping[str, Any]) -> None:
    """Hold the settings against their rules, and see that a data set of the user's own is there."""
    for key, rule in RULES.items():
        check(key, settings[key], rule)
    for own in set(settings["problems"]) & set(grids.OWN_FILES):
        if not (path := grids.own_file(own)).exists():
            raise UsageError(f"problems: '{own}' needs '{path}', a CSV without header, the target in the last column")
