"""Karakida and Osawa (2020): why approximate Fishers converge as fast as the exact one in wide networks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fisherlab.errors import UsageError
from fisherlab.schema import AT_LEAST_0, POSITIVE, check, name, number, some, whole
from fisherlab.studies.karakida2020 import (
    cost,
    cross_entropy,
    dynamics,
    empirical,
    gap,
    isotropy,
    minibatch,
    refusals,
    unitwise,
)
from fisherlab.studies.karakida2020.problem import NETWORKS, data
from fisherlab.studies.karakida2020.verdicts import claims
from fisherlab.studies.study import Part

__all__ = ["PIECEWISE", "claims", "parts"]

PIECEWISE = True
RULES = {"dataset": name("mnist", "digits"), "classes": some(whole(0)), "networks": some(name(*NETWORKS))}
RULES |= dict.fromkeys(("examples", "tests", "seeds", "width", "middle_width", "other_width"), whole(1))
RULES |= {"layers": whole(3)} | dict.fromkeys(("steps", "slow_steps", "epochs", "empirical_steps"), whole(1))
RULES |= dict.fromkeys(("widths", "gap_widths", "unit_widths", "depths", "batches"), some(whole(1)))
RULES |= dict.fromkeys(("slow", "empirical_rate"), number("a number above 0 and below 1", lambda v: 0 < v < 1))
RULES |= {"unit_rho": POSITIVE, "unit_rhos": some(POSITIVE), "dampings": some(AT_LEAST_0)}
WIDTHS = ("width", "middle_width", "other_width", "widths", "gap_widths", "unit_widths")


def parts(settings: Mapping[str, Any], folder: Path) -> list[Part]:
    """List what there is to be made at a scale, the quickest first.

    Args:
        settings: The scale's.
        folder: The study's.

    Returns:
        What is refused, the cost, the gap to theory by width, isotropy, unit-wise blocks, what lies beyond the theory,
        and the dynamics.

    Raises:
        UsageError: If a setting does not fit.
    """
    del folder
    for key, rule in RULES.items():
        check(key, settings[key], rule)
    _check(settings)
    data(settings)  # which says what the data set lacks
    return [
        refusals.part(settings),
        cost.part(settings),
        *gap.parts(settings),
        isotropy.part(settings),
        minibatch.part(settings),
        empirical.part(settings),
        unitwise.part(settings),
        cross_entropy.part(settings),
        dynamics.part(settings),
    ]


def _check(settings: Mapping[str, Any]) -> None:
    """Hold settings against each other.

    Args:
        settings: The scale's.

    Raises:
        UsageError: If some do not fit.
    """
    examples, layers = settings["examples"], settings["layers"]
    if len(settings["classes"]) != 2:
        raise UsageError(f"classes={settings['classes']}: expected two classes, for example [0,1]")
    if "relu" not in settings["networks"]:
        raise UsageError(f"networks={settings['networks']}: expected relu among them, on which the claims rest")
    for key in WIDTHS:
        widths = settings[key] if isinstance(settings[key], list) else [settings[key]]
        if min(widths) < examples:
            raise UsageError(
                f"{key}={settings[key]}: the last layer's kernel is singular below as many units as examples; "
                f"expected at least {examples}"
            )
    for batch in settings["batches"]:
        if examples % batch:
            raise UsageError(f"batches={settings['batches']}: expected divisors of examples={examples}")
    if layers % 3 == 2:
        raise UsageError(
            f"layers={layers}: T of the block-tridiagonal Fisher is singular at 2, 5, 8, ... layers; "
            f"expected layers={layers - 1} or layers={layers + 1}"
        )
