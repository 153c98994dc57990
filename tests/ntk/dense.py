"""The slow twin in function space: explicit Jacobians by torch.func, dense matrices, float64."""

import torch
from torch import Tensor

from fisherlab.models import wide
from fisherlab.streams import generator
from tests.reference import Twin, layers_of


def problem(examples=7, tests=4, inputs=9, width=12, layers=3, activation="tanh", sigma_b2=0.0, seed=0):
    """A network in float64, unit-norm examples, targets of +-0.5."""
    source = generator(seed, "test/ntk")
    model = wide(
        inputs, 1, width=width, layers=layers, activation=activation, sigma_w2=2.0, sigma_b2=sigma_b2, generator=source
    ).double()
    x = torch.randn(examples + tests, inputs, generator=source, dtype=torch.float64)
    x = torch.nn.functional.normalize(x, dim=1) * inputs**0.5
    y = torch.where(torch.arange(examples) % 2 == 0, 0.5, -0.5).double()
    return model, x[:examples], x[examples:], y


class Dense:
    """J by layers, and G^-1 of every variant written out."""

    def __init__(self, model, x: Tensor, weights: Tensor | None = None) -> None:
        self.model, self.n = model, len(x)
        self.j = Twin(model, "gaussian", x, torch.zeros(len(x), 1)).jacobian[:, 0]
        if weights is not None:
            self.j = weights[:, None] * self.j
        self.shapes = [(m.weight.shape[0], m.weight.shape[1] + (m.bias is not None)) for _, _, m in layers_of(model)]
        self.sizes = [out * into for out, into in self.shapes]

    @property
    def blocks(self) -> list[Tensor]:
        return list(self.j.split(self.sizes, 1))

    def inverse(self, variant: str, rhos: list[float] | float = 0.0) -> Tensor:
        """G^-1, the pseudo-inverse where nothing is added; one rho per layer, or one for all."""
        f = self.j.mT @ self.j / self.n
        rho = [rhos] * len(self.sizes) if isinstance(rhos, float) else rhos
        layer = torch.repeat_interleave(torch.arange(len(self.sizes)), torch.tensor(self.sizes))
        apart = (layer[:, None] - layer).abs()
        if variant == "gd":
            return torch.eye(len(f), dtype=f.dtype)
        if variant == "diagonal":
            d = f.diagonal() + torch.tensor(rho, dtype=f.dtype)[layer]
            return torch.diag(torch.where(d > 0, 1 / d, 0.0))
        if variant == "unit":
            unit = torch.cat([torch.arange(out).repeat_interleave(into) for out, into in self.shapes])
            f = f * (apart == 0) * (unit[:, None] == unit)
        elif variant != "exact":
            f = f * (apart <= {"layer": 0, "tridiagonal": 1}[variant])
        damped = f + torch.diag(torch.tensor(rho, dtype=f.dtype)[layer])
        return torch.linalg.pinv(damped, hermitian=True, rtol=1e-11) if not any(rho) else torch.linalg.inv(damped)


def kfac_inverse(model, x: Tensor, damping: float = 0.0, weights: Tensor | None = None) -> Tensor:
    """K-FAC's G^-1 of dense factors; the released code's damping, rho on A alone in the last layer."""
    twin = Twin(model, "gaussian", x, torch.zeros(len(x), 1))
    blocks, layers = [], twin.by_layer()
    for i, (a, g) in enumerate(layers):
        g = g[:, 0] if weights is None else weights[:, None] * g[:, 0]
        fa, fb = a.mT @ a / len(a), g.mT @ g / len(a)
        pi = ((fa.trace() / len(fa)) / (fb.trace() / len(fb))).sqrt()
        to_a, to_b = (damping, 0.0) if i == len(layers) - 1 else (damping**0.5 * pi, damping**0.5 / pi)
        fa = fa + to_a * torch.eye(len(fa), dtype=fa.dtype)
        fb = fb + to_b * torch.eye(len(fb), dtype=fb.dtype)
        ia, ib = (torch.linalg.pinv(f, hermitian=True, rtol=1e-11) for f in (fa, fb))
        blocks.append(torch.kron(ib, ia))
    return torch.block_diag(*blocks)
