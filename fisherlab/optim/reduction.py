"""The reduction ratio rho: how much of the change that the quadratic model predicted came true?

M(delta) = g^T delta + 1/2 delta^T (F + eta I) delta with the exact Fisher of the batch, whatever made the step; with
batch normalisation, F takes the batch's mean and variance for constants.
Martens and Grosse (2015), Section 6.5, have lambda + eta in it, where the step minimises M; a step that is scaled by a
learning rate and carries momentum does not, and lambda |delta|^2 would soon outweigh all else.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fisherlab.fisher.pushforward import fisher_products
from fisherlab.models.normalise import held
from fisherlab.optim.hyper import host
from fisherlab.products import summed

if TYPE_CHECKING:
    from fisherlab.optim.optimizer import FisherOptimizer


class Reduction:
    """What is known of a step before it is taken.

    Args:
        optimizer: With the gradient and the rule's vector of this step.
        x: Inputs [..., B, in].
        y: Targets.
        loss: Mean nll of the batch, [...].
        factors: c of each parameter group: the step is delta = -c v.
        predicted: M(delta) where the step minimises a model, that with lambda + eta; else the model above.
    """

    def __init__(
        self,
        optimizer: FisherOptimizer,
        x: Tensor,
        y: Tensor,
        loss: Tensor,
        factors: list[Tensor],
        predicted: Tensor | None = None,
    ) -> None:
        self.optimizer, self.x, self.y = optimizer, x, y
        self.before = loss + self._penalty()
        self.predicted = self._model(factors) if predicted is None else predicted

    def _model(self, factors: list[Tensor]) -> Tensor:
        """M(delta) without lambda."""
        optimizer = self.optimizer
        change = {name: part * -scale for name, _, part, scale in optimizer.parts_of_step(factors)}
        with held(optimizer.model):
            form = fisher_products(optimizer.model, optimizer.likelihood, self.x, [change])[..., 0, 0]
        pairs = list(zip(optimizer.vectors.pairs, factors, strict=True))
        slope = torch.stack([-c * (g * v).sum(-1) for (g, v), c in pairs]).sum(0)
        size = torch.stack([c.square() * v.square().sum(-1) for (_, v), c in pairs]).sum(0)
        return slope + 0.5 * (form + host(optimizer.l2).to(slope.device, slope.dtype) * size)

    def measure(self) -> Tensor:
        """Evaluate the objective after the step.

        Returns:
            rho, [...]; minus infinity where the objective rises, as in the authors' code, or was predicted to.
        """
        after = self.optimizer.passes.mean_nll(self.x, self.y) + self._penalty()
        change = after - self.before
        return (change / self.predicted).masked_fill((self.predicted >= 0) | (change > 0), -math.inf)

    def _penalty(self) -> Tensor:
        """L2's part of the objective, [...]."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        pulls, lead = self.optimizer.l2_gradient(parameters), len(self.optimizer.replicas)
        if pulls is None:
            return parameters[0].new_zeros(())
        return 0.5 * summed([(p * w).flatten(lead).sum(-1) for p, w in zip(parameters, pulls, strict=True)])
