"""Gradient descent and the natural gradients whose steps are J_l^T C_l r: exact, layer-wise, block-tridiagonal."""

from __future__ import annotations

import torch
from torch import Tensor

from fisherlab.ntk.grams import Grams, Jacobian
from fisherlab.ntk.solving import NONE, Damping, invert
from fisherlab.ntk.theory import bands, coupling


class Dual:
    """A preconditioner G whose step G^-1 J^T r / N is, in layer l, J_l^T C_l r.

    Args:
        coefficients: C_l [N, N] per layer.
    """

    def __init__(self, coefficients: list[Tensor]) -> None:
        self.coefficients = coefficients

    def kernel(self, cross: Grams, rows: Jacobian | None = None) -> Tensor:
        """S' = J' G^-1 J^T / N.

        Args:
            cross: Of the rows with the examples that G was made of; those of infinite width will do.
            rows: Not needed.

        Returns:
            Tensor [N', N].
        """
        del rows
        return torch.stack([k @ c for k, c in zip(cross.layers, self.coefficients, strict=True)]).sum(0)

    def step(self, jacobian: Jacobian, r: Tensor) -> list[Tensor]:
        """G^-1 J^T r / N.

        Args:
            jacobian: J, of which G was made.
            r: Coefficients [N] of the gradient, f - y for the squared loss.

        Returns:
            One homogeneous weight per layer.
        """
        return jacobian.combine([c @ r.double() for c in self.coefficients])


def descent(own: Grams, damping: Damping = NONE) -> Dual:
    """Gradient descent, G = I.

    Args:
        own: Of the examples.
        damping: Added to G, whose eigenvalues are 1.

    Returns:
        The preconditioner.
    """
    n = len(own.inputs[0])
    eye = torch.eye(n, dtype=torch.float64) / (n * (1 + damping.rho))
    return Dual([eye] * len(own.inputs))


def exact(own: Grams, damping: Damping = NONE) -> Dual:
    """The whole Fisher, J^T J / N + rho I; without damping its pseudo-inverse.

    Args:
        own: Of the examples.
        damping: rho.

    Returns:
        The preconditioner.
    """
    total = own.total
    inverse = invert(total, _shift(total, damping), "the kernel Theta")
    return Dual([inverse] * len(own.inputs))


def layerwise(own: Grams, damping: Damping = NONE) -> Dual:
    """The block-diagonal Fisher, a block per layer; without damping the blocks' pseudo-inverses.

    Args:
        own: Of the examples.
        damping: rho.

    Returns:
        The preconditioner.
    """
    kernels = enumerate(own.layers, start=1)
    return Dual([invert(k, _shift(k, damping), f"the kernel Theta_{layer}") for layer, k in kernels])


def tridiagonal(own: Grams, damping: Damping = NONE) -> Dual:
    """The block-tridiagonal Fisher; without damping its pseudo-inverse.

    Args:
        own: Of the examples.
        damping: rho; T may be singular where it is above 0.

    Returns:
        The preconditioner.
    """
    depth = len(own.inputs)
    return coupled(own, bands(depth) if damping.rho else coupling("tridiagonal", depth), damping)


def coupled(own: Grams, t: Tensor, damping: Damping = NONE) -> Dual:
    """The preconditioner G = X^T (T (x) I) X / N + rho I with X the block-diagonal matrix of the J_l.

    (X^T K X / N + rho I)^-1 X^T = X^T (K X X^T / N + rho I)^-1 for any K, and X X^T holds the Theta_l. Without damping
    K cancels but for T^-1 1, and each layer's own kernel is inverted.

    Args:
        own: Of the examples.
        t: T [L, L], symmetric; indefinite for the block-tridiagonal Fisher.
        damping: rho.

    Returns:
        The preconditioner.
    """
    layers = own.layers
    n, depth = len(layers[0]), len(layers)
    if not damping.rho:
        share = torch.linalg.solve(t, torch.ones(depth, dtype=t.dtype))
        inverses = layerwise(own).coefficients
        return Dual([s * inverse for s, inverse in zip(share, inverses, strict=True)])
    system = torch.cat([torch.cat([t[i, j] * layers[j] for j in range(depth)], 1) for i in range(depth)])
    shifts = torch.tensor([_shift(k, damping) for k in layers], dtype=torch.float64)
    system.diagonal().add_(shifts.repeat_interleave(n))
    ones = torch.eye(n, dtype=torch.float64).repeat(depth, 1)
    return Dual(list(torch.linalg.solve(system, ones).split(n)))


def _shift(k: Tensor, damping: Damping) -> float:
    """N rho, for the kernel of a block that is J^T J / N."""
    n = len(k)
    return n * damping.of(k.trace() / n, n)
