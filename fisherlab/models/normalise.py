"""Batch normalisation with replica axes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

DECAY, EPS = 0.999, 1e-3  # TensorFlow's, which the authors of RNGD used


class BatchNorm(nn.Module):
    """Normalise each unit over the batch, then scale and shift it (Ioffe and Szegedy 2015).

    In training by the batch's mean and variance (the biased one), in evaluation by their moving averages. Parameters
    and averages may carry leading replica axes.

    Args:
        units: Number of units.
        decay: Weight of the past in the moving averages.
        eps: Added to the variance.

    Attributes:
        held: Whether gradients take the batch's mean and variance for constants, and the averages stay.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, units: int, *, decay: float = DECAY, eps: float = EPS) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(units))
        self.shift = nn.Parameter(torch.zeros(units))
        self.register_buffer("mean", torch.zeros(units))
        self.register_buffer("variance", torch.ones(units))
        self.decay, self.eps, self.held = decay, eps, False

    def forward(self, a: Tensor) -> Tensor:
        """Normalise.

        Args:
            a: [..., B, units].

        Returns:
            Tensor [..., B, units].
        """
        mean, variance = self._batch(a) if self.training else (self.mean, self.variance)
        slope = (variance + self.eps).rsqrt() * self.scale
        return torch.addcmul(self.shift.unsqueeze(-2), a - mean.unsqueeze(-2), slope.unsqueeze(-2))

    def _batch(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """The batch's mean and variance, which the averages take in."""
        mean = a.mean(-2)
        variance = (a - mean.unsqueeze(-2)).square().mean(-2)
        if self.held:
            return mean.detach(), variance.detach()
        with torch.no_grad():
            self.mean.mul_(self.decay).add_(mean, alpha=1 - self.decay)
            self.variance.mul_(self.decay).add_(variance, alpha=1 - self.decay)
        return mean, variance

    def extra_repr(self) -> str:
        """Describe the layer in the model's printout."""
        return f"{self.scale.shape[-1]}, decay={self.decay}, eps={self.eps}"


@torch.no_grad()
def settle(model: nn.Module, x: Tensor) -> None:
    """Set the moving averages to the mean and variance over given examples: where they would settle, at these weights.

    Args:
        model: Any.
        x: Its inputs [..., B, in], in one batch, for each layer's statistics depend on those before it.
    """
    norms, training = [m for m in model.modules() if isinstance(m, BatchNorm)], model.training
    decays = [norm.decay for norm in norms]
    for norm in norms:
        norm.decay = 0.0
    try:
        model.train()(x)
    finally:
        for norm, decay in zip(norms, decays, strict=True):
            norm.decay = decay
        model.train(training)


def couples(model: nn.Module) -> bool:
    """Whether a model's examples depend on each other now.

    Args:
        model: Any.

    Returns:
        True where a `BatchNorm` is in training mode.
    """
    return any(isinstance(m, BatchNorm) and m.training for m in model.modules())


@contextmanager
def held(model: nn.Module) -> Iterator[None]:
    """Take every batch's mean and variance for constants: each example then has a gradient of its own.

    Args:
        model: Any.

    Yields:
        None.
    """
    norms = [m for m in model.modules() if isinstance(m, BatchNorm)]
    for norm in norms:
        norm.held = True
    try:
        yield
    finally:
        for norm in norms:
            norm.held = False
