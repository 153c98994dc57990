"""One bar for a whole sweep, drawn from what its groups write: they may be trained anywhere."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from tqdm import tqdm

from fisherlab.sweep.record import Record

PERIOD = 0.5  # seconds between looks
STATES = ("running", "finished", "diverged", "failed")


@contextlib.contextmanager
def bar(record: Record, groups: Sequence[str], *, show: bool | None = None) -> Iterator[None]:
    """Show the progress of a sweep while its groups are trained.

    Args:
        record: The sweep's.
        groups: Those that are about to be trained; the others stay as they are.
        show: Whether there is a bar; None looks whether anyone watches.

    Yields:
        Nothing.
    """
    if not (sys.stderr.isatty() if show is None else show):
        yield
        return
    sizes = {name: _size(record.group(name)) for name in groups}
    rest = record.counts(within={entry.group for entry in record.jobs.values()} - set(groups))
    stop = threading.Event()
    with tqdm(total=sum(sizes.values()), unit="step", desc="sweep", dynamic_ncols=True) as drawn:

        def look() -> None:
            drawn.n, counts = progress(record, sizes)
            drawn.set_postfix({state: (rest + counts)[state] for state in STATES})

        def watch() -> None:
            while not stop.wait(PERIOD):
                look()

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            look()  # once more, for what is not told twice a second


def progress(record: Record, sizes: dict[str, int]) -> tuple[int, Counter[str]]:
    """Add up how far groups have come.

    Args:
        record: The sweep's.
        sizes: Jobs x steps of each group.

    Returns:
        Steps done over all jobs, and the number of jobs by status.
    """
    done, counts = 0, Counter[str]()
    left = record.open_groups()
    for name, size in sizes.items():
        if name not in left:
            done += size
            counts += record.counts(within=[name])
            continue
        try:
            said = json.loads((record.folder / "groups" / name / "progress.json").read_text())
            done += round(size * said["step"] / said["steps"])
            counts.update({state: int(said[state]) for state in STATES})
        except (OSError, ValueError, KeyError, TypeError):  # not begun yet
            continue
    return done, counts


def _size(group: dict[str, Any]) -> int:
    return len(group["jobs"]) * int(group["steps"])
