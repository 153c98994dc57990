"""Karakida and Osawa (2020): why approximate Fishers converge as fast as the exact one in wide networks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fisherlab.errors import UsageError
from fisherlab.schema import AT_LEAST_0, POSITIVE, TEXT, check, each, name, number, whole
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
from fisherlab.studies.karakida2020.problem import NETWORKS
from fisherlab.studies.karakida2020.verdicts import claims
from fisherlab.studies.study import Part

__all__ = ["PIECEWISE", "claims", "parts"]

PIECEWISE = True
RULES = {"dataset": TEXT, "classes": each(whole(0)), "networks": each(name(*NETWORKS))}
RULES |= dict.fromkeys(("examples", "tests", "seeds", "layers", "width", "middle_width", "other_width"), whole(1))
RULES |= dict.fromkeys(("steps", "slow_steps", "epochs", "empirical_steps"), whole(1))
RULES |= dict.fromkeys(("widths", "gap_widths", "unit_widths", "depths", "batches"), each(whole(1)))
RULES |= dict.fromkeys(("slow", "empirical_rate"), number("a number above 0 and below 1", lambda v: 0 < v < 1))
RULES |= {"unit_rho": POSITIVE, "unit_rhos": each(POSITIVE), "dampings": each(AT_LEAST_0)}


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
    if len(settings["classes"]) != 2:
        raise UsageError(f"classes={settings['classes']}: expected two classes, for example [0,1]")
    for key in ("width", "middle_width"):
        if settings[key] < settings["examples"]:
            raise UsageError(
                f"{key}={settings[key]}: the last layer's kernel is singular below as many units as examples; "
                f"expected at least {settings['examples']}"
            )
    if settings["layers"] % 3 == 2:
        raise UsageError(
            f"layers={settings['layers']}: T of the block-tridiagonal Fisher is singular at 2, 5, 8, ... layers; "
            f"expected layers={settings['layers'] + 1}"
        )
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
