"""Elementwise functions whose bits do not depend on where an element lies.

torch computes `sigmoid`, `elu` and `softplus` by one formula in the body of a tensor and by another in its last few
elements, so a replica would differ in its last bits between running alone and running in a group. `exp`, `expm1`,
`log1p`, `tanh`, `logsigmoid` and plain arithmetic do not (measured on Intel Xeon and AMD EPYC, MKL_CBWR=AUTO,STRICT).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def logistic(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x)), accurate in both tails.

    Args:
        x: Any tensor.

    Returns:
        Tensor of the same shape.
    """
    return F.logsigmoid(x).exp()


def elu(x: Tensor) -> Tensor:
    """Keep what is positive; else exp(x) - 1.

    Args:
        x: Any tensor.

    Returns:
        Tensor of the same shape.
    """
    positive = x > 0
    return torch.where(positive, x, torch.expm1(x.masked_fill(positive, 0.0)))
