"""The command line: a sub-command is a module with `main(args) -> exit status`, imported when it is called for."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fisherlab import __version__
from fisherlab.errors import UsageError, did_you_mean


@dataclass(frozen=True)
class Command:
    """A sub-command.

    Attributes:
        arguments: What may follow its name.
        summary: What it does, in one line.
        module: Where its `main` is.
    """

    arguments: str
    summary: str
    module: str


# Read once by the libraries that torch brings, so set before it is imported; what the user has set stays.
ENVIRONMENT: Mapping[str, str] = {
    # The same bits however runs are grouped.
    "MKL_CBWR": "AUTO,STRICT",
    # How long an idle thread spins before it sleeps. OpenMP's default is right on an idle machine, but beside one other
    # busy process on two cores an epoch of K-FAC took 20 to 77 s with it and 9 s with this, which costs 7 % when idle.
    "GOMP_SPINCOUNT": "10000",
}
COMMANDS: Mapping[str, Command] = {
    "train": Command("[-m] [KEY=VALUE ...]", "train a model, or several with -m", "fisherlab.commands.train"),
    "tune": Command("[KEY=VALUE ...]", "Bayesian search over lr, momentum, any number", "fisherlab.commands.tune"),
    "compare": Command("[KEY=VALUE ...]", "Fisher against empirical Fisher along a path", "fisherlab.commands.compare"),
    "study": Command("NAME [scale=smoke|quick|paper]", "reproduce a paper's study", "fisherlab.commands.study"),
    "figures": Command(
        "[NAME|RUN ...]", "re-draw figures from tables; lay runs side by side", "fisherlab.commands.figures"
    ),
    "data": Command("[NAME ...]", "fetch, verify, report", "fisherlab.data.command"),
    "list": Command("[KIND ...]", "every dataset, model, optimizer with one line each", "fisherlab.commands.listing"),
    "doctor": Command("", "versions, device, threads, data, write access", "fisherlab.commands.doctor"),
}

EXAMPLES = """\
  fisherlab train optimizer=kfac damping=1e0
  fisherlab train dataset=a1a model=logistic optimizer=efngd lr=0.5 epochs=20
  fisherlab train -m optimizer=kfac damping=1e-2,1e-1,1e0 seed=0,1,2
  fisherlab train resume=results/runs/RUN
  fisherlab tune optimizer=kfac damping=1e0 model=deep_linear epochs=1 trials=300
  fisherlab compare dataset=digits model.hidden=[32] optimizer=sgd epochs=10
  fisherlab study kunstner2019 scale=smoke
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        argv: The arguments after `fisherlab`; None takes those of this process.

    Returns:
        Exit status: 0 done, 1 a run failed, 2 wrong usage, 130 interrupted.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    sys.path.append(os.getcwd())  # for a user's own classes by _target_; last, so that it shadows nothing
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        status = dispatch(args)
        sys.stdout.flush()
        return status
    except UsageError as error:
        return _report(str(error), 2, args)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # for example `fisherlab list | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return _report(f"{type(error).__name__}: {error} (debug=true shows where)", 1, args)


def dispatch(args: Sequence[str]) -> int:
    """Call the command that a command line names.

    Args:
        args: The arguments after `fisherlab`.

    Returns:
        Exit status.

    Raises:
        UsageError: If there is no such command, or the command finds a mistake.
    """
    name, rest = (args[0], list(args[1:])) if args else ("--help", [])
    if name in ("--help", "-h"):
        print(overview())
        return 0
    if name == "--version":
        print(f"fisherlab {__version__}")
        return 0
    if name in ("-sc", "--shell-completion"):
        return importlib.import_module("fisherlab.commands.completion").main(rest)
    if name not in COMMANDS:
        raise UsageError(f"there is no command '{name}'; {did_you_mean(name, COMMANDS)}")
    command = COMMANDS[name]
    if name != "train" and {"--help", "-h"} & set(rest):  # train's shows the values as chosen on its line
        print(importlib.import_module("fisherlab.commands.help").about(name, rest))
        return 0
    return importlib.import_module(command.module).main(rest)


def overview() -> str:
    """Describe the commands.

    Returns:
        The text of `fisherlab --help`.
    """
    calls = {f"fisherlab {name} {command.arguments}": command.summary for name, command in COMMANDS.items()}
    width = max(map(len, calls)) + 2
    table = "".join(f"  {call:<{width}}{summary}\n" for call, summary in calls.items())
    return (
        "fisherlab: what preconditioning with the Fisher information does, and what the empirical Fisher breaks\n\n"
        f"Commands\n{table}\n"
        f"Examples\n{EXAMPLES}\n"
        '`fisherlab COMMAND --help` lists every key; tab completion: eval "$(fisherlab -sc install=bash)"'
    )


def _report(message: str, status: int, args: Sequence[str]) -> int:
    if "debug=true" in map(str.lower, args):
        traceback.print_exc()
    print(f"fisherlab: {' '.join(message.split())}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
