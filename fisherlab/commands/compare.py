"""`fisherlab compare`: train with checkpoints, then hold Fisher and empirical Fisher against each other at each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf, open_dict

from fisherlab.commands.train import EXIT_STATUS
from fisherlab.config import Source, compose, job, run_directory, validate
from fisherlab.errors import UsageError
from fisherlab.schema import NULL, POSITIVE, TEXT, Rule, check, each, whole

PRIMARY = "compare"
DEFAULT_STEPS = 8
RULES = {
    "run": TEXT | NULL,
    "steps": each(whole(0)) | NULL,
    "batch": whole(1),
    "dampings": Rule(
        "a list of numbers above 0", lambda v: isinstance(v, list) and v != [] and all(map(POSITIVE.accepts, v))
    ),
    "samples": whole(1) | NULL,
    "probes": whole(0),
}


def main(args: Sequence[str]) -> int:
    """Run `fisherlab compare`.

    Args:
        args: Overrides of a training, and of `compare.*`; `compare.run=RUN_DIR` trains nothing.

    Returns:
        Exit status.

    Raises:
        UsageError: If something that was asked for makes no sense.
    """
    cfg = compose(list(args), Source(None, PRIMARY))
    directory = run_directory(cfg)
    alone = job(cfg)
    options = alone.compare
    with open_dict(alone):
        del alone.compare
    for key, rule in RULES.items():
        value = options[key]
        check(f"compare.{key}", OmegaConf.to_container(value) if OmegaConf.is_config(value) else value, rule)
    if options.run is not None:
        if others := [arg for arg in args if not arg.startswith("compare.")]:
            raise UsageError(f"{' '.join(others)}: compare.run takes a run as it is; expected compare.* keys only")
        return _compare(Path(options.run), options)
    validate(alone)
    return _trained(alone, options, directory)


def _trained(cfg: DictConfig, options: DictConfig, directory: Path | None) -> int:
    """Train with a checkpoint at every step that is looked at, then compare."""
    from fisherlab.training.compare import check_fits
    from fisherlab.training.run import train
    from fisherlab.training.setup import prepare, resolve

    experiment = prepare(resolve(cfg))
    steps = list(options.steps or default_steps(experiment.steps))
    if (late := max(steps)) > experiment.steps:
        raise UsageError(f"compare.steps={steps}: step {late} is beyond the training's {experiment.steps}")
    check_fits(experiment, options)
    cfg.checkpoints = sorted({*cfg.checkpoints, *(step for step in steps if 0 < step < experiment.steps)})
    result = train(cfg, directory)
    if EXIT_STATUS[result.status]:
        return EXIT_STATUS[result.status]
    options.steps = steps if result.status == "finished" else None  # a diverged run: what there is
    return _compare(result.directory, options)


def default_steps(last: int) -> list[int]:
    """Choose the start, the end and some steps in between, evenly in log time.

    Args:
        last: The last step.

    Returns:
        Ascending steps.
    """
    return sorted({0, *np.geomspace(1, last, DEFAULT_STEPS).astype(int).tolist(), last})


def _compare(folder: Path, options: DictConfig) -> int:
    from fisherlab.training.compare import compare_run

    chosen: Any = OmegaConf.to_container(options)
    compare_run(folder, chosen)
    print(folder)
    return 0
