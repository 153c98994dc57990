"""Tab completion: Hydra's scripts ask Hydra, which takes a sub-command for an override; here it is answered first."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Sequence

from fisherlab.cli import COMMANDS
from fisherlab.config import Source
from fisherlab.errors import UsageError, did_you_mean

ACTIONS = ("install", "uninstall", "query")
SHELLS = ("bash", "zsh", "fish")
WITH_VALUE = ("--config-dir", "-cd", "--config-name", "-cn")


def main(args: Sequence[str]) -> int:
    """Run `fisherlab -sc install=SHELL`, and answer what the installed script asks at each tab.

    Args:
        args: `install=SHELL`, `uninstall=SHELL`, or `query=SHELL` with the line in the environment (COMP_LINE).

    Returns:
        Exit status 0.

    Raises:
        UsageError: If the action or the shell is another one.
    """
    action, _, shell = args[0].partition("=") if len(args) == 1 else ("", "", "")
    if action not in ACTIONS or not shell:
        raise UsageError(
            f"-sc {' '.join(args)}: expected install=SHELL or uninstall=SHELL, SHELL {' or '.join(SHELLS)}"
        )
    if shell not in SHELLS:
        raise UsageError(f"-sc {action}={shell}: {did_you_mean(shell, SHELLS)}")
    if action == "query":
        # Whatever is wrong with a half-written line, the terminal must not fill with it.
        with contextlib.suppress(Exception), contextlib.redirect_stderr(io.StringIO()):
            print("\n".join(query(os.environ.get("COMP_LINE", ""), shell)))
        return 0
    from fisherlab.commands.train import hand_over

    return hand_over(["-sc", f"{action}={shell}"])


def query(line: str, shell: str = "bash") -> list[str]:
    """Complete a command line.

    Args:
        line: As typed so far, with the program's name.
        shell: Who asks.

    Returns:
        The words that may stand in place of the last one.
    """
    _, *words = line.split() or [""]
    word = words.pop() if words and not line[-1].isspace() else ""
    if not words:
        return [name for name in COMMANDS if name.startswith(word)]
    command, *before = words
    if command == "train":
        return _options(word) if word.startswith("-") else _ask_hydra(before, word, shell)
    names = {"data": Source().options("dataset"), "list": Source().groups()}.get(command, ())
    return [name for name in names if name.startswith(word)]


def _options(word: str) -> list[str]:
    from fisherlab.commands.train import parser

    options = (option for action in parser()._actions for option in action.option_strings)
    return [option for option in options if option.startswith(word)]


def _ask_hydra(before: Sequence[str], word: str, shell: str) -> list[str]:
    from fisherlab.commands.train import hand_over

    flags: list[str] = []
    overrides = ["-m"] if {"-m", "--multirun"} & set(before) else []
    for last, one in zip(["", *before], before, strict=False):
        if last in WITH_VALUE:
            flags += [last, one]
        elif not one.startswith("-"):
            overrides.append(one)
    line, os.environ["COMP_LINE"] = os.environ.get("COMP_LINE", ""), " ".join(["fisherlab", *overrides, word])
    try:
        with contextlib.redirect_stdout(io.StringIO()) as answer:
            hand_over(["-sc", *flags, f"query={shell}"])
    finally:
        os.environ["COMP_LINE"] = line
    return answer.getvalue().split()
