"""Kinds of Fisher: which pre-activation gradients stand for E[g g^T].

exact: over the model's own distribution of labels, one gradient per column of the output Fisher's square root;
mc: labels sampled from the model (Martens and Grosse 2015, Section 5); empirical: the observed labels, which is *not*
the Fisher (Kunstner, Balles and Hennig 2019). relative: no gradients at all, but the closed forms of subsystems, see
`fisherlab.fisher.relative`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from fisherlab.errors import UsageError
from fisherlab.fisher.capture import Captured
from fisherlab.fisher.inputs import Inputs
from fisherlab.likelihood import Likelihood
from fisherlab.products import summed

MAX_COLUMNS = 64


class Kind(StrEnum):
    """Which expectation over labels the Fisher takes."""

    EXACT = "exact"
    MC = "mc"
    EMPIRICAL = "empirical"
    RELATIVE = "relative"


@dataclass(frozen=True)
class Statistics:
    """What a structure is estimated from: F = weight * sum_m mean_n u u^T with u = vec of g a-bar^T over all layers.

    Attributes:
        inputs: Homogeneous inputs per layer, B examples.
        gradients: Pre-activation gradients per layer, [..., M, B, out].
        weight: 1 for exact (M columns) and empirical, 1/M for M Monte Carlo samples.
        coefficients: w [..., M, B] with sum_mn w_mn u_mn = B * gradient, where the gradient lies in the span of the u.
    """

    inputs: list[Inputs]
    gradients: list[Tensor]
    weight: float = 1.0
    coefficients: Tensor | None = None

    @property
    def batch(self) -> int:
        """Number of examples B."""
        return self.gradients[0].shape[-2]

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Every layer's (out, in + 1)."""
        return [(g.shape[-1], s.width) for g, s in zip(self.gradients, self.inputs, strict=True)]

    @property
    def trace(self) -> Tensor:
        """The trace of the batch's whole Fisher, no structure assumed, [...]."""
        layers = zip(self.inputs, self.gradients, strict=True)
        sizes = [(s.a.square().sum(-1) + (s.ones or 0.0) ** 2) * g.square().sum(-1).sum(-2) for s, g in layers]
        return summed(torch.broadcast_tensors(*sizes)).mean(-1) * self.weight

    @property
    def rows(self) -> int:
        """Number of vectors u, M * B."""
        return self.gradients[0].shape[-3] * self.batch


def statistics(
    kind: Kind,
    captured: Captured,
    likelihood: Likelihood,
    y: Tensor,
    observed: list[Tensor],
    noise: Tensor | None = None,
    max_columns: int = MAX_COLUMNS,
    mean: Tensor | None = None,
) -> Statistics:
    """Back-propagate what a kind of Fisher asks for.

    Args:
        kind: exact, mc or empirical; for relative see `relative_statistics`.
        captured: The forward pass.
        likelihood: Of the model's outputs.
        y: Observed targets.
        observed: Pre-activation gradients [..., B, out] of the observed targets.
        noise: For mc: noise [..., M, B, 1 or K] as the likelihood draws it.
        max_columns: For exact: the most columns that are back-propagated.
        mean: E[y | f], where the caller has it already.

    Returns:
        The statistics.

    Raises:
        UsageError: If exact needs more than `max_columns` columns.
        ValueError: If mc gets no noise.
    """
    f = captured.output
    if kind is Kind.EMPIRICAL:
        ones = observed[0].new_ones(()).expand(*f.shape[:-2], 1, f.shape[-2])
        return Statistics(captured.inputs, [g.unsqueeze(-3) for g in observed], 1.0, ones)
    if kind is Kind.MC:
        if noise is None:
            raise ValueError("kind mc samples labels: it needs noise")
        mean = (likelihood.mean(f) if mean is None else mean).unsqueeze(-3)
        labels = likelihood.sample_at(mean, noise)
        cotangents = likelihood.residual_at(mean.expand(*f.shape[:-2], noise.shape[-3], *f.shape[-2:]), labels)
        return Statistics(captured.inputs, captured.backward_each(cotangents), 1.0 / noise.shape[-3])
    columns = f.shape[-1]
    if columns > max_columns:
        raise UsageError(
            f"kind=exact back-propagates one column per output, {columns} here: expected at most "
            f"max_columns={max_columns}; use kind=mc or raise max_columns"
        )
    cotangents = likelihood.fisher_sqrt(f).movedim(-1, -3)
    w = likelihood.coefficients(f, y).mT
    return Statistics(captured.inputs, captured.backward_each(cotangents), 1.0, w)
