"""`fisherlab data`: fetch, verify, report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from fisherlab.data import DATASETS, data_folder, find
from fisherlab.data.dataset import Dataset, Split
from fisherlab.data.fetch import Collection
from fisherlab.data.mnist import FILES as MNIST
from fisherlab.data.pictures import faces_file
from fisherlab.data.tables import A1A, BOSTON
from fisherlab.errors import UsageError

FETCHED: dict[str, Collection] = {"mnist": MNIST, "a1a": A1A, "boston": BOSTON}
# Data sets that no registry carries, and the file that makes them.
BY_HAND: dict[str, Callable[[], Path]] = {"faces": faces_file}
FROM_SKLEARN = ("digits", "breast_cancer", "wine")

# What is known of each split's targets: examples per class, or the mean of real targets.
TARGETS: dict[str, dict[str, tuple[float, ...]]] = {
    "mnist": {
        "train": (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
        "test": (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
    },
    "a1a": {"train": (1210, 395), "test": (23510, 7446)},
    "digits": {"train": (178, 182, 177, 183, 181, 182, 181, 179, 174, 180)},
    "breast_cancer": {"train": (212, 357)},
    "wine": {"train": (59, 71, 48)},
    "boston": {"train": (22.5328,)},
    "curves (synthetic)": {"train": (0.0575,), "test": (0.0573,)},
    "toy_gaussian": {"train": (500, 500)},
    "toy_linear": {"train": (4.5587,)},
}


def summarize(data: Dataset, split: Split) -> tuple[float, ...]:
    """Sum up the targets of a split.

    Args:
        data: The data set, which says of what kind they are.
        split: The split.

    Returns:
        Examples per class, or the mean of real targets to four digits.
    """
    if data.likelihood == "gaussian" or split.y.shape[1:].numel() > 1:
        return (round(float(split.y.mean()), 4),)
    return tuple(torch.bincount(split.y.long().flatten(), minlength=max(data.outputs, 2)).tolist())


def check(name: str) -> str:
    """Fetch a data set where needed, verify it and compare its targets with what is known of them.

    Args:
        name: Its name.

    Returns:
        One line: examples, inputs, targets and where the data lie.

    Raises:
        UsageError: If the name is unknown, the data cannot be had, or they are not what they should be.
    """
    data = find(name)()
    found = {part: summarize(data, split) for part, split in data.splits.items()}
    if found != TARGETS.get(data.name, found):  # of a file of the authors nothing is known
        raise UsageError(f"'{name}' has other targets than it should: expected {TARGETS[data.name]}, found {found}")
    examples = " + ".join(f"{len(split)} {part}" for part, split in data.splits.items())
    (first, *_) = found.values()
    targets = f"mean {first[0]:g}, ok" if len(first) == 1 else f"{len(first)} classes, counts ok"
    return _row(name, examples, str(data.inputs), targets, _where(name))


def main(args: Sequence[str]) -> int:
    """Run `fisherlab data [NAME ...]`.

    Args:
        args: Names of data sets; none means all.

    Returns:
        Exit status 0.

    Raises:
        UsageError: If a name is unknown (before anything is fetched) or a data set cannot be had (after the others).
    """
    names = list(dict.fromkeys(args)) or list(DATASETS)
    for name in names:
        find(name)
    print(_row("data set", "examples", "inputs", "targets", "where"))
    failures: dict[str, UsageError] = {}
    for name in names:
        if not args and (missing := BY_HAND.get(name)) and not missing().exists():
            print(_row(name, "-", "-", "not here", f"only from the authors' file, {missing()}"))
            continue
        try:
            print(check(name), flush=True)
        except UsageError as reason:
            failures[name] = reason
            print(_row(name, "-", "-", "FAILED", _where(name)), flush=True)
    if failures:
        first, *others = failures
        raise UsageError(f"{failures[first]}" + (f" (also failed: {', '.join(others)})" if others else ""))
    return 0


def _row(name: str, examples: str, inputs: str, targets: str, where: str) -> str:
    return f"{name:<14}{examples:<26}{inputs:>6}  {targets:<24}{where}"


def _where(name: str) -> str:
    if name in FETCHED:
        return str((data_folder() / FETCHED[name].files[0].path).parent)
    return f"scikit-learn {version('scikit-learn')}" if name in FROM_SKLEARN else "generated"
