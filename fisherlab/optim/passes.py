"""A batch's way through the model: loss, gradient, and the statistics of the preconditioner, all of it or in chunks."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor, nn

from fisherlab.errors import UsageError
from fisherlab.fisher.capture import Capture
from fisherlab.fisher.inputs import MeanGradient
from fisherlab.fisher.kinds import Kind
from fisherlab.fisher.structure import total
from fisherlab.likelihood import Likelihood
from fisherlab.models.normalise import couples, held
from fisherlab.optim.preconditioner import Preconditioner, examples
from fisherlab.products import summed
from fisherlab.streams import Streams


class Passes:
    """Takes batches through a model.

    Args:
        model: The model.
        likelihood: Of its outputs.
        preconditioner: Told the statistics; None where there is none.
        replicas: The replica axes.
        chunk: The most examples of a natural-gradient step at a time; None takes the batch as a whole.
    """

    streams: Streams  # source of label noise; set by the optimizer

    def __init__(
        self,
        model: nn.Module,
        likelihood: Likelihood,
        preconditioner: Preconditioner | None,
        replicas: torch.Size,
        chunk: int | None,
    ) -> None:
        self.model, self.likelihood, self.preconditioner = model, likelihood, preconditioner
        self.replicas, self.chunk = replicas, chunk

    @cached_property
    def capture(self) -> Capture:
        """The capture of the model; a plain optimizer needs none, and takes models that a capture refuses."""
        return Capture(self.model)

    def plain(self, x: Tensor, y: Tensor, parameters: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Compute the loss and its gradient.

        Args:
            x: Inputs [..., B, in].
            y: Targets.
            parameters: For which.

        Returns:
            Mean nll [...], and its gradient by parameter.
        """
        with torch.enable_grad():
            f = self.model(x)
        loss, mean = self._loss(f.detach(), y)
        residual = self.likelihood.residual_at(mean, y)
        found = torch.autograd.grad(f, parameters, residual / f.shape[-2], allow_unused=True)
        return loss, [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]

    def natural(self, x: Tensor, y: Tensor, rest: list[Tensor]) -> tuple[Tensor, MeanGradient, list[Tensor]]:
        """Compute the loss and its gradient, and update the statistics.

        Args:
            x: Inputs [..., B, in].
            y: Targets.
            rest: Parameters that no structure covers.

        Returns:
            Mean nll [...], its gradient by covered layer, and the gradient of the summed nll by uncovered parameter.

        Raises:
            UsageError: If autocast is on, or the batch goes in chunks and some parameter is not covered.
        """
        device = x.device.type
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            raise UsageError(f"torch.autocast('{device}') is on: expected none around a natural-gradient step")
        if self.chunk is not None and x.shape[-2] > self.chunk:
            return self._in_chunks(x, y, rest, self.chunk)
        assert self.preconditioner is not None
        captured = self.capture(x)
        loss, mean = self._loss(captured.output, y)
        residual = self.likelihood.residual_at(mean, y)
        observed, rest_gradients = captured.backward(residual, rest)
        gradient = MeanGradient(captured.inputs, observed)
        coupled = self.preconditioner.takes_gradients and couples(self.model)
        if coupled:
            with held(self.model):  # each example's own gradients, the batch's mean and variance taken for constants
                captured = self.capture(x)
            observed, _ = captured.backward(residual)
        self.preconditioner.observe(captured, self.likelihood, y, observed, mean, self.streams, spanned=not coupled)
        return loss, gradient, rest_gradients

    def late(self, x: Tensor) -> None:
        """Take a batch through the model once more, after the step, where the preconditioner asks for it.

        Args:
            x: Inputs [..., B, in].
        """
        pre = self.preconditioner
        if pre is None or not pre.observes_late:
            return
        modes = [(m, m.training) for m in self.model.modules()]
        self.model.eval()
        try:
            pre.observe_late(self.capture(x), self.likelihood)
        finally:
            for module, mode in modes:  # each its own: some may be frozen in evaluation
                module.training = mode

    def _in_chunks(
        self, x: Tensor, y: Tensor, rest: list[Tensor], chunk: int
    ) -> tuple[Tensor, MeanGradient, list[Tensor]]:
        """The same, some examples at a time; those of the statistics go through once more, together."""
        assert self.preconditioner is not None
        if couples(self.model):
            raise UsageError(f"chunk={chunk} does not fit batch normalisation, which sees a whole batch: expected null")
        if rest:
            raise UsageError(f"chunk={chunk} needs a preconditioner that covers every parameter: expected null")
        losses, gradient, batch = list[Tensor](), list[Tensor](), x.shape[-2]
        for start in range(0, batch, chunk):
            part = slice(start, start + chunk)
            captured = self.capture(x[..., part, :])
            loss, mean = self._loss(captured.output, examples(y, x, part))
            observed, _ = captured.backward(self.likelihood.residual_at(mean, examples(y, x, part)))
            sums = [s.weighted_sum(g, 1 / batch) for s, g in zip(captured.inputs, observed, strict=True)]
            gradient = total(sums, gradient or None)
            losses.append(loss * (captured.output.shape[-2] / batch))
        if self.preconditioner.observes:
            part = slice(None, None, self.preconditioner.stride)
            captured, own = self.capture(x[..., part, :]), examples(y, x, part)
            mean, observed = self.likelihood.mean(captured.output), list[Tensor]()
            if self.preconditioner.kind is Kind.EMPIRICAL:  # the others look at no observed label
                observed, _ = captured.backward(self.likelihood.residual_at(mean, own))
            self.preconditioner.observe(captured, self.likelihood, own, observed, mean, self.streams, thinned=True)
        return summed(losses), MeanGradient.formed(gradient), []

    def mean_nll(self, x: Tensor, y: Tensor) -> Tensor:
        """Evaluate the mean nll of a batch.

        Args:
            x: Inputs [..., B, in].
            y: Targets.

        Returns:
            Tensor [...].
        """
        batch, chunk = x.shape[-2], self.chunk or x.shape[-2]
        parts = [slice(start, start + chunk) for start in range(0, batch, chunk)]
        with held(self.model):
            sums = [self.likelihood.nll(self.model(x[..., p, :]), examples(y, x, p)).sum(-1) for p in parts]
        return summed(sums) / batch

    def _loss(self, f: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The mean nll [...], and E[y | f]."""
        if f.ndim < 2 or f.shape[:-2] != self.replicas:
            raise UsageError(
                f"the model's output of shape {tuple(f.shape)} does not fit: expected [batch, outputs] behind the "
                f"replica axes {tuple(self.replicas)}"
            )
        self.likelihood.check(f, y)
        nll, mean = self.likelihood.nll_and_mean(f, y)
        return nll.mean(-1), mean
