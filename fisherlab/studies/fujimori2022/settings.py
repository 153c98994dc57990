"""The choices that the paper leaves open: a base setting, and one choice changed at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from fisherlab.config import compose, job
from fisherlab.sweep.space import Dimension, read_space

BASE = (
    "model=deep_linear",
    "batch_size=128",
    "lr_schedule.name=linear",
    "keep=nothing",
    "figures=false",
    "record_norms=false",
    "device=cpu",
)
KFAC = ("optimizer=kfac", "optimizer.damping_mode=tikhonov")
SGD = ("optimizer=sgd",)
SPACE: Mapping[str, Any] = {
    "lr": {"low": 1e-4, "high": 1.0, "log": True},
    "momentum": {"low": 0.0, "high": 0.99},
    "lr_schedule": {"end_fraction": {"low": 0.01, "high": 1.0}},
}


@dataclass(frozen=True)
class Setting:
    """One way to settle what the paper leaves open.

    Attributes:
        told: In words, for tables and figures.
        kfac: Overrides beyond the base setting that concern K-FAC alone.
        net: Overrides that concern SGD too; where there are none, SGD is the base setting's.
        scaled: Whether the range of learning rates grows with dampings above 1.
    """

    told: str
    kfac: tuple[str, ...] = ()
    net: tuple[str, ...] = ()
    scaled: bool = False

    def dampings(self, dampings: list[float]) -> list[float]:
        """Which dampings are searched: only those that differ from the base setting."""
        return [d for d in dampings if d > 1] if self.scaled else dampings


SETTINGS: Mapping[str, Setting] = {
    "base": Setting("eigenbasis damping, factors start at the batch"),
    "identity": Setting("factors start at the identity", ("optimizer.ema_start=identity",)),
    "factored": Setting("factored damping", ("optimizer.damping_mode=factored",)),
    "glorot": Setting("Glorot initialisation", net=("model.init=glorot",)),
    "half": Setting("PyTorch initialisation, halved", net=("model.init=half",)),
    "scaled": Setting("learning rates scaled with the damping", scaled=True),
    "clip": Setting("KL clip 1e-3", ("optimizer.kl_clip=1e-3",)),
    "inverse_1": Setting("inverse every step", ("optimizer.inverse_period=1",)),
    "inverse_100": Setting("inverse every 100 steps", ("optimizer.inverse_period=100",)),
    "empirical": Setting("empirical Fisher", ("optimizer.kind=empirical",)),
    "relu": Setting("relu MLP", net=("model=mlp", "model.hidden=[100,100,100,100,100]", "model.activation=relu")),
}


def configured(setting: str, damping: float | None, settings: Mapping[str, Any], threads: int) -> DictConfig:
    """Compose the training of a setting.

    Args:
        setting: Its name.
        damping: Of K-FAC; None is SGD.
        settings: The scale's.
        threads: Of the linear algebra.

    Returns:
        The config, not resolved.
    """
    chosen = SETTINGS[setting]
    own = [*SGD] if damping is None else [*KFAC, *chosen.kfac, f"damping={damping!r}"]
    moments = ",".join(map(str, settings["moments"]))
    scale = [
        f"dataset={settings['dataset']}",
        f"steps={settings['steps']}",
        f"histogram_steps=[{moments}]",
        f"threads={threads}",
    ]
    return job(compose([*BASE, *chosen.net, *own, *scale]))


def space(setting: str, damping: float | None, cfg: DictConfig) -> list[Dimension]:
    """The numbers that are searched.

    Args:
        setting: Name of a setting.
        damping: Of K-FAC; None is SGD.
        cfg: The training's config.

    Returns:
        Learning rate (logarithmic), momentum, end of the linear decay.
    """
    node: dict[str, Any] = {**SPACE}
    if SETTINGS[setting].scaled and damping is not None:
        node["lr"] = {**node["lr"], **{end: node["lr"][end] * max(1.0, damping) for end in ("low", "high")}}
    return read_space(node, cfg)
