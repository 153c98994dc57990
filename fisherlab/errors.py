"""Errors that a user can mend: one line that names the value, what was expected and the nearest valid choice."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """A mistake in what was asked for; the command line prints it as one line and exits with status 2."""


class BusyError(UsageError):
    """Another process is at it."""


class SolveError(ArithmeticError):
    """A damped curvature matrix could not be factorised, even in float64; names the layer and the step.

    Args:
        message: One line.
        step: The optimizer's step, counted from 0.
    """

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Say what was expected in place of an unknown name.

    Args:
        name: What the user wrote.
        choices: The valid names.

    Returns:
        `did you mean 'kfac'?` where a close name exists, else `expected one of: ...`.
    """
    valid = sorted(choices)
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"did you mean '{near[0]}'?" if near else f"expected one of: {', '.join(valid)}"
