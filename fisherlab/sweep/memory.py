"""How much memory a replica takes, by arithmetic on shapes; an estimate of the right order, on the safe side."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from fisherlab.fisher.mixed import ends
from fisherlab.fisher.unit import CHUNK as ROWS
from fisherlab.models.dense import Dense
from fisherlab.training.evaluate import CHUNK
from fisherlab.training.setup import Experiment

VECTORS = 9  # weights, gradient, its L2, direction, update, momentum, and what an operation leaves for a moment
FACTORS = 4  # a Kronecker factor: the average, its damped copy, the factorisation, the batch's product
ACTIVATIONS = 4  # a layer's inputs, pre-activations, their gradients, and one more while they are made
SHARE = 0.5  # of the memory that is available


@dataclass(frozen=True)
class Footprint:
    """The memory of a group, in bytes.

    Attributes:
        stream: Of each stream: its batch, and its data where the split is its own.
        replica: Of each replica.
    """

    stream: int
    replica: int

    def capacity(self, available: int) -> int:
        """Count the replicas that fit.

        Args:
            available: Bytes.

        Returns:
            At least 1; reckoned as if each replica were a stream of its own.
        """
        return max(1, available // (self.stream + self.replica))


def footprint(experiment: Experiment) -> Footprint:
    """Estimate what one more replica of a run would take.

    Args:
        experiment: The run, ready to train.

    Returns:
        Vectors of P parameters, the structure's matrices, activations of a batch and of a chunk of an evaluation.
    """
    item = torch.finfo(next(experiment.model.parameters()).dtype).bits // 8
    layers = [
        (int(module.weight.shape[-1]) + (module.bias is not None), int(module.weight.shape[-2]))
        for module in experiment.model.modules()
        if isinstance(module, (Dense, nn.Linear))
    ]
    data, batch = experiment.dataset, experiment.batches.size(experiment.steps - 1)
    chunk = min(CHUNK, max(map(len, data.splits.values())))
    count = sum(p.numel() for p in experiment.model.parameters())
    widths = sum(m for _, m in layers)
    widest = max((n + m for n, m in layers), default=0)
    numbers = VECTORS * count + ACTIVATIONS * batch * widths + chunk * widest
    numbers += _matrices(experiment, layers, batch, count, item)
    rows = batch + (sum(map(len, data.splits.values())) if experiment.cfg.dataset.get("splits") else 0)
    return Footprint(item * rows * (data.inputs + 1), item * numbers)


def _matrices(experiment: Experiment, layers: list[tuple[int, int]], batch: int, count: int, item: int) -> int:
    """What the structure of the curvature keeps, in numbers of the run's dtype."""
    preconditioner = getattr(experiment.optimizer, "preconditioner", None)
    if preconditioner is None:
        return 0
    labels = {"mc": preconditioner.samples, "exact": experiment.dataset.outputs}.get(str(preconditioner.kind), 1)
    rows = batch * labels
    sampled = rows * sum(m for _, m in layers)
    structure = preconditioner.structure_name
    if structure == "smaller":
        structure = "gram" if rows < count else "full"
    if structure in ("gram", "full"):
        dual, primal = 4 * rows**2 * 8 // item, FACTORS * count**2 + 2 * rows * count
        return sampled + (dual if structure == "gram" else primal)
    names = preconditioner.structure_names
    if len(set(names)) == 1:
        return sampled + _blocks(structure, layers, batch, rows, item)
    # The softmax RFIM of the last layer has a column per output, whatever the kind.
    softmax = batch * experiment.dataset.outputs
    parts = [(name, layers[where]) for name, where in zip(names, ends(len(layers)), strict=True)]
    return sampled + sum(_blocks(n, some, batch, softmax if n == "layer" else rows, item) for n, some in parts if some)


def _blocks(structure: str, layers: list[tuple[int, int]], batch: int, rows: int, item: int) -> int:
    """What one structure keeps of some layers, and forms of a batch for a moment."""
    sampled = rows * sum(m for _, m in layers)
    widest = max((n * m for n, m in layers), default=0)
    chunk = max((min(m * batch * n, batch * n + ROWS // item) for n, m in layers), default=0)
    pairs = [sum(n * m for n, m in layers[i : i + 2]) for i in range(0, len(layers), 2)]
    factors = FACTORS * sum(n**2 + m**2 for n, m in layers)
    known = {
        "layer": FACTORS * sum((n * m) ** 2 for n, m in layers) + 2 * rows * widest,
        "pairs": FACTORS * sum(size**2 for size in pairs) + 2 * rows * max(pairs, default=0),
        "unit": FACTORS * sum(n**2 * m for n, m in layers) + 2 * chunk + sampled,
        "shared": FACTORS * sum(n**2 for n, _ in layers) + batch * max((n for n, _ in layers), default=0),
        "diagonal": FACTORS * sum(n * m for n, m in layers) + sampled,
        "kronecker_tridiagonal": 2 * factors,  # its ties to the next layer are about as large
    }
    return known.get(structure, factors)


def available(device: torch.device) -> int:
    """Read how much memory a sweep may take on a device.

    Args:
        device: Where it runs.

    Returns:
        Bytes: half of what is free, also within the limit of a container.
    """
    if device.type == "cuda":
        return int(SHARE * torch.cuda.mem_get_info(device)[0])
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):  # not Linux
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    try:
        group = Path("/sys/fs/cgroup")
        limit, used = ((group / name).read_text() for name in ("memory.max", "memory.current"))
        free = min(free, int(limit) - int(used))
    except (OSError, ValueError):  # no limit
        pass
    return int(SHARE * free)
