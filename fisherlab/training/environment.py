"""What a run ran on: versions, commit, device, threads; no host or user name."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "fisherlab",
    "torch",
    "torchvision",
    "numpy",
    "hydra-core",
    "omegaconf",
    "pandas",
    "matplotlib",
    "scikit-learn",
)


def commit() -> str | None:
    """The commit of the checkout that the package is imported from, with `+dirty` where it has changes.

    Returns:
        None outside a checkout.
    """
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        try:
            return subprocess.run(
                ["git", "-C", str(here), *arguments], capture_output=True, text=True, check=False
            ).stdout
        except OSError:  # no git here
            return ""

    head = git("rev-parse", "HEAD").strip()
    # What runs leave in results/ changes no run.
    changes = git("status", "--porcelain", "--", ".", ":!results").strip()
    return (head + ("+dirty" if changes else "")) if head else None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def versions() -> dict[str, str]:
    """Versions of the packages that results depend on.

    Returns:
        Version by package; those not installed are left out.
    """
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def environment(device: torch.device) -> dict[str, Any]:
    """Describe the environment of a run.

    Args:
        device: Where it runs.

    Returns:
        Plain values for `environment.json`.
    """
    cuda = device.type == "cuda"
    return {
        "python": sys.version.split()[0],
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "packages": versions(),
        "commit": commit(),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if cuda else _processor(),
        "cuda": torch.version.cuda if cuda else None,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "MKL_CBWR": os.environ.get("MKL_CBWR"),
    }
