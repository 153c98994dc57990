"""`fisherlab COMMAND --help`: every key with its value and the comment that stands beside it in the YAML files."""

from __future__ import annotations

import argparse
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fisherlab.cli import COMMANDS, EXAMPLES
from fisherlab.config import Source, compose, conf_dir, job
from fisherlab.errors import UsageError, did_you_mean
from fisherlab.schema import show

LINE = re.compile(r"(?P<indent> *)(?P<key>\w+):(?P<value>[^#]*)(?:#\s*(?P<comment>.*))?")


def summary(path: Path) -> str:
    """Read what a config says of itself.

    Args:
        path: A YAML file.

    Returns:
        Its first comment, after the `# @package` line; empty where there is none.
    """
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @"):
            return line.lstrip("# ").strip()
    return ""


def comments(path: Path, prefix: str = "") -> dict[str, str]:
    """Read the comments on the keys of a config: beside a key, or on the line above it.

    Args:
        path: A YAML file.
        prefix: The section that the file fills, with its dot; a file of the package `_global_` fills no section.

    Returns:
        The comment of each dotted key that has one.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    prefix = "" if lines[:1] == ["# @package _global_"] else prefix
    found: dict[str, str] = {}
    parents: list[tuple[int, str]] = []
    above = ""
    for line in itertools.dropwhile(lambda line: line.startswith("#"), lines):  # the first lines are about the file
        if match := LINE.fullmatch(line):
            indent = len(match["indent"])
            parents = [(depth, key) for depth, key in parents if depth < indent]
            parents.append((indent, match["key"]))
            if comment := match["comment"] or above:
                found[prefix + ".".join(key for _, key in parents)] = comment
        above = line.lstrip("# ").strip() if line.lstrip().startswith("#") else ""
    return found


def text(overrides: Sequence[str], source: Source, parser: argparse.ArgumentParser) -> str:
    """Describe `fisherlab train`.

    Args:
        overrides: Give the values that are shown.
        source: Where the configs come from.
        parser: Knows the options.

    Returns:
        The text.
    """
    cfg = compose(overrides, source)
    choices = {group: name for group, name in cfg.hydra.runtime.choices.items() if not group.startswith("hydra/")}
    said = comments(conf_dir() / "train.yaml")
    for group, name in choices.items():
        options = source.options(group)
        # The chosen option's words win, but an option that builds on another inherits that one's.
        for path in [*options.values(), options[str(name)]]:
            said |= comments(path, f"{group}.")
    parts = ((f"{group}={name}", ", ".join(source.options(group))) for group, name in sorted(choices.items()))
    keys = ((f"{key}={value}", said.get(key, "")) for key, value in _values(job(cfg)))
    flags = (
        (", ".join(action.option_strings) + (f" {action.metavar}" if action.metavar else ""), action.help or "")
        for action in parser._actions
        if action.option_strings
    )
    return "\n".join(
        [
            "fisherlab train [OPTIONS] [KEY=VALUE ...]",
            "  Train a model, record everything in a run directory, and name that directory in the last line.\n",
            "Parts, as chosen here, and what else there is (`fisherlab list` says what each is)",
            *_table(parts),
            "\nKeys, with their values here",
            *_table(keys),
            "\nOptions",
            *_table(flags),
            f"\nExamples\n{EXAMPLES}",
        ]
    )


def about(name: str, args: Sequence[str]) -> str:
    """Describe a command other than `train`.

    Args:
        name: Of the command.
        args: What else was typed; a study's name adds its settings, at the scale that is chosen.

    Returns:
        The text.

    Raises:
        UsageError: If there is no such study or scale.
    """
    command, path = COMMANDS[name], conf_dir() / f"{name}.yaml"
    lines = [f"fisherlab {name} {command.arguments}".rstrip(), f"  {command.summary}"]
    if path.exists():
        own, said = _load(path), comments(path)
        parts = own.pop("defaults", [])
        lines += ["\nKeys, with their defaults", *_table((f"{k}={v}", said.get(k, "")) for k, v in _values(own))]
        if "train" in parts:
            lines += ["  and every key of a training: `fisherlab train --help`"]
    if name == "study":
        studies = {study.stem: study for study in sorted((conf_dir() / "study").glob("*.yaml"))}
        lines += ["\nStudies", *_table((study, summary(file)) for study, file in studies.items())]
        for chosen in [arg for arg in args if "=" not in arg and arg not in ("--help", "-h", "all")]:
            if chosen not in studies:
                raise UsageError(f"there is no study '{chosen}'; {did_you_mean(chosen, ('all', *studies))}")
            lines += [f"\nSettings of {chosen}", *_table(_settings(studies[chosen], args))]
    examples = [line for line in EXAMPLES.splitlines() if line.startswith(f"  fisherlab {name} ")]
    return "\n".join([*lines, *(["\nExamples", *examples] if examples else [])])


def _load(path: Path) -> DictConfig:
    found = OmegaConf.load(path)
    assert isinstance(found, DictConfig)
    return found


def _settings(path: Path, args: Sequence[str]) -> list[tuple[str, str]]:
    """A study's settings at the scale that is chosen; what they mean stands beside the first scale's."""
    scales, said = _load(path).scales, comments(path)
    usual = str(_load(conf_dir() / "study.yaml").scale)
    chosen = next((arg.removeprefix("scale=") for arg in args if arg.startswith("scale=")), usual)
    if chosen not in scales:
        raise UsageError(f"scale={chosen}: expected {', '.join(scales)}; {did_you_mean(chosen, list(scales))}")
    first = next(iter(scales))
    values = _values(scales[chosen], f"study.scales.{chosen}.")
    return [(f"{k}={v}", said.get(f"scales.{first}.{k.split('.', 3)[-1]}", "")) for k, v in values]


def _values(cfg: DictConfig, prefix: str = "") -> Iterator[tuple[str, str]]:
    """List the keys that are the user's to set: not what names a class, nor what only repeats another key."""
    for name in map(str, cfg):
        node: Any = None if OmegaConf.is_missing(cfg, name) else cfg._get_node(name)
        if isinstance(node, DictConfig) and not node._is_none():
            yield from _values(node, f"{prefix}{name}.")
        elif not name.startswith("_") and not OmegaConf.is_interpolation(cfg, name):
            value = "???" if node is None else OmegaConf.to_container(node) if OmegaConf.is_config(node) else cfg[name]
            yield f"{prefix}{name}", show(value)


def _table(rows: Iterable[tuple[str, str]]) -> list[str]:
    rows = list(rows)
    width = min(36, max((len(left) for left, _ in rows), default=0))
    return [f"  {left:<{width}}  {right}".rstrip() for left, right in rows]
