"""What every structure of the curvature matrix offers; the mathematics knows nothing of networks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fisherlab.fisher.inputs import MeanGradient
from fisherlab.fisher.kinds import Statistics
from fisherlab.products import summed


class Structure(ABC):
    """An approximation of the Fisher that can be estimated, damped and solved with.

    Vectors are lists with one homogeneous matrix [..., out, in + 1] per layer.

    Attributes:
        damping_modes: The ways of damping that make sense for it; the first is the default.
        keeps: Whether it has a moving average, and so statistic and inverse periods.
        per_layer: Whether failures can be told by layer.
    """

    damping_modes: tuple[str, ...] = ("tikhonov",)
    keeps: bool = True
    per_layer: bool = False

    def __init__(self, damping_mode: str | None = None) -> None:
        self.damping_mode = damping_mode or self.damping_modes[0]

    def check(self, shapes: Sequence[tuple[int, int]]) -> None:
        """Refuse layers that ask for too much, before anything is computed.

        Args:
            shapes: (out, in + 1) of every layer's homogeneous weight.

        Raises:
            UsageError: If a matrix would be too large.
        """
        del shapes

    @abstractmethod
    def update(self, stats: Statistics, decay: float) -> None:
        """Move the average towards a batch: M <- decay * M + (1 - decay) * batch.

        Args:
            stats: The batch's statistics.
            decay: Weight of what was there; 0 forgets it.
        """

    @property
    def needs_gradient(self) -> bool:
        """Whether a solve reads the gradient; one with the batch as its basis may have it already."""
        return True

    @abstractmethod
    def refresh(self, damping: Tensor, solves: int = 1) -> Tensor:
        """Prepare solves with the present average and damping.

        Args:
            damping: lambda on F, [...].
            solves: How many solves will follow before the next refresh; decides what is worth preparing.

        Returns:
            Bool mask [blocks, ...] of the factorisations that failed.
        """

    @abstractmethod
    def solve(self, gradient: list[Tensor], extra: list[Tensor] | None = None) -> list[Tensor]:
        """Solve the damped system, (F + lambda I) u = gradient + extra.

        Args:
            gradient: The gradient of the mean nll, per layer.
            extra: What else the objective's gradient has (L2), per layer.

        Returns:
            u, per layer.
        """

    def solve_mean(self, gradient: MeanGradient, extra: list[Tensor] | None = None) -> list[Tensor]:
        """Solve for the mean gradient of a batch, which a structure need not form.

        Args:
            gradient: The gradient of the mean nll.
            extra: As `solve`.

        Returns:
            u, per layer.
        """
        return self.solve(gradient.layers if self.needs_gradient else [], extra)

    @abstractmethod
    def matvec(self, v: list[Tensor]) -> list[Tensor]:
        """Multiply by the average, undamped.

        Args:
            v: Per layer.

        Returns:
            M v, per layer.
        """

    @abstractmethod
    def trace(self) -> Tensor:
        """The trace of the average, undamped.

        Returns:
            Tensor [...].
        """

    @abstractmethod
    def dense(self) -> Tensor:
        """Write the average out, undamped.

        Returns:
            Tensor [..., P, P]; the layers in order, each row by row as [out, in + 1].
        """

    def quadratic(self, v: list[Tensor]) -> Tensor:
        """The quadratic form v^T M v of the average, undamped.

        Args:
            v: Per layer.

        Returns:
            Tensor [...].
        """
        return summed([(a * b).sum((-2, -1)) for a, b in zip(v, self.matvec(v), strict=True)])

    def start_at_identity(self, stats: Statistics) -> None:
        """Set the average to the identity before the first update.

        Args:
            stats: Statistics whose shapes tell the sizes.

        Raises:
            NotImplementedError: If the structure keeps no average.
        """
        raise NotImplementedError

    def report(self) -> dict[str, Tensor]:
        """What a run should record of the factorisation in use, at every step.

        Returns:
            By name, [...] each; most structures have nothing to tell.
        """
        return {}

    def state(self) -> dict[str, Any]:
        """The state that a checkpoint needs: tensors by name, in lists.

        Returns:
            An empty dict for a structure that keeps nothing.
        """
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned.

        Args:
            state: As `state` returned it.
        """
        del state


def total(gradient: list[Tensor], extra: list[Tensor] | None) -> list[Tensor]:
    """Add the two parts of the objective's gradient.

    Args:
        gradient: Per layer.
        extra: Per layer, or None.

    Returns:
        Their sum, per layer.
    """
    return gradient if extra is None else [g + e for g, e in zip(gradient, extra, strict=True)]


def stacked(masks: list[Tensor]) -> Tensor:
    """Stack failure masks of blocks whose replica axes may still broadcast.

    Args:
        masks: Bool tensors [...].

    Returns:
        Bool tensor [blocks, ...].
    """
    return torch.stack(torch.broadcast_tensors(*masks))
