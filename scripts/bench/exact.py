"""Steps with the exact full matrix of a batch, on 784-80-80-80-10."""

from __future__ import annotations

import torch
from torch import Tensor

from fisherlab import EFNGD, NaturalGradient, load_dataset
from fisherlab.optim import FisherOptimizer
from scripts.bench import peers
from scripts.bench.timing import LR, compare, interleaved, timed

STEPS = {"EF-NGD": 20, "SGD": 40, "exact NGD": 3, "CG": 1}


def batch_of(size: int) -> tuple[Tensor, Tensor]:
    """The first images of MNIST."""
    train = load_dataset("mnist").splits["train"]
    return train.x[:size].clone(), train.y[:size].clone()


def step_of(optimizer: FisherOptimizer, x: Tensor, y: Tensor) -> peers.Step:
    """One step of fisherlab on one batch."""
    return lambda: optimizer.step(x, y)


def curvlinops_cg(x: Tensor, y: Tensor, iterations: int) -> peers.Step:
    """The damped system of the exact Fisher (the GGN of cross-entropy) by conjugate gradients of curvlinops.

    What it gives is an approximation; the gradient is part of the step, the update of the weights is not.
    """
    import curvlinops
    from curvlinops.examples import IdentityLinearOperator

    model, loss = peers.plain_net(peers.MLP), torch.nn.CrossEntropyLoss()
    parameters = list(model.parameters())

    def step() -> object:
        gradient = torch.autograd.grad(loss(model(x), y), parameters)
        ggn = curvlinops.GGNLinearOperator(model, loss, parameters, [(x, y)], check_deterministic=False)
        damped = ggn + 1e-2 * IdentityLinearOperator(
            [p.shape for p in parameters], parameters[0].device, parameters[0].dtype
        )
        inverse = curvlinops.CGInverseLinearOperator(damped, max_iter=iterations, tolerance=0.0, eps=0.0)
        return inverse @ list(gradient)

    return step


def bench(rounds: int) -> list[dict[str, object]]:
    """EF-NGD against torch.optim.SGD, exact NGD against an iterative solve."""
    many, few = batch_of(256), batch_of(128)
    exact = NaturalGradient(peers.plain_net(peers.MLP), "categorical", lr=LR, damping=1e-2)
    steps = {
        "EF-NGD": step_of(EFNGD(peers.plain_net(peers.MLP), "categorical", lr=LR), *many),
        "SGD": peers.torch_sgd(peers.plain_net(peers.MLP), lambda: many),
        "exact NGD": step_of(exact, *few),
        "CG": curvlinops_cg(*few, 20),
    }
    for name, step in steps.items():
        timed(step, STEPS[name])
    seconds = interleaved({name: lambda n=name: timed(steps[n], STEPS[n]) for name in steps}, rounds)
    return [
        compare("EF-NGD step, batch 256", "torch SGD", 2.5, seconds, "EF-NGD", "SGD"),
        compare("exact NGD step, batch 128", "curvlinops GGN, 20 iterations of CG", 1.0, seconds, "exact NGD", "CG"),
    ]
