"""What is wrong with an override, what was expected and what is near: Hydra says it in many lines, or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fisherlab.composition import FAULTS, Source, assemble
from fisherlab.errors import UsageError, did_you_mean
from fisherlab.schema import show


def parse(text: str, source: Source) -> Override:
    """Read one override.

    Args:
        text: As on the command line.
        source: Where the configs come from, to find what a bare name is an option of.

    Returns:
        Hydra's reading of it.

    Raises:
        UsageError: If it is malformed.
    """
    if text.startswith("=") or ("=" not in text and not text.startswith("~")):
        groups = [group for group in source.groups() if text in source.options(group)]
        hint = f"; did you mean '{groups[0]}={text}'?" if groups else ", for example optimizer=kfac"
        raise UsageError(f"{text}: expected KEY=VALUE{hint}")
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException as error:
        said = next((line for line in str(error).splitlines() if not line.startswith("Error parsing")), "")
        raise UsageError(f"{text}: {said}; expected KEY=VALUE, special characters in quotes") from error
    group, value = override.key_or_group, override.value()
    if isinstance(value, list) and group in source.groups():  # Hydra would mix their keys
        raise UsageError(f"{text}: expected one {group}; -m {group}={','.join(map(str, value))} runs one after another")
    return override


def one_line(error: BaseException) -> str:
    """Say in one line what Hydra says in many.

    Args:
        error: What it raised.

    Returns:
        The line, with file and line number where a file is not YAML.
    """
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"{error.problem_mark.name}, line {error.problem_mark.line + 1}: not YAML, {error.problem}"
    said = " ".join(str(error).partition("Config search path:")[0].split())
    return f"{said}: {one_line(error.__cause__)}" if isinstance(error.__cause__, OmegaConfBaseException) else said


def explain(overrides: Sequence[Override], source: Source) -> str | None:
    """Find the override that Hydra stumbled over.

    Args:
        overrides: All of them.
        source: Where the configs come from.

    Returns:
        What is wrong with it, what was expected and what is near; None where the fault lies elsewhere.
    """
    for override in overrides:
        if override.is_sweep_override():
            key, _, values = str(override.input_line).partition("=")
            return f"{key}={values}: several values; add -m to sweep over them, or write {key}=[{values}] for a list"
    try:
        groups = assemble([], source).hydra.runtime.choices
        chosen = [o for o in overrides if o.key_or_group in groups and _chooses(o)]
        said = [_wrong_choice(o, source) for o in chosen]
        if not any(said):
            base = [str(o.input_line) for o in chosen]
            cfg = assemble(base, source)
            said = [_wrong_key(o, cfg, base, source) for o in overrides if o not in chosen]
    except FAULTS:
        return None
    return next(filter(None, said), None)


def _chooses(override: Override) -> bool:
    return not override.is_delete() and override.package is None and not isinstance(override.value(), dict)


def _wrong_choice(override: Override, source: Source) -> str | None:
    options, name = source.options(override.key_or_group), override.value()
    if not options:  # one of Hydra's own groups
        return None
    if not isinstance(name, str) or name not in options:
        near = did_you_mean(name if isinstance(name, str) else "", options)
        return f"{override.input_line}: there is no such {override.key_or_group}; {near}"
    try:
        fits = OmegaConf.is_dict(OmegaConf.load(options[name]))
    except (UnicodeDecodeError, OSError) as error:
        return f"{options[name]}: {error}"
    return None if fits else f"{options[name]}: expected keys with values"


def _wrong_key(override: Override, cfg: DictConfig, base: Sequence[str], source: Source) -> str | None:
    line, value = str(override.input_line), override.value()
    if override.is_force_add():
        return None
    if override.is_add():
        return f"{line}: that key exists already; write {line[1:]}" if has(cfg, override.key_or_group) else None
    keys = [
        override.key_or_group,
        *(f"{override.key_or_group}.{k}" for k in (value if isinstance(value, dict) else ())),
    ]
    return next((f"{line}: {_unknown(key, cfg, base, source)}" for key in keys if not has(cfg, key)), None)


def _walk(cfg: DictConfig, key: str) -> tuple[str, Any]:
    """Follow a dotted key as far as it goes; gives the last section reached and what it holds."""
    node: Any = cfg
    parts = key.split(".")
    for depth, part in enumerate(parts):
        if not isinstance(node, DictConfig) or node._is_none() or part not in node:
            return ".".join(parts[:depth]), node
        node = node._get_node(part)
    return key, node


def has(cfg: DictConfig, key: str) -> bool:
    """Tell whether a config has a key.

    Args:
        cfg: The config.
        key: With dots.

    Returns:
        Also true where its value is null.
    """
    return _walk(cfg, key)[0] == key


def _unknown(key: str, cfg: DictConfig, base: Sequence[str], source: Source) -> str:
    section, node = _walk(cfg, key)
    if not isinstance(node, DictConfig) or node._is_none():
        held = OmegaConf.select(cfg, section)
        mapping = f" or {section}={{{key[len(section) + 1 :]}: VALUE}}" if held is None else ""
        return f"'{section}' is {show(held)} and has no keys; expected {section}=VALUE{mapping}"
    choices = cfg.hydra.runtime.choices
    first = key.partition(".")[0]
    group = first if first in choices else "optimizer"
    if others := [name for name in source.options(group) if _option_has(key, [*base, f"{group}={name}"], source)]:
        return f"{key} is not used by {group} '{choices[group]}'; it is used by {', '.join(others)}"
    names = [str(name) for name in node if name != "hydra"]
    if section:
        part = key[len(section) + 1 :].partition(".")[0]
        return f"there is no key '{part}' in '{section}'; {did_you_mean(part, names)}"
    inside = [name for name in names if isinstance(cfg._get_node(name), DictConfig) and key in (cfg[name] or ())]
    near = f"did you mean '{inside[0]}.{key}'?" if inside else did_you_mean(key, names)
    return f"there is no key '{key}'; {near}"


def _option_has(key: str, overrides: Sequence[str], source: Source) -> bool:
    try:
        return has(assemble(overrides, source), key)
    except FAULTS:  # another option's mistake is not what was asked about
        return False
