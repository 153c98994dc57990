"""Replicas side by side against the same runs one after another, here and with asdl; and by number of replicas.

The deep linear net 784-100x5-10, batch 128 of MNIST gathered at every step, one seed: all replicas see the same
examples in the same order and differ in damping and learning rate. K-FAC is sampled, with EMA 0.95 and an inverse every
10 steps. "Runs one after another" are measured as one run, with replica axes (1, 1): what a second run after it costs
is the same again.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from fisherlab import KFAC, SGD, deep_linear, load_dataset, stack_replicas
from scripts.bench import peers
from scripts.bench.timing import LR, Seconds, compare, interleaved, timed

COUNTS = (1, 2, 4, 8, 16, 32, 64, 128)
BATCH = 128
PERIOD = 10
ASDL = "asdl"


@cache
def examples() -> tuple[Tensor, Tensor]:
    """MNIST's training set, once for all."""
    train = load_dataset("mnist").splits["train"]
    return train.x, train.y


class Batches:
    """Minibatches of MNIST in a random order, without end."""

    def __init__(self, lead: tuple[int, ...] = ()) -> None:
        (self.x, self.y), self.lead, self.at = examples(), lead, 0
        self.order = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(0))

    def __call__(self) -> tuple[Tensor, Tensor]:
        """The next batch, behind `lead` axes of 1."""
        index = self.order[self.at : self.at + BATCH]
        self.at = (self.at + BATCH) % (len(self.order) // BATCH * BATCH)
        x, y = self.x.index_select(0, index), self.y.index_select(0, index)
        return x.view(*self.lead, *x.shape), y.view(*self.lead, *y.shape)


def ours(method: str, replicas: int) -> peers.Step:
    """One step of so many replicas, the gather included."""
    batches = Batches((1, 1))
    first = deep_linear(784, 10, generator=torch.Generator().manual_seed(0))
    model = stack_replicas([first] * replicas, (1, replicas))
    lr = torch.logspace(-1, 0, replicas)[None] * LR
    if method == "SGD":
        optimizer = SGD(model, "categorical", lr=lr, momentum=0.9, seed=[0])
    else:
        damping = torch.logspace(-3, 1, replicas)[None]
        optimizer = KFAC(model, "categorical", lr=lr, damping=damping, momentum=0.9, inverse_period=PERIOD, seed=[0])
    return lambda: optimizer.step(*batches())


def steps_for(method: str, replicas: int) -> int:
    """Enough steps to be timed; whole periods, so that every timing holds its share of inverses."""
    return PERIOD * max(2 if method == "SGD" else 1, 8 // replicas)


def parsed(name: str) -> tuple[str, int]:
    """Method and number of replicas of a task."""
    method, replicas = name.split()
    return method, int(replicas)


def tasks(counts: tuple[int, ...] = COUNTS) -> tuple[dict[str, peers.Step], dict[str, int]]:
    """Every step by its name, and how many of them make a timing."""
    steps = {f"{method} {n}": ours(method, n) for method in ("K-FAC", "SGD") for n in counts}
    lengths = {name: steps_for(*parsed(name)) for name in steps}
    steps[ASDL] = peers.asdl_kfac(peers.plain_net(peers.DEEP_LINEAR, None), Batches(), PERIOD, BATCH)
    return steps, lengths | {ASDL: 4 * PERIOD}


def measure(rounds: int) -> Seconds:
    """Seconds per replica and step."""
    steps, lengths = tasks()
    for name, step in steps.items():
        timed(step, max(PERIOD, lengths[name] // 2 // PERIOD * PERIOD))

    def one(name: str) -> float:
        return timed(steps[name], lengths[name]) / (1 if name == ASDL else parsed(name)[1])

    return interleaved({name: lambda name=name: one(name) for name in steps}, rounds)


def bench(rounds: int) -> list[dict[str, object]]:
    """All numbers are per replica and step, so a ratio is that of R replicas to R runs one after another."""
    seconds = measure(rounds)
    rows = []
    for method in ("K-FAC", "SGD"):
        for n in COUNTS[1:]:
            bar = 0.6 if (method, n) == ("K-FAC", 32) else None
            what = f"{method}, {n} replicas, per replica and step"
            rows.append(compare(what, "runs one after another", bar, seconds, f"{method} {n}", f"{method} 1", n))
        what = f"{method}, 128 replicas, per replica and step"
        bar = 1.0 if method == "K-FAC" else None
        rows.append(compare(what, "8 replicas", bar, seconds, f"{method} 128", f"{method} 8", 128))
    what = "K-FAC, 32 replicas, per replica and step"
    rows.append(compare(what, "asdl, runs one after another", 0.35, seconds, "K-FAC 32", ASDL, 32))
    return rows
