"""The full matrix over all covered parameters, P x P (the primal system)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fisherlab.fisher.blocks import Blocks
from fisherlab.fisher.inputs import Inputs
from fisherlab.fisher.kinds import Statistics


class Full(Blocks):
    """The dense Fisher of all covered parameters: one block."""

    per_layer = False
    name = "full"
    instead = "gram or kronecker"

    @property
    def matrix(self) -> Tensor:
        """The average [..., P, P]; there is one after the first update."""
        return self.families[0].squeeze(-3)

    def sizes(self, shapes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """See `Blocks.sizes`."""
        return [(1, sum(out * n for out, n in shapes))]

    def rows(self, stats: Statistics, family: int) -> Iterator[Tensor]:
        """See `Blocks.rows`."""
        yield per_example(stats).unsqueeze(-3)


def outer(inputs: Inputs, g: Tensor) -> Tensor:
    """A layer's part of the vectors u, vec(g a-bar^T), row-major as [out, in + 1].

    Args:
        inputs: Its homogeneous inputs.
        g: Its pre-activation gradients [..., M, B, out].

    Returns:
        Tensor [..., M*B, out * (in + 1)].
    """
    return (g.unsqueeze(-1) * inputs.joined.unsqueeze(-3).unsqueeze(-2)).flatten(-2).flatten(-3, -2)


def per_example(stats: Statistics) -> Tensor:
    """The vectors u, layers in order.

    Args:
        stats: Statistics of one batch.

    Returns:
        Tensor [..., M*B, P].
    """
    return torch.cat([outer(inputs, g) for inputs, g in zip(stats.inputs, stats.gradients, strict=True)], -1)


def parameters(stats: Statistics) -> int:
    """Count the covered parameters P.

    Args:
        stats: Statistics whose shapes tell the sizes.

    Returns:
        P.
    """
    return sum(out * n for out, n in stats.shapes)
