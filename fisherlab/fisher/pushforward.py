"""Jacobian-vector products of a model, and with them the exact Fisher's quadratic form, of any network."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

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


def fisher_form(model: nn.Module, likelihood: Likelihood, x: Tensor, change: Mapping[str, Tensor]) -> Tensor:
    """The quadratic form v^T F v of the exact mean Fisher of a batch.

    Args:
        model: Any module.
        likelihood: Of its outputs.
        x: Inputs [..., B, in].
        change: v, by parameter name.

    Returns:
        Tensor [...].
    """
    f, tangent = pushforward(model, x, change)
    return likelihood.form(f, tangent).mean(-1)
