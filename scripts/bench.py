"""Measure speed as ratios against named alternatives, interleaved in one run; writes results/bench/.

Run by `make bench`. The bars are those of the design: a K-FAC step at most 0.8 of asdl's at equal settings, the trainer
with all records at most 1.10 (without norms 1.05) of a bare loop of the same optimizer.
"""

from __future__ import annotations

import os

from fisherlab.cli import ENVIRONMENT

# As the command line runs; before torch is imported.
os.environ.update(dict(ENVIRONMENT) | dict(os.environ))

import argparse
import gc
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from fisherlab import KFAC, SGD, load_dataset, mlp, stack_replicas
from fisherlab.config import compose, job
from fisherlab.training.environment import environment
from fisherlab.training.recorder import Recorder
from fisherlab.training.setup import Experiment, prepare, resolve
from fisherlab.training.trainer import Trainer

WIDTHS = [784, 80, 80, 80, 10]
OUT = Path("results/bench")
# Hundreds of steps on one batch would fit it until gradients are denormal numbers, on which processors are slow.
LR = 1e-6


def interleaved(tasks: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Run every task once per round, in turn; each returns its seconds."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, task in tasks.items():
            gc.collect()
            seconds[name].append(task())
    return seconds


def timed(step: Callable[[], object], steps: int) -> float:
    """Seconds per step."""
    began = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - began) / steps


def plain_net() -> nn.Sequential:
    """784-80-80-80-10 with tanh, as nn.Linear layers."""
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(WIDTHS):
        parts += [nn.Linear(inputs, outputs), nn.Tanh()]
    return nn.Sequential(*parts[:-1])


def ours(x: torch.Tensor, y: torch.Tensor, period: int) -> Callable[[], object]:
    """One K-FAC step of fisherlab: sampled Fisher, EMA, factored damping."""
    optimizer = KFAC(plain_net(), "categorical", lr=LR, damping=1e-2, momentum=0.9, inverse_period=period)
    return lambda: optimizer.step(x, y)


def asdl_kfac(x: torch.Tensor, y: torch.Tensor, period: int) -> Callable[[], object]:
    """One K-FAC step of asdl at the same settings: sampled Fisher, EMA, inverse every `period` steps, SGD momentum.

    asdl's input factor has no column of ones: it does slightly less work.
    """
    import asdl

    model = plain_net()
    config = asdl.PreconditioningConfig(
        data_size=len(x), damping=1e-2, ema_decay=0.05, curvature_upd_interval=1, preconditioner_upd_interval=period
    )
    maker = asdl.KfacGradientMaker(model, config, fisher_type="fisher_mc", loss_type="cross_entropy")
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        dummy = maker.setup_model_call(model, x)
        maker.setup_loss_call(nn.functional.cross_entropy, dummy, y)
        maker.forward_and_backward()
        optimizer.step()

    return step


def torch_sgd(x: torch.Tensor, y: torch.Tensor) -> Callable[[], object]:
    """One step of torch.optim.SGD."""
    model = plain_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def bench_kfac(rounds: int) -> list[dict[str, object]]:
    """K-FAC at batch 1000, inverse at every step and every 20, against asdl; torch.optim.SGD for scale."""
    train = load_dataset("mnist").splits["train"]
    x, y = train.x[:1000].clone(), train.y[:1000].clone()
    steps = {"torch SGD": torch_sgd(x, y)}
    for period in (1, 20):
        steps[f"fisherlab K-FAC, inverse every {period}"] = ours(x, y, period)
        steps[f"asdl K-FAC, inverse every {period}"] = asdl_kfac(x, y, period)
    for step in steps.values():
        timed(step, 20)
    seconds = interleaved({name: lambda step=step: timed(step, 20) for name, step in steps.items()}, rounds)
    rows = []
    for period in (1, 20):
        mine, other = f"fisherlab K-FAC, inverse every {period}", f"asdl K-FAC, inverse every {period}"
        what = f"K-FAC step, batch 1000, inverse every {period}"
        rows.append(compare(what, "asdl", 0.8, seconds, mine, other))
        rows.append(compare(what, "torch SGD", None, seconds, mine, "torch SGD"))
    return rows


class Loop:
    """SGD on MNIST, MLP, batch 128: the trainer, and the same steps in a bare loop."""

    def __init__(self, record_norms: bool) -> None:
        overrides = ["optimizer=sgd", "batch_size=128", f"record_norms={str(record_norms).lower()}"]
        overrides.append(f"threads={torch.get_num_threads()}")
        self.cfg = resolve(job(compose(overrides)))

    def trainer(self) -> float:
        """Seconds of training and recording per step, without evaluation (which the clock keeps apart)."""
        experiment = prepare(self.cfg)
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(experiment, Recorder(Path(folder), 9), show_bar=False)
            trainer.run()
            return (trainer.clock.seconds["training"] + trainer.clock.seconds["recording"]) / experiment.steps

    def bare(self) -> float:
        """Seconds per step of what anyone would write."""
        experiment: Experiment = prepare(self.cfg)
        train, steps = experiment.dataset.splits["train"], experiment.steps
        model = stack_replicas([mlp(784, 10)], (1, 1))
        optimizer = SGD(model, "categorical", lr=0.05, momentum=0.9)
        began = time.perf_counter()
        for step in range(steps):
            if step % 468 == 0:
                order = torch.randperm(len(train.x))
            index = order[(step % 468) * 128 : (step % 468 + 1) * 128]
            x, y = train.x.index_select(0, index)[None, None], train.y.index_select(0, index)[None, None]
            optimizer.step(x, y)
        return (time.perf_counter() - began) / steps


def bench_trainer(rounds: int) -> list[dict[str, object]]:
    """Trainer against bare loop, with and without per-step norms."""
    full, lean = Loop(True), Loop(False)
    tasks = {"all records": full.trainer, "without norms": lean.trainer, "bare loop": full.bare}
    seconds = interleaved(tasks, rounds)
    return [
        compare("trainer, SGD, batch 128, all records", "bare loop", 1.10, seconds, "all records", "bare loop"),
        compare("trainer, SGD, batch 128, without norms", "bare loop", 1.05, seconds, "without norms", "bare loop"),
    ]


def compare(
    what: str, against: str, bar: float | None, seconds: dict[str, list[float]], mine: str, other: str
) -> dict[str, object]:
    """A row of the ratio table: medians, and the quartiles of the ratio over rounds."""
    ratios = sorted(a / b for a, b in zip(seconds[mine], seconds[other], strict=True))
    quartiles = statistics.quantiles(ratios, n=4)
    return {
        "what": what, "against": against, "ms": 1e3 * statistics.median(seconds[mine]),
        "against_ms": 1e3 * statistics.median(seconds[other]), "ratio": statistics.median(ratios),
        "ratio_q1": quartiles[0], "ratio_q3": quartiles[2], "bar": bar, "rounds": len(ratios),
        "threads": torch.get_num_threads(),
    }  # fmt: skip


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", choices=["kfac", "trainer"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    if options.only in (None, "kfac"):
        rows += bench_kfac(options.rounds)
    if options.only in (None, "trainer"):
        rows += bench_trainer(options.rounds)
    table = pd.DataFrame(rows)
    OUT.mkdir(parents=True, exist_ok=True)
    table.to_csv(OUT / "bench.csv", index=False, float_format="%.4g")
    (OUT / "environment.json").write_text(json.dumps(environment(torch.device("cpu")), indent=2) + "\n")
    print(table.to_string(index=False, float_format=lambda v: f"{v:.3g}"))


if __name__ == "__main__":
    main()
