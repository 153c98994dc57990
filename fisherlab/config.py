"""The config of a run: composed and cross-checked; every mistake in it becomes one line."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Glob, Override
from omegaconf import DictConfig, open_dict

from fisherlab.composition import FAULTS, Source, assemble, conf_dir
from fisherlab.errors import UsageError
from fisherlab.explain import explain, one_line, parse
from fisherlab.schema import validate

__all__ = ["Source", "compose", "conf_dir", "job", "jobs", "run_directory", "validate"]


def compose(overrides: Sequence[str] = (), source: Source | None = None) -> DictConfig:
    """Compose a config, with Hydra's own node `hydra` in it.

    Args:
        overrides: As on the command line.
        source: Where the configs come from.

    Returns:
        The config; `${hydra:...}` in it resolves.

    Raises:
        UsageError: If something in it is wrong, in one line.
    """
    source = source or Source()
    source.check()
    parsed = [parse(text, source) for text in overrides]
    try:
        cfg = assemble(overrides, source)
    except FAULTS as error:
        raise UsageError(explain(parsed, source) or one_line(error)) from error
    HydraConfig.instance().set_config(cfg)
    return cfg


def job(cfg: DictConfig) -> DictConfig:
    """Leave out Hydra's own node.

    Args:
        cfg: What `compose` gave.

    Returns:
        The config of the job alone; `cfg` is unchanged.
    """
    alone = cfg.copy()
    with open_dict(alone):
        alone.pop("hydra", None)
    return alone


def run_directory(cfg: DictConfig) -> Path | None:
    """Read where the user puts a run.

    Args:
        cfg: What `compose` gave.

    Returns:
        `hydra.run.dir`, or None where it was left to fisherlab.
    """
    return Path(cfg.hydra.run.dir) if cfg.hydra.run.dir else None


def jobs(overrides: Sequence[str], source: Source | None = None) -> list[list[str]]:
    """Expand a sweep over comma-separated values, ranges and globs.

    Args:
        overrides: As on the command line.
        source: Where the configs come from.

    Returns:
        The overrides of each job. A continuous range has no values to list and is left out.

    Raises:
        UsageError: If an override is malformed.
    """
    source = source or Source()
    alternatives: list[list[str]] = []
    for override in [parse(text, source) for text in overrides]:
        if override.is_discrete_sweep():
            alternatives.append(_values(override, source))
        elif not override.is_sweep_override():
            alternatives.append([str(override.input_line)])
    return [list(chosen) for chosen in itertools.product(*alternatives)]


def _values(override: Override, source: Source) -> list[str]:
    key, value = override.get_key_element(), override.value()
    if isinstance(value, Glob):
        return [f"{key}={option}" for option in value.filter(list(source.options(override.key_or_group)))]
    return [f"{key}={one}" for one in override.sweep_string_iterator()]
