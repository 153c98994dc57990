"""Checkpoints: everything for a bit-exact resume, in one file that appears atomically."""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from fisherlab.errors import UsageError
from fisherlab.files import replace

FORMAT = 1
NAME = "checkpoint.pt"


def fingerprint(cfg: DictConfig) -> str:
    """Hash a resolved configuration; what changes no number (`debug`, `resume`, `results`) does not count.

    Args:
        cfg: The configuration.

    Returns:
        8 hexadecimal digits.
    """
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    for key in ("debug", "resume", "results"):
        plain.pop(key, None)
    return hashlib.blake2b(
        OmegaConf.to_yaml(OmegaConf.create(plain), sort_keys=True).encode(), digest_size=4
    ).hexdigest()


def save(folder: Path, cfg: DictConfig, state: dict[str, Any], name: str = NAME) -> None:
    """Write a checkpoint.

    Args:
        folder: The run directory.
        cfg: The run's configuration.
        state: Tensors and plain values.
        name: File name.
    """
    whole = {"format": FORMAT, "config": fingerprint(cfg), **state}
    buffer = io.BytesIO()
    torch.save(whole, buffer)  # not to the file: torch tells a full disk as an internal error
    replace(folder / name, lambda path: path.write_bytes(buffer.getbuffer()))


def load(folder: Path, cfg: DictConfig) -> dict[str, Any] | None:
    """Read a run's checkpoint.

    Args:
        folder: The run directory.
        cfg: The run's configuration.

    Returns:
        The state, on the CPU; None where the run has no checkpoint yet.

    Raises:
        UsageError: If it is damaged, of another format, or of another configuration.
    """
    path = folder / NAME
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, IndexError, pickle.UnpicklingError):
        raise UsageError(f"'{path}' is damaged: delete it to start the run again") from None
    if isinstance(state, dict) and "optimizer" not in state:
        raise UsageError(f"'{path}' holds weights only, nothing to resume from: delete it to start the run again")
    found = state.get("format") if isinstance(state, dict) else None
    if found != FORMAT:
        raise UsageError(f"'{path}' has checkpoint format {found!r}: this version reads format {FORMAT}")
    if state["config"] != fingerprint(cfg):
        raise UsageError(
            f"'{path}' belongs to configuration {state['config']}, but config.yaml beside it is {fingerprint(cfg)}: "
            "restore the config.yaml that the run began with"
        )
    return state
