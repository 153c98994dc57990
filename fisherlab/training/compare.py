"""The comparison of Fisher and empirical Fisher at a run's checkpoints: two tables and a figure in its directory."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from omegaconf import OmegaConf
from torch import nn
from tqdm import tqdm

from fisherlab.errors import SolveError, UsageError
from fisherlab.files import replace
from fisherlab.fisher.comparison import Batch, Point, Row, Settings, compare
from fisherlab.streams import generator
from fisherlab.training.checkpoint import NAME
from fisherlab.training.setup import Experiment, prepare

MAX_ROWS = 12_000  # of the Gram matrix of the Fisher's vectors: 1.2 GB in float64, and minutes for its eigenvalues
FIRST = ["step", "layer", "lambda", "match", "control", "batch", "cosine", "trace_fisher", "trace_ef"]


def check_fits(experiment: Experiment, options: Mapping[str, Any]) -> None:
    """Refuse a comparison that cannot be made, before anything is trained.

    Args:
        experiment: The run.
        options: The keys `compare.*`.

    Raises:
        UsageError: If there are too few examples, or too many vectors.
    """
    examples, batch = len(experiment.dataset.splits["train"]), options["batch"]
    if batch > examples:
        raise UsageError(
            f"compare.batch={batch} is more than the {examples} training examples: expected at most {examples}"
        )
    outputs = experiment.model(experiment.rows("train", slice(1))[0]).shape[-1]
    rows = batch * (options["samples"] or outputs)
    if rows > MAX_ROWS:
        raise UsageError(
            f"compare.batch={batch} examples x {rows // batch} columns make {rows} vectors: expected at most "
            f"{MAX_ROWS}; use a smaller compare.batch, or compare.samples={max(1, min(10, MAX_ROWS // batch))}"
        )


def compare_run(folder: Path, options: Mapping[str, Any]) -> None:
    """Compare at the checkpoints of a run, and leave tables and figure in its folder.

    Args:
        folder: The run directory.
        options: The keys `compare.*`; `steps` of null takes every checkpoint there is.

    Raises:
        UsageError: If the folder is no run, or lacks a checkpoint that was asked for.
    """
    if not (folder / "config.yaml").is_file():
        raise UsageError(f"compare.run={folder} is no run directory: expected a folder with config.yaml")
    cfg: Any = OmegaConf.load(folder / "config.yaml")
    experiment = prepare(cfg)
    check_fits(experiment, options)
    found = checkpoints(folder)
    steps = sorted({0, *found}) if options["steps"] is None else options["steps"]
    if missing := [step for step in steps if step and step not in found]:
        raise UsageError(f"'{folder}' has no checkpoint of step {missing[0]}: expected 0 or one of {sorted(found)}")
    net, batches = plain(experiment), examples(experiment, options["batch"])
    settings = Settings(options["dampings"], options["samples"], options["probes"], cfg.seed, MAX_ROWS)
    rows: list[Row] = []
    spectra: list[Row] = []
    for step in tqdm(steps, unit="checkpoint", disable=not sys.stderr.isatty()):
        if step:
            load(net, found[step])
        try:
            told, spectrum = compare(Point(net, experiment.likelihood, batches["same"], settings), batches)
        except (SolveError, RuntimeError) as error:  # the weights of a run that is diverging
            print(f"fisherlab: step {step} is left out: {error}", file=sys.stderr)
            continue
        rows += [{"step": step, **row} for row in told]
        spectra += [{"step": step, **row} for row in spectrum]
    if not rows:
        raise UsageError(f"'{folder}' has no checkpoint whose matrices can be factorised: expected a larger damping")
    table = pd.DataFrame(rows)
    table = table[FIRST + [name for name in table if name not in FIRST]]
    for name, one in (("fisher.csv", table), ("fisher_spectrum.csv", pd.DataFrame(spectra))):
        replace(folder / name, lambda path, one=one: one.to_csv(path, index=False))  # type: ignore[misc]
    from fisherlab.plots.fisher import draw_fisher

    draw_fisher(folder)


def checkpoints(folder: Path) -> dict[int, Path]:
    """Find the weights that a run has kept.

    Args:
        folder: The run directory.

    Returns:
        Files by step.
    """
    found = {int(m[1]): p for p in folder.glob("weights-*.pt") if (m := re.fullmatch(r"weights-(\d+)\.pt", p.name))}
    if (folder / NAME).exists():
        found[int(_read(folder / NAME)["step"])] = folder / NAME
    return found


def _read(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def plain(experiment: Experiment) -> nn.Module:
    """Take the experiment's model out of its replica axes, in float64 and in evaluation mode.

    Args:
        experiment: One run, at its start.

    Returns:
        A model of its own.
    """
    net = experiment.model.double().eval()
    if experiment.replicas:
        with torch.no_grad():
            for p in net.parameters():
                p.data = p.data.flatten(0, len(experiment.replicas))
    return net


def load(net: nn.Module, path: Path) -> None:
    """Load weights, with replica axes or without.

    Args:
        net: Without replica axes.
        path: A checkpoint.
    """
    saved = _read(path)["model"]
    own = net.state_dict()
    net.load_state_dict({name: saved[name].reshape(own[name].shape) for name in own})


def examples(experiment: Experiment, batch: int) -> dict[str, Batch]:
    """Choose the examples of the gradient, and others for independent curvature where there are enough.

    Args:
        experiment: One run.
        batch: How many.

    Returns:
        Batches in float64: `same`, and `independent`.
    """
    split = experiment.dataset.splits["train"]
    order = torch.randperm(len(split), generator=generator(int(experiment.cfg.seed), "compare")).to(split.x.device)
    chosen = {"same": order[:batch], "independent": order[batch : 2 * batch]}
    y = experiment.targets(split)
    y = y.double() if y.is_floating_point() else y
    return {name: (split.x[rows].double(), y[rows]) for name, rows in chosen.items() if len(rows) == batch}
