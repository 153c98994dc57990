"""`fisherlab list`: every data set, model, optimizer and study, in the words of its own config."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fisherlab.commands.help import summary
from fisherlab.config import Source
from fisherlab.errors import UsageError, did_you_mean

WIDTH = 20  # of the column of names
FIRST = ("dataset", "model", "optimizer", "study")


def main(args: Sequence[str]) -> int:
    """Run `fisherlab list`.

    Args:
        args: Kinds to list, for example `optimizer`; none means all. `--config-dir DIR` adds your own.

    Returns:
        Exit status 0.

    Raises:
        UsageError: If there is no such kind or folder.
    """
    kinds, folder = split_config_dir(args)
    source = Source(folder)
    source.check()
    groups = sorted(source.groups(), key=lambda kind: (FIRST.index(kind) if kind in FIRST else len(FIRST), kind))
    for kind in kinds:
        if kind not in groups:
            raise UsageError(f"there is no kind '{kind}'; {did_you_mean(kind, groups)}")
    listed = [
        "\n".join([f"{kind}", *(f"  {name:<{WIDTH}}{summary(path)}" for name, path in source.options(kind).items())])
        for kind in kinds or groups
    ]
    print("\n\n".join(listed))
    return 0


def split_config_dir(args: Sequence[str]) -> tuple[list[str], Path | None]:
    """Take `--config-dir DIR` out of arguments.

    Args:
        args: As typed.

    Returns:
        The others, and the folder, if any.

    Raises:
        UsageError: If no folder follows.
    """
    rest = list(args)
    flag = next((arg for arg in rest if arg in ("--config-dir", "-cd")), None)
    if flag is None:
        return rest, None
    at = rest.index(flag)
    if at + 1 == len(rest):
        raise UsageError(f"{flag}: expected a folder")
    return rest[:at] + rest[at + 2 :], Path(rest[at + 1])
