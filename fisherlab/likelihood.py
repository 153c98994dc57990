"""Likelihoods: the negative log likelihood of the model's outputs, its samples, its output Fisher.

Shapes: natural parameters (logits, or the mean) f [..., B, K]; every result is per example, summed over outputs.
Targets may lack the leading replica axes of f. For all three the output Fisher is also the Hessian of the nll with
respect to f (Kunstner et al. 2019, Appendix A.2).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from fisherlab.elementwise import logistic
from fisherlab.errors import UsageError, did_you_mean
from fisherlab.streams import Streams


def _root(log_p: Tensor) -> Tensor:
    """sqrt(p) from log p, kept above the smallest root whose square is no underflow: coefficients divide by it."""
    return (0.5 * log_p.clamp(min=math.log(torch.finfo(log_p.dtype).tiny))).exp()


class Likelihood(ABC):
    """What a natural gradient needs to know of p(y | f)."""

    name: str

    def check(self, f: Tensor, y: Tensor) -> None:
        """Refuse targets that would broadcast against the outputs, or that are of another type; reads no value.

        Args:
            f: Natural parameters [..., B, K].
            y: Targets; may lack leading axes of f.

        Raises:
            UsageError: Names both shapes.
        """
        self._check(f, y, f.shape[-2:], y.is_floating_point(), "floating targets [..., batch, outputs]")

    def _check(self, f: Tensor, y: Tensor, own: torch.Size, right_dtype: bool, expected: str) -> None:
        """Check the dtype, and the shape behind the replica axes, which is to be `own`."""
        if not right_dtype or y.ndim > f.ndim - 2 + len(own) or y.shape[-len(own) :] != own:
            raise UsageError(
                f"{str(y.dtype).removeprefix('torch.')} targets of shape {tuple(y.shape)} do not fit outputs of shape "
                f"{tuple(f.shape)}: {self.name} expected {expected}"
            )

    @abstractmethod
    def nll(self, f: Tensor, y: Tensor) -> Tensor:
        """Negative log likelihood, summed over outputs.

        Args:
            f: Natural parameters [..., B, K].
            y: Targets.

        Returns:
            nats per example [..., B].
        """

    def residual(self, f: Tensor, y: Tensor) -> Tensor:
        """Gradient of the nll with respect to f: E[y | f] - y.

        Args:
            f: Natural parameters [..., B, K].
            y: Targets.

        Returns:
            Tensor [..., B, K].
        """
        return self.residual_at(self.mean(f), y)

    @abstractmethod
    def residual_at(self, mean: Tensor, y: Tensor) -> Tensor:
        """`residual`, for a caller that has the mean already.

        Args:
            mean: E[y | f], [..., B, K].
            y: Targets.

        Returns:
            Tensor [..., B, K].
        """

    def nll_and_mean(self, f: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Both at once, for a step that needs both; equal to `nll` and `mean` but for rounding.

        Args:
            f: Natural parameters [..., B, K].
            y: Targets.

        Returns:
            nll [..., B] and mean [..., B, K].
        """
        return self.nll(f, y), self.mean(f)

    @abstractmethod
    def mean(self, f: Tensor) -> Tensor:
        """E[y | f]; class probabilities for the categorical.

        Args:
            f: Natural parameters [..., B, K].

        Returns:
            Tensor [..., B, K].
        """

    @abstractmethod
    def noise(self, streams: Streams, counter: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Draw the noise that `sample` turns into targets.

        Args:
            streams: The run's random streams; the purpose is `labels`.
            counter: Step.
            shape: (samples, B, K).
            dtype: Floating dtype.

        Returns:
            Noise [samples, B, 1 or K], behind a stream axis where the streams have one.
        """

    def sample(self, f: Tensor, noise: Tensor) -> Tensor:
        """Turn noise into targets drawn from p(y | f).

        Args:
            f: Natural parameters [..., B, K].
            noise: As `noise` draws it, broadcast against f.

        Returns:
            Targets [..., B] (categorical) or [..., B, K].
        """
        return self.sample_at(self.mean(f), noise)

    @abstractmethod
    def sample_at(self, mean: Tensor, noise: Tensor) -> Tensor:
        """`sample`, for a caller that has the mean already.

        Args:
            mean: E[y | f], [..., B, K].
            noise: As `noise` draws it, broadcast against the mean.

        Returns:
            Targets [..., B] (categorical) or [..., B, K].
        """

    @abstractmethod
    def fisher(self, f: Tensor) -> Tensor:
        """Output Fisher, E[r r^T] over y ~ p(y | f).

        Args:
            f: Natural parameters [..., B, K].

        Returns:
            Tensor [..., B, K, K].
        """

    @abstractmethod
    def fisher_sqrt(self, f: Tensor) -> Tensor:
        """A square root S of the output Fisher, S S^T = fisher(f); column c is S[..., c].

        Args:
            f: Natural parameters [..., B, K].

        Returns:
            Tensor [..., B, K, C].
        """

    @abstractmethod
    def weigh(self, f: Tensor, v: Tensor) -> Tensor:
        """Weigh changes of the outputs by the root of their Fisher: S^T v, without forming S = fisher_sqrt(f).

        Args:
            f: Natural parameters [..., B, K].
            v: Changes [k, ..., B, K].

        Returns:
            Tensor [k, ..., B, K], of which dot products are the inner products u^T fisher(f) v.
        """

    @abstractmethod
    def coefficients(self, f: Tensor, y: Tensor) -> Tensor:
        """The residual in the columns of the square root: S w = residual.

        Args:
            f: Natural parameters [..., B, K].
            y: Targets.

        Returns:
            w [..., B, C].
        """

    @abstractmethod
    def error(self, f: Tensor, y: Tensor) -> Tensor:
        """What a user calls the error: misclassified (0 or 1), or the squared residual.

        Args:
            f: Natural parameters [..., B, K].
            y: Targets.

        Returns:
            Tensor [..., B].
        """


class Categorical(Likelihood):
    """Softmax classification: f are logits, y int64 class indices [..., B]."""

    name = "categorical"

    def check(self, f: Tensor, y: Tensor) -> None:
        """See `Likelihood.check`."""
        self._check(f, y, f.shape[-2:-1], y.dtype == torch.int64, "int64 class indices [..., batch]")

    def nll(self, f: Tensor, y: Tensor) -> Tensor:
        """See `Likelihood.nll`."""
        return self._nll(f.log_softmax(-1), y)

    @staticmethod
    def _nll(log_p: Tensor, y: Tensor) -> Tensor:
        return -log_p.gather(-1, y.expand(log_p.shape[:-1]).unsqueeze(-1)).squeeze(-1)

    def nll_and_mean(self, f: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """See `Likelihood.nll_and_mean`; the soft maximum over a few classes is slow, so it is taken once."""
        log_p = f.log_softmax(-1)
        return self._nll(log_p, y), log_p.exp()

    def residual_at(self, mean: Tensor, y: Tensor) -> Tensor:
        """See `Likelihood.residual_at`."""
        index = y.expand(mean.shape[:-1]).unsqueeze(-1)
        minus = torch.full((), -1.0, dtype=mean.dtype, device=mean.device).expand(index.shape)
        return mean.scatter_add(-1, index, minus)

    def mean(self, f: Tensor) -> Tensor:
        """See `Likelihood.mean`."""
        return f.softmax(-1)

    def noise(self, streams: Streams, counter: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """See `Likelihood.noise`; uniform, one number per label."""
        return streams.uniform("labels", counter, (*shape[:-1], 1), dtype)

    def sample_at(self, mean: Tensor, noise: Tensor) -> Tensor:
        """See `Likelihood.sample_at`; by the inverse of the distribution function."""
        cdf = mean.cumsum(-1)
        below = cdf <= noise * cdf[..., -1:]
        return below.sum(-1).clamp_(max=mean.shape[-1] - 1)

    def fisher(self, f: Tensor) -> Tensor:
        """See `Likelihood.fisher`: diag(p) - p p^T."""
        p = self.mean(f)
        return torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)

    def fisher_sqrt(self, f: Tensor) -> Tensor:
        """See `Likelihood.fisher_sqrt`: column c is sqrt(p_c) (e_c - p)."""
        p, root = self.mean(f), _root(f.log_softmax(-1))
        return torch.diag_embed(root) - p.unsqueeze(-1) * root.unsqueeze(-2)

    def weigh(self, f: Tensor, v: Tensor) -> Tensor:
        """See `Likelihood.weigh`: sqrt(p) (v - p^T v)."""
        p = self.mean(f)
        return _root(f.log_softmax(-1)) * (v - (p * v).sum(-1, keepdim=True))

    def coefficients(self, f: Tensor, y: Tensor) -> Tensor:
        """See `Likelihood.coefficients`: r / sqrt(p) less its projection on sqrt(p)."""
        root = _root(f.log_softmax(-1))
        w = self.residual(f, y) / root
        return w - root * (w * root).sum(-1, keepdim=True)

    def error(self, f: Tensor, y: Tensor) -> Tensor:
        """See `Likelihood.error`: misclassified."""
        return (f.argmax(-1) != y).to(f.dtype)


class Bernoulli(Likelihood):
    """Logistic classification or reconstruction: f are logits, y in [0, 1] of the same shape."""

    name = "bernoulli"

    def nll(self, f: Tensor, y: Tensor) -> Tensor:
        """See `Likelihood.nll`."""
        # softplus(f) - f y, with no cancellation where either is large.
        return (f.clamp(min=0) - f * y + torch.log1p(torch.exp(-f.abs()))).sum(-1)

    def residual_at(self, mean: Tensor, y: Tensor) -> Tensor:
        """See `Likelihood.residual_at`."""
        return mean - y

    def mean(self, f: Tensor) -> Tensor:
        """See `Likelihood.mean`."""
        return logistic(f)

    def noise(self, streams: Streams, counter: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """See `Likelihood.noise`; uniform."""
        return streams.uniform("labels", counter, shape, dtype)

    def sample_at(self, mean: Tensor, noise: Tensor) -> Tensor:
        """See `Likelihood.sample_at`."""
        return (noise < mean).to(mean.dtype)

    def _sd(self, f: Tensor) -> Tensor:
        # sqrt(p (1 - p)) without cancellation where p is near 0 or 1; no underflow, for coefficients divide by it.
        e = (-0.5 * f.abs()).exp().clamp(min=math.sqrt(torch.finfo(f.dtype).tiny))
        return e / (1 + e * e)

    def fisher(self, f: Tensor) -> Tensor:
        """See `Likelihood.fisher`: diag(p (1 - p))."""
        return torch.diag_embed(self._sd(f).square())

    def fisher_sqrt(self, f: Tensor) -> Tensor:
        """See `Likelihood.fisher_sqrt`."""
        return torch.diag_embed(self._sd(f))

    def weigh(self, f: Tensor, v: Tensor) -> Tensor:
        """See `Likelihood.weigh`."""
        return self._sd(f) * v

    def coefficients(self, f: Tensor, y: Tensor) -> Tensor:
        """See `Likelihood.coefficients`: (p - y) / sqrt(p (1 - p))."""
        return self.residual(f, y) / self._sd(f)

    def error(self, f: Tensor, y: Tensor) -> Tensor:
        """See `Likelihood.error`: fraction of the outputs on the wrong side of one half."""
        return ((f > 0) != (y > 0.5)).to(f.dtype).mean(-1)


class Gaussian(Likelihood):
    """Regression with unit noise: f is the mean; the nll is half the squared residual, without constants."""

    name = "gaussian"

    def nll(self, f: Tensor, y: Tensor) -> Tensor:
        """See `Likelihood.nll`."""
        return 0.5 * (f - y).square().sum(-1)

    def residual_at(self, mean: Tensor, y: Tensor) -> Tensor:
        """See `Likelihood.residual_at`."""
        return mean - y

    def mean(self, f: Tensor) -> Tensor:
        """See `Likelihood.mean`."""
        return f

    def noise(self, streams: Streams, counter: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """See `Likelihood.noise`; standard normal."""
        return streams.normal("labels", counter, shape, dtype)

    def sample_at(self, mean: Tensor, noise: Tensor) -> Tensor:
        """See `Likelihood.sample_at`."""
        return mean + noise

    def fisher(self, f: Tensor) -> Tensor:
        """See `Likelihood.fisher`: the identity."""
        return torch.diag_embed(torch.ones_like(f))

    def fisher_sqrt(self, f: Tensor) -> Tensor:
        """See `Likelihood.fisher_sqrt`: the identity."""
        return self.fisher(f)

    def weigh(self, f: Tensor, v: Tensor) -> Tensor:
        """See `Likelihood.weigh`: the changes themselves."""
        del f
        return v

    def coefficients(self, f: Tensor, y: Tensor) -> Tensor:
        """See `Likelihood.coefficients`: the residual itself."""
        return self.residual(f, y)

    def error(self, f: Tensor, y: Tensor) -> Tensor:
        """See `Likelihood.error`: the squared residual, summed over outputs."""
        return (f - y).square().sum(-1)


LIKELIHOODS: dict[str, type[Likelihood]] = {c.name: c for c in (Categorical, Bernoulli, Gaussian)}


def make_likelihood(likelihood: str | Likelihood) -> Likelihood:
    """Find a likelihood by name.

    Args:
        likelihood: categorical, bernoulli or gaussian, or a likelihood itself.

    Returns:
        The likelihood.

    Raises:
        UsageError: If the name is unknown.
    """
    if isinstance(likelihood, Likelihood):
        return likelihood
    if likelihood not in LIKELIHOODS:
        raise UsageError(f"likelihood={likelihood!r} is unknown: {did_you_mean(likelihood, LIKELIHOODS)}")
    return LIKELIHOODS[likelihood]()
