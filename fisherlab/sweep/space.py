"""What a search varies: numbers of a training's config, each between two bounds."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fisherlab.errors import UsageError, did_you_mean
from fisherlab.schema import OPTIMIZER_RULES, RULES, show, validate

KEYS = ("low", "high", "log", "whole")
_ABSENT = object()


@dataclass(frozen=True)
class Dimension:
    """One number that is searched.

    Attributes:
        key: Its dotted key in the config of a training.
        low: Its least value.
        high: Its largest value.
        log: Whether its logarithm is searched.
        whole: Whether it is a whole number.
    """

    key: str
    low: float
    high: float
    log: bool = False
    whole: bool = False

    def suggest(self, trial: Any) -> float:
        """Let a trial choose a value.

        Args:
            trial: Of Optuna.

        Returns:
            The value.
        """
        if self.whole:
            return int(trial.suggest_int(self.key, int(self.low), int(self.high), log=self.log))
        return float(trial.suggest_float(self.key, self.low, self.high, log=self.log))


def read_space(node: Mapping[str, Any], cfg: DictConfig) -> list[Dimension]:
    """Read a search space, and hold both ends of it against the rules of a training's config.

    Args:
        node: Sections as in the config; where a number stands there, here its `low`, `high` and perhaps `log`.
        cfg: The training's config.

    Returns:
        The dimensions, in order.

    Raises:
        UsageError: If a key is no number of the config, or its bounds do not fit.
    """
    found = [_dimension(key, bounds, cfg) for key, bounds in _leaves(node)]
    if not found:
        raise UsageError("space={}: expected at least one number to search, for example space.lr")
    names = [dimension.key for dimension in found]
    if "lr_schedule.end_fraction" in names and cfg.lr_schedule.name == "constant":
        raise UsageError("space.lr_schedule.end_fraction has no effect with lr_schedule.name=constant: expected linear")
    for end in ("low", "high"):
        validate(with_values(cfg, {d.key: getattr(d, end) for d in found}))
    return found


def with_values(cfg: DictConfig, values: Mapping[str, float]) -> DictConfig:
    """Set numbers of a config.

    Args:
        cfg: The config; it is not changed.
        values: By dotted key.

    Returns:
        A copy.
    """
    own = cfg.copy()
    for key, value in values.items():
        OmegaConf.update(own, key, value)
    return own


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, inside in node.items():
        key = f"{prefix}{name}"
        if not isinstance(inside, Mapping):
            raise UsageError(f"space.{key}={show(inside)}: expected low and high, for example {{low:0,high:1}}")
        if set(KEYS) & set(inside):
            yield key, inside
        else:
            yield from _leaves(inside, f"{key}.")


def _dimension(key: str, bounds: Mapping[str, Any], cfg: DictConfig) -> Dimension:
    for name in bounds:
        if name not in KEYS:
            raise UsageError(f"space.{key}.{name}: there is no such key; {did_you_mean(str(name), KEYS)}")
    current = _current(key, cfg)
    low, high, log = bounds.get("low"), bounds.get("high"), bounds.get("log", False)
    if type(low) not in (int, float) or type(high) not in (int, float) or type(log) is not bool:
        raise UsageError(f"space.{key}={show(dict(bounds))}: expected numbers low and high, and log true or false")
    assert low is not None
    assert high is not None
    if not low < high or not math.isfinite(high - low):
        raise UsageError(f"space.{key}: low={low}, high={high}: expected low below high")
    if log and low <= 0:
        raise UsageError(f"space.{key}.low={low}: expected a number above 0, because its logarithm is searched")
    ends = type(low) is int and type(high) is int
    whole = bounds.get("whole", ends and _is_whole(key, current))
    if type(whole) is not bool or (whole and not ends):
        raise UsageError(f"space.{key}.whole={show(whole)}: expected true, with whole numbers low and high, or false")
    return Dimension(key, low, high, log, whole)


def _current(key: str, cfg: DictConfig) -> float:
    """The number that stands in the config, where a search can set it: not one that follows another, nor a seed."""
    plain: Any = OmegaConf.to_container(cfg, resolve=False)
    written = plain
    for name in key.split("."):
        inside = dict(enumerate(written)) if isinstance(written, list) else written
        found = int(name) if isinstance(written, list) and name.isdigit() else name
        written = inside.get(found, _ABSENT) if isinstance(inside, dict) else _ABSENT
    if isinstance(written, str) and (source := re.fullmatch(r"\$\{([\w.]+)\}", written)):
        raise UsageError(f"space.{key}: its value is that of '{source[1]}'; expected space.{source[1]}")
    if key.endswith("seed"):
        raise UsageError(f"space.{key}: a seed names a repeat; expected tune.seeds, how often each trial is repeated")
    if type(written) not in (int, float):
        what = f"{key}={show(written)} is no number"
        if written is _ABSENT:
            what = "the config has no such key"
        elif isinstance(written, dict):
            what = f"'{key}' is no number"
        raise UsageError(f"space.{key}: {what}; {did_you_mean(key, list(_numbers(plain)))}")
    number: float = written
    return number


def _is_whole(key: str, current: float) -> bool:
    """Whether a number can only be whole: by its rule; where it has none, by how it is written."""
    rule = {**RULES, **OPTIMIZER_RULES}.get(key)
    return type(current) is int if rule is None else not rule.accepts(0.5)


def _numbers(node: Any, prefix: str = "") -> Iterator[str]:
    """The dotted keys of all numbers."""
    if isinstance(node, dict):
        for name, inside in node.items():
            yield from _numbers(inside, f"{prefix}{name}.")
    elif type(node) in (int, float) and not prefix.endswith("seed."):
        yield prefix[:-1]
