"""Runs for the tests of the trainer: small, real, in this process or in one that can be killed."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pandas as pd
import pytest
from omegaconf import DictConfig

from fisherlab.config import compose, job, validate
from fisherlab.training.run import RunResult, train

# Figures take longer than these runs: drawn only where a test asks for them.
SMALL = ["dataset=digits", "epochs=2", "threads=1", "evaluate_every=10", "histogram_steps=[3]", "figures=false"]
# What a run imports, PyTorch's optimizers and the digits when they are made.
PRELOAD = ["fisherlab.training.run", "fisherlab.config", "torch._dynamo", "sklearn.datasets", "pytest"]
CLOCK = ["seconds", "cpu_seconds"]


def config(*overrides: str) -> DictConfig:
    narrow = [] if any(o.startswith("model=") for o in overrides) else ["model.hidden=[16]"]
    cfg = job(compose([*SMALL, *narrow, *overrides]))
    validate(cfg)
    return cfg


def tables(folder: Path) -> dict[str, str]:
    """The bytes of every table, but for the clock."""
    found = {}
    for path in sorted(folder.glob("*.csv")):
        text = path.read_text()
        if path.name == "metrics.csv":
            text = pd.read_csv(path, dtype=str).drop(columns=CLOCK).to_csv()
        found[path.name] = text
    return found


@pytest.fixture
def run(tmp_path: Path):
    """Train in this process; the run directory is below the test's own folder."""

    def go(*overrides: str, name: str = "run") -> RunResult:
        return train(config(*overrides), tmp_path / name)

    return go


def start(target, *args) -> multiprocessing.process.BaseProcess:
    """A process of its own, forked from a server that has already imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    process = context.Process(target=target, args=args)
    process.start()
    return process
