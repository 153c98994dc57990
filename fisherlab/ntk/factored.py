"""K-FAC by its factors' duals: at zero damping a factor of width M has rank N, and only its N x N Gram is invertible.

`fisherlab.fisher.kronecker.Kronecker` factorises the M x M factors themselves, which takes damping; here damping may
be zero, and a factor is inverted in the smaller of both spaces.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fisherlab.errors import UsageError
from fisherlab.ntk.grams import Grams, Jacobian
from fisherlab.ntk.solving import NONE, Damping, invert

SPREAD = 0.02  # of the leverages of fewer inputs than examples, relative to their mean; `radial_isotropic` leaves 1e-3


class Factored:
    """K-FAC with G_l = B_l* (x) A_(l-1)*, factors being means over the examples.

    The step of a hidden layer is N g^T (g g^T + N gamma/pi)^-1 diag(r) (a a^T + N pi gamma)^-1 a, so that each hidden
    layer moves the outputs by N r and the last one, whose factor B* is the mean of g^2 over the examples, by r.

    Args:
        jacobian: J; its Gram matrices are those of `own`.
        own: Of the examples.
        damping: rho; gamma = sqrt(rho) goes to both factors by pi, to the last layer's A alone (rho itself).

    Raises:
        UsageError: If a factor has not the rank that zero damping takes.
    """

    def __init__(self, jacobian: Jacobian, own: Grams, damping: Damping = NONE) -> None:
        self.last = len(own.inputs) - 1
        widths = [(s.width, g.shape[-1]) for s, g in zip(jacobian.inputs, jacobian.gradients, strict=True)]
        self.left: list[Tensor | None] = []
        self.right: list[Tensor] = []
        for layer, (a, b, (into, out)) in enumerate(zip(own.inputs, own.gradients, widths, strict=True)):
            hidden, n = layer < self.last, len(a)
            to_a, to_b = (
                _shifts(a, b, (into, out), damping) if hidden else (damping.of(a.trace() / n, min(n, into)), 0.0)
            )
            self.right.append(self._inputs(a, to_a, jacobian, layer, into))
            self.left.append(invert(b, to_b * n, f"the factor B of layer {layer + 1}") if hidden else None)
        self.mean_square = own.gradients[-1].diagonal().mean()

    def _inputs(self, a: Tensor, damping: float, jacobian: Jacobian, layer: int, width: int) -> Tensor:
        """The dual inverse of A*: D with a-bar^T D = (A* + damping)^-1 a-bar^T / N."""
        n, what = len(a), f"the factor A of layer {layer + 1}"
        if width >= n:
            return invert(a, damping * n, what)
        rows = jacobian.inputs[layer].joined.double()
        square = rows.mT @ rows
        inverse = invert(square, damping * n, what)
        if not damping:
            self._check_leverages(rows, inverse, layer)
        # The dual of few inputs is singular without damping: through the inputs' own space, where it is not.
        return rows @ inverse @ torch.linalg.pinv(square, hermitian=True) @ rows.mT

    @staticmethod
    def _check_leverages(rows: Tensor, inverse: Tensor, layer: int) -> None:
        leverage = ((rows @ inverse) * rows).sum(-1)
        spread = float((leverage / leverage.mean() - 1).abs().max())
        if spread > SPREAD:
            raise UsageError(
                f"{rows.shape[1]} inputs of layer {layer + 1} are fewer than the {len(rows)} examples, whose leverages "
                f"differ by {spread:.2g} of their mean: K-FAC without damping expects inputs in radial-isotropic "
                "position (fisherlab.ntk.radial_isotropic), as many inputs as examples, or damping above 0"
            )

    def kernel(self, cross: Grams, rows: Jacobian | None = None) -> Tensor:
        """S' = J' G^-1 J^T / N.

        Args:
            cross: Of the rows with the examples that G was made of; those of infinite width will do.
            rows: Not needed.

        Returns:
            Tensor [N', N].
        """
        del rows
        terms = []
        for a, b, left, right in zip(cross.inputs, cross.gradients, self.left, self.right, strict=True):
            moved = b / self.mean_square if left is None else len(left) * (b @ left)
            terms.append(moved * (a @ right))
        return torch.stack(terms).sum(0)

    def step(self, jacobian: Jacobian, r: Tensor) -> list[Tensor]:
        """G^-1 J^T r / N.

        Args:
            jacobian: J, of which G was made.
            r: Coefficients [N] of the gradient.

        Returns:
            One homogeneous weight per layer.
        """
        found = []
        for s, g, left, right in zip(jacobian.inputs, jacobian.gradients, self.left, self.right, strict=True):
            weights = r.double()[:, None] * right
            weights = weights / self.mean_square if left is None else len(left) * (left @ weights)
            found.append(s.weighted_sum((weights.mT @ g.double()).to(g.dtype)))
        return found


def _shifts(a: Tensor, b: Tensor, widths: tuple[int, int], damping: Damping) -> tuple[float, float]:
    """What is added to A* and to B*: gamma pi and gamma / pi, pi the root of the ratio of their average eigenvalues."""
    # Where either is zero pi = 1, as in `Kronecker`. A relative rho is in units of the mean eigenvalue of A* (x) B*.
    n = len(a)
    traces, sizes = (
        (float(a.trace()) / n, float(b.trace()) / n),
        [min(n, w) for w in widths] if damping.relative else widths,
    )
    mean_a, mean_b = (trace / size for trace, size in zip(traces, sizes, strict=True))
    pi = math.sqrt(mean_a / mean_b) if mean_a > 0 and mean_b > 0 else 1.0
    gamma = math.sqrt(damping.rho * mean_a * mean_b if damping.relative else damping.rho)
    return gamma * pi, gamma / pi
