"""One step of each of the others, on plain `nn.Linear` layers: `next_batch()` gives it (x, y)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from scripts.bench.timing import LR

Batches = Callable[[], tuple[Tensor, Tensor]]
Step = Callable[[], object]
MLP = [784, 80, 80, 80, 10]
DEEP_LINEAR = [784, *[100] * 5, 10]


def plain_net(widths: Sequence[int], activation: Callable[[], nn.Module] | None = nn.Tanh) -> nn.Sequential:
    """A chain of nn.Linear layers."""
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        parts += [activation()] if i and activation else []
        parts.append(nn.Linear(inputs, outputs))
    return nn.Sequential(*parts)


def torch_sgd(model: nn.Module, next_batch: Batches) -> Step:
    """torch.optim.SGD with momentum."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)

    def step() -> None:
        x, y = next_batch()
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def asdl_kfac(model: nn.Module, next_batch: Batches, period: int, batch: int) -> Step:
    """K-FAC of asdl at the same settings: sampled Fisher, EMA 0.95, inverse every `period` steps, SGD momentum.

    Its input factor has no column of ones: it does slightly less work.
    """
    import asdl

    config = asdl.PreconditioningConfig(
        data_size=batch, damping=1e-2, ema_decay=0.05, curvature_upd_interval=1, preconditioner_upd_interval=period
    )
    maker = asdl.KfacGradientMaker(model, config, fisher_type="fisher_mc", loss_type="cross_entropy")
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)

    def step() -> None:
        x, y = next_batch()
        optimizer.zero_grad(set_to_none=True)
        maker.setup_loss_call(nn.functional.cross_entropy, maker.setup_model_call(model, x), y)
        maker.forward_and_backward()
        optimizer.step()

    return step


def curvlinops_kfac(model: nn.Module, next_batch: Batches) -> Step:
    """K-FAC of curvlinops: operator and inverse, both of the batch and built anew at each step, as it documents.

    It keeps no moving average and has no period; sampled Fisher, factored damping, joint biases, SGD momentum.
    """
    import curvlinops

    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)
    parameters, loss = list(model.parameters()), nn.CrossEntropyLoss()
    options = {"check_deterministic": False, "separate_weight_and_bias": False, "num_per_example_loss_terms": 1}

    def step() -> None:
        x, y = next_batch()
        gradient = torch.autograd.grad(loss(model(x), y), parameters)
        operator = curvlinops.KFACLinearOperator(model, loss, parameters, [(x, y)], num_data=len(x), **options)
        inverse = curvlinops.KFACInverseLinearOperator(operator, damping=1e-2, use_heuristic_damping=True)
        for parameter, direction in zip(parameters, inverse @ list(gradient), strict=True):
            parameter.grad = direction
        optimizer.step()

    return step


def singd(model: nn.Module, next_batch: Batches, period: int) -> Step:
    """SINGD with dense factors and its K-FAC-like update, the nearest that it has to K-FAC.

    What differs: the empirical Fisher (no sampled labels, so no second backward pass); it inverts nothing, and moves
    the roots of the inverse factors by matrix products instead; with a period, it also skips the statistics between.
    """
    from singd.optim.optimizer import SINGD

    settings = {"alpha1": 0.0, "structures": ("dense", "dense"), "kfac_like": True, "lr_cov": 1e-4}
    optimizer = SINGD(model, lr=LR, momentum=0.9, damping=1e-2, T=period, **settings)

    def step() -> None:
        x, y = next_batch()
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step
