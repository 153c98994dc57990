"""Fujimori, Nagase and Naganuma (2022): damping of K-FAC, positive definiteness and the plateau of a deep linear net.

The paper leaves decisive choices open, so they are settings: searches, figures and verdicts for each.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fisherlab.schema import POSITIVE, TEXT, check, each, name, whole
from fisherlab.studies.fujimori2022 import asides, policies, reruns, searches
from fisherlab.studies.fujimori2022.policy_verdicts import policy_claims
from fisherlab.studies.fujimori2022.settings import SETTINGS
from fisherlab.studies.fujimori2022.summary import derived
from fisherlab.studies.fujimori2022.verdicts import claims as paper_claims
from fisherlab.studies.study import Claim, Part

__all__ = ["PIECEWISE", "claims", "derived", "parts"]

PIECEWISE = True  # claims and figures after every part: the whole takes many hours
RULES = {"dataset": TEXT, "dampings": each(POSITIVE), "moments": each(whole(1))}
RULES |= dict.fromkeys(("settings", "random", "small"), each(name(*SETTINGS)))
RULES |= dict.fromkeys(("trials", "best", "steps", "small_trials", "reruns", "seeds"), whole(1))
RULES |= dict.fromkeys(("policy_trials", "policy_searches", "policy_finalists"), whole(1))
RULES |= {"policy_nets": each(name("deep_linear", "mlp")), "autoencoder_trials": whole(0)}


def parts(settings: Mapping[str, Any], folder: Path) -> list[Part]:
    """List what there is to be made at a scale, the most important first.

    Args:
        settings: The scale's.
        folder: Where the tables of earlier parts are.

    Returns:
        For each setting a search at every damping, and its best configurations on fresh seeds; the random trials; two
        asides; the smaller searches; the damping policies.
    """
    for key, rule in RULES.items():
        check(key, settings[key], rule)
    own = settings["settings"]
    searched = {one: _searched(one, settings["trials"], settings, folder) for one in own}
    # What the paper's claims rest on, then the damping policies, then the other choices that it leaves open.
    found = [part for one in own[:2] for part in searched[one]] + (_asides(settings, folder) if "base" in own else [])
    found += policies.parts(settings, folder)
    found += [searches.part(one, "random", settings["trials"], settings, folder) for one in settings["random"]]
    for one in settings["small"]:
        found += _searched(one, settings["small_trials"], settings, folder)
    return found + [part for one in own[2:] for part in searched[one]]


def _searched(setting: str, trials: int, settings: Mapping[str, Any], folder: Path) -> list[Part]:
    return [searches.part(setting, "tpe", trials, settings, folder), reruns.part(setting, settings, folder)]


def claims(folder: Path) -> list[Claim]:
    """Judge by the tables that there are.

    Args:
        folder: The study's folder.

    Returns:
        The paper's claims by setting, then those beyond it.
    """
    return [*paper_claims(folder), *policy_claims(folder)]


def _asides(settings: Mapping[str, Any], folder: Path) -> list[Part]:
    needs = tuple(searches.tables_of("base", "tpe"))
    cosines, alone = partial(asides.cosines, settings, folder), partial(asides.one_after_another, settings, folder)
    return [
        Part("against SGD", ("cosines.csv.gz", "sgd.csv"), cosines, needs),
        Part("one after another", ("alone.csv",), alone, needs),
    ]
