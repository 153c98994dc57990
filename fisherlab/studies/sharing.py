"""Several processes on one study: each makes the first part that can be made and that no other is making.

Where all are being made, it does pieces of those: the maker begins with the first, the others with the last.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fisherlab.sweep.claim import claim

if TYPE_CHECKING:
    from fisherlab.studies.study import Part

POLL = 2.0  # seconds between looks at parts that others make


def share(
    parts: list[Part],
    folder: Path,
    make: Callable[[Part], None],
    recorded: Callable[[], Collection[str]],
    do: Callable[[Part, str], None],
) -> None:
    """Make all parts, or help with those that other processes make; a dead process's part is taken over.

    Args:
        parts: Of the study.
        folder: Its folder, which exists.
        make: Makes a part, its pieces by `pieces`, and records it.
        recorded: Names the parts that are recorded by now.
        do: Does a piece of a part that another process makes.
    """
    told, seen = False, set[tuple[str, str]]()
    while missing := _missing(parts, folder, recorded()):
        ready = _ready(missing)
        if any(_attempt(part, parts, folder, make, recorded) for part in ready):
            continue
        pairs = [(part, key) for part in ready for key in reversed(list(part.pieces))]
        if helped := next((p for p in pairs if (p[0].name, p[1]) not in seen and _piece(*p, folder, do)), None):
            seen.add((helped[0].name, helped[1]))
            continue
        if not told:
            print(f"waiting for other processes, which make: {'; '.join(part.name for part in missing)}", flush=True)
        told = True
        time.sleep(POLL)


def pieces(part: Part, folder: Path, do: Callable[[Part, str], None]) -> None:
    """Do all pieces of a part, or wait for those that other processes do: each goes on where it stopped.

    Args:
        part: The part, which this process makes.
        folder: Of the study.
        do: Does a piece; what another process has done takes no longer than reading it.
    """
    left = list(part.pieces)
    while left:
        done = next((key for key in left if _piece(part, key, folder, do)), None)
        if done is None:
            time.sleep(POLL)
        else:
            left.remove(done)


def _piece(part: Part, key: str, folder: Path, do: Callable[[Part, str], None]) -> bool:
    """Do a piece, unless another process is doing it."""
    with claim(folder, _file(f"{part.name} {key}")) as mine:
        if mine:
            do(part, key)
        return bool(mine)


def _file(what: str) -> str:
    return f".claim-{re.sub(r'[^A-Za-z0-9]+', '-', what)}"


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Wait until no other process writes what all of them share: the record, the claims and the figures.

    Args:
        folder: The study's.

    Yields:
        Nothing; until the block ends, others wait.
    """
    while True:
        with claim(folder, ".claim") as mine:
            if mine:
                yield
                return
        time.sleep(POLL / 10)


def _missing(parts: list[Part], folder: Path, recorded: Collection[str]) -> list[Part]:
    """The parts that are not recorded, as after a kill, or whose tables are gone."""
    return [p for p in parts if p.name not in recorded or not all((folder / table).exists() for table in p.tables)]


def _ready(missing: list[Part]) -> list[Part]:
    """Those that need nothing which is still missing."""
    coming = {table for part in missing for table in part.tables}
    return [part for part in missing if not coming & set(part.needs)]


def _attempt(
    part: Part, parts: list[Part], folder: Path, make: Callable[[Part], None], recorded: Callable[[], Collection[str]]
) -> bool:
    """Make a part, unless another process is making it or has made it meanwhile."""
    with claim(folder, _file(part.name)) as mine:
        take = bool(mine) and part in _missing(parts, folder, recorded())
        if take:
            make(part)
        return take
