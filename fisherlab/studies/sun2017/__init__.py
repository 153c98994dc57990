"""Sun and Nielsen (2017): relative natural gradient against SGD and Adam, without and with batch normalisation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fisherlab.errors import UsageError
from fisherlab.schema import AT_LEAST_0, POSITIVE, check, each, name, some, whole
from fisherlab.studies.study import Part, Tables, settings_of
from fisherlab.studies.sun2017 import runs, watch
from fisherlab.studies.sun2017.settings import METHODS, NETS, VARIANTS
from fisherlab.studies.sun2017.verdicts import claims, last_epochs

__all__ = ["PIECEWISE", "claims", "derived", "parts"]

PIECEWISE = True  # claims and figures after every part: the whole takes hours
RULES = {"dataset": name("mnist", "digits"), "nets": some(name(*NETS)), "methods": some(name(*METHODS))}
RULES |= {"variants": each(name(*VARIANTS)), "rates": some(POSITIVE), "l2": AT_LEAST_0}
RULES |= dict.fromkeys(
    ("batch", "grid_seeds", "grid_epochs", "seeds", "epochs", "watch_epochs", "watch_cases", "rounds"), whole(1)
)


def parts(settings: Mapping[str, Any], folder: Path) -> list[Part]:
    """List what there is to be made at a scale.

    Args:
        settings: The scale's.
        folder: Where the tables of earlier parts are.

    Returns:
        For each net and method its grid and its fresh seeds; the zones, the cost of a step, the matrices; the variants.

    Raises:
        UsageError: If the splits are not three.
    """
    for key, rule in RULES.items():
        check(key, settings[key], rule)
    if set(settings["splits"]) != {"train", "valid", "test"}:
        raise UsageError(f"splits={dict(settings['splits'])}: expected numbers of examples for train, valid, test")
    found = []
    for method in settings["methods"]:
        for net in settings["nets"]:
            found += runs.parts(net, method, settings, folder)
    found += watch.parts(settings, folder)
    return found + [p for one in settings["variants"] for p in runs.parts(settings["nets"][0], one, settings, folder)]


def derived(folder: Path) -> Tables:
    """Sum the methods up.

    Args:
        folder: The study's folder.

    Returns:
        summary.csv: a row per net and method, with the accuracies over the last epochs.
    """
    summary = last_epochs(folder, settings_of(folder))
    return {"summary.csv": summary} if len(summary) else {}
