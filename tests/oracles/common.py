"""The same problem for the package and for a peer, and both results in one order of the parameters.

Peers know `nn.Linear` alone, and order parameters as [W, b] layer after layer; the package is tested with `nn.Linear`,
with `Dense`, and with `Dense` carrying replica axes of which one lane is compared. Only products and solves are
compared, never single factors: each library splits the scale between the factors as it likes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import fisherlab
from fisherlab.fisher import STRUCTURES, Kronecker
from fisherlab.likelihood import make_likelihood
from fisherlab.models import Dense, stack_replicas
from tests.cases import batch_of, batch_statistics, model_of
from tests.reference import flatten, layers_of

FORMS = ("linear", "dense", "replicas")
LANE = (1, 0)


@dataclass
class Problem:
    """One problem, in the package's form (`model`, `x`, `y`) and in the peer's (`peer`, `peer_x`, `peer_y`)."""

    form: str
    likelihood: str
    model: nn.Sequential
    x: Tensor
    y: Tensor
    peer: nn.Sequential
    peer_x: Tensor
    peer_y: Tensor

    def lane(self, t: Tensor) -> Tensor:
        """The compared replica's part."""
        return t[LANE] if self.form == "replicas" else t

    def statistics(self, kind: str, labels: Tensor | None = None):
        """The package's statistics; for mc, of given labels."""
        noise = None if labels is None else self._noise(labels)
        return batch_statistics(self.model, self.likelihood, kind, self.x, self.y, noise)[0]

    def _noise(self, labels: Tensor) -> Tensor:
        """Noise [..., 1, B, 1 or K] from which the compared lane draws these labels."""
        f = self.lane(self.model(self.x)).detach()
        if self.likelihood == "categorical":
            p = f.softmax(-1)
            middle = p.cumsum(-1) - p / 2
            noise = middle.gather(-1, labels.unsqueeze(-1))
        elif self.likelihood == "bernoulli":
            noise = (1 - labels) * (1 - 1e-16)
        else:
            noise = labels - f
        assert torch.equal(make_likelihood(self.likelihood).sample(f, noise), labels) or self.likelihood == "gaussian"
        return noise.unsqueeze(0)

    def dense(self, kind: str, labels: Tensor | None = None, structure: str = "full") -> Tensor:
        """The Fisher, or what a structure keeps of it, written out in the peer's order."""
        found = STRUCTURES[structure]()
        found.update(self.statistics(kind, labels), 0.0)
        return self.reordered(self.lane(found.dense()))

    def blocks(self, kind: str, labels: Tensor | None = None) -> list[Tensor]:
        """G (x) A of every layer, in homogeneous order."""
        structure = Kronecker()
        structure.update(self.statistics(kind, labels), 0.0)
        return [torch.kron(self.lane(g), self.lane(a)) for a, g in zip(structure.a, structure.g, strict=True)]

    def step(self, **options) -> Tensor:
        """The package's direction, as a user gets it: what a step of lr 1 subtracts; in the peer's order."""
        before = [p.detach().clone() for p in self.model.parameters()]
        optimizer = fisherlab.NaturalGradient(
            self.model, self.likelihood, lr=1.0, seed=[0, 1] if self.form == "replicas" else 0, **options
        )
        optimizer.step(self.x, self.y)
        return torch.cat(
            [self.lane(old - p.detach()).flatten() for old, p in zip(before, self.model.parameters(), strict=True)]
        )

    @property
    def order(self) -> Tensor:
        """For every place in homogeneous order, its place in the peer's."""
        places, start = {}, 0
        for name, p in self.peer.named_parameters():
            places[name] = torch.arange(start, start + p.numel()).view(p.shape)
            start += p.numel()
        return flatten(self.peer, places)

    def reordered(self, matrix: Tensor) -> Tensor:
        """A matrix in homogeneous order, brought to the peer's."""
        back = torch.argsort(self.order)
        return matrix[back][:, back]

    def gradient(self) -> Tensor:
        """Of the mean nll by autograd, in the peer's order."""
        loss = make_likelihood(self.likelihood).nll(self.peer(self.peer_x), self.peer_y).mean()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(self.peer.parameters()))])


def problem(
    form: str, likelihood: str, *, bias: bool = True, duplicated: bool = False, batch: int = 7, outputs: int = 3
) -> Problem:
    """Make a problem; `duplicated` has every example twice."""
    kind = "linear" if form == "linear" else "dense"
    widths = (4, 5, outputs)
    single = model_of(kind, widths, bias=bias)
    peer_x, peer_y = batch_of(likelihood, batch, outputs=outputs)
    if duplicated:
        peer_x, peer_y = torch.cat([peer_x, peer_x]), torch.cat([peer_y, peer_y])
    model, x, y = single, peer_x, peer_y
    if form == "replicas":  # axes [2, 2], data with a stream axis; the compared model is lane (1, 0)
        model = stack_replicas([model_of(kind, widths, bias=bias, seed=seed) for seed in (8, 9, 0, 7)], (2, 2))
        other_x, other_y = batch_of(likelihood, len(peer_x), outputs=outputs, seed=3)
        x, y = torch.stack([other_x, peer_x]).unsqueeze(1), torch.stack([other_y, peer_y]).unsqueeze(1)
    peer = nn.Sequential(
        *[
            nn.Linear(m.weight.shape[1], m.weight.shape[0], bias=bias, dtype=torch.float64)
            if isinstance(m, (Dense, nn.Linear))
            else nn.Tanh()
            for m in single
        ]
    )
    for (_, i, ours), (_, j, theirs) in zip(layers_of(single), layers_of(peer), strict=True):
        assert i == j
        theirs.load_state_dict(ours.state_dict())
    return Problem(form, likelihood, model, x, y, peer, peer_x, peer_y)


def loss_of(likelihood: str, reduction: str = "sum") -> nn.Module:
    """torch's loss; for gaussian it is twice the package's nll."""
    return {"categorical": nn.CrossEntropyLoss, "bernoulli": nn.BCEWithLogitsLoss, "gaussian": nn.MSELoss}[likelihood](
        reduction=reduction
    )


def by_columns(operator, size: int) -> Tensor:
    """The dense matrix of a linear operator from its products with unit vectors."""
    return torch.stack([operator @ e for e in torch.eye(size, dtype=torch.float64)], 1)
