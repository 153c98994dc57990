"""What the theory says of infinitely wide networks (Karakida and Osawa 2020): couplings T, their alpha, and f_t.

Layer-wise natural gradients differ in an L x L matrix T that multiplies the blocks of the Jacobian: I for the
block-diagonal Fisher, ones on three diagonals for the block-tridiagonal one. In function space all of them move the
training outputs alike, f_t - y = (1 - alpha eta)^t (f_0 - y) with alpha = 1^T T^-1 1; test outputs move by
Q = (1/alpha) sum_l (T^-1 1)_l Theta'_l Theta_l^-1. The exact Fisher is T = 1 1^T, which is singular: alpha = 1 and
Q = Theta' Theta^-1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fisherlab.errors import UsageError


def coupling(variant: str, depth: int) -> Tensor:
    """T of a layer-wise natural gradient.

    Args:
        variant: layer or tridiagonal.
        depth: Number of layers L.

    Returns:
        Tensor [L, L], float64.

    Raises:
        UsageError: If T is singular, as the tridiagonal one is at L = 3s + 2.
        ValueError: If the variant has no T.
    """
    eye = torch.eye(depth, dtype=torch.float64)
    if variant == "layer":
        return eye
    if variant != "tridiagonal":
        raise ValueError(f"variant={variant!r} has no T: expected layer or tridiagonal")
    if depth % 3 == 2:
        raise UsageError(
            f"layers={depth}: T of the block-tridiagonal Fisher, ones on three diagonals, is singular at 2, 5, 8, ... "
            f"layers, so no rate exists without damping; expected layers={depth - 1} or layers={depth + 1}"
        )
    return bands(depth)


def bands(depth: int) -> Tensor:
    """Ones on three diagonals, T of the block-tridiagonal Fisher; singular at L = 3s + 2.

    Args:
        depth: Number of layers L.

    Returns:
        Tensor [L, L], float64.
    """
    layer = torch.arange(depth)
    return ((layer[:, None] - layer).abs() <= 1).double()


def shares(t: Tensor) -> Tensor:
    """T^-1 1: how much each layer moves.

    Args:
        t: T [L, L].

    Returns:
        Tensor [L]; it adds up to alpha.
    """
    return torch.linalg.solve(t, torch.ones(len(t), dtype=t.dtype))


def alpha(variant: str, depth: int, *, examples: int = 0, width: int = 0, slope: float = 1.0, first: int = 0) -> float:
    """The speed alpha of a variant in function space, S = alpha I; the fastest rate is eta = 1 / alpha.

    For K-FAC every hidden layer adds N, and the last layer, whose factor B is one number, adds 1: the released code's
    alpha = N L leaves a third of the residual at L = 3. A first layer with M_0 < N inputs in radial-isotropic position
    adds M_0. For unit-wise blocks every hidden unit adds the share of examples at which it has a slope.

    Args:
        variant: exact, layer, tridiagonal, kfac or unit.
        depth: Number of layers L.
        examples: N, for kfac.
        width: M, for unit.
        slope: gamma, for unit: 1/2 for relu, else 1.
        first: Inputs M_0 (biases included), for kfac where they are fewer than the examples.

    Returns:
        alpha.

    Raises:
        ValueError: If the variant has none.
    """
    if variant == "exact":
        return 1.0
    if variant in ("layer", "tridiagonal"):
        return float(shares(coupling(variant, depth)).sum())
    if variant == "kfac":
        return float((depth > 1) * min(first or examples, examples) + examples * max(depth - 2, 0) + 1)
    if variant == "unit":
        return slope * (depth - 1) * width + 1
    raise ValueError(f"variant={variant!r} has no alpha: expected exact, layer, tridiagonal, kfac or unit")


class Path(NamedTuple):
    """Predicted outputs.

    Attributes:
        train: [T + 1, N].
        test: [T + 1, N'].
    """

    train: Tensor
    test: Tensor


def linear(start: Path, y: Tensor, s: Tensor, s_test: Tensor, eta: float, steps: int) -> Path:
    """The dynamics of any preconditioner with its kernel held where it began: f_(t+1) = f_t - eta S (f_t - y).

    Args:
        start: f_0, [N] and [N'].
        y: Targets [N].
        s: S = J G^-1 J^T / N on the training examples, [N, N].
        s_test: The same between test and training examples, [N', N].
        eta: Learning rate.
        steps: T.

    Returns:
        Outputs at 0, ..., T.
    """
    train, test = [start.train], [start.test]
    for _ in range(steps):
        gap = train[-1] - y
        train.append(train[-1] - eta * (s @ gap))
        test.append(test[-1] - eta * (s_test @ gap))
    return Path(torch.stack(train), torch.stack(test))


def flow(start: Path, y: Tensor, theta: Tensor, theta_test: Tensor, eta: float, steps: int) -> Path:
    """Gradient flow at times eta t, the released code's prediction of gradient descent.

    Args:
        start: f_0, [N] and [N'].
        y: Targets [N].
        theta: Theta [N, N].
        theta_test: Theta' [N', N].
        eta: Learning rate.
        steps: T.

    Returns:
        Outputs at 0, ..., T.
    """
    values, vectors = torch.linalg.eigh(theta)
    times = eta * torch.arange(steps + 1, dtype=torch.float64)[:, None]
    decay = torch.expm1(-times * values / len(y))  # what is done of each mode, negative
    gap = vectors.mT @ (start.train - y)
    done = decay * gap
    # Along a mode of no curvature nothing moves; its quotient is the limit.
    quotient = torch.where(values > 1e-14 * values[-1], done / values, -times * gap / len(y))
    return Path(start.train + done @ vectors.mT, start.test + quotient @ vectors.mT @ theta_test.mT)
