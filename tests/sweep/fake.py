"""Sweep folders made by hand: what the workers of a sweep leave, without training anything."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

COLUMNS = "step,epoch,examples,seconds,train_loss,train_error,valid_loss,valid_error,test_loss,test_error"
PER_EPOCH = 10


def make_sweep(folder: Path, jobs: Sequence[Sequence[str]], command: Sequence[str] = ()) -> Path:
    """A sweep without runs; its jobs are called job0, job1, ..."""
    swept = list(dict.fromkeys(override.lstrip("+~").partition("=")[0] for job in jobs for override in job))
    listed = [{"name": f"job{i}", "overrides": list(job), "group": "g"} for i, job in enumerate(jobs)]
    (folder / "runs").mkdir(parents=True)
    plan = {"format": 1, "command": list(command), "swept": swept, "jobs": listed}
    (folder / "sweep.json").write_text(json.dumps(plan))
    return folder


def make_run(
    folder: Path,
    job: int,
    losses: Sequence[float],
    status: str = "finished",
    *,
    split: str = "test",
    seeds: Mapping[str, Any] = {},
    **more: Any,
) -> None:
    """A run with one evaluation per epoch."""
    run = folder / "runs" / f"job{job}"
    run.mkdir()
    rows = []
    for epoch, loss in enumerate(losses):
        both = f"{loss},{min(1.0, loss / 3)}"
        cells = [both if s in ("train", split) else "," for s in ("train", "valid", "test")]
        rows.append(f"{epoch * PER_EPOCH},{epoch},{epoch * 100},{epoch}.5," + ",".join(cells))
    (run / "metrics.csv").write_text("\n".join([COLUMNS, *rows]) + "\n")
    merged = {"seed": job, "data_seed": None, "init_seed": None} | dict(seeds)
    (run / "config.yaml").write_text("".join(f"{k}: {'null' if v is None else v}\n" for k, v in merged.items()))
    final = {"step": (len(losses) - 1) * PER_EPOCH, "train_loss": losses[-1], f"{split}_error": min(1, losses[-1] / 3)}
    final = {k: v if math.isfinite(v) else None for k, v in final.items()}
    best = {"train_loss": {"value": min(losses), "step": int(np.argmin(losses)) * PER_EPOCH}}
    end = {"status": status, "final": final, "best": best, "step": final["step"]}
    end["seconds"] = {"setup": 0.1, "training": 1.5 + job, "evaluation": 0.2, "recording": 0.1}
    (run / "status.json").write_text(json.dumps(end | more))


def decay(rate: float, epochs: int = 8, wobble: int = 0) -> list[float]:
    """A learning curve."""
    noise = np.random.default_rng(wobble).normal(0, 0.08, epochs + 1)
    return [float(2.3 * math.exp(-rate * e + (n if e else 0))) for e, n in enumerate(noise)]
