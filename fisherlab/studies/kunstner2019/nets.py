"""What becomes of EF, F and H as the residual of a real net vanishes: a Gaussian and a softmax likelihood.

Wine, standardised, a tanh net with 20 hidden units, trained with the exact Fisher on all examples; a seed is a replica.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from fisherlab.data import load_dataset
from fisherlab.fisher import Capture, Full, Kind, statistics
from fisherlab.fisher.hessian import hessian
from fisherlab.likelihood import Likelihood, make_likelihood
from fisherlab.models import mlp, stack_replicas
from fisherlab.optim import NaturalGradient
from fisherlab.streams import generator
from fisherlab.studies.study import Tables

HIDDEN, DAMPING, MOMENTS = 20, 1e-2, 12
TASKS = {"gaussian": "regression", "categorical": "classification"}


def vanishing(settings: Mapping[str, Any], bar: tqdm[Any]) -> Tables:
    """Train both nets, and hold EF, F and H against each other at steps spread evenly in log time.

    Args:
        settings: `seeds`, `net_steps`.
        bar: Progress.

    Returns:
        nets.csv: likelihood, seed, step, loss, residual (mean square of the gradient by the outputs), traces, norms.
    """
    seeds, steps = range(settings["seeds"]), settings["net_steps"]
    bar.reset(2 * (steps + 1))
    return {"nets.csv": pd.concat([_train(name, seeds, steps, bar) for name in TASKS])}


def _train(name: str, seeds: range, steps: int, bar: tqdm[Any]) -> pd.DataFrame:
    data = load_dataset("wine", task=TASKS[name], standardize=True)
    x, y = (t.double() if t.is_floating_point() else t for t in (data.splits["train"].x, data.splits["train"].y))
    nets = [_net(data.inputs, data.outputs, seed) for seed in seeds]
    model, likelihood = stack_replicas(nets, (1, len(nets))), make_likelihood(name)
    optimizer = NaturalGradient(model, likelihood, lr=1.0, damping=DAMPING, kind="exact", structure="full")
    moments = {0, steps, *np.geomspace(1, steps, MOMENTS).astype(int).tolist()}
    rows = []
    for step in range(steps + 1):
        if step in moments:
            for seed, net in zip(seeds, nets, strict=True):
                _read(net, model, seed)
                rows.append({"likelihood": name, "seed": seed, "step": step, **measure(net, likelihood, x, y)})
        if step < steps:
            optimizer.step(x[None, None], y[None, None])
        bar.update()
    failed = optimizer.preconditioner.failures() if optimizer.preconditioner else None
    if failed is not None and bool((failed[0] >= 0).any()):
        raise ArithmeticError(f"a matrix of the {name} net could not be factorised")
    return pd.DataFrame(rows)


def _net(inputs: int, outputs: int, seed: int) -> nn.Module:
    return mlp(inputs, outputs, hidden=(HIDDEN,), activation="tanh", generator=generator(seed, "init")).double()


def _read(net: nn.Module, model: nn.Module, replica: int) -> None:
    """Copy one replica's weights to a net without replica axes."""
    with torch.no_grad():
        for own, stacked in zip(net.parameters(), model.parameters(), strict=True):
            own.copy_(stacked[0, replica])


def measure(net: nn.Module, likelihood: Likelihood, x: Tensor, y: Tensor) -> dict[str, float]:
    """Hold EF, F and H of one net against each other.

    Args:
        net: Without replica axes.
        likelihood: Of its outputs.
        x: All inputs [N, in].
        y: Their targets.

    Returns:
        Loss, residual, traces of F and EF, Frobenius norms of F and H, and the relative distances of F and EF from H.
    """
    captured = Capture(net)(x)
    residual = likelihood.residual(captured.output, y)
    observed, _ = captured.backward(residual)
    found = {}
    for name, kind in (("fisher", Kind.EXACT), ("ef", Kind.EMPIRICAL)):
        structure = Full()
        structure.update(statistics(kind, captured, likelihood, y, observed), 0.0)
        found[name] = structure.dense()
    h, f, ef = hessian(net, likelihood, x, y), found["fisher"], found["ef"]
    values = {"loss": likelihood.nll(captured.output, y).mean(), "residual": residual.square().sum(-1).mean()}
    values |= {"trace_fisher": f.trace(), "trace_ef": ef.trace(), "norm_fisher": f.norm(), "norm_hessian": h.norm()}
    values |= {"h_minus_f": (h - f).norm() / h.norm(), "h_minus_ef": (h - ef).norm() / h.norm()}
    return {k: float(v) for k, v in values.items()}
