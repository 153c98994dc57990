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

FORMAT = 2
NAME = "checkpoint.pt"


def fingerprint(*cfgs: DictConfig) -> str:
    """Hash resolved configurations; what changes no number (`debug`, `resume`, `results`) does not count.

    Args:
        cfgs: One, or those of a group in order.

    Returns:
        8 hexadecimal digits.
    """
    text = ""
    for cfg in cfgs:
        plain: Any = OmegaConf.to_container(cfg, resolve=True)
        for key in ("debug", "resume", "results"):
            plain.pop(key, None)
        text += OmegaConf.to_yaml(OmegaConf.create(plain), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def save(folder: Path, config: str, state: dict[str, Any], name: str = NAME) -> None:
    """Write a checkpoint.

    Args:
        folder: The run directory.
        config: Fingerprint of the configuration.
        state: Tensors and plain values.
        name: File name.
    """
    whole = {"format": FORMAT, "config": config, **state}
    buffer = io.BytesIO()
    torch.save(whole, buffer)  # not to the file: torch tells a full disk as an internal error
    replace(folder / name, lambda path: path.write_bytes(buffer.getbuffer()))


def load(folder: Path, config: str) -> dict[str, Any] | None:
    """Read a run's checkpoint.

    Args:
        folder: The run directory.
        config: Fingerprint of the configuration.

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
    if state["config"] != config:
        raise UsageError(
            f"'{path}' belongs to configuration {state['config']}, but config.yaml beside it is {config}: "
            "restore the config.yaml that the run began with"
        )
    return state
