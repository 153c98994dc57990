"""The toy problems of Kunstner, Balles and Hennig (2019): Figures 1, 2 and 4.

Drawn as their code draws them (numpy's legacy generator, seed 0), for the optima that they print depend on the draw.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from fisherlab.data.dataset import Dataset, Split
from fisherlab.errors import UsageError, did_you_mean

# Figure 2: mean and C of class 0, then of class 1. C multiplies the noise, so the covariance is C^T C: the paper's
# Table 2 prints C as the covariance, but only this gives the accuracies of the caption (73 % and more than 85 %).
GAUSSIANS = {
    "correct": (((1, 1), ((2, 0), (0, 2))), ((-1, -1), ((2, 0), (0, 2)))),
    "misspecified_a": (((1.5, 1.5), ((3, 0), (0, 3))), ((-1.5, -1.5), ((1, 0), (0, 1)))),
    "misspecified_b": (((1, 1), ((1.5, -0.9), (-0.9, 1.5))), ((-1, -1), ((1.5, 0.9), (0.9, 1.5)))),
}
LINEAR = ("lognormal", "correct", "misspecified_a", "misspecified_b")


def toy_gaussian(variant: str = "correct", n: int = 1000) -> Dataset:
    """Draw two Gaussian classes for logistic regression without a bias (Figure 2).

    Args:
        variant: `correct`, `misspecified_a` (unequal scales) or `misspecified_b` (opposite correlations).
        n: Number of examples, half of them from each class.

    Returns:
        Two features and a 0/1 target, all in `train`, class 0 first.
    """
    _check("toy_gaussian", variant, n, GAUSSIANS)
    random = np.random.RandomState(0)
    x = [random.randn(n // 2, 2) @ np.array(c, dtype=float) + np.array(mean) for mean, c in GAUSSIANS[variant]]
    y = np.repeat([0.0, 1.0], n // 2)
    return _train("toy_gaussian", "bernoulli", np.concatenate(x), y)


def toy_linear(variant: str = "lognormal", n: int = 1000) -> Dataset:
    """Draw a linear regression problem with one feature.

    Args:
        variant: `lognormal` (Figure 1), or of Figure 4 `correct`, `misspecified_a` (noise of deviation 2) or
            `misspecified_b` (a quadratic term that the line lacks).
        n: Number of examples.

    Returns:
        One feature, without a column of ones, and a real target, all in `train`.
    """
    _check("toy_linear", variant, n, LINEAR)
    random = np.random.RandomState(0)
    x = random.lognormal(0.0, 0.75, n) if variant == "lognormal" else random.randn(n)
    noise = random.randn(n)
    y = {
        "lognormal": 2 + 2 * x + noise,
        "correct": 1 + x + noise,
        "misspecified_a": 1 + x + 2 * noise,
        "misspecified_b": 1 + x + x**2 / 2 + noise,
    }[variant]
    return _train("toy_linear", "gaussian", x[:, None], y)


def _check(name: str, variant: str, n: int, variants: Iterable[str]) -> None:
    if variant not in variants:
        raise UsageError(f"dataset.variant={variant!r} is unknown to '{name}': {did_you_mean(str(variant), variants)}")
    if not isinstance(n, int) or n < 2 or (n % 2 and name == "toy_gaussian"):
        raise UsageError(f"dataset.n={n!r} does not fit '{name}': expected a positive even number, for example 1000")


def _train(name: str, likelihood: str, x: NDArray, y: NDArray) -> Dataset:
    return Dataset(name, likelihood, 1, {"train": Split(torch.from_numpy(x), torch.from_numpy(y).unsqueeze(1))})
