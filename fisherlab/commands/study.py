"""`fisherlab study NAME`: everything that one paper measured, at a scale; what is there already is not made again."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from fisherlab.config import Source, compose, job
from fisherlab.errors import UsageError, did_you_mean
from fisherlab.files import check_writable
from fisherlab.schema import BOOL, NULL, TEXT, check, whole

PRIMARY = "study"


def main(args: Sequence[str]) -> int:
    """Run `fisherlab study`.

    Args:
        args: The study's name, or `all`; then overrides, for example `scale=paper`.

    Returns:
        Exit status 0.

    Raises:
        UsageError: If there is no such study, scale or key.
    """
    from fisherlab.studies import STUDIES

    names = [arg for arg in args if "=" not in arg]
    overrides = [arg for arg in args if "=" in arg]
    if len(names) != 1:
        raise UsageError(f"study {' '.join(names)}: expected one name: all, {', '.join(STUDIES)}".replace("  ", " "))
    if names[0] != "all" and names[0] not in STUDIES:
        raise UsageError(f"there is no study '{names[0]}'; {did_you_mean(names[0], ('all', *STUDIES))}")
    if names[0] == "all" and any(arg.startswith("only=") for arg in overrides):
        raise UsageError("only= names parts of one study: expected a study's name instead of 'all'")
    overrides = [_quoted(arg) for arg in overrides]
    # All are checked before the first one runs.
    configs = [checked([*overrides, f"study={name}"]) for name in (STUDIES if names[0] == "all" else names)]
    for cfg in configs:
        _run(cfg)
    return 0


def _quoted(override: str) -> str:
    """Parts have commas and numbers in their names, which Hydra would read."""
    key, _, value = override.partition("=")
    plain = key == "only" and value not in ("", "null") and value[:1] not in ("'", '"')
    return f"{key}={json.dumps(value, ensure_ascii=False)}" if plain else override


def checked(overrides: Sequence[str]) -> DictConfig:
    """Compose a study's config and hold it against what its keys may be.

    Args:
        overrides: As on the command line.

    Returns:
        The config.

    Raises:
        UsageError: On the first value that does not fit.
    """
    cfg = job(compose(overrides, Source(None, PRIMARY)))
    scales = list(cfg.study.scales)
    if cfg.scale not in scales:
        raise UsageError(f"scale={cfg.scale}: expected {', '.join(scales)}; {did_you_mean(str(cfg.scale), scales)}")
    check("threads", cfg.threads, whole(1) | NULL)
    check("results", cfg.results, TEXT)
    check("only", cfg.only, TEXT | NULL)
    check("debug", cfg.debug, BOOL)
    return cfg


def _run(cfg: DictConfig) -> None:
    import torch

    from fisherlab.process import settle
    from fisherlab.studies import report, study
    from fisherlab.training.environment import environment

    folder = Path(cfg.results) / "studies" / cfg.study.name / cfg.scale
    check_writable(folder)
    settle()
    torch.set_num_threads(cfg.threads or len(os.sched_getaffinity(0)))
    settings = OmegaConf.to_container(cfg.study.scales[cfg.scale], resolve=True)
    assert isinstance(settings, dict)
    facts = environment(torch.device("cpu"))
    bar = sys.stderr.isatty()
    study.run(cfg.study.name, settings, folder, facts, show_bar=bar, only=cfg.only)  # type: ignore[arg-type]
    report.write(Path(cfg.results))
    print(folder)
