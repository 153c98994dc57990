"""The unit-wise Fisher: a block per unit's incoming weights, inverted in its dual, which takes damping above 0.

A block is a-bar^T diag(g_i)^2 a-bar / N. Where a relu unit sleeps its rows are zero, so without damping the dual is
singular. `fisherlab.fisher.unit` factorises [in + 1]^2 blocks: 134 GB per layer at width 4096, here 100 x 100 each.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fisherlab.errors import UsageError
from fisherlab.fisher.linalg import cholesky
from fisherlab.ntk.grams import Grams, Jacobian
from fisherlab.ntk.solving import NONE, Damping

CHUNK = 64  # units at a time: a few blocks of 100 x 100 stay in the cache


class Units:
    """The preconditioner of unit-wise blocks.

    Args:
        jacobian: J.
        own: Its Gram matrices.
        damping: rho, above 0.

    Raises:
        UsageError: If rho is 0, or too small for float64.
    """

    def __init__(self, jacobian: Jacobian, own: Grams, damping: Damping = NONE) -> None:
        if not damping.rho:
            raise UsageError(
                "damping=0: a unit-wise block is singular where its unit sleeps; expected damping above 0, for example "
                "1e-4 of the block's mean eigenvalue"
            )
        self.damping, self.own = damping, own
        self.gradients = [g.double() for g in jacobian.gradients]
        self.widths = [s.width for s in jacobian.inputs]

    def kernel(self, cross: Grams, rows: Jacobian) -> Tensor:
        """S' = J' G^-1 J^T / N.

        Args:
            cross: Of the rows with the examples that G was made of.
            rows: J'.

        Returns:
            Tensor [N', N].
        """
        total = torch.zeros_like(cross.inputs[0])
        for layer, a in enumerate(cross.inputs):
            g_rows = rows.gradients[layer].double()
            for units, g, root in self._blocks(layer):
                inverse = torch.cholesky_inverse(root)
                moved = a @ (g[:, :, None] * inverse)
                total += (g_rows[:, units].mT[:, :, None] * moved).sum(0)
        return total

    def step(self, jacobian: Jacobian, r: Tensor) -> list[Tensor]:
        """G^-1 J^T r / N.

        Args:
            jacobian: J, of which G was made.
            r: Coefficients [N] of the gradient.

        Returns:
            One homogeneous weight per layer.
        """
        found = []
        for layer, s in enumerate(jacobian.inputs):
            weights = torch.empty_like(jacobian.gradients[layer])
            for units, g, root in self._blocks(layer):
                right = r.double().expand(len(g), -1).unsqueeze(-1)
                solved = g * torch.cholesky_solve(right, root).squeeze(-1)
                weights[:, units] = solved.mT.to(weights.dtype)
            found.append(s.weighted_sum(weights))
        return found

    def _blocks(self, layer: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Units, their g [units, N], and the Cholesky factors of diag(g) A diag(g) + N rho."""
        a, n = self.own.inputs[layer], len(self.own.inputs[layer])
        for start in range(0, self.gradients[layer].shape[1], CHUNK):
            units = slice(start, start + CHUNK)
            g = self.gradients[layer][:, units].mT
            k = g[:, :, None] * a * g[:, None, :]
            rho = torch.full((len(g),), self.damping.rho, dtype=torch.float64)
            if self.damping.relative:
                rho = rho * k.diagonal(dim1=-2, dim2=-1).sum(-1) / n / min(n, self.widths[layer])
                rho = rho.where(rho > 0, 1.0)  # a unit that sleeps everywhere: its rows are zero, and so is its step
            k.diagonal(dim1=-2, dim2=-1).add_(n * rho[:, None])
            root, failed = cholesky(k)
            if bool(failed.any()):
                raise UsageError(
                    f"damping={self.damping.rho:g} leaves a block of layer {layer + 1} singular; expected more damping"
                )
            yield units, g, root
