"""Searches for the tests: real ones, of trainings that take some milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from fisherlab.sweep.search import Search
from fisherlab.sweep.space import Dimension
from tests.training.conftest import config

TINY = ["model.hidden=[8]", "batch_size=64", "evaluate_every=null", "histogram_steps=[]", "record_norms=false"]
TINY += ["keep=nothing", "figures=false"]
SPACE = (Dimension("lr", 1e-3, 1.0, log=True), Dimension("momentum", 0.0, 0.9))


def tiny(*overrides: str) -> DictConfig:
    return _composed(overrides).copy()


@cache
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    own = [] if any(o.startswith("optimizer=") for o in overrides) else ["optimizer=sgd"]
    narrow = TINY[1:] if any(o.startswith("model=") for o in overrides) else TINY
    return config("steps=3", *own, *narrow, *overrides)


def search(folder: Path, *overrides: str, space: Sequence[Dimension] = SPACE, **options: Any) -> Search:
    """Of the overrides of a training."""
    return Search(tiny(*overrides), space, folder, **{"parallel": 4, **options})


def outcomes(found: Search) -> list[tuple[str, dict[str, float], float | None]]:
    return [(t.state.name, t.params, t.value) for t in found.trials]


def states(found: Search) -> list[str]:
    return [t.state.name for t in found.trials]
