"""What an optimizer tells of itself, and its state in a checkpoint."""

from __future__ import annotations

import copy
import itertools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fisherlab.errors import UsageError
from fisherlab.optim.state import copied

if TYPE_CHECKING:
    from fisherlab.optim.optimizer import FisherOptimizer

FORMAT = 4


def describe(optimizer: FisherOptimizer) -> dict[str, Any]:
    """Say which Fisher is in use, its scale, and what is preconditioned.

    Args:
        optimizer: Any.

    Returns:
        Plain values by name.
    """
    pre = optimizer.preconditioner
    about: dict[str, Any] = {"rule": optimizer.rule, "likelihood": optimizer.likelihood.name}
    if pre is not None:
        about |= {"kind": str(pre.kind), "structure": pre.structure_name, "damping_mode": pre.structure.damping_mode}
        about |= {"scale": "mean over examples", "preconditioned": optimizer.param_groups[0]["names"]}
        about["plain_gradient"] = [n for group in optimizer.param_groups[1:] for n in group["names"]]
    return about


def identity(optimizer: FisherOptimizer) -> list[str]:
    """What a state must agree in, one line each: choices, then parameters in order with one replica's shapes."""
    choices = ("rule", "likelihood", "kind", "structure", "damping_mode")
    about = describe(optimizer)
    lines, lead = [f"{name}={about.get(name)}" for name in choices], len(optimizer.replicas)
    for i, group in enumerate(optimizer.param_groups):
        use = "preconditioned" if optimizer.preconditioner is not None and i == 0 else "plain"
        named = zip(group["names"], group["params"], strict=True)
        lines += [f"{use} '{n}' {tuple(p.shape[lead:])}" for n, p in named]
    return lines


def collect(optimizer: FisherOptimizer) -> dict[str, Any]:
    """Collect everything for a bit-exact resume.

    Args:
        optimizer: Any.

    Returns:
        Tensors and plain values: rule buffers, counters, factors, hyper-parameters.
    """
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    rule = [{k: v.clone() if isinstance(v, Tensor) else v for k, v in s.items()} for s in optimizer.rule_state]
    pre, quadratic, policy = optimizer.preconditioner, optimizer.quadratic, optimizer.policy
    return {
        "format": FORMAT,
        "about": identity(optimizer),
        # Told by a shape, so that it is cut where the state is cut to some of the replicas.
        "replicas": torch.empty(*optimizer.replicas, 0),
        "param_groups": copy.deepcopy(groups),
        "rule": rule,
        "preconditioner": None if pre is None else copy.deepcopy(pre.state_dict()),
        "quadratic": None if quadratic is None else copy.deepcopy(quadratic.state()),
        "policy": None if policy is None else copy.deepcopy(policy.state()),
        "average": None if optimizer.average is None else copy.deepcopy(optimizer.average.state()),
    }


def restore(optimizer: FisherOptimizer, state: dict[str, Any]) -> None:
    """Restore what `collect` returned.

    Args:
        optimizer: One of the same choices, for the same model.
        state: As `collect` returned it.

    Raises:
        UsageError: If it belongs to another kind of optimizer or model.
    """
    if state.get("format") != FORMAT or "about" not in state:
        raise UsageError(f"the optimizer state does not fit: expected format {FORMAT} of fisherlab's optimizers")
    for own, given in itertools.zip_longest(identity(optimizer), state["about"], fillvalue="nothing more"):
        if own != given:
            raise UsageError(f"the optimizer state does not fit: expected {own}, got {given}")
    if (given := tuple(state["replicas"].shape[:-1])) != tuple(optimizer.replicas):
        raise UsageError(
            f"the optimizer state does not fit: expected replica axes {tuple(optimizer.replicas)}, got {given}"
        )
    for group, loaded in zip(optimizer.param_groups, copy.deepcopy(state["param_groups"]), strict=True):
        group.update(loaded)
    device = optimizer.param_groups[0]["params"][0].device
    optimizer.rule_state = copied(state["rule"], device)
    if optimizer.preconditioner is not None:
        optimizer.preconditioner.load_state_dict(copied(state["preconditioner"], device))
    if optimizer.policy is not None:
        optimizer.policy.load(copied(state["policy"], device))
    if optimizer.quadratic is not None:
        optimizer.quadratic.load(copied(state["quadratic"], device))
    if optimizer.average is not None:
        optimizer.average.load(copied(state["average"], device))
