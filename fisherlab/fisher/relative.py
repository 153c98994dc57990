"""The relative Fisher information of subsystems of a network, in closed form (Sun and Nielsen 2017).

Given what it is fed, a subsystem is a model of its own: a neuron, a layer, two layers. A neuron's Fisher at the
homogeneous input x is nu(w^T x) x x^T, where nu, the effective learning zone, depends on the pre-activation alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fisherlab.elementwise import logistic
from fisherlab.errors import UsageError, did_you_mean
from fisherlab.fisher.capture import Captured
from fisherlab.fisher.kinds import Statistics
from fisherlab.fisher.linalg import block_diagonal
from fisherlab.likelihood import Likelihood


def tanh_zone(z: Tensor) -> Tensor:
    """Nu of a tanh neuron, p(y = 1) = (1 + tanh z) / 2 with y in {-1, 1}: sech^2 z.

    Args:
        z: Pre-activations, any shape.

    Returns:
        nu, of the same shape.
    """
    # Not 1 - tanh^2: in float32 that cancels, and from |z| = 10 on nothing would be left of it.
    return 4 * logistic(2 * z) * logistic(-2 * z)


def logistic_zone(z: Tensor) -> Tensor:
    """Nu of a logistic neuron, p(y = 1) = s(z) with y in {0, 1}: s (1 - s).

    Args:
        z: Pre-activations, any shape.

    Returns:
        nu, of the same shape.
    """
    return logistic(z) * logistic(-z)


def relu_zone(z: Tensor, *, iota: float = 0.0, omega: float = 1.0, sigma: float = 1.0) -> Tensor:
    """Nu of a relu neuron, y ~ N(smoothed relu, sigma^2), omega ln(exp(iota z / omega) + exp(z / omega)) as its mean.

    Args:
        z: Pre-activations, any shape.
        iota: Leak, in [0, 1).
        omega: Width of the smoothing; towards 0 the zone becomes a gate.
        sigma: Standard deviation of the output.

    Returns:
        [iota + (1 - iota) s((1 - iota) z / omega)]^2 / sigma^2, of the same shape.

    Raises:
        UsageError: If a number is out of range.
    """
    check_relu(iota=iota, omega=omega, sigma=sigma)
    return (iota + (1 - iota) * logistic((1 - iota) / omega * z)).square() / sigma**2


def check_relu(*, iota: float = 0.0, omega: float = 1.0, sigma: float = 1.0) -> None:
    """Check the options of `relu_zone`.

    Args:
        iota: Leak, in [0, 1).
        omega: Width of the smoothing, above 0.
        sigma: Standard deviation of the output, above 0.

    Raises:
        UsageError: If one is no number, or out of range.
    """
    _within(_number(iota) and 0 <= iota < 1, "iota", iota, "a number in [0, 1)")
    _positive(omega=omega, sigma=sigma)


def elu_zone(z: Tensor, *, alpha: float = 1.0, sigma: float = 1.0) -> Tensor:
    """Nu of an elu neuron, y ~ N(elu, sigma^2): 1 where z >= 0, else (alpha exp z)^2, over sigma^2.

    Args:
        z: Pre-activations, any shape.
        alpha: Of the elu.
        sigma: Standard deviation of the output.

    Returns:
        nu, of the same shape.

    Raises:
        UsageError: If a number is out of range.
    """
    _positive(alpha=alpha, sigma=sigma)
    return torch.where(z >= 0, 1.0, (alpha * _falling(z)).square()) / sigma**2


def linear_zone(z: Tensor, *, sigma: float = 1.0) -> Tensor:
    """Nu of a linear neuron, y ~ N(z, sigma^2): 1 / sigma^2.

    Args:
        z: Pre-activations, any shape.
        sigma: Standard deviation of the output.

    Returns:
        nu, of the same shape.

    Raises:
        UsageError: If sigma is out of range.
    """
    _positive(sigma=sigma)
    return torch.full_like(z, 1 / sigma**2)


ZONES: Mapping[str, Callable[..., Tensor]] = {
    "tanh": tanh_zone,
    "logistic": logistic_zone,
    "relu": relu_zone,
    "elu": elu_zone,
    "linear": linear_zone,
}


def _falling(z: Tensor) -> Tensor:
    """Exp z where z < 0, else 1: not expm1(z) + 1, which has few digits left far out."""
    return z.clamp(max=0.0).exp()


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _positive(**values: float) -> None:
    for name, value in values.items():
        _within(_number(value) and value > 0, name, value, "a number above 0")


def _within(good: bool, name: str, value: float, expected: str) -> None:
    if not good:
        raise UsageError(f"{name}={value!r} is out of range: expected {expected}")


def _known(activation: str) -> None:
    if activation not in ZONES:
        raise UsageError(f"activation={activation!r} is unknown: {did_you_mean(activation, ZONES)}")


def zone(activation: str, z: Tensor, **options: float) -> Tensor:
    """The effective learning zone nu of a neuron.

    Args:
        activation: tanh, logistic, relu, elu or linear.
        z: Pre-activations w^T x, any shape.
        **options: iota, omega (relu), alpha (elu), sigma (relu, elu, linear).

    Returns:
        nu, of the same shape.

    Raises:
        UsageError: If there is no such activation, or an option is no number, or out of range.
    """
    _known(activation)
    return ZONES[activation](z, **options)


def nonlinear_layer(activation: str, x: Tensor, w: Tensor, **options: float) -> Tensor:
    """RFIM of a layer of independent neurons; with one row of w, that of a neuron (Sun and Nielsen 2017, Section 4).

    Args:
        activation: As `zone`; `linear` gives the linear layer, whose blocks are all E[x x^T] / sigma^2.
        x: Homogeneous inputs [..., B, n].
        w: Homogeneous weights [..., m, n].
        **options: As `zone`.

    Returns:
        blockdiag(E[nu(w_i x) x x^T]), [..., m n, m n]; w is laid out row by row.
    """
    nu = zone(activation, x @ w.mT, **options)
    blocks = torch.einsum("...bi,...bj,...bk->...ijk", nu, x, x) / x.shape[-2]
    return block_diagonal(blocks.unbind(-3))


def softmax_layer(x: Tensor, w: Tensor) -> Tensor:
    """RFIM of a softmax layer: block (i, j) is E[(eta_i delta_ij - eta_i eta_j) x x^T]; its rank lacks n.

    Args:
        x: Homogeneous inputs [..., B, n].
        w: Homogeneous weights [..., m, n].

    Returns:
        Tensor [..., m n, m n].
    """
    eta = torch.softmax(x @ w.mT, -1)
    between = torch.diag_embed(eta) - eta.unsqueeze(-1) * eta.unsqueeze(-2)
    found = torch.einsum("...bij,...bk,...bl->...ikjl", between, x, x) / x.shape[-2]
    return found.flatten(-2).flatten(-3, -2)


SLOPES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "tanh": tanh_zone,
    "logistic": logistic_zone,
    "relu": lambda z: (z > 0).to(z.dtype),
    "elu": _falling,
    "linear": torch.ones_like,
}


def two_layers(first: str, second: str, x: Tensor, w: Tensor, c: Tensor, h: Tensor, **options: float) -> Tensor:
    """RFIM of two layers, x -> h = f_1(w x) -> y: E[sum_k nu_k grad z_k grad z_k^T] with z = c h.

    dz_k / dc_j = delta_kj h and dz_k / dw_i = c_ki f_1'(w_i x) x.

    Args:
        first: Activation f_1 of the first layer.
        second: Activation of the second.
        x: Homogeneous inputs [..., B, n].
        w: Homogeneous weights of the first layer [..., m, n].
        c: Homogeneous weights of the second [..., k, m + 1].
        h: Homogeneous inputs of the second, [..., B, m + 1].
        **options: Of the second's zone, as `zone`.

    Returns:
        Tensor [..., m n + k (m + 1), m n + k (m + 1)], the first layer's weights first, each row by row.

    Raises:
        UsageError: If there is no such activation, or a number is out of range.
    """
    _known(first)
    nu = zone(second, h @ c.mT, **options)
    slope = SLOPES[first](x @ w.mT)
    hidden = c[..., : w.shape[-2]]
    on_w = torch.einsum("...ki,...bi,...bn->...bkin", hidden, slope, x).flatten(-2)
    eye = torch.eye(c.shape[-2], dtype=x.dtype, device=x.device)
    on_c = torch.einsum("kj,...bm->...bkjm", eye, h).flatten(-2)
    rows = torch.cat([on_w, on_c], -1) * nu.sqrt().unsqueeze(-1)
    rows = rows.flatten(-3, -2)
    return rows.mT @ rows / x.shape[-2]


@dataclass(frozen=True)
class Form:
    """How a layer is seen as a subsystem.

    Attributes:
        activation: Of its neurons; `linear` is the linear layer; None is the whole model of the outputs (softmax RFIM).
        joined: Whether it shares a block with the next layer, or with the one before.
        next: Whether it is the first of such two.
    """

    activation: str | None
    joined: bool = False
    next: bool = False


def relative_statistics(
    captured: Captured, likelihood: Likelihood, forms: Sequence[Form], options: Mapping[str, float]
) -> Statistics:
    """What the structures are estimated from: u u^T with u = vec(sqrt(nu) x^T), in place of back-propagated gradients.

    Args:
        captured: A forward pass; nothing is back-propagated, but within two layers that share a block.
        likelihood: Of the outputs.
        forms: Of every layer.
        options: Of the relu's zone: iota, omega, sigma.

    Returns:
        The statistics; their gradients are [..., M, B, out], where M is above 1 only where units share a block.
    """
    found: list[Tensor] = []
    for i in reversed(range(len(forms))):
        form, z = forms[i], captured.preactivations[i]
        if form.activation is None:
            own = likelihood.fisher_sqrt(captured.output).movedim(-1, -3)
        elif form.next:
            own = captured.between(i + 1, i, found[0])
        elif form.activation == "linear" and not form.joined:  # by the inputs' replicas: a stream's runs share it
            own = z.new_ones(()).expand(*captured.inputs[i].a.shape[:-2], 1, *z.shape[-2:])
        else:
            root = zone(form.activation, z, **(options if form.activation == "relu" else {})).sqrt()
            own = torch.diag_embed(root).movedim(-1, -3) if form.joined else root.unsqueeze(-3)
        found.insert(0, own)
    return Statistics(captured.inputs, found)
