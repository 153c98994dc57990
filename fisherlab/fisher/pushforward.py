"""Jacobian-vector products of any network, and with them inner products of the exact Fisher."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp

from fisherlab.likelihood import Likelihood
from fisherlab.products import summed


def pushforward(model: nn.Module, x: Tensor, changes: Sequence[Mapping[str, Tensor]]) -> tuple[Tensor, Tensor]:
    """The outputs, and their changes to first order as the parameters change in several ways.

    One change after another, 3 k forward passes for k changes: under vmap, which computes the outputs once for all, the
    layout of what replicas share depends on their number, and so do the bits.

    Args:
        model: Any module.
        x: Inputs [..., B, in].
        changes: By parameter name, shaped as the parameters; all of them name the same.

    Returns:
        f [..., B, K], and J v for each change, [k, ..., B, K].
    """
    own = {name: p.detach() for name, p in model.named_parameters()}
    moving = {name: own[name] for name in changes[0]}

    def output(parameters: Mapping[str, Tensor]) -> Tensor:
        f: Tensor = functional_call(model, own | dict(parameters), (x,))
        return f

    with _quiet():
        found = [jvp(output, (moving,), (dict(change),)) for change in changes]
    return found[0][0], torch.stack([one[1] for one in found])


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
    return summed(means)


def _mean_products(
    model: nn.Module, likelihood: Likelihood, x: Tensor, changes: Sequence[Mapping[str, Tensor]]
) -> Tensor:
    f, tangents = pushforward(model, x, changes)
    rows = [torch.stack([likelihood.inner(f, u, v).mean(-1) for v in tangents], -1) for u in tangents]
    return torch.stack(rows, -2)
