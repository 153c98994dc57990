"""What a run directory holds once its run has ended: the status, the weights that are kept, the figures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from fisherlab.training import checkpoint
from fisherlab.training.lane import Lane
from fisherlab.training.trainer import Trainer

ENDED = ("finished", "diverged")


def close(trainer: Trainer, lane: Lane, setup: float, trace: str = "") -> str:
    """Leave all that a run leaves when it ends.

    Args:
        trainer: What trained it.
        lane: The run.
        setup: Seconds before the training.
        trace: The traceback of what made it fail.

    Returns:
        Why that could not be written, in one line; nothing where it was.
    """
    try:
        # Alone, the status first: what is kept takes the place of the checkpoint that a resume would need. In a group,
        # whose checkpoint lies elsewhere, last: so that a run that says it has finished has its weights.
        alone = lane.recorder.folder == trainer.home
        if not (alone or lane.live):
            keep(trainer, lane)
        write_status(trainer, lane, setup, trace)
        if alone and not lane.live:
            keep(trainer, lane)
        if not lane.live and lane.cfg.figures:
            plot(lane.recorder.folder)
    except OSError as error:
        # A full disk: what the run has left so far can be resumed when there is room.
        return f"its end was not written: {error.strerror}"
    return ""


def write_status(trainer: Trainer, lane: Lane, setup: float, trace: str = "") -> None:
    """Write `status.json`.

    Args:
        trainer: What trains the run.
        lane: The run.
        setup: Seconds before the training.
        trace: The traceback of what made it fail.
    """
    about: dict[str, Any] = getattr(trainer.experiment.optimizer, "describe", dict)()
    times = {"setup": round(setup, 3)} | {k: round(v, 3) for k, v in trainer.clock.seconds.items()}
    more: dict[str, Any] = {"step": trainer.step if lane.live else lane.step, "seconds": times, "optimizer": about}
    if lane.message:
        more["error" if lane.status == "failed" else "message"] = lane.message
    if trace:
        more["traceback"] = trace
    lane.recorder.status(lane.status, **more)


def keep(trainer: Trainer, lane: Lane) -> None:
    """A finished run keeps its weights, unless asked otherwise; a failed one its last checkpoint, to be resumed from.

    Args:
        trainer: What trained it.
        lane: The run.
    """
    folder = lane.recorder.folder
    ended = lane.status == "finished"
    if lane.status == "diverged" or (ended and lane.cfg.keep == "nothing"):
        # The weights of a diverged one are from whenever the divergence was noticed.
        (folder / checkpoint.NAME).unlink(missing_ok=True)
    elif ended:
        state = trainer.own_state(lane) if lane.cfg.keep == "all" else trainer.weights(lane)
        checkpoint.save(folder, checkpoint.fingerprint(lane.cfg), state)


def plot(folder: Path) -> None:
    """Draw a run's figures; one that cannot be drawn never costs a run.

    Args:
        folder: The run directory.
    """
    from fisherlab.plots.run import draw_run

    try:
        draw_run(folder)
    except Exception as error:
        print(f"fisherlab: warning: no figures for {folder}: {error}", file=sys.stderr)
