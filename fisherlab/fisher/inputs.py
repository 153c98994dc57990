"""A layer's inputs in homogeneous coordinates, and the gradient of a batch's mean loss that they form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from fisherlab.fisher.linalg import BLOCK, accumulate
from fisherlab.products import repeated


@dataclass(frozen=True)
class Inputs:
    """A layer's homogeneous inputs, a-bar = (a, 1), joined where first needed.

    Attributes:
        a: Inputs [..., B, in], already multiplied by the layer's parameterisation scale.
        ones: The homogeneous coordinate, or None without biases.
    """

    a: Tensor
    ones: float | None

    @property
    def width(self) -> int:
        """Entries of a-bar: in + 1, or in without biases."""
        return self.a.shape[-1] + (self.ones is not None)

    @cached_property
    def parts(self) -> list[Tensor]:
        """The columns of a-bar in one or two pieces: of a wide layer's inputs, only the last few are copied."""
        if self.ones is None:
            return [self.a]
        wide = self.a.shape[-1] // BLOCK * BLOCK
        tail = torch.cat([self.a[..., wide:], torch.full_like(self.a[..., :1], self.ones)], -1)
        return [self.a[..., :wide], tail] if wide else [tail]

    @cached_property
    def joined(self) -> Tensor:
        """a-bar written out, [..., B, in + 1], or [..., B, in] without biases."""
        return self.parts[0] if len(self.parts) == 1 else torch.cat(self.parts, -1)

    def weighted_sum(self, g: Tensor, weight: float = 1.0) -> Tensor:
        """Sum of weight * g_n a-bar_n^T over the examples; the weight is part of the product, which saves a pass.

        Args:
            g: Per-example pre-activation gradients [..., B, out].
            weight: Of each example, 1/B for a mean.

        Returns:
            Tensor [..., out, in + 1], or [..., out, in] without biases.
        """
        found = g.new_empty(*g.shape[:-2], g.shape[-1], self.width)
        at = 0
        for part in self.parts:
            end = at + part.shape[-1]
            accumulate(found[..., at:end], g, repeated(part, g.shape[:-2]), 0.0, weight)
            at = end
        return found


@dataclass(frozen=True)
class MeanGradient:
    """The gradient of a batch's mean loss, formed layer by layer where somebody reads it.

    Attributes:
        inputs: Homogeneous inputs, one per layer.
        gradients: Per-example pre-activation gradients [..., B, out], one per layer.
    """

    inputs: list[Inputs]
    gradients: list[Tensor]
    _formed: dict[int, Tensor] = field(default_factory=dict)

    def layer(self, i: int) -> Tensor:
        """Form one layer's gradient, or give it again.

        Args:
            i: Which layer.

        Returns:
            Tensor [..., out, in + 1], or [..., out, in] without biases.
        """
        if i not in self._formed:
            g = self.gradients[i]
            self._formed[i] = self.inputs[i].weighted_sum(g, 1 / g.shape[-2])
        return self._formed[i]

    @classmethod
    def formed(cls, layers: Sequence[Tensor]) -> MeanGradient:
        """Take a gradient that is formed already.

        Args:
            layers: [..., out, in + 1] each.

        Returns:
            It, without a batch.
        """
        return cls([], [], dict(enumerate(layers)))

    @property
    def layers(self) -> list[Tensor]:
        """The gradient of every layer."""
        return [self.layer(i) for i in range(len(self.inputs) or len(self._formed))]
