"""Where configs come from: `conf/`, the user's own folder and the command line, put together by Hydra."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fisherlab.errors import UsageError, did_you_mean

VERSION_BASE = "1.3"
# All that Hydra lets out when something is wrong with what it composes.
FAULTS = (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError)


def conf_dir() -> Path:
    """Find fisherlab's own configs.

    Returns:
        The absolute path: inside the package where it was installed from a wheel, else beside it.
    """
    package = Path(__file__).resolve().parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def digest(overrides: Sequence[str]) -> str:
    """Name a set of overrides; where the results go and whether tracebacks are shown is no part of an experiment.

    Args:
        overrides: In any order.

    Returns:
        10 hexadecimal digits.
    """
    told = sorted(o for o in overrides if o.partition("=")[0].lstrip("+") not in ("results", "debug"))
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:10]


# A sweep is named once, by all that was asked for; in each of its jobs the same interpolation would see that job's
# overrides alone, so Hydra's cache carries the first answer on.
OmegaConf.register_new_resolver("fisherlab.sweep", digest, replace=True, use_cache=True)
OmegaConf.register_new_resolver("fisherlab.job", digest, replace=True)


@dataclass(frozen=True)
class Source:
    """Where configs come from.

    Attributes:
        folder: The user's own folder (`--config-dir`), if any.
        primary: Name of the config that everything starts from (`--config-name`).
    """

    folder: Path | None = None
    primary: str = "train"

    def folders(self) -> list[Path]:
        """List the folders that are searched, fisherlab's own first."""
        return [conf_dir(), self.folder] if self.folder else [conf_dir()]

    def options(self, group: str) -> dict[str, Path]:
        """List the options of a group.

        Args:
            group: For example `optimizer`.

        Returns:
            The file of each option, by the option's name, in order of the names.
        """
        files = (path for folder in self.folders() for path in (folder / group).glob("*.yaml"))
        return {path.stem: path for path in sorted(files, key=lambda path: path.stem)}

    def groups(self) -> list[str]:
        """List the groups."""
        return sorted({path.name for folder in self.folders() for path in folder.iterdir() if any(path.glob("*.yaml"))})

    def check(self) -> None:
        """See that the folder and the primary config are there, and hide none of fisherlab's own.

        Raises:
            UsageError: If they are not, or do.
        """
        if self.folder and not self.folder.is_dir():
            raise UsageError(f"--config-dir {self.folder}: there is no such folder")
        for own in sorted(conf_dir().rglob("*.yaml")) if self.folder else []:
            name = own.relative_to(conf_dir())
            if (hidden := self.folders()[-1] / name).exists() and not hidden.samefile(own):
                raise UsageError(f"{hidden}: fisherlab has a {name} of its own; rename yours")
        names = [path.stem for folder in self.folders() for path in folder.glob("*.yaml")]
        if self.primary not in names:
            raise UsageError(f"--config-name {self.primary}: {did_you_mean(self.primary, names)}")


def assemble(overrides: Sequence[str], source: Source) -> DictConfig:
    """Let Hydra compose, with its own node `hydra` in the result.

    Args:
        overrides: As on the command line.
        source: Where the configs come from.

    Returns:
        The config.
    """
    own, user = conf_dir(), source.folder
    # The primary config must lie in the main folder; the order is of no account, since no name is in both.
    main, other = (user, own) if user and not (own / f"{source.primary}.yaml").exists() else (own, user)
    search = [f"hydra.searchpath=[{_quoted(f'file://{other.resolve()}')}]"] if other else []
    with initialize_config_dir(str(main.resolve()), job_name=source.primary, version_base=VERSION_BASE):
        return compose(source.primary, [*search, *overrides], return_hydra_config=True)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "\\'") + "'"
