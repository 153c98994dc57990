"""The Jacobian of a network with one output, never written out, and its Gram matrices layer by layer.

A row of layer l is vec(g_n a-bar_n^T), so that Theta_l = (g g^T) o (a-bar a-bar^T): at width 4096 and 100 examples the
explicit Jacobian of one layer takes 13 GB in float64, its two Gram matrices take 160 kB. `fisherlab.fisher.gram.Gram`
sums the same products over the layers and solves for one batch; here every layer, every factor and pairs of test and
training examples are wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fisherlab.errors import UsageError
from fisherlab.fisher.capture import Capture
from fisherlab.fisher.inputs import Inputs


@dataclass(frozen=True)
class Jacobian:
    """Rows d f_n / d theta of N examples, as the two vectors per layer that make them.

    Attributes:
        outputs: f [N], detached.
        inputs: Homogeneous inputs a-bar per layer; their parameterisation scale sigma_w / sqrt(M) is part of them.
        gradients: g = d f_n / d s_n per layer, [N, out].
    """

    outputs: Tensor
    inputs: list[Inputs]
    gradients: list[Tensor]

    @classmethod
    def of(cls, capture: Capture, x: Tensor) -> Jacobian:
        """Differentiate a network at examples.

        Args:
            capture: Of the network.
            x: Examples [N, inputs].

        Returns:
            Its Jacobian there.

        Raises:
            UsageError: If the network has several outputs, or parameters outside fully connected layers.
        """
        captured = capture(x)
        outputs = captured.output.shape[-1]
        if captured.output.ndim != 2 or outputs != 1:
            raise UsageError(f"outputs={outputs}: the function space of one output was expected, outputs=1")
        if capture.uncovered:
            raise UsageError(
                f"parameter '{capture.uncovered[0][0]}' belongs to no fully connected layer: expected none"
            )
        gradients, _ = captured.backward(torch.ones_like(captured.output))
        return cls(captured.output[:, 0], captured.inputs, gradients)

    def weighted(self, weights: Tensor) -> Jacobian:
        """Multiply every row by a number.

        With the roots of the output Fisher it becomes the Fisher's own rows, with the residuals the empirical Fisher's.

        Args:
            weights: [N].

        Returns:
            diag(weights) J.
        """
        column = weights.unsqueeze(-1)
        return Jacobian(self.outputs, self.inputs, [g * column.to(g.dtype) for g in self.gradients])

    def rows(self, index: Tensor) -> Jacobian:
        """Keep some of the examples.

        Args:
            index: Which.

        Returns:
            Their rows.
        """
        inputs = [Inputs(s.a[index], s.ones) for s in self.inputs]
        return Jacobian(self.outputs[index], inputs, [g[index] for g in self.gradients])

    def combine(self, coefficients: Sequence[Tensor]) -> list[Tensor]:
        """J_l^T c_l for every layer.

        Args:
            coefficients: [N] per layer.

        Returns:
            Shaped as the homogeneous weights, [out, in + 1], or [out, in] without biases.
        """
        columns = [c.unsqueeze(-1).to(g.dtype) for c, g in zip(coefficients, self.gradients, strict=True)]
        return [s.weighted_sum(c * g) for s, c, g in zip(self.inputs, columns, self.gradients, strict=True)]


@dataclass(frozen=True)
class Grams:
    """Inner products of the rows of one Jacobian with those of another, layer by layer, in float64.

    Attributes:
        inputs: a-bar' a-bar^T = sigma_w^2 A_(l-1) + sigma_b^2 per layer, [N', N].
        gradients: B_l = g' g^T per layer, [N', N].
    """

    inputs: list[Tensor]
    gradients: list[Tensor]

    @property
    def layers(self) -> list[Tensor]:
        """Theta_l, the kernel of each layer."""
        return [a * b for a, b in zip(self.inputs, self.gradients, strict=True)]

    @property
    def total(self) -> Tensor:
        """Theta, the neural tangent kernel."""
        return torch.stack(self.layers).sum(0)


def grams(rows: Jacobian, columns: Jacobian | None = None) -> Grams:
    """Multiply Jacobians without writing them out.

    Args:
        rows: Of N' examples.
        columns: Of N examples of the same network; None takes `rows`.

    Returns:
        The products of both factors.
    """
    columns = rows if columns is None else columns
    pairs = zip(rows.inputs, columns.inputs, strict=True)
    a = [s.a.double() @ t.a.double().mT + (s.ones or 0.0) * (t.ones or 0.0) for s, t in pairs]
    b = [g.double() @ h.double().mT for g, h in zip(rows.gradients, columns.gradients, strict=True)]
    return Grams(a, b)
