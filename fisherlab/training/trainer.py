"""The training loop: steps, evaluations, records, checkpoints; no step waits for a number from the device."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from fisherlab.errors import SolveError
from fisherlab.training import checkpoint
from fisherlab.training.evaluate import evaluate
from fisherlab.training.recorder import Recorder
from fisherlab.training.setup import Experiment

FLUSH_EVERY = 0.25  # seconds between looks at the losses; decides when rows are written, never which


class Stop(Exception):
    """The run ends before its last step.

    Args:
        status: diverged, failed or interrupted.
        message: Why, in one line.
    """

    def __init__(self, status: str, message: str) -> None:
        super().__init__(message)
        self.status = status


class Clock:
    """Wall time by phase; CUDA is synchronised where one phase ends and the next begins.

    Args:
        device: Where the work runs.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = {"training": 0.0, "evaluation": 0.0, "recording": 0.0}
        self._phase, self._since = "recording", time.perf_counter()

    def enter(self, phase: str) -> str:
        """Begin a phase.

        Args:
            phase: training, evaluation or recording.

        Returns:
            The phase that ended.
        """
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now, before = time.perf_counter(), self._phase
        self.seconds[before] += now - self._since
        self._phase, self._since = phase, now
        return before

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Spend a block in a phase, then go back.

        Args:
            name: The phase.

        Yields:
            None.
        """
        before = self.enter(name)
        try:
            yield
        finally:
            self.enter(before)


class Trainer:
    """Trains one run from where it stands to its end.

    Args:
        experiment: The run.
        recorder: Its tables.
        show_bar: Whether to draw a progress bar.
    """

    def __init__(self, experiment: Experiment, recorder: Recorder, *, show_bar: bool) -> None:
        self.experiment = experiment
        self.recorder = recorder
        self.clock = Clock(experiment.device)
        self.step = 0
        self.limit = math.inf
        self.groups: list[dict[str, Any]] = getattr(experiment.optimizer, "param_groups", [])
        self.base_lr = [group["lr"] for group in self.groups]
        self.bar = tqdm(total=experiment.steps, unit="step", disable=not show_bar, dynamic_ncols=True)
        self._interrupted = False
        self._saved_at = time.perf_counter()
        if hasattr(experiment.optimizer, "record_norms"):
            experiment.optimizer.record_norms = experiment.cfg.record_norms

    def run(self) -> None:
        """Train to the last step.

        Raises:
            Stop: If the run diverged, failed or was interrupted; everything up to there is on disk.
        """
        with _signals(self._interrupt):
            try:
                if not self.step:
                    self._evaluate()
                self.clock.enter("training")
                self._loop()
                self.clock.enter("recording")
            finally:
                self.bar.close()

    def _interrupt(self, *_: Any) -> None:
        if self._interrupted:  # asked twice: at once, to be resumed from the last checkpoint
            raise KeyboardInterrupt
        self._interrupted = True

    def _loop(self) -> None:
        cfg, looked = self.experiment.cfg, time.perf_counter()
        every, wanted, kept = cfg.evaluate_every, set(cfg.histogram_steps), set(cfg.checkpoints)
        save_every = math.inf if cfg.checkpoint_every is None else cfg.checkpoint_every
        while self.step < self.experiment.steps:
            self._train_step()
            last = self.step == self.experiment.steps
            evaluates = last or (self.step % every == 0 if every else self.experiment.batches.epoch_ends)
            now = time.perf_counter()
            special = self.step in wanted or self.step in kept
            saves = now - self._saved_at >= save_every
            if not (evaluates or special or saves or self._interrupted or now - looked >= FLUSH_EVERY):
                continue
            with self.clock.phase("recording"):
                self._flush()
                looked = now
                if self.step in wanted:
                    self._histogram()
                if evaluates:
                    self._evaluate()
                if self.step in kept:
                    weights = {"model": self.experiment.model.state_dict(), "step": self.step}
                    checkpoint.save(self.recorder.folder, cfg, weights, f"weights-{self.step}.pt")
                if (saves or self._interrupted) and not last:
                    self.save()
                if self._interrupted and not last:
                    raise Stop("interrupted", f"interrupted at step {self.step}")

    def _train_step(self) -> None:
        experiment = self.experiment
        factor = experiment.learning_rate(self.step)
        for group, base in zip(self.groups, self.base_lr, strict=True):
            group["lr"] = base * factor
        x, y = experiment.next_batch()
        failure = None
        try:
            loss = experiment.optimizer.step(x, y)
            report = getattr(experiment.optimizer, "report", {})
        except SolveError as error:  # raised before the step: its row tells the loss all the same
            failure, report = error, {}
            with torch.no_grad():
                loss = experiment.likelihood.nll(experiment.model(x), y).mean(-1)
        self.step += 1
        first = self.groups[0] if self.groups else {}
        self.recorder.step(self.step, loss, report, first.get("lr"), first.get("damping"))
        if failure is not None:
            self._flush(failure)

    def _flush(self, failure: SolveError | None = None) -> None:
        """Write the waiting rows; stop where the run diverged or a solve failed."""
        check = getattr(self.experiment.optimizer, "check", None)
        if check is not None and failure is None:
            try:
                check()
            except SolveError as error:
                failure = error
        stop = None if failure is None else failure.step + 1
        diverged = self.recorder.flush(self.limit, stop)
        self.bar.update(self.step - self.bar.n)
        if diverged is not None:
            self.step, loss = diverged
            self._stop_if_diverged(loss)
        if failure is not None:
            self.step = failure.step + 1
            raise Stop("failed", str(failure)) from failure

    def _evaluate(self) -> None:
        with self.clock.phase("evaluation"):
            found = evaluate(self.experiment)
        batches, examples = self.experiment.batches, len(self.experiment.dataset.splits["train"])
        row: dict[str, Any] = {"step": self.step, "epoch": batches.examples / examples, "examples": batches.examples}
        self.recorder.metric({**row, "seconds": round(self.clock.seconds["training"], 4), **found})
        shown: dict[str, object] = {k: f"{found[k]:.4g}" for k in ("train_loss", "test_error") if k in found}
        self.bar.set_postfix(shown, refresh=False)
        if not self.step and found["train_loss"] > 0:
            self.limit = self.experiment.cfg.divergence_factor * found["train_loss"]
        self._stop_if_diverged(found["train_loss"])

    def _stop_if_diverged(self, loss: float) -> None:
        if not math.isfinite(loss) or loss > self.limit:
            reason = f"loss {loss:.4g}, above {self.limit:.4g} or not finite"
            raise Stop("diverged", f"diverged at step {self.step}: {reason}")

    def _histogram(self) -> None:
        self.recorder.gradients(self.step, gradients_by_layer(self.experiment.optimizer, len(self.experiment.replicas)))

    def save(self) -> None:
        """Write a checkpoint of this moment."""
        checkpoint.save(self.recorder.folder, self.experiment.cfg, self.state())
        self._saved_at = time.perf_counter()

    def state(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on.

        Returns:
            Tensors and plain values.
        """
        cuda = self.experiment.device.type == "cuda"
        return {
            "step": self.step,
            "limit": self.limit,
            "seconds": dict(self.clock.seconds),
            "model": self.experiment.model.state_dict(),
            "optimizer": self.experiment.optimizer.state_dict(),
            "batches": self.experiment.batches.state(),
            "recorder": self.recorder.state(),
            # Ours draw from counter-based streams; a user's model may draw from the global generators.
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(self.experiment.device) if cuda else None,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go back to a checkpoint.

        Args:
            state: As `state` returned it.
        """
        self.step, self.limit = state["step"], state["limit"]
        self.clock.seconds.update(state["seconds"])
        self.experiment.model.load_state_dict(state["model"])
        self.experiment.optimizer.load_state_dict(state["optimizer"])
        self.experiment.batches.load(state["batches"])
        self.recorder.load(state["recorder"])
        torch.set_rng_state(state["random"])
        if state["random_cuda"] is not None:
            torch.cuda.set_rng_state(state["random_cuda"], self.experiment.device)
        self.bar.update(self.step)


def gradients_by_layer(optimizer: Any, lead: int) -> dict[str, Tensor]:
    """The last step's gradient entries, weights and biases of a layer together.

    Args:
        optimizer: A `FisherOptimizer`; any other has none.
        lead: Number of replica axes.

    Returns:
        Entries [..., n] by layer name.
    """
    layers: dict[str, list[Tensor]] = {}
    for group, flat in zip(getattr(optimizer, "param_groups", []), getattr(optimizer, "gradients", []), strict=False):
        sizes = [math.prod(p.shape[lead:]) for p in group["params"]]
        for name, part in zip(group["names"], flat.split(sizes, -1), strict=True):
            layers.setdefault(name.rpartition(".")[0] or name, []).append(part)
    return {name: torch.cat(parts, -1) for name, parts in layers.items()}


@contextmanager
def _signals(handler: Any) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM (a cluster's time limit) end the run after the step in progress."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
