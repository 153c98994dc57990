"""The entry-wise diagonal Fisher: every weight divided by its own mean squared gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from fisherlab.ntk.grams import Grams, Jacobian
from fisherlab.ntk.solving import NONE, Damping

CHUNK = 512  # pairs of examples at a time


class Diagonal:
    """The preconditioner diag(J^T J) / N + rho; where an entry is zero without damping, its weight stays.

    Args:
        jacobian: J.
        damping: rho; a relative one is in units of each layer's mean entry.
    """

    def __init__(self, jacobian: Jacobian, damping: Damping = NONE) -> None:
        self.inverses = []
        self.jacobian = jacobian
        n = len(jacobian.outputs)
        for s, g in zip(jacobian.inputs, jacobian.gradients, strict=True):
            f = (g.square().mT @ s.joined.square()).div_(n)
            f.add_(damping.of(f.sum(), f.numel()))
            self.inverses.append(torch.where(f > 0, 1 / f, 0.0))

    def kernel(self, cross: Grams, rows: Jacobian) -> Tensor:
        """S' = J' G^-1 J^T / N.

        For every pair of examples (g'_n o g_m)^T G^-1 (a'_n o a_m): a matrix product for many pairs at a time.

        Args:
            cross: Not needed.
            rows: J'.

        Returns:
            Tensor [N', N], float64.
        """
        del cross
        one = self.jacobian
        n, m = len(rows.outputs), len(one.outputs)
        same = rows is one
        i, j = torch.triu_indices(n, m) if same else torch.cartesian_prod(torch.arange(n), torch.arange(m)).unbind(1)
        total = torch.zeros(len(i), dtype=torch.float64)
        for layer, inverse in enumerate(self.inverses):
            a_rows, a, g_rows, g = (
                rows.inputs[layer].joined,
                one.inputs[layer].joined,
                rows.gradients[layer],
                one.gradients[layer],
            )
            for part in torch.arange(len(i)).split(CHUNK):
                p, q = i[part], j[part]
                total[part] += ((a_rows[p] * a[q]) @ inverse.mT * (g_rows[p] * g[q])).double().sum(1)
        found = torch.zeros(n, m, dtype=torch.float64)
        found[i, j] = total / m
        return found.triu() + found.triu(1).mT if same else found

    def step(self, jacobian: Jacobian, r: Tensor) -> list[Tensor]:
        """G^-1 J^T r / N.

        Args:
            jacobian: J, of which G was made.
            r: Coefficients [N] of the gradient.

        Returns:
            One homogeneous weight per layer.
        """
        gradient = jacobian.combine([r / len(r)] * len(self.inverses))
        return [d * inverse for d, inverse in zip(gradient, self.inverses, strict=True)]
