"""Kernels of infinitely wide networks, by layers: closed forms for relu and erf, quadrature for tanh.

With s_l jointly Gaussian of covariance C_l = sigma_w^2 A_(l-1) + sigma_b^2: A_l = E[phi(u) phi(v)],
K_l = E[phi'(u) phi'(v)], B_L = 1, B_l = sigma_w^2 B_(l+1) o K_l, Theta_l = B_l o C_l (Karakida and Osawa 2020; Cho and
Saul 2009 for relu, Williams 1997 for erf).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fisherlab.errors import UsageError, did_you_mean
from fisherlab.ntk.grams import Grams

STEP, FAR = 0.2, 8.6  # of the quadrature, in standard deviations: beyond FAR a Gaussian has 1e-16 left
Moments = tuple[Tensor, Tensor]


def kernels(
    x: Tensor, examples: int, *, layers: int, activation: str, sigma_w2: float, sigma_b2: float = 0.0
) -> tuple[Grams, Grams]:
    """Infinite-width kernels of `fisherlab.models.wide`.

    Args:
        x: Training examples followed by test examples, [N + N', inputs].
        examples: N.
        layers: Number of weight matrices L.
        activation: relu, erf or tanh.
        sigma_w2: sigma_w^2.
        sigma_b2: sigma_b^2.

    Returns:
        The factors among training examples, and between test and training examples.

    Raises:
        UsageError: If there is no kernel for the activation.
    """
    if activation not in MOMENTS:
        raise UsageError(f"activation={activation!r} has no analytic kernel: {did_you_mean(activation, MOMENTS)}")
    rows = x.double()
    covariances, slopes = [sigma_w2 * (rows @ rows.mT) / rows.shape[-1] + sigma_b2], []
    for _ in range(layers - 1):
        a, k = MOMENTS[activation](covariances[-1])
        covariances.append(sigma_w2 * a + sigma_b2)
        slopes.append(k)
    b = [torch.ones_like(covariances[0])]
    for k in reversed(slopes):
        b.insert(0, sigma_w2 * b[0] * k)
    train, test = slice(examples), slice(examples, None)
    found = [Grams([c[part, train] for c in covariances], [g[part, train] for g in b]) for part in (train, test)]
    return found[0], found[1]


def _sizes(c: Tensor) -> tuple[Tensor, Tensor]:
    """Products of standard deviations, and correlations, exactly 1 of each example with itself."""
    root = c.diagonal().sqrt()
    size = root[:, None] * root[None, :]
    p = (c / size).clamp(-1, 1)
    p.fill_diagonal_(1.0)
    return size, p


def _relu(c: Tensor) -> Moments:
    size, p = _sizes(c)
    angle = math.pi - p.arccos()
    return size / (2 * math.pi) * ((1 - p * p).sqrt() + p * angle), angle / (2 * math.pi)


def _erf(c: Tensor) -> Moments:
    twice = 1 + 2 * c.diagonal()
    size = twice[:, None] * twice[None, :]
    return 2 / math.pi * (2 * c / size.sqrt()).arcsin(), 4 / math.pi / (size - 4 * c * c).sqrt()


def _tanh(c: Tensor) -> Moments:
    return quadrature(c, torch.tanh, lambda u: 1 - torch.tanh(u).square())


def quadrature(c: Tensor, phi: Callable[[Tensor], Tensor], slope: Callable[[Tensor], Tensor]) -> Moments:
    """E[phi(u) phi(v)] and E[phi'(u) phi'(v)] of Gaussian pairs, by the trapezoidal rule.

    Its error falls as exp(-2 pi d / STEP), d the distance of phi's poles from the real axis in standard deviations
    (tanh: pi/2 over the root of the variance). Gauss and Hermite's rule is at 1e-4 there with as many nodes.

    Args:
        c: Covariances [N, N].
        phi: A smooth activation.
        slope: Its derivative.

    Returns:
        Both expectations, [N, N].
    """
    nodes = torch.arange(-FAR, FAR + STEP, STEP, dtype=torch.float64)
    weights = torch.softmax(-nodes.square() / 2, 0)
    root = c.diagonal().sqrt()
    _, p = _sizes(c)
    u = root[:, None] * nodes  # [N, nodes]
    rows = []
    for i in range(len(c)):  # one row at a time: the grid of all pairs would not fit
        across = (1 - p[i].square()).clamp(min=0).sqrt()
        v = root[:, None, None] * (p[i][:, None, None] * nodes[:, None] + across[:, None, None] * nodes)
        rows.append([torch.einsum("a,b,a,jab->j", weights, weights, f(u[i]), f(v)) for f in (phi, slope)])
    a, k = (torch.stack(column) for column in zip(*rows, strict=True))
    return (a + a.mT) / 2, (k + k.mT) / 2


MOMENTS: dict[str, Callable[[Tensor], Moments]] = {"relu": _relu, "erf": _erf, "tanh": _tanh}
