"""The trainer against a bare loop of the same optimizer."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch

from fisherlab import SGD, mlp, stack_replicas
from fisherlab.config import compose, job
from fisherlab.training.recorder import Recorder
from fisherlab.training.setup import Experiment, prepare, resolve
from fisherlab.training.trainer import Trainer
from scripts.bench.timing import compare, interleaved


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
            trainer = Trainer(experiment, [Recorder(Path(folder), 9)], Path(folder))
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


def bench(rounds: int) -> list[dict[str, object]]:
    """Trainer against bare loop, with and without per-step norms."""
    full, lean = Loop(True), Loop(False)
    tasks = {"all records": full.trainer, "without norms": lean.trainer, "bare loop": full.bare}
    seconds = interleaved(tasks, rounds)
    return [
        compare("trainer, SGD, batch 128, all records", "bare loop", 1.10, seconds, "all records", "bare loop"),
        compare("trainer, SGD, batch 128, without norms", "bare loop", 1.05, seconds, "without norms", "bare loop"),
    ]
