"""What each key of a training run may hold: one table of rules, and one function that holds a config against it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fisherlab.errors import UsageError, did_you_mean


@dataclass(frozen=True)
class Rule:
    """What a value may be; rules are joined by `|`.

    Attributes:
        expected: In words, for the error message.
        accepts: Whether a value is one.
        choices: The names it allows, where it allows names.
    """

    expected: str
    accepts: Callable[[Any], bool]
    choices: tuple[str, ...] = ()

    def __or__(self, other: Rule) -> Rule:
        """Allow what either rule allows."""
        return Rule(
            f"{self.expected}, or {other.expected}",
            lambda value: self.accepts(value) or other.accepts(value),
            self.choices + other.choices,
        )


def number(expected: str, accepts: Callable[[float], bool]) -> Rule:
    """Allow finite numbers with a property.

    Args:
        expected: In words.
        accepts: The property.

    Returns:
        The rule.
    """
    return Rule(expected, lambda v: type(v) in (int, float) and math.isfinite(v) and accepts(v))


def whole(least: int | None = None) -> Rule:
    """Allow whole numbers.

    Args:
        least: The smallest allowed.

    Returns:
        The rule.
    """
    words = "a whole number" if least is None else f"a whole number of at least {least}"
    # `type`, not isinstance: true and false are not numbers.
    return Rule(words, lambda v: type(v) is int and (least is None or v >= least))


def name(*choices: str) -> Rule:
    """Allow some names.

    Args:
        choices: The names.

    Returns:
        The rule.
    """
    return Rule(
        " or ".join([", ".join(choices[:-1]), choices[-1]] if choices[1:] else choices), choices.__contains__, choices
    )


def each(rule: Rule) -> Rule:
    """Allow lists, all of whose entries are allowed.

    Args:
        rule: What an entry may be.

    Returns:
        The rule.
    """
    return Rule(f"a list, each entry {rule.expected}", lambda v: isinstance(v, list) and all(map(rule.accepts, v)))


def some(rule: Rule) -> Rule:
    """Allow lists of at least one entry, none twice.

    Args:
        rule: What an entry may be.

    Returns:
        The rule.
    """
    entries = each(rule)
    return Rule(
        f"{entries.expected}, at least one, none twice", lambda v: entries.accepts(v) and 0 < len(v) == len(set(v))
    )


def _is_device(value: Any) -> bool:
    return isinstance(value, str) and bool(re.fullmatch(r"auto|cpu|cuda(:\d+)?", value))


NULL = Rule("null", lambda v: v is None)
BOOL = Rule("true or false", lambda v: isinstance(v, bool))
TEXT = Rule("a text", lambda v: isinstance(v, str) and v != "")
POSITIVE = number("a number above 0", lambda v: v > 0)
AT_LEAST_0 = number("a number of at least 0", lambda v: v >= 0)
FRACTION = number("a number from 0 to 1", lambda v: 0 <= v <= 1)
PART = Rule("a section with a _target_ (a class or function)", lambda v: isinstance(v, dict) and "_target_" in v)

RULES: Mapping[str, Rule] = {
    "dataset": PART,
    "model": PART,
    "optimizer": PART,
    "batch_size": whole(1) | name("full"),
    "epochs": whole(1) | NULL,
    "steps": whole(1) | NULL,
    "likelihood": name("auto", "categorical", "bernoulli", "gaussian"),
    "target": name("label", "input"),
    "seed": whole(),
    "data_seed": whole() | NULL,
    "init_seed": whole() | NULL,
    "device": Rule("auto, cpu, cuda or cuda:N", _is_device, ("auto", "cpu", "cuda")),
    "dtype": name("float32", "float64"),
    "threads": whole(1) | NULL,
    "l2": AT_LEAST_0,
    "l2_biases": BOOL,
    "lr_schedule.name": name("constant", "linear", "cosine"),
    "lr_schedule.end_fraction": FRACTION,
    "lr_schedule.warmup_steps": whole(0),
    "batch_sampling": name("epoch", "independent"),
    "batch_schedule.name": name("constant", "exponential"),
    "batch_schedule.until_step": whole(1) | NULL,
    "evaluate_every": whole(1) | NULL,
    "checkpoint_every": AT_LEAST_0 | NULL,
    "checkpoints": each(whole(1)),
    "histogram_steps": each(whole(1)),
    "record_norms": BOOL,
    "keep": name("weights", "all", "nothing"),
    "figures": BOOL,
    "results": TEXT,
    "divergence_factor": number("a number above 1", lambda v: v > 1),
    "resume": Rule("null; resume=RUN_DIR stands alone on the command line", lambda v: v is None),
    "debug": BOOL,
}

# Keys that exist where the chosen optimizer uses them. Its other options are checked by its own constructor.
OPTIMIZER_RULES: Mapping[str, Rule] = {
    "lr": POSITIVE,
    "momentum": number("a number from 0 to below 1", lambda v: 0 <= v < 1),
    "damping": AT_LEAST_0 | name("linear", "exponential", "lm", "settling"),
    "l2_in_curvature": BOOL,
}

_ABSENT = object()


def validate(cfg: DictConfig) -> None:
    """Hold the config of a training run against the rules; what needs the data or the model is checked later.

    Args:
        cfg: The composed config, without Hydra's own node.

    Raises:
        UsageError: On the first value that does not fit, in one line.
    """
    values = _plain(cfg)
    for key, rule in {**RULES, **OPTIMIZER_RULES}.items():
        value = _find(values, key)
        if value is not _ABSENT:
            check(key, value, rule)
        elif key in RULES:
            raise UsageError(f"'{key}' is missing: expected {rule.expected}")
    if values["steps"] is None and values["epochs"] is None:
        raise UsageError("steps=null epochs=null: expected a number of steps or of epochs")
    _check_cuda(values["device"])


def _plain(cfg: DictConfig) -> dict[str, Any]:
    try:
        return dict(OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))  # type: ignore[arg-type]
    except OmegaConfBaseException as error:
        said = str(error).splitlines()[0]
        raise UsageError(f"{error.full_key}: {said}" if error.full_key else said) from error


def _find(values: Mapping[str, Any], key: str) -> Any:
    """Look up a dotted key; a section that holds something else than keys is an error of its own."""
    found: Any = values
    for depth, part in enumerate(parts := key.split(".")):
        if not isinstance(found, dict):
            section = ".".join(parts[:depth])
            keys = [k for k in RULES if k.startswith(f"{section}.")]
            write = f"write {keys[0]}={show(found)}" if isinstance(found, str) else f"expected {', '.join(keys)}"
            raise UsageError(f"{section}={show(found)}: '{section}' is a section; {write}")
        found = found.get(part, _ABSENT)
        if found is _ABSENT:
            return _ABSENT
    return found


def check(key: str, value: Any, rule: Rule) -> None:
    """Hold one value against its rule.

    Args:
        key: Its name.
        value: The value.
        rule: What it may be.

    Raises:
        UsageError: If it does not fit.
    """
    if rule.accepts(value):
        return
    near = did_you_mean(value, rule.choices) if isinstance(value, str) and rule.choices else ""
    hint = f"; {near}" if near.startswith("did you mean") else ""
    raise UsageError(f"{key}={show(value)}: expected {rule.expected}{hint}")


def _check_cuda(device: str) -> None:
    if not device.startswith("cuda"):
        return
    import torch  # only here: everything else about a config is known without it

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise UsageError(f"device={device}: this machine has no CUDA device; expected auto or cpu")
    if int(device.partition(":")[2] or 0) >= count:
        raise UsageError(f"device={device}: expected cuda:0 to cuda:{count - 1}, or auto or cpu")


def show(value: Any) -> str:
    """Write a value as on the command line.

    Args:
        value: Any value of a config.

    Returns:
        For example `null`, `true`, `[1,2]`.
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{','.join(map(show, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{k}:{show(v)}' for k, v in value.items())}}}"
    return str(value)
