"""Jacobian-vector products of any network, and with them inner products of the exact Fisher."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.autograd.forward_ad as forward
from torch import Tensor, nn
from torch.func import functional_call

from fisherlab.likelihood import Likelihood


def pushforward(model: nn.Module, x: Tensor, change: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The outputs, and their change to first order as the parameters change; about two forward passes.

    Args:
        model: Any module.
        x: Inputs [..., B, in].
        change: By parameter name, shaped as the parameters.

    Returns:
        f and J v, [..., B, K] both.
    """
    own = {name: p.detach() for name, p in model.named_parameters()}
    with _quiet(), forward.dual_level():
        moved = {name: forward.make_dual(own[name], v) for name, v in change.items()}
        f, tangent = forward.unpack_dual(functional_call(model, own | moved, (x,)))
    return f, f.new_zeros(()).expand_as(f) if tangent is None else tangent


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch from warning of its own use of torch.jit, which the first forward derivative imports."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)
        yield


def fisher_products(
    model: nn.Module,
    likelihood: Likelihood,
    x: Tensor,
    changes: Sequence[Mapping[str, Tensor]],
    chunk: int | None = None,
) -> Tensor:
    """The inner products u^T F v of the exact mean Fisher of a batch, of each vector with each.

    Martens and Grosse (2015), Appendix C: from Jacobian-vector products, without a product with F itself.

    Args:
        model: Any module.
        likelihood: Of its outputs.
        x: Inputs [..., B, in].
        changes: The vectors, by parameter name.
        chunk: The most examples at a time; None takes all at once.

    Returns:
        Tensor [..., k, k] for k vectors.
    """
    parts = x.split(chunk or x.shape[-2], -2)
    means = [_mean_products(model, likelihood, part, changes) * (part.shape[-2] / x.shape[-2]) for part in parts]
    return torch.stack(means).sum(0)


def _mean_products(
    model: nn.Module, likelihood: Likelihood, x: Tensor, changes: Sequence[Mapping[str, Tensor]]
) -> Tensor:
    pairs = [pushforward(model, x, change) for change in changes]
    f, tangents = pairs[0][0], [tangent for _, tangent in pairs]
    rows = [torch.stack([likelihood.inner(f, u, v).mean(-1) for v in tangents], -1) for u in tangents]
    return torch.stack(rows, -2)
