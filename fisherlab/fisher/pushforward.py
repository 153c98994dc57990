"""Jacobian-vector products of any network, and with them inner products of the exact Fisher."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vmap

from fisherlab.likelihood import Likelihood
from fisherlab.products import summed

UNITS, CASES = 4, 17  # of fewer the sums of products go by their layout: up to 3 units and 11 cases on an EPYC


def pushforward(model: nn.Module, x: Tensor, changes: Sequence[Mapping[str, Tensor]]) -> tuple[Tensor, Tensor]:
    """The outputs, and their changes to first order as the parameters change in several ways.

    The outputs are computed once for all: k changes cost 1 + 2 k forward passes, 3 k where little is to be computed.

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
        if _laid_out_alike(x, moving):
            stacked = {name: torch.stack([change[name] for change in changes]) for name in moving}
            along = partial(_along, output, moving)
            f, tangents = vmap(along, out_dims=(None, 0))(stacked)  # type: ignore[arg-type]
            return f, tangents
        found = [_along(output, moving, change) for change in changes]
    return found[0][0], torch.stack([tangent for _, tangent in found])


def _along(output: Callable[..., Tensor], moving: Mapping[str, Tensor], change: Mapping[str, Tensor]) -> Any:
    return jvp(output, (moving,), (dict(change),))


def _laid_out_alike(x: Tensor, moving: Mapping[str, Tensor]) -> bool:
    """Whether bits do not depend on the number of replicas under vmap, where the layout of what they share does."""
    lead = x.ndim - 2  # without replica axes nothing is shared
    units = [p.shape[-2] for p in moving.values() if p.ndim >= lead + 2]
    return not lead or (x.dtype != torch.float64 and min(units, default=UNITS) >= UNITS and x.shape[-2] >= CASES)


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
    weighed = likelihood.weigh(f, tangents)
    rows = [torch.stack([(u * v).sum(-1).mean(-1) for v in weighed], -1) for u in weighed]
    return torch.stack(rows, -2)
