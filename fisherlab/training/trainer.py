"""The training loop: steps, evaluations, records, checkpoints; no step waits for a number from the device."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from fisherlab.errors import SolveError
from fisherlab.optim.state import mapped, part
from fisherlab.training import checkpoint
from fisherlab.training.clock import Clock
from fisherlab.training.evaluate import evaluate
from fisherlab.training.lane import Lane
from fisherlab.training.recorder import Recorder, StepLog
from fisherlab.training.setup import Experiment

FLUSH_EVERY = 0.25  # seconds between looks at the losses; decides when rows are written, never which
SPARSE = 0.75  # of the runs side by side: when no more are left, a smaller program would train them sooner


class Trainer:
    """Trains one run, or several side by side, from where they stand to their end.

    A run that diverges or fails before the others is frozen: weights and learning rate are set to zero, and what it
    computes from then on is ignored. The others keep their bits.

    Args:
        experiment: The runs.
        recorders: Their tables, in the order of `experiment.cfgs`.
        home: Where the checkpoint of all of them goes.
        fingerprint: Of the checkpoint; that of all configurations when None.
        stamp: What else the checkpoint says.
        thins: Whether to stop, `thinned`, once so few runs are left that a smaller program would train them sooner.
        on_end: Called with each run as it ends.
        on_flush: Called before rows are written, a few times a second.
        show_bar: Whether to draw a progress bar.
    """

    def __init__(
        self,
        experiment: Experiment,
        recorders: Sequence[Recorder],
        home: Path,
        *,
        fingerprint: str | None = None,
        stamp: Mapping[str, Any] | None = None,
        thins: bool = False,
        on_end: Callable[[Trainer, Lane], None] = lambda *_: None,
        on_flush: Callable[[Trainer], None] = lambda _: None,
        show_bar: bool = False,
    ) -> None:
        self.experiment = experiment
        cells = zip(experiment.cfgs, recorders, experiment.places, strict=True)
        self.lanes = [Lane(cfg, recorder, at) for cfg, recorder, at in cells]
        self.home, self.on_end, self.on_flush = home, on_end, on_flush
        self.fingerprint = fingerprint or checkpoint.fingerprint(*experiment.cfgs)
        self.stamp = dict(stamp or {})
        self.clock = Clock(experiment.device, len(self.lanes))
        self.log = StepLog(experiment.replicas)
        self.step = 0
        self.interrupted = self.thinned = False
        self.thins = thins
        self.groups: list[dict[str, Any]] = getattr(experiment.optimizer, "param_groups", [])
        self.base_lr = [group["lr"] for group in self.groups]
        self.bar = tqdm(total=experiment.steps, unit="step", disable=not show_bar, dynamic_ncols=True)
        self.signalled = False
        self._saved_at = time.perf_counter()
        if hasattr(experiment.optimizer, "record_norms"):
            experiment.optimizer.record_norms = experiment.cfg.record_norms

    @property
    def live(self) -> list[Lane]:
        """The runs that still train."""
        return [lane for lane in self.lanes if lane.live]

    def run(self) -> None:
        """Train until every run has ended, the user interrupts, or the rest had better go on in a smaller program.

        In the first two cases everything up to there is on disk.
        """
        with _signals(self._interrupt):
            try:
                if not self.step:
                    self._evaluate()
                self.clock.enter("training")
                self._loop()
                self.clock.enter("recording")
                if not (self.interrupted or self.thinned):
                    self._finish()
            finally:
                self.bar.close()

    def _finish(self) -> None:
        if len(self.live) > 1:  # so that a kill among the ends of many runs costs no training
            self.save()
        for lane in self.live:
            lane.end("finished", self.step)
            self.on_end(self, lane)

    def _interrupt(self, *_: Any) -> None:
        if self.signalled:  # asked twice: at once, to be resumed from the last checkpoint
            raise KeyboardInterrupt
        self.signalled = True

    def _loop(self) -> None:
        cfg, looked = self.experiment.cfg, time.perf_counter()
        every, wanted, kept = cfg.evaluate_every, set(cfg.histogram_steps), set(cfg.checkpoints)
        save_every = math.inf if cfg.checkpoint_every is None else cfg.checkpoint_every
        while self.step < self.experiment.steps and self.live and not (self.interrupted or self.thinned):
            self._train_step()
            last = self.step == self.experiment.steps
            evaluates = last or (self.step % every == 0 if every else self.experiment.batches.epoch_ends)
            now = time.perf_counter()
            special = self.step in wanted or self.step in kept
            saves = now - self._saved_at >= save_every
            if not (evaluates or special or saves or self.signalled or now - looked >= FLUSH_EVERY):
                continue
            with self.clock.phase("recording"):
                self._flush()
                looked = now
                if self.step in wanted:
                    self._histogram()
                if evaluates:
                    self._evaluate()
                if self.step in kept:
                    self._keep_weights(f"weights-{self.step}.pt")
                self.interrupted = self.signalled and not last and bool(self.live)
                if (saves or self.interrupted) and not last and self.live:
                    self.save()
                self.thinned = self.thins and not last and self._sparse

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
        self.log.add(self.step, loss, report, first.get("lr"), first.get("damping"))
        if failure is not None:
            self._flush({(): failure})

    def _flush(self, failures: Mapping[tuple[int, ...], SolveError] | None = None) -> None:
        """Write the waiting rows; end the runs that diverged, or whose solve failed."""
        self.on_flush(self)
        if failures is None:
            failures = getattr(self.experiment.optimizer, "failures", dict)()
        for lane, rows in zip(self.lanes, self.log.take(), strict=False):
            if lane.live:
                failure = failures.get(lane.at)
                lane.record(rows, None if failure is None else (failure.step + 1, str(failure)))
                self._see_off(lane)
        self.bar.update(self.step - self.bar.n)

    def _see_off(self, lane: Lane) -> None:
        """Where a run has ended before the others: say so, and freeze it."""
        if lane.live:
            return
        self.on_end(self, lane)
        self.freeze(lane)

    def freeze(self, lane: Lane) -> None:
        """Set a run's weights and all that is remembered of it to zero, and its learning rate too.

        Args:
            lane: One that has ended.
        """
        self.clock.share(len(self.live))
        if len(self.lanes) == 1:
            return
        with torch.no_grad():
            for p in self.experiment.model.parameters():
                p[lane.at] = 0
        self.experiment.optimizer.forget(lane.at)
        shape = self.experiment.replicas
        self.base_lr = [torch.as_tensor(lr, dtype=torch.float64).expand(shape).clone() for lr in self.base_lr]
        for lr in self.base_lr:
            lr[lane.at] = 0

    def freeze_ended(self) -> None:
        """Freeze the runs that had ended before."""
        for lane in self.lanes:
            if not lane.live:
                self.freeze(lane)

    def _evaluate(self) -> None:
        with self.clock.phase("evaluation"):
            found = evaluate(self.experiment)
        batches, examples = self.experiment.batches, len(self.experiment.dataset.splits["train"])
        row: dict[str, Any] = {"step": self.step, "epoch": batches.examples / examples, "examples": batches.examples}
        row["seconds"] = round(self.clock.seconds["training"], 4)
        row["cpu_seconds"] = round(self.clock.cpu_seconds["training"], 4)
        for lane, values in zip(self.lanes, found, strict=True):
            if not lane.live:
                continue
            lane.recorder.metric({**row, **values})
            loss = values["train_loss"]
            if not self.step and loss > 0:
                lane.limit = lane.cfg.divergence_factor * loss
            if lane.beyond(loss):
                lane.diverge(self.step, loss)
                self._see_off(lane)
        shown: dict[str, object] = {k: f"{found[0][k]:.4g}" for k in ("train_loss", "test_error") if k in found[0]}
        self.bar.set_postfix(shown, refresh=False)

    def _histogram(self) -> None:
        layers = gradients_by_layer(self.experiment.optimizer, len(self.experiment.replicas))
        for lane in self.live:
            lane.recorder.gradients(self.step, {name: entries[lane.at] for name, entries in layers.items()})

    def weights(self, lane: Lane) -> dict[str, Any]:
        """One run's weights, shaped as those of a run alone.

        Args:
            lane: The run.

        Returns:
            What its `checkpoint.pt` holds in the end.
        """
        state = {"model": self.experiment.model.state_dict(), "step": self.step}
        return self._cut(state, [[i] for i in lane.at])

    def _cut(self, state: dict[str, Any], places: Sequence[Sequence[int]]) -> dict[str, Any]:
        """Cut some runs' part out of a state."""
        own: dict[str, Any] = mapped(state, lambda t: part(t, places, self.experiment.replicas).clone())
        return own

    def _keep_weights(self, name: str) -> None:
        for lane in self.live:
            checkpoint.save(lane.recorder.folder, checkpoint.fingerprint(lane.cfg), self.weights(lane), name)

    def save(self) -> None:
        """Write a checkpoint of this moment, of all runs."""
        checkpoint.save(self.home, self.fingerprint, self.state() | self.stamp)
        self._saved_at = time.perf_counter()

    def state(self) -> dict[str, Any]:
        """Everything that the rest of the runs depends on.

        Returns:
            Tensors and plain values.
        """
        cuda = self.experiment.device.type == "cuda"
        return {
            "step": self.step,
            **self.clock.state(),
            "lanes": [lane.state() for lane in self.lanes],
            "model": self.experiment.model.state_dict(),
            "optimizer": self.experiment.optimizer.state_dict(),
            "batches": self.experiment.batches.state(),
            # Ours draw from counter-based streams; a user's model may draw from the global generators.
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(self.experiment.device) if cuda else None,
        }

    def own_state(self, lane: Lane) -> dict[str, Any]:
        """The state of one run, as if it had trained alone.

        Args:
            lane: The run.

        Returns:
            As `state`.
        """
        return self._cut(self.state() | {"lanes": [lane.state()]}, [[i] for i in lane.at])

    @property
    def places(self) -> list[list[int]]:
        """The indices along each replica axis at which a run still trains."""
        return [sorted(set(axis)) for axis in zip(*(lane.at for lane in self.live), strict=True)]

    @property
    def _sparse(self) -> bool:
        return bool(self.live) and math.prod(map(len, self.places)) <= SPARSE * len(self.lanes)

    def rest(self) -> dict[str, Any]:
        """The state of the runs at `places`, as if they had trained without the others.

        Returns:
            As `state`.
        """
        places = self.places
        kept = [lane.state() for lane in self.lanes if all(i in own for i, own in zip(lane.at, places, strict=True))]
        return self._cut(self.state() | {"lanes": kept}, places)

    def load(self, state: dict[str, Any]) -> None:
        """Go back to a checkpoint; runs that have ended since stay ended.

        Args:
            state: As `state` returned it.
        """
        self.step = state["step"]
        self.clock.load(state)
        self.experiment.model.load_state_dict(state["model"])
        self.experiment.optimizer.load_state_dict(state["optimizer"])
        self.experiment.batches.load(state["batches"])
        for lane, saved in zip(self.lanes, state["lanes"], strict=True):
            lane.load(saved)
        self.freeze_ended()
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
        for name, entries in zip(group["names"], flat.split(sizes, -1), strict=True):
            layers.setdefault(name.rpartition(".")[0] or name, []).append(entries)
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
