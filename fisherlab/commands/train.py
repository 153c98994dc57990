"""`fisherlab train`: one run is composed, checked and started here; what Hydra does better is handed over to Hydra."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from fisherlab.composition import VERSION_BASE
from fisherlab.config import Source, compose, conf_dir, job, run_directory, validate
from fisherlab.errors import UsageError, did_you_mean
from fisherlab.explain import has, parse

# A run that diverges is a recorded outcome, not a failure.
EXIT_STATUS = {"finished": 0, "diverged": 0, "failed": 1, "interrupted": 130}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line, where argparse would print its usage and exit."""
        raise UsageError(message)


class JobFailed(Exception):
    """A job of `hydra/sweeper=basic` failed: Hydra goes on with the others, and raises it in the end."""


def parser() -> argparse.ArgumentParser:
    """Make the parser of what may follow `fisherlab train`.

    Returns:
        A parser that raises `UsageError`.
    """
    it = _Parser(prog="fisherlab train", add_help=False, allow_abbrev=False)
    add = it.add_argument
    add("overrides", nargs="*", metavar="KEY=VALUE")
    add("-h", "--help", action="store_true", help="show this, with the values that the overrides give")
    add("-m", "--multirun", action="store_true", help="one run for each combination of comma-separated values")
    add("-cd", "--config-dir", type=Path, metavar="DIR", help="a folder with your own configs")
    add("-cn", "--config-name", default="train", metavar="NAME", help="the config to start from")
    add(
        "-c",
        "--cfg",
        choices=["job", "hydra", "all"],
        metavar="job|hydra|all",
        help="print the composed config and stop",
    )
    add("-p", "--package", metavar="KEY", help="with --cfg: only this part")
    add("--resolve", action="store_true", help="with --cfg: with interpolations resolved")
    add("-i", "--info", metavar="WHAT", help="print how the config came about: all, config, defaults, searchpath ...")
    add("--hydra-help", action="store_true", help="print what Hydra says of itself")
    add("-sc", "--shell-completion", action="store_true", help="with install=bash (zsh, fish): print a script")
    return it


def main(args: Sequence[str]) -> int:
    """Run `fisherlab train`.

    Args:
        args: What follows `train`.

    Returns:
        Exit status.

    Raises:
        UsageError: If something that was asked for makes no sense.
    """
    asked, unknown = parser().parse_known_intermixed_args(list(args))
    if unknown:
        options = [option for action in parser()._actions for option in action.option_strings]
        raise UsageError(f"there is no option {unknown[0]}; {did_you_mean(unknown[0], options)}")
    source = Source(asked.config_dir, asked.config_name)
    if asked.help:
        from fisherlab.commands.help import text

        print(text(asked.overrides, source, parser()))
        return 0
    if asked.shell_completion:
        from fisherlab.commands import completion

        return completion.main(asked.overrides)
    if asked.multirun:
        asked.overrides = _for_sweeper(asked.overrides, source)
    elif not (asked.cfg or asked.info or asked.hydra_help):
        return run(asked.overrides, source)
    if asked.cfg:
        compose(asked.overrides, source)
    return hand_over(_for_hydra(asked))


def run(overrides: Sequence[str], source: Source) -> int:
    """Make one run, or resume one.

    Args:
        overrides: As on the command line.
        source: Where the configs come from.

    Returns:
        Exit status.

    Raises:
        UsageError: If something that was asked for makes no sense; then nothing was written.
    """
    if (directory := _resumed(overrides)) is not None:
        from fisherlab.training.run import resume

        return EXIT_STATUS[resume(directory, debug="debug=true" in map(str.lower, overrides)).status]
    cfg = compose(overrides, source)
    validate(alone := job(cfg))
    from fisherlab.training.run import train

    return EXIT_STATUS[train(alone, run_directory(cfg)).status]


def task(cfg: DictConfig) -> None:
    """Make one run of a sweep, in the folder that Hydra made, or go on with it where an earlier start began it.

    In the folder of a group of replicas, train the group: its runs have folders of their own.

    Args:
        cfg: The job's config; of a group, its first job's.

    Raises:
        JobFailed: If the run failed.
        KeyboardInterrupt: If it was interrupted, which ends the sweep.
    """
    directory = Path(HydraConfig.get().runtime.output_dir)
    if (directory / "group.json").exists():
        from fisherlab.sweep.group import run_group

        return run_group(directory)
    from fisherlab.training.run import resume, train

    try:
        validate(cfg)
        status = (resume(directory, debug=cfg.debug) if _begun(directory, cfg) else train(cfg, directory)).status
    except Exception as error:
        if cfg.debug:
            raise
        said = str(error) if isinstance(error, UsageError) else f"{type(error).__name__}: {error}"
        raise JobFailed(f"{directory}: {said}") from error
    if status == "interrupted":
        raise KeyboardInterrupt
    if status == "failed":
        raise JobFailed(f"{directory}: the run failed, its status.json says why")


def _begun(directory: Path, cfg: DictConfig) -> bool:
    from fisherlab.training.checkpoint import fingerprint
    from fisherlab.training.setup import resolve

    path = directory / "config.yaml"
    if not path.exists():
        return False
    then, now = DictConfig(OmegaConf.load(path)), resolve(cfg)
    # What was left open stays as the run settled it, also on a machine with other cores or devices.
    if cfg.threads is None:
        now.threads = then.threads
    if cfg.device == "auto":
        now.device = then.device
    # The same command may mean another run once a default has changed.
    if fingerprint(then) != fingerprint(now):
        raise UsageError("the folder holds a run with another config; results=FOLDER makes a new one")
    return True


def hand_over(argv: Sequence[str]) -> int:
    """Let Hydra's own command line do it.

    Args:
        argv: What Hydra is to see after the program's name.

    Returns:
        Exit status.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises what it would print in many lines
    before = sys.argv
    sys.argv = ["fisherlab", *argv]
    try:
        hydra.main(version_base=VERSION_BASE, config_path=str(conf_dir()), config_name="train")(task)()
        return 0
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    finally:
        sys.argv = before


def _for_hydra(asked: argparse.Namespace) -> list[str]:
    """Write the arguments anew, options first: Hydra's parser does not take them mixed."""
    argv = ["--config-name", asked.config_name]
    argv += ["--config-dir", str(asked.config_dir)] if asked.config_dir else []
    argv += ["--multirun"] if asked.multirun else []
    argv += ["--cfg", asked.cfg] if asked.cfg else []
    argv += ["--package", asked.package] if asked.package else []
    argv += ["--resolve"] if asked.resolve else []
    argv += ["--info", asked.info] if asked.info else []
    argv += ["--hydra-help"] if asked.hydra_help else []
    return [*argv, *asked.overrides]


def _for_sweeper(overrides: Sequence[str], source: Source) -> list[str]:
    """Check what Hydra composes before its sweeper is called: everything but what is swept.

    A key that only a swept part has (`-m optimizer=sgd,adam optimizer.beta1=0.8`) would stop Hydra there, so it goes in
    as a sweep over one value.

    Args:
        overrides: As on the command line.
        source: Where the configs come from.

    Returns:
        The overrides for Hydra.

    Raises:
        UsageError: If one of them makes no sense.
    """
    parsed = {text: parse(text, source) for text in overrides}
    for text, override in parsed.items():
        if override.is_hydra_override() and override.is_sweep_override():
            raise UsageError(f"{text}: expected one value, for all jobs of the sweep")
    plain = {text: override for text, override in parsed.items() if not override.is_sweep_override()}
    values = [text for text, override in plain.items() if _is_value(override, source)]
    cfg = compose([text for text in plain if text not in values], source)
    if not str(cfg.hydra.sweeper.get("_target_")).endswith(".ReplicaSweeper"):  # which plans by itself
        from fisherlab.sweep.plan import plan

        plan([text for text, override in parsed.items() if not override.is_hydra_override()], source)
    alone = {text for text in values if not has(cfg, parsed[text].key_or_group)}
    return ["{}=choice({})".format(*text.split("=", 1)) if text in alone else text for text in overrides]


def _is_value(override: Override, source: Source) -> bool:
    """Whether it sets a key, where others choose a part, add or delete a key, or are Hydra's own."""
    special = override.is_hydra_override() or override.is_add() or override.is_force_add() or override.is_delete()
    return not special and override.key_or_group not in source.groups()


def _resumed(overrides: Sequence[str]) -> Path | None:
    """Find `resume=RUN_DIR`; a resumed run has its config already, so nothing else may be asked of it."""
    asked = [o for o in overrides if not o.startswith("debug=")]
    named = next((o for o in asked if o.startswith("resume=") and o != "resume=null"), None)
    if named is None:
        return None
    if len(asked) > 1:
        raise UsageError(f"{' '.join(asked)}: resume stands alone, for a resumed run goes on with its own config")
    return Path(named.partition("=")[2].strip("'\"")).expanduser()
