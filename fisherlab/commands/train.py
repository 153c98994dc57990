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
from hydra.errors import CompactHydraException
from omegaconf import DictConfig, OmegaConf

from fisherlab.composition import VERSION_BASE
from fisherlab.config import Source, compose, conf_dir, job, jobs, run_directory, validate
from fisherlab.errors import UsageError, did_you_mean

# A run that diverges is a recorded outcome, not a failure.
NUMBERS = ("lr", "momentum", "damping", "l2", "seed", "data_seed", "init_seed", "steps", "epochs")
EXIT_STATUS = {"finished": 0, "diverged": 0, "failed": 1, "interrupted": 130}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line, where argparse would print its usage and exit."""
        raise UsageError(message)


class JobFailed(CompactHydraException):
    """A job of a sweep failed: Hydra prints the message alone and goes on with the others."""


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
        _check_sweep(asked.overrides, source)
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

    Args:
        cfg: The job's config.

    Raises:
        JobFailed: If the run failed.
        KeyboardInterrupt: If it was interrupted, which ends the sweep.
    """
    from fisherlab.training.run import resume, train

    directory = Path(HydraConfig.get().runtime.output_dir)
    try:
        validate(cfg)
        status = (resume(directory, debug=cfg.debug) if _begun(directory, cfg) else train(cfg, directory)).status
    except Exception as error:
        if cfg.debug:
            raise
        said = str(error) if isinstance(error, UsageError) else f"{type(error).__name__}: {error}"
        raise JobFailed(f"fisherlab: {directory}: {said}") from error
    if status == "interrupted":
        raise KeyboardInterrupt
    if status == "failed":
        raise JobFailed(f"fisherlab: {directory}: the run failed, its status.json says why")


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
    if "debug=true" in map(str.lower, asked.overrides):
        os.environ["HYDRA_FULL_ERROR"] = "1"
    return [*argv, *asked.overrides]


def _check_sweep(overrides: Sequence[str], source: Source) -> None:
    """Refuse a sweep as a whole, before anything is written, if one of its jobs makes no sense."""
    every = jobs(overrides, source)
    if not every:
        raise UsageError(f"{' '.join(overrides)}: a sweep over no values; expected at least one")
    from fisherlab.training.setup import prepare, resolve

    tried = set()
    for one in every:
        cfg = job(compose(one, source))
        validate(cfg)
        # What must fit together is tried once per shape: numbers alone, checked above, change nothing in that.
        shape = str({k: v for k, v in OmegaConf.to_container(cfg, resolve=False).items() if k not in NUMBERS})  # type: ignore[union-attr]
        if shape not in tried:
            prepare(resolve(cfg))
            tried.add(shape)


def _resumed(overrides: Sequence[str]) -> Path | None:
    """Find `resume=RUN_DIR`; a resumed run has its config already, so nothing else may be asked of it."""
    asked = [o for o in overrides if not o.startswith("debug=")]
    named = next((o for o in asked if o.startswith("resume=") and o != "resume=null"), None)
    if named is None:
        return None
    if len(asked) > 1:
        raise UsageError(f"{' '.join(asked)}: resume stands alone, for a resumed run goes on with its own config")
    return Path(named.partition("=")[2].strip("'\"")).expanduser()
