"""Data sets: one function each, that fetches on first use, verifies, and returns tensors with named splits."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch

from fisherlab.data.dataset import Dataset, Split
from fisherlab.data.mnist import mnist
from fisherlab.data.pictures import curves, faces
from fisherlab.data.sources import data_folder
from fisherlab.data.tables import a1a, boston, breast_cancer, digits, standardized, wine
from fisherlab.data.toy import toy_gaussian, toy_linear
from fisherlab.errors import UsageError, did_you_mean

__all__ = [
    "DATASETS",
    "Dataset",
    "Split",
    "a1a",
    "boston",
    "breast_cancer",
    "curves",
    "data_folder",
    "digits",
    "faces",
    "find",
    "load_dataset",
    "mnist",
    "standardized",
    "toy_gaussian",
    "toy_linear",
    "wine",
]

DATASETS: dict[str, Callable[..., Dataset]] = {
    function.__name__: function
    for function in (mnist, a1a, digits, breast_cancer, wine, boston, curves, faces, toy_gaussian, toy_linear)
}


def find(name: str) -> Callable[..., Dataset]:
    """Look up the function that loads a data set.

    Args:
        name: Its name, as on the command line.

    Returns:
        The function; its arguments are the data set's options.

    Raises:
        UsageError: If there is no such data set.
    """
    if name not in DATASETS:
        raise UsageError(f"dataset={name!r} is unknown: {did_you_mean(name, DATASETS)}")
    return DATASETS[name]


def load_dataset(
    name: str,
    *,
    splits: Mapping[str, int] | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Dataset:
    """Load a data set, ready to train on.

    Args:
        name: Its name, as on the command line.
        splits: Sizes of new splits, cut from all examples; None keeps those it comes with.
        seed: Names the shuffle of new splits.
        device: Where its tensors go.
        dtype: float32 or float64.
        **options: What its function takes, for example `standardize=True`.

    Returns:
        The data set.

    Raises:
        UsageError: If the name, an option or the splits do not fit, or a file is damaged or cannot be had.
    """
    build = find(name)
    known = inspect.signature(build).parameters
    for option in options:
        if option not in known:
            hint = did_you_mean(option, known) if known else "it has no options"
            raise UsageError(f"dataset.{option} is unknown to '{name}': {hint}")
    data = build(**options)
    if splits is not None:
        data = data.resplit(splits, seed)
        if options.get("standardize"):
            data = standardized(data)
    return data.to(device, dtype)
