"""Sun and Nielsen (2017): relative natural gradient against SGD and Adam, without and with batch normalisation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fisherlab.errors import UsageError
from fisherlab.schema import AT_LEAST_0, POSITIVE, Rule, check, each, name, some, whole
from fisherlab.studies.study import Part, Tables, settings_of
from fisherlab.studies.sun2017 import runs, timing, watch
from fisherlab.studies.sun2017.settings import EXAMPLES, METHODS, NETS, ORDER, VARIANTS
from fisherlab.studies.sun2017.verdicts import claims, last_epochs

__all__ = ["PIECEWISE", "claims", "derived", "parts"]

PIECEWISE = True  # claims and figures after every part: the whole takes hours
SPLITS = ("train", "valid", "test")
COUNT = whole(1)
RULES = {"dataset": name(*EXAMPLES), "nets": some(name(*NETS)), "methods": some(name(*METHODS))}
RULES |= {"variants": each(name(*VARIANTS)), "rates": some(POSITIVE), "l2": AT_LEAST_0, "watch_epochs": some(COUNT)}
RULES["splits"] = Rule(
    f"numbers of examples, whole and at least 1, for {', '.join(SPLITS)}",
    lambda v: isinstance(v, Mapping) and set(v) == set(SPLITS) and all(map(COUNT.accepts, v.values())),
)
RULES |= dict.fromkeys(("batch", "grid_seeds", "grid_epochs", "seeds", "epochs", "watch_cases", "rounds"), COUNT)


def parts(settings: Mapping[str, Any], folder: Path) -> list[Part]:
    """List what there is to be made at a scale.

    Args:
        settings: The scale's.
        folder: Where the tables of earlier parts are.

    Returns:
        The cost of a step and the zones; for each net and method its grid and its fresh seeds, the longest first; and
        RNGD's variants.

    Raises:
        UsageError: If a setting is not what it may be, or does not fit the others.
    """
    for key, rule in RULES.items():
        check(key, settings[key], rule)
    _fit(settings)
    found = [*timing.parts(settings), watch.zones()]
    for method in ORDER:
        if method in settings["variants"]:
            found += runs.parts(settings["nets"][0], method, settings, folder)
        for net in settings["nets"] if method in settings["methods"] else ():
            found += runs.parts(net, method, settings, folder)
    return found


def _fit(settings: Mapping[str, Any]) -> None:
    """What no rule on a single setting can tell."""
    splits, data = settings["splits"], settings["dataset"]
    if (asked := sum(splits.values())) > EXAMPLES[data]:
        raise UsageError(f"splits={dict(splits)} are {asked} examples: expected at most {data}'s {EXAMPLES[data]}")
    if settings["batch"] > splits["train"]:
        raise UsageError(f"batch={settings['batch']}: expected at most the {splits['train']} examples to train on")
    if settings["variants"] and "rngd" not in settings["methods"]:
        raise UsageError(f"variants={settings['variants']} are RNGD's: expected rngd among methods, or variants=[]")
    if max(settings["watch_epochs"]) > settings["epochs"]:
        raise UsageError(f"watch_epochs={settings['watch_epochs']}: expected at most epochs, {settings['epochs']}")
    if 2 * settings["watch_cases"] > splits["train"]:
        raise UsageError(
            f"watch_cases={settings['watch_cases']} and as many others are more than the {splits['train']} examples: "
            f"expected at most {splits['train'] // 2}"
        )


def derived(folder: Path) -> Tables:
    """Sum the methods up.

    Args:
        folder: The study's folder.

    Returns:
        summary.csv: a row per net and method, with the accuracies over the last epochs.
    """
    summary = last_epochs(folder, settings_of(folder))
    return {"summary.csv": summary} if len(summary) else {}
