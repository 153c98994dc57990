"""One capture serves all kinds of Fisher: a forward pass that records each layer's inputs and pre-activations.

The hooks live only as long as the forward pass; `.grad`, buffers and the global random state stay as they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fisherlab.errors import UsageError
from fisherlab.fisher.inputs import Inputs
from fisherlab.models.dense import Dense


@dataclass(frozen=True)
class Layer:
    """A fully connected layer that the natural gradient covers.

    Attributes:
        name: Its name in the model.
        module: `fisherlab.Dense` or `torch.nn.Linear`.
    """

    name: str
    module: Dense | nn.Linear

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Weight [..., out, in] and, where there is one, bias [..., out]."""
        return [p for p in (self.module.weight, self.module.bias) if isinstance(p, nn.Parameter)]

    @property
    def shape(self) -> tuple[int, int]:
        """Of its homogeneous weight: (out, in + 1), or (out, in) without biases."""
        out, inputs = self.module.weight.shape[-2:]
        return out, inputs + (self.module.bias is not None)

    @property
    def scale(self) -> float:
        """Parameterisation scale of the weights."""
        return self.module.scale if isinstance(self.module, Dense) else 1.0

    @property
    def ones(self) -> float | None:
        """Value of the homogeneous coordinate (the scale of the biases), or None without biases."""
        if self.module.bias is None:
            return None
        return self.module.bias_scale if isinstance(self.module, Dense) else 1.0

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Join tensors shaped as weight and bias to one homogeneous matrix, the bias as last column.

        Args:
            parts: [..., out, in] and, with biases, [..., out].

        Returns:
            Tensor [..., out, in + 1], or [..., out, in] without biases.
        """
        return parts[0] if len(parts) == 1 else torch.cat([parts[0], parts[1].unsqueeze(-1)], -1)

    def split(self, joined: Tensor) -> list[Tensor]:
        """Undo `join`.

        Args:
            joined: Tensor [..., out, in + 1], or [..., out, in] without biases.

        Returns:
            [..., out, in] and, with biases, [..., out].
        """
        return [joined] if self.module.bias is None else [joined[..., :-1], joined[..., -1]]


@dataclass(frozen=True)
class Captured:
    """What one forward pass left.

    Attributes:
        output: The model's output [..., B, K], detached.
        inputs: Homogeneous inputs, one per layer.
    """

    output: Tensor
    inputs: list[Inputs]
    _graph_output: Tensor
    _preactivations: list[Tensor]
    _stride: int = 1

    @property
    def preactivations(self) -> list[Tensor]:
        """Pre-activations s [..., B, out], one per layer, detached."""
        return [s.detach()[..., :: self._stride, :] for s in self._preactivations]

    def between(self, later: int, earlier: int, cotangents: Tensor) -> Tensor:
        """Back-propagate from one layer's pre-activations to an earlier one's.

        Args:
            later: The layer from which.
            earlier: The layer to which.
            cotangents: [..., M, B, out] of the later one.

        Returns:
            Tensor [..., M, B, out] of the earlier one.
        """
        ends = self._preactivations[later], self._preactivations[earlier]
        each = [self._whole(c, ends[0]) for c in cotangents.unbind(-3)]
        found = torch.stack([torch.autograd.grad(*ends, c, retain_graph=True)[0] for c in each], -3)
        return found[..., :: self._stride, :]

    def thinned(self, stride: int) -> Captured:
        """Keep every so many examples only, for statistics from a part of the batch; nothing is computed anew.

        Args:
            stride: 8 keeps the examples 0, 8, 16, ...

        Returns:
            As if these had been the batch.
        """
        kept = [Inputs(s.a[..., ::stride, :], s.ones) for s in self.inputs]
        return Captured(self.output[..., ::stride, :], kept, self._graph_output, self._preactivations, stride)

    def backward(self, cotangent: Tensor, extra: Sequence[Tensor] = ()) -> tuple[list[Tensor], list[Tensor]]:
        """Back-propagate one cotangent per example to the pre-activations.

        Args:
            cotangent: Gradient of each example's own loss with respect to its output, [..., B, K].
            extra: Other tensors of the graph (parameters that no layer covers).

        Returns:
            Per-example pre-activation gradients [..., B, out], one per layer; and the gradients of the summed loss with
            respect to `extra`.
        """
        wanted, rows = [*self._preactivations, *extra], slice(None, None, self._stride)
        cotangent = self._whole(cotangent, self._graph_output)
        found = torch.autograd.grad(self._graph_output, wanted, cotangent, retain_graph=True, allow_unused=True)
        n = len(self._preactivations)
        filled = [torch.zeros_like(w) if g is None else g for g, w in zip(found, wanted, strict=True)]
        return [g[..., rows, :] for g in filled[:n]], filled[n:]

    def _whole(self, cotangent: Tensor, like: Tensor) -> Tensor:
        """Put the cotangents of the examples that are kept among zeros for the others."""
        if self._stride == 1:
            return cotangent
        whole = torch.zeros_like(like)
        whole[..., :: self._stride, :] = cotangent
        return whole

    def backward_each(self, cotangents: Tensor) -> list[Tensor]:
        """Back-propagate several cotangents per example, one after another over the same graph.

        Args:
            cotangents: [..., M, B, K].

        Returns:
            Per-example pre-activation gradients [..., M, B, out], one per layer.
        """
        passes = [self.backward(c)[0] for c in cotangents.unbind(-3)]
        if len(passes) == 1:  # the common case, one sampled label per example: a view, no copy
            return [g.unsqueeze(-3) for g in passes[0]]
        return [torch.stack(layer, -3) for layer in zip(*passes, strict=True)]


@dataclass(frozen=True)
class _Record:
    """A layer's input, the input's version then, and its output."""

    a: Tensor
    version: int
    s: Tensor


def _plain(module: nn.Module) -> bool:
    """Whether a layer computes W a + b by its own, trainable weight and bias: no weight norm, no other forward."""
    if getattr(module.forward, "__func__", None) not in (Dense.forward, nn.Linear.forward):
        return False
    own = dict(module.named_parameters())
    return "weight" in own and own.keys() <= {"weight", "bias"} and all(p.requires_grad for p in own.values())


def _uses(output: Tensor) -> Counter[int]:
    """Count how often each parameter, by id, enters the graph of an output."""
    count: Counter[int] = Counter()
    nodes, seen = [output.grad_fn], {output.grad_fn}
    while nodes:
        for node, _ in getattr(nodes.pop(), "next_functions", ()):
            if hasattr(node, "variable"):
                count[id(node.variable)] += 1
            elif node is not None and node not in seen:
                seen.add(node)
                nodes.append(node)
    return count


class Capture:
    """Finds the layers of a model and captures forward passes through them.

    Args:
        model: Any module whose trainable `Dense` and `nn.Linear` layers are fed [..., B, in], each once per pass. A
            layer with a re-parametrised weight (weight norm), with a forward of its own, or with its weight or bias
            frozen counts as uncovered, as a whole.

    Raises:
        UsageError: If two layers share a parameter.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.layers = [
            Layer(name or type(module).__name__.lower(), module)
            for name, module in model.named_modules()
            if isinstance(module, (Dense, nn.Linear)) and _plain(module)
        ]
        self._index: dict[nn.Module, int] = {layer.module: i for i, layer in enumerate(self.layers)}
        self._coupled = [(name, m) for name, m in model.named_modules() if isinstance(m, _BatchNorm)]
        self._used_once = False
        self._may_overwrite = any(getattr(m, "inplace", False) for m in model.modules())
        owners: dict[int, str] = {}
        for layer in self.layers:
            for parameter in layer.parameters:
                if id(parameter) in owners:
                    owner = owners[id(parameter)]
                    raise UsageError(f"layers '{owner}' and '{layer.name}' share a parameter: untie them")
                owners[id(parameter)] = layer.name

    @property
    def uncovered(self) -> list[tuple[str, nn.Parameter]]:
        """Trainable parameters that belong to no covered layer, with their names."""
        covered = {id(p) for layer in self.layers for p in layer.parameters}
        return [(n, p) for n, p in self.model.named_parameters() if p.requires_grad and id(p) not in covered]

    def __call__(self, x: Tensor) -> Captured:
        """Run the model and record.

        Args:
            x: Inputs [..., B, in].

        Returns:
            The record; its graph lives as long as it does.

        Raises:
            UsageError: If batch normalisation couples the examples, a layer is used twice or not at all, its input is
                no batch of vectors, its rows are not the examples, or its output was modified in place.
        """
        self._check_uncoupled()
        seen: list[_Record | None] = [None] * len(self.layers)

        def record(module: nn.Module, args: tuple[Any, ...], s: Tensor) -> Tensor | None:
            i = self._index[module]
            if seen[i] is not None:
                raise UsageError(f"layer '{self.layers[i].name}' is used twice in one forward pass: expected once")
            seen[i] = _Record(args[0].detach(), args[0]._version, s)
            # An in-place activation would overwrite the recorded pre-activation: hand it a copy.
            return s.clone() if self._may_overwrite else None

        # First, so that what a user's hook makes of the output comes after the pre-activation.
        handles = [layer.module.register_forward_hook(record, prepend=True) for layer in self.layers]
        try:
            with torch.enable_grad():
                output = self.model(x)
        finally:
            for handle in handles:
                handle.remove()
        records = [self._checked(layer, record) for layer, record in zip(self.layers, seen, strict=True)]
        self._check_rows([s for _, s in records], output)
        if not self._used_once:
            self._check_used_once(output)
        return Captured(output.detach(), [r[0] for r in records], output, [r[1] for r in records])

    def _check_uncoupled(self) -> None:
        """Refuse a normalisation by the batch's own statistics."""
        for name, module in self._coupled:
            if module.training or module.running_mean is None:
                state = "in training mode" if module.training else "without running statistics"
                raise UsageError(
                    f"'{name}' ({type(module).__name__}) {state} couples the examples of a batch: per-example "
                    "gradients are not defined; expected .eval(), or a normalisation within each example (LayerNorm)"
                )

    def _check_rows(self, preactivations: list[Tensor], output: Tensor) -> None:
        """Refuse a layer whose rows are not the examples."""
        for layer, s in zip(self.layers, preactivations, strict=True):
            if s.shape[:-1] != output.shape[:-1]:
                raise UsageError(
                    f"layer '{layer.name}' gave {tuple(s.shape)} where the model gave {tuple(output.shape)}: expected "
                    "equal axes before the last, one row per example"
                )

    def _check_used_once(self, output: Tensor) -> None:
        """Refuse a weight that the model also uses outside its layer (tied by hand): its gradient would be partial."""
        uses = _uses(output)
        for layer in self.layers:
            if any(uses[id(p)] > 1 for p in layer.parameters):
                raise UsageError(f"the parameters of layer '{layer.name}' are used more than once: untie them")
        self._used_once = True

    @staticmethod
    def _checked(layer: Layer, record: _Record | None) -> tuple[Inputs, Tensor]:
        """Check what a layer was fed, and make its homogeneous inputs."""
        if record is None:
            raise UsageError(f"layer '{layer.name}' was not used in the forward pass: freeze it (requires_grad=False)")
        a, s = record.a, record.s
        if a.ndim < 2 or (isinstance(layer.module, nn.Linear) and a.ndim != 2):
            shape = tuple(a.shape)
            raise UsageError(f"layer '{layer.name}' was fed {shape}: expected a batch of vectors [batch, inputs]")
        for what, modified in (("input", a._version != record.version), ("output", s._version > 0)):
            if modified:
                raise UsageError(f"the {what} of layer '{layer.name}' was modified in place: work out of place")
        return Inputs(a if layer.scale == 1.0 else a * layer.scale, layer.ones), s
