"""The slow, obvious twin: one batch, float64, per-example Jacobians by torch.func, dense matrices.

Written from the definitions, and independent of the package: it uses a model only through its forward pass. Parameters
are ordered layer by layer, each layer's homogeneous weight [W, b] of shape [out, in + 1] row by row.
"""

import copy
import itertools
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap

from fisherlab.models import Dense


def layers_of(model: nn.Sequential) -> list[tuple[str, int, nn.Module]]:
    """Name, position and module of every fully connected layer."""
    named = list(model.named_children())
    return [(name, i, m) for i, (name, m) in enumerate(named) if isinstance(m, (nn.Linear, Dense))]


def flatten(model: nn.Sequential, tensors: dict[str, Tensor], lead: int = 0) -> Tensor:
    """Arrange tensors shaped like the parameters, behind `lead` other axes, in homogeneous order."""
    parts = []
    for name, _, module in layers_of(model):
        joined = tensors[f"{name}.weight"]
        if module.bias is not None:
            joined = torch.cat([joined, tensors[f"{name}.bias"].unsqueeze(-1)], -1)
        parts.append(joined.flatten(lead))
    return torch.cat(parts, -1)


def nll(likelihood: str, f: Tensor, y: Tensor) -> Tensor:
    """Negative log likelihood of one example, f [K]; the Gaussian's without its constant."""
    if likelihood == "categorical":
        return -(torch.log_softmax(f, 0) * torch.nn.functional.one_hot(y, f.shape[0])).sum()
    if likelihood == "bernoulli":
        p = torch.sigmoid(f)
        return -(y * torch.log(p) + (1 - y) * torch.log(1 - p)).sum()
    return 0.5 * ((f - y) ** 2).sum()


def output_fisher(likelihood: str, f: Tensor) -> Tensor:
    """E[r r^T] of one example by enumerating every label, f [K]."""
    k = f.shape[0]
    if likelihood == "gaussian":
        return torch.eye(k, dtype=f.dtype)  # r = f - y is standard normal
    if likelihood == "categorical":
        labels = list(torch.arange(k))
    else:
        labels = [torch.tensor(bits, dtype=f.dtype) for bits in itertools.product((0.0, 1.0), repeat=k)]
    total = torch.zeros(k, k, dtype=f.dtype)
    for y in labels:
        r = grad(lambda f, y=y: nll(likelihood, f, y))(f)
        total += torch.exp(-nll(likelihood, f, y)) * torch.outer(r, r)
    return total


def sample(likelihood: str, f: Tensor, noise: Tensor) -> Tensor:
    """Labels of one example from its noise, f [K]."""
    if likelihood == "categorical":
        return torch.searchsorted(torch.softmax(f, 0).cumsum(0), noise, right=True)[0]
    return (noise < torch.sigmoid(f)).to(f.dtype) if likelihood == "bernoulli" else f + noise


class Twin:
    """Everything about one batch, by brute force."""

    def __init__(self, model: nn.Sequential, likelihood: str, x: Tensor, y: Tensor) -> None:
        self.model = copy.deepcopy(model).double()
        self.likelihood = likelihood
        self.x = x.double()
        self.y = y.double() if y.is_floating_point() else y

    @cached_property
    def outputs(self) -> Tensor:
        return self.model(self.x).detach()

    @cached_property
    def jacobian(self) -> Tensor:
        """d f_n / d theta, [B, K, P]."""
        parameters = {k: v.detach() for k, v in self.model.named_parameters()}

        def one(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
            return functional_call(self.model, parameters, (x.unsqueeze(0),)).squeeze(0)

        return flatten(self.model, vmap(jacrev(one), (None, 0))(parameters, self.x), lead=2)

    def residuals(self, y: Tensor) -> Tensor:
        """d nll / d f, [B, K]."""
        return torch.stack(
            [grad(lambda f, y=y: nll(self.likelihood, f, y))(f) for f, y in zip(self.outputs, y, strict=True)]
        )

    @cached_property
    def output_fishers(self) -> Tensor:
        """[B, K, K]."""
        return torch.stack([output_fisher(self.likelihood, f) for f in self.outputs])

    @cached_property
    def per_example(self) -> Tensor:
        """Gradients of each example's own nll, [B, P]."""
        return torch.einsum("bk,bkp->bp", self.residuals(self.y), self.jacobian)

    @property
    def gradient(self) -> Tensor:
        """Of the mean nll, [P]."""
        return self.per_example.mean(0)

    @property
    def loss(self) -> Tensor:
        return torch.stack([nll(self.likelihood, f, y) for f, y in zip(self.outputs, self.y, strict=True)]).mean()

    def labels(self, noise: Tensor) -> Tensor:
        """One set of labels per sample: noise [M, B, 1 or K] -> [M, B] or [M, B, K]."""
        return torch.stack(
            [
                torch.stack([sample(self.likelihood, f, u) for f, u in zip(self.outputs, one.double(), strict=True)])
                for one in noise
            ]
        )

    def fisher(self, kind: str, noise: Tensor | None = None) -> Tensor:
        """Dense [P, P]: exact, mc (of given noise) or empirical."""
        return self._mean_outer(kind, self.jacobian, noise)

    def _mean_outer(self, kind: str, jacobian: Tensor, noise: Tensor | None, other: Tensor | None = None) -> Tensor:
        """E[u v^T] of the gradients by what two Jacobians are of, the same where there is no other."""
        other = jacobian if other is None else other
        if kind == "exact":
            return torch.einsum("bkp,bkl,blq->pq", jacobian, self.output_fishers, other).contiguous() / len(self.x)
        labels = self.y.unsqueeze(0) if kind == "empirical" else self.labels(noise)
        residuals = [self.residuals(y) for y in labels]
        u, v = (torch.cat([torch.einsum("bk,bkp->bp", r, j) for r in residuals]) for j in (jacobian, other))
        return u.mT @ v / len(u)

    def by_layer(self) -> list[tuple[Tensor, Tensor]]:
        """Each layer's homogeneous inputs [B, in + 1], and d f_n / d s_n [B, K, out]."""
        pairs = []
        for _, i, layer in layers_of(self.model):
            with torch.no_grad():
                a = self.model[:i](self.x)
                s = layer(a)
            abar = a * getattr(layer, "scale", 1.0)
            if layer.bias is not None:
                abar = torch.cat([abar, torch.full_like(a[:, :1], getattr(layer, "bias_scale", 1.0))], 1)
            rest = self.model[i + 1 :]
            pairs.append((abar, vmap(jacrev(lambda s, rest=rest: rest(s.unsqueeze(0)).squeeze(0)))(s).detach()))
        return pairs

    def factors(self, kind: str, noise: Tensor | None = None) -> list[tuple[Tensor, Tensor]]:
        """(A, G) per layer, the ones column in A."""
        return [(a.mT @ a / len(a), self._mean_outer(kind, j, noise)) for a, j in self.by_layer()]

    def crosses(self, kind: str, noise: Tensor | None = None) -> list[tuple[Tensor, Tensor]]:
        """(A, G) between neighbouring layers."""
        layers = self.by_layer()
        return [
            (a.mT @ b / len(a), self._mean_outer(kind, j, noise, k)) for (a, j), (b, k) in itertools.pairwise(layers)
        ]

    def kronecker_blocks(
        self, kind: str, damping: float = 0.0, mode: str = "tikhonov", noise: Tensor | None = None
    ) -> Tensor:
        """Dense block-diagonal K-FAC [P, P], damped."""
        return torch.block_diag(*[damped_block(a, g, damping, mode) for a, g in self.factors(kind, noise)])

    def tridiagonal(
        self, kind: str, damping: float = 0.0, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor, list[int]]:
        """F-tilde (diagonal and neighbouring blocks, damped on the diagonal), F-hat [P, P], and the blocks' sizes."""
        factors, crosses = self.factors(kind, noise), self.crosses(kind, noise)
        blocks = [damped_block(a, g, damping, "factored") for a, g in factors]
        sizes = [len(b) for b in blocks]
        neighbours = [torch.kron(g.contiguous(), a) for a, g in crosses]
        tilde = torch.block_diag(*blocks)
        ends = torch.tensor([0, *sizes]).cumsum(0).tolist()
        for i, block in enumerate(neighbours):
            here, after = slice(ends[i], ends[i + 1]), slice(ends[i + 1], ends[i + 2])
            tilde[here, after], tilde[after, here] = block, block.mT
        # A chain: what is two layers apart is tied through the layer between.
        hat = tilde.clone()
        psi = [n @ torch.linalg.pinv(b, hermitian=True) for n, b in zip(neighbours, blocks[1:], strict=True)]
        for i in reversed(range(len(blocks))):
            for j in range(i + 2, len(blocks)):
                here, between, there = (slice(ends[n], ends[n + 1]) for n in (i, i + 1, j))
                hat[here, there] = psi[i] @ hat[between, there]
                hat[there, here] = hat[here, there].mT
        return tilde, hat, sizes


def damped_block(a: Tensor, g: Tensor, damping: float, mode: str) -> Tensor:
    """The dense block of one layer; G (x) A because the homogeneous weight is laid out row by row."""
    eye_a, eye_g = (torch.eye(len(m), dtype=m.dtype) for m in (a, g))
    if mode in ("tikhonov", "trace"):
        size = a.trace() * g.trace() if mode == "trace" else 1.0
        return torch.kron(g, a) + damping * size * torch.kron(eye_g, eye_a)
    mean_a, mean_g = a.trace() / len(a), g.trace() / len(g)
    pi = (mean_a / mean_g).sqrt() if mean_a > 0 and mean_g > 0 else torch.ones((), dtype=a.dtype)
    gamma = damping**0.5
    return torch.kron(g + gamma / pi * eye_g, a + gamma * pi * eye_a)


def damped_solve(matrix: Tensor, damping: float, v: Tensor) -> Tensor:
    """(M + lambda I)^-1 v."""
    return torch.linalg.solve(matrix + damping * torch.eye(len(matrix), dtype=matrix.dtype), v)
