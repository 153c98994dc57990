"""Undamped natural gradients follow the same path in function space after an invertible affine reparametrisation.

The networks are those of Martens and Grosse (2015), Section 10: what a layer is fed, and what it gives, pass through
fixed invertible affine maps. Invariance needs a non-singular Fisher: a tanh network, more residuals than parameters.
"""

import pytest
import torch
from torch import Tensor, nn

import fisherlab
from fisherlab.streams import generator

LR, STEPS = 0.1, 6
# What each structure must bear: maps of what the layers are fed, and maps that mix the units' pre-activations.
INVARIANT = [("full", "fed"), ("full", "given"), ("layer", "fed"), ("layer", "given"), ("kronecker", "fed")]
INVARIANT += [("kronecker", "given"), ("unit", "fed")]
CHANGES = [("unit", "given"), ("diagonal", "fed"), ("diagonal", "given")]


class Map(nn.Module):
    """x -> M x + c, fixed; at first the identity."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.register_buffer("m", torch.eye(n, dtype=torch.float64))
        self.register_buffer("c", torch.zeros(n, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.m.mT + self.c


def network() -> nn.Sequential:
    """Every layer stands between a map of its inputs and one of its pre-activations."""
    source, modules = generator(0, "test/invariance"), []
    for n, out in ((3, 4), (4, 2)):
        linear = nn.Linear(n, out, dtype=torch.float64)
        for p in linear.parameters():
            nn.init.normal_(p, 0, 0.7, source)
        modules += [Map(n), linear, Map(out), nn.Tanh()]
    return nn.Sequential(*modules[:-1])


@torch.no_grad()
def reparametrised(model: nn.Sequential, where: str) -> nn.Sequential:
    """The same function, in other coordinates."""
    source, other = generator(1, "test/invariance"), network()
    for before, linear, after in zip(other[::4], other[1::4], other[2::4], strict=True):
        for which, chosen in ((before, "fed"), (after, "given")):
            if chosen == where:
                which.m += 0.4 * torch.randn(which.m.shape, generator=source, dtype=torch.float64)
                which.c += torch.randn(which.c.shape, generator=source, dtype=torch.float64)
        # W x + b = R (W' (M x + c) + b') + r
        w = torch.linalg.solve(after.m, linear.weight)
        b = torch.linalg.solve(after.m, linear.bias - after.c)
        w = torch.linalg.solve(before.m, w, left=False)
        linear.weight.copy_(w)
        linear.bias.copy_(b - w @ before.c)
    return other


def paths(structure: str, kind: str, likelihood: str, where: str) -> tuple[Tensor, Tensor]:
    """The outputs on the batch along both paths, [steps, B, K] each."""
    source = generator(2, "test/invariance")
    x = torch.randn(200, 3, generator=source, dtype=torch.float64)
    y = torch.randn(200, 2, generator=source, dtype=torch.float64)
    y = (y > 0).double() if likelihood == "bernoulli" else y
    found = []
    for model in (network(), reparametrised(network(), where)):
        optimizer = fisherlab.NaturalGradient(
            model, likelihood, kind=kind, structure=structure, damping=0.0, lr=LR, samples=8
        )
        outputs = [model(x).detach()]
        for _ in range(STEPS):
            optimizer.step(x, y)
            outputs.append(model(x).detach())
        found.append(torch.stack(outputs))
    return found[0], found[1]


def difference(one: Tensor, other: Tensor) -> float:
    """The largest, relative to how far the path leads."""
    return float((one - other).abs().max() / (one[-1] - one[0]).abs().max())


@pytest.mark.parametrize(("structure", "where"), INVARIANT)
@pytest.mark.parametrize("kind", ["exact", "mc", "empirical"])
@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_the_path_is_the_same(likelihood, kind, structure, where):
    assert difference(*paths(structure, kind, likelihood, where)) < 1e-6


@pytest.mark.parametrize(("structure", "where"), CHANGES)
def test_the_path_is_another_one(structure, where):
    assert difference(*paths(structure, "exact", "gaussian", where)) > 1e-2


def test_gradient_descent_depends_on_the_coordinates():
    one, other = network(), reparametrised(network(), "fed")
    x, y = torch.randn(40, 3, dtype=torch.float64), torch.randn(40, 2, dtype=torch.float64)
    before = one(x).detach()
    assert torch.allclose(before, other(x))
    for model in (one, other):
        fisherlab.SGD(model, "gaussian", lr=0.1).step(x, y)
    assert difference(torch.stack([before, one(x).detach()]), torch.stack([before, other(x).detach()])) > 1e-2
