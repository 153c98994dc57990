"""One run in function space: a natural gradient of a wide network, and what the theory predicts of it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fisherlab.errors import UsageError
from fisherlab.ntk import Grams, Preconditioner, grams, make, theory
from fisherlab.ntk.solving import NONE, Damping
from fisherlab.studies.karakida2020.problem import Data, Net

ISOTROPIC = ("exact", "layer", "tridiagonal", "kfac")  # S = alpha I at any width, undamped


class Linear(NamedTuple):
    """What a preconditioner is in function space where the network stands.

    Attributes:
        s: S [N, N].
        s_test: S' [N', N].
        eta: The rate at which theory expects the fastest descent.
    """

    s: Tensor
    s_test: Tensor
    eta: float


class Run(NamedTuple):
    """A run.

    Attributes:
        train: Outputs at every step, [T + 1, N].
        test: The same at test examples, [T + 1, N'].
    """

    train: Tensor
    test: Tensor


def damping_of(variant: str, unit_rho: float) -> Damping:
    """The damping that a variant needs: none, but for unit-wise blocks.

    Args:
        variant: A key of `fisherlab.ntk.VARIANTS`.
        unit_rho: rho of unit-wise blocks, relative to the mean eigenvalue of each.

    Returns:
        Its damping.
    """
    return Damping(unit_rho, relative=True) if variant == "unit" else NONE


def best_rate(variant: str, s: Tensor, layers: int) -> float:
    """Choose eta: 1/alpha where theory knows alpha.

    Unit-wise alpha depends on rho: the mean diagonal of S is taken. Gradient descent and the entry-wise diagonal have
    no alpha: 1 over the largest eigenvalue of S, above twice of which they diverge.

    Args:
        variant: A key of `fisherlab.ntk.VARIANTS`.
        s: S [N, N].
        layers: L.

    Returns:
        eta.
    """
    if variant in ISOTROPIC:
        return 1 / theory.alpha(variant, layers, examples=len(s))
    if variant == "unit":
        return 1 / float(s.diagonal().mean())
    return 1 / float(torch.linalg.eigvalsh(s)[-1])


def linearise(net: Net, points: Data, variant: str, damping: Damping) -> Linear:
    """Form S where the network stands.

    Args:
        net: The network.
        points: Examples.
        variant: A key of `fisherlab.ntk.VARIANTS`.
        damping: rho.

    Returns:
        S and the best rate.
    """
    one, two = net.jacobian(points.x), net.jacobian(points.x_test)
    own = grams(one)
    found = make(variant, one, damping, own)
    s = found.kernel(own, one)
    return Linear(s, found.kernel(grams(two, one), two), best_rate(variant, s, net.layers))


def infinite_width(kernels: tuple[Grams, Grams], net: Net, points: Data, variant: str) -> Linear | None:
    """The same with the kernels of infinite width, for the variants that are made of layers' kernels.

    Args:
        kernels: Among training examples, and between test and training examples.
        net: Says how wide the factors are.
        points: Examples.
        variant: A key of `fisherlab.ntk.VARIANTS`.

    Returns:
        S and the best rate; None for unit-wise and diagonal.
    """
    if variant in ("unit", "diagonal"):
        return None
    jacobian = net.jacobian(points.x)
    found = make(variant, jacobian, NONE, kernels[0])
    s = found.kernel(kernels[0], jacobian)
    return Linear(s, found.kernel(kernels[1], jacobian), best_rate(variant, s, net.layers))


def descend(net: Net, points: Data, variant: str, damping: Damping, eta: float, steps: int) -> Run:
    """Train by full batches from where the network began; a run that diverges ends early.

    Args:
        net: The network; it is left where the run ends.
        points: Examples.
        variant: A key of `fisherlab.ntk.VARIANTS`.
        damping: rho.
        eta: Learning rate.
        steps: How many.

    Returns:
        Outputs at every step, infinite from where it diverged.
    """
    net.restore()
    train, test = [net.outputs(points.x)], [net.outputs(points.x_test)]
    for _ in range(steps):
        if not advance(net, points, variant, damping, eta):
            break
        train.append(net.outputs(points.x))
        test.append(net.outputs(points.x_test))
    missing = steps + 1 - len(train)
    train += [torch.full_like(train[0], math.inf)] * missing
    test += [torch.full_like(test[0], math.inf)] * missing
    return Run(torch.stack(train), torch.stack(test))


def advance(net: Net, points: Data, variant: str, damping: Damping, eta: float) -> bool:
    """Take one step.

    Args:
        net: The network.
        points: Examples.
        variant: A key of `fisherlab.ntk.VARIANTS`.
        damping: rho.
        eta: Learning rate.

    Returns:
        False where the network has diverged, or its system has become singular.
    """
    one = net.jacobian(points.x)
    r = one.outputs - points.y
    if not float(r.abs().max()) < 1e6:
        return False
    try:
        found: Preconditioner = make(variant, one, damping)
    except UsageError:
        return False
    net.move(found.step(one, r), eta)
    return True
