"""The gradient of the objective and the rule's vector, flat, which an optimizer keeps from step to step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fisherlab.optim.layout import flat, sizes


class Vectors:
    """Per parameter group one tensor [2, ..., P]: the objective's gradient and the rule's vector, normed in one pass.

    Args:
        replicas: The replica axes [...].
    """

    def __init__(self, replicas: torch.Size) -> None:
        self.replicas = replicas
        self.pairs: list[Tensor] = []
        self._unwritten: Callable[[], list[Tensor]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Copy and pickle what is written: a gradient still to come refers to its batch.

        Returns:
            The attributes.
        """
        self.write()
        return self.__dict__

    def make_room(self, group: int, parts: Sequence[Tensor]) -> Tensor:
        """Make room for a group's two vectors.

        Args:
            group: Its number.
            parts: Shaped as its parameters, of their device and dtype.

        Returns:
            Where its gradient belongs, [..., P].
        """
        shape, first = (2, *self.replicas, sum(sizes(parts, self.replicas))), parts[0]
        if group == len(self.pairs):
            self.pairs.append(first.new_empty(shape))
        elif (self.pairs[group].device, self.pairs[group].dtype) != (first.device, first.dtype):
            self.pairs[group] = first.new_empty(shape)  # the model has moved
        return self.pairs[group][0]

    def keep(self, group: int, gradient: Sequence[Tensor]) -> Tensor:
        """Keep the gradient of a group.

        Args:
            group: Its number.
            gradient: Shaped as its parameters.

        Returns:
            The same, flat [..., P].
        """
        return flat(gradient, self.replicas, self.make_room(group, gradient))

    def keep_later(self, gradient: Callable[[], list[Tensor]]) -> None:
        """Keep the gradient of the first group, which is computed only where somebody asks for it.

        Args:
            gradient: Computes it.
        """
        self._unwritten = gradient

    def write(self) -> None:
        """Compute what `keep_later` put off."""
        if self._unwritten is not None:
            self.keep(0, self._unwritten())
            self._unwritten = None

    @property
    def gradients(self) -> list[Tensor]:
        """The gradients, flat [..., P], one per group."""
        self.write()
        return [pair[0] for pair in self.pairs]

    def norms(self, group: int, factor: Tensor) -> Tensor:
        """Take the norms of a group's gradient and of its step.

        Args:
            group: Its number.
            factor: c, of which the step is the rule's vector times -c.

        Returns:
            [2, ...].
        """
        found = torch.linalg.vector_norm(self.pairs[group], dim=-1)
        found[1].mul_(factor)
        return found
