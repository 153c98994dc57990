"""The replica-aware fully connected layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fisherlab.products import product


class Dense(nn.Module):
    """A fully connected layer whose parameters may carry leading replica axes: s = scale * W a + bias_scale * b.

    A fresh layer has no replica axes and computes what `nn.Linear` does; `stack_replicas` puts R of them side by side.
    Parameters are created uninitialised (zeros); `fisherlab.models.initialise` fills them.

    Args:
        inputs: Number of inputs.
        outputs: Number of units.
        bias: Whether there is a bias, the last column of the homogeneous weight [W, b].
        scale: Parameterisation scale of the weights (sigma_w / sqrt(inputs) under NTK parameterisation).
        bias_scale: Parameterisation scale of the biases (sigma_b under NTK parameterisation).
    """

    def __init__(
        self, inputs: int, outputs: int, *, bias: bool = True, scale: float = 1.0, bias_scale: float = 1.0
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.scale = scale
        self.bias_scale = bias_scale

    def forward(self, a: Tensor) -> Tensor:
        """Compute the pre-activations.

        Args:
            a: Inputs [..., B, inputs]; the leading axes broadcast against the replica axes of the weight.

        Returns:
            Pre-activations [..., B, outputs].
        """
        # W a^T, not a W^T: so the gradient of W comes out in W's own layout (an SGD step is a tenth faster).
        s = product(self.weight, a.mT).mT
        # An unscaled layer is one product and one sum: scale after the product, where the tensor is small.
        if self.scale != 1.0:
            s = s * self.scale
        if self.bias is None:
            return s
        bias = self.bias if self.bias_scale == 1.0 else self.bias * self.bias_scale
        return s + bias.unsqueeze(-2)

    def extra_repr(self) -> str:
        """Describe the layer in the model's printout."""
        *replicas, outputs, inputs = self.weight.shape
        lead = f", replicas={tuple(replicas)}" if replicas else ""
        return f"{inputs}, {outputs}, bias={self.bias is not None}{lead}"
