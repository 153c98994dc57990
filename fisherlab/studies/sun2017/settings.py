"""The nets and the methods that are compared, and how a run of the study is composed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from fisherlab.config import compose, job

BASE = (
    "model=mlp",
    "model.init=glorot_biases",
    "figures=false",
    "keep=nothing",
    "record_norms=false",
    "histogram_steps=[]",
    "device=cpu",
)
EXAMPLES = {"mnist": 70_000, "digits": 1_797}  # of a data set's splits together
NETS: Mapping[str, tuple[str, ...]] = {"plain": (), "bna": ("model.batch_norm=after",)}
TOLD = {"plain": "PLAIN", "bna": "BNA"}
# The paper's three, then two under the same protocol: no momentum, and factorisations as rare as RNGD's.
METHODS: Mapping[str, tuple[str, ...]] = {
    "sgd": ("optimizer=sgd", "momentum=0"),
    "adam": ("optimizer=adam",),
    "rngd": ("optimizer=rngd",),
    "kfac": ("optimizer=kfac", "momentum=0", "damping=0.1", "optimizer.inverse_period=100"),
    "efngd": ("optimizer=efngd", "damping=1"),
}
VARIANTS: Mapping[str, tuple[str, ...]] = {
    "rngd, batch start": ("optimizer=rngd", "optimizer.ema_start=batch", "optimizer.inverse_early=100"),
    "rngd, softmax": ("optimizer=rngd", "optimizer.last=layer"),
    "rngd, by objective": ("optimizer=rngd",),
}
# Variants that only take another learning rate of another method's grid: that method's, by this column of it.
RERATED: Mapping[str, tuple[str, str]] = {"rngd, by objective": ("rngd", "objective")}
NAMES = {"sgd": "SGD", "adam": "Adam", "rngd": "RNGD", "kfac": "K-FAC, damping 0.1", "efngd": "EF-NGD, damping 1"}
NAMES |= {"rngd, batch start": "RNGD, batch start", "rngd, softmax": "RNGD, softmax RFIM"}
NAMES |= {"rngd, by objective": "RNGD, rate by objective"}
# What takes longest comes first, so that of several processes none is left alone with it in the end.
ORDER = ("rngd, softmax", "rngd, batch start", "rngd, by objective", "rngd", "kfac", "efngd", "adam", "sgd")


def table_name(kind: str, net: str, method: str) -> str:
    """Name a table.

    Args:
        kind: What is in it.
        net: A key of `NETS`.
        method: A key of `METHODS` or `VARIANTS`.

    Returns:
        The name, without suffix.
    """
    return f"{kind}_{net}_{method}".replace(", ", "_").replace(" ", "_")


def configured(net: str, method: str, epochs: int, settings: Mapping[str, Any]) -> DictConfig:
    """Compose a run.

    Args:
        net: A key of `NETS`.
        method: A key of `METHODS` or `VARIANTS`.
        epochs: How many.
        settings: The scale's.

    Returns:
        The config, not resolved.
    """
    scale = [
        f"dataset={settings['dataset']}",
        f"batch_size={settings['batch']}",
        f"epochs={epochs}",
        f"l2={settings['l2']}",
        f"threads={torch.get_num_threads()}",
    ]
    cfg = job(compose([*BASE, *NETS[net], *({**METHODS, **VARIANTS}[method]), *scale]))
    OmegaConf.update(cfg, "dataset.splits", dict(settings["splits"]), merge=False, force_add=True)
    return cfg
