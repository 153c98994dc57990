"""What all studies share: parts that are made once, claims with verdicts, one folder of tables and figures."""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
from tqdm import tqdm

from fisherlab.errors import UsageError, did_you_mean
from fisherlab.files import replace, write_json
from fisherlab.studies import STUDIES
from fisherlab.studies.sharing import alone, pieces, share

Tables = dict[str, pd.DataFrame]
VERDICTS = ("reproduced", "contradicted", "inconclusive")
RECORD = "study.json"


@dataclass(frozen=True)
class Part:
    """A piece of a study that is made as a whole, and not again where its tables are there.

    Attributes:
        name: Shown while it is made.
        tables: File names that it leaves.
        make: Makes them; is given the progress bar.
        needs: Tables of other parts that it reads.
        pieces: What takes long of it, by name: each keeps what it did beside the tables and goes on where it stopped,
            so that other processes may do some of it before `make` puts all together.
        settings: The scale's settings that it depends on, which hold once it is made; None for all.
    """

    name: str
    tables: tuple[str, ...]
    make: Callable[[tqdm[Any]], Tables]
    needs: tuple[str, ...] = ()
    settings: tuple[str, ...] | None = None
    pieces: Mapping[str, Callable[[tqdm[Any]], Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Claim:
    """A statement of a paper, held against what was measured.

    Attributes:
        claim: In words.
        source: Where the paper says it.
        setting: Under which it was measured.
        expected: What the paper leads to expect.
        measured: The numbers.
        n: How many independent measurements.
        uncertainty: Their spread or tolerance.
        verdict: reproduced, contradicted or inconclusive.
    """

    claim: str
    source: str
    setting: str
    expected: str
    measured: str
    n: int
    uncertainty: str
    verdict: str

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(f"verdict={self.verdict!r}: expected one of {', '.join(VERDICTS)}")


class Study(Protocol):
    """What a study's module offers.

    With `PIECEWISE = True` its claims are judged, and its figures drawn, after every part that took a minute.
    `derived(folder)`, where it has one, gives tables that follow from the others.
    """

    def parts(self, settings: Mapping[str, Any], folder: Path) -> list[Part]:
        """List what there is to be made at a scale; a part may read those tables that it `needs`."""

    def claims(self, folder: Path) -> list[Claim]:
        """Judge the paper's claims by the tables."""


def gathered(tables: Sequence[str], pieces: Iterable[Callable[[tqdm[Any]], Any]], bar: tqdm[Any]) -> Tables:
    """Make a part of which each piece has some rows of every table: `Part.make`, once tables and pieces are given.

    Args:
        tables: The part's.
        pieces: Each gives a data frame per table, or None where it has nothing to tell.
        bar: Progress.

    Returns:
        The tables.

    Raises:
        RuntimeError: If no piece has anything to tell.
    """
    found = [one for one in (piece(bar) for piece in pieces) if one is not None]
    if not found:
        raise RuntimeError(f"there is nothing to put into {', '.join(tables)}: no trial finished")
    return {table: pd.concat(rows) for table, rows in zip(tables, zip(*found, strict=True), strict=True)}


def load(name: str) -> Study:
    """Import a study.

    Args:
        name: Its name, a key of `STUDIES`.

    Returns:
        Its module.
    """
    return importlib.import_module(STUDIES[name])


def run(
    name: str,
    settings: Mapping[str, Any],
    folder: Path,
    facts: Mapping[str, Any],
    *,
    show_bar: bool,
    only: str | None = None,
) -> None:
    """Make what is missing of a study, judge its claims and draw its figures.

    Args:
        name: Of the study.
        settings: Its scale's.
        folder: `results/studies/<name>/<scale>`.
        facts: What it runs on: versions, commit, device, threads.
        show_bar: Whether to draw progress bars.
        only: Text in the names of the parts that are wanted, which are made with those that they need; None for all.

    Raises:
        UsageError: If the folder holds tables that were made with other settings, or no part is called so.
    """
    parts = load(name).parts(settings, folder)  # what is wrong with the settings is said before anything is written
    wanted = _wanted(parts, only)
    _check_threads(folder, parts, facts)
    begin(folder, settings, facts, parts)
    making = _Making(name, settings, folder, facts, parts, show_bar)
    share(wanted, folder, making.make, making.recorded, making.piece)
    if _piecewise(name) or all((folder / table).exists() for part in parts for table in part.tables):
        conclude(name, folder)


def _piecewise(name: str) -> bool:
    return bool(getattr(load(name), "PIECEWISE", False))


def _wanted(parts: list[Part], only: str | None) -> list[Part]:
    """The parts whose names contain a text, and those whose tables these need, in their order."""
    wanted = [part for part in parts if (only or "") in part.name]
    if not wanted:
        raise UsageError(f"only={only!r} is in no part's name: {did_you_mean(str(only), [p.name for p in parts])}")
    while more := [p for p in parts if p not in wanted and any({*p.tables} & {*w.needs} for w in wanted)]:
        wanted += more
    return [part for part in parts if part in wanted]


@dataclass(frozen=True)
class _Making:
    """One process at the parts of a study; the fields are the arguments of `run`, and the parts."""

    name: str
    settings: Mapping[str, Any]
    folder: Path
    facts: Mapping[str, Any]
    parts: list[Part]
    show_bar: bool

    def recorded(self) -> dict[str, Any]:
        """What the study's record says of the parts that are made."""
        found: dict[str, Any] = json.loads((self.folder / RECORD).read_text())["parts"]
        return found

    def make(self, part: Part) -> None:
        """Make a part: its pieces, which others may help with, and then its tables."""
        self._note(part, {})
        pieces(part, self.folder, self.piece)
        began = _now()
        try:
            with self._bar(part.name) as bar:
                found = part.make(bar)
            for table in part.tables:
                write_table(self.folder / table, found[table])
        except BaseException:  # also where it was asked to stop: it is gone on with, and this time counts then
            self._note(part, _since(began))
            raise
        took = self._note(part, _since(began), done=True)
        print(f"{part.name}: {took['seconds']} s", flush=True)
        if _piecewise(self.name) and took["seconds"] > 60:
            try:
                conclude(self.name, self.folder)
            except Exception as error:  # what took hours goes on; at the end it is raised
                print(f"fisherlab: warning: claims or figures: {type(error).__name__}: {error}", file=sys.stderr)

    def piece(self, part: Part, key: str) -> None:
        """Do a piece of a part that this or another process makes; the time counts as the part's."""
        began = _now()
        try:
            with self._bar(f"{part.name}: {key}") as bar:
                part.pieces[key](bar)
        finally:
            self._note(part, _since(began))

    def _bar(self, told: str) -> tqdm[Any]:
        return tqdm(desc=told, disable=not self.show_bar, dynamic_ncols=True)

    def _note(self, part: Part, took: Mapping[str, float], *, done: bool = False) -> dict[str, Any]:
        with alone(self.folder):
            record = begin(self.folder, self.settings, self.facts, self.parts)
            record |= {"planned": [part.name for part in self.parts]}
            if took and part.name not in record.get("unfinished", {}):
                return {}  # its maker is done: a helper looked at a piece once more
            noted = _noted(record, part.name, took, self.facts if done else None)
            write_json(self.folder / RECORD, record)
        return noted


def _check_threads(folder: Path, parts: Sequence[Part], facts: Mapping[str, Any]) -> None:
    """Of a part that processes share, all runs have one number of threads."""
    if not (folder / RECORD).exists():
        return
    found = json.loads((folder / RECORD).read_text())
    then, now = found["environment"].get("threads"), facts.get("threads")
    begun = [part.name for part in parts if part.pieces and part.name in found.get("unfinished", {})]
    if begun and then != now:
        raise UsageError(f"threads={now}: '{begun[0]}' in '{folder}' was begun with threads={then}: expected that")


def _now() -> dict[str, float]:
    """Elapsed time, which counts what else the machine does meanwhile, and processor time, which does not."""
    return {"seconds": time.perf_counter(), "cpu_seconds": time.process_time()}


def _since(began: Mapping[str, float]) -> dict[str, float]:
    return {key: now - began[key] for key, now in _now().items()}


def _noted(
    record: dict[str, Any], name: str, took: Mapping[str, float], facts: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Note in a study's record what a session spent on a part, beside what earlier ones did; facts where it is done."""
    open_parts = record.setdefault("unfinished", {})
    before = open_parts.pop(name, {})
    noted: dict[str, Any] = {key: round(before.get(key, 0) + took.get(key, 0), 1) for key in ("seconds", "cpu_seconds")}
    if facts is None:
        open_parts[name] = noted
    else:
        noted |= {key: facts.get(key) for key in ("commit", "threads", "device_name")}
        record["parts"][name] = noted
    if not open_parts:
        del record["unfinished"]
    return noted


def conclude(name: str, folder: Path) -> None:
    """Judge a study's claims by its tables, and draw its figures.

    Args:
        name: Of the study.
        folder: With its tables.
    """
    study = load(name)
    with alone(folder):
        for table, found in getattr(study, "derived", lambda _: {})(folder).items():
            write_table(folder / table, found)
        write_table(folder / "claims.csv", pd.DataFrame([asdict(claim) for claim in study.claims(folder)]))
        draw(name, folder)


def begin(
    folder: Path, settings: Mapping[str, Any], facts: Mapping[str, Any], parts: Sequence[Part] = ()
) -> dict[str, Any]:
    """Begin a study in a folder, or go on with it.

    Args:
        folder: Its folder.
        settings: Its scale's.
        facts: What it runs on.
        parts: Which of the settings they depend on; one that is not among them depends on all.

    Returns:
        What `study.json` holds: the settings, the facts, and by part the seconds it took, its commit and its machine.

    Raises:
        UsageError: If the folder holds tables that were made with other settings.
    """
    record: dict[str, Any] = {"settings": dict(settings), "environment": dict(facts), "parts": {}}
    path = folder / RECORD
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, record)
        return record
    found: dict[str, Any] = json.loads(path.read_text())
    known = {part.name: part.settings for part in parts}
    made = [known.get(name) for name in (*found["parts"], *found.get("unfinished", {}))] or [None]
    for key, value in settings.items():
        # A setting that no part depends on which is made, or begun, may still change.
        held = any(own is None or key in own for own in made)
        if held and key in found["settings"] and not _goes_on(found["settings"][key], value):
            raise UsageError(
                f"'{folder}' was made with {key}={found['settings'].get(key)}, not {value}: "
                "remove it, or choose another with results=PATH"
            )
    # A setting that did not exist then concerns parts that did not either.
    return found | {"settings": found["settings"] | dict(settings), "environment": dict(facts)}


def _goes_on(then: Any, now: Any) -> bool:
    """Whether a setting is the same, or a list of names that has grown: what was made stays as it is."""
    named = isinstance(now, list) and all(isinstance(one, str) for one in now)
    return bool(then == now or (named and isinstance(then, list) and set(then) <= set(now)))


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table whole or not at all; its numbers restore their float64.

    Args:
        path: Ends in .csv, or in .csv.gz.
        table: The table.
    """
    # Without a time of its own in the archive, so that equal tables are equal files.
    packed: Any = {"method": "gzip", "mtime": 0} if path.suffix == ".gz" else None
    replace(path, lambda temporary: table.to_csv(temporary, index=False, compression=packed))


def draw(name: str, folder: Path) -> list[Path]:
    """Draw a study's figures, as PNG and PDF; in a corner of each, the scale that it was made at.

    Args:
        name: Of the study.
        folder: With its tables.

    Returns:
        The files written.
    """
    figures = importlib.import_module(f"fisherlab.plots.{name}").figures(folder)
    written: list[Path] = []
    for title, figure in figures.items():
        figure.text(0.995, 0.003, f"scale {folder.name}", ha="right", va="bottom", fontsize=7, color="0.5")
        for suffix, metadata in ((".png", {"Software": None}), (".pdf", {"CreationDate": None})):
            path = folder / f"{title}{suffix}"
            replace(path, partial(figure.savefig, dpi=120, metadata=metadata))
            written.append(path)
            figure.set_layout_engine("none")  # as the first one laid it out, which takes half the time
    return written


def settings_of(folder: Path) -> dict[str, Any]:
    """Read the settings that a study was made with.

    Args:
        folder: The study's.

    Returns:
        The scale's settings.
    """
    found: dict[str, Any] = json.loads((folder / RECORD).read_text())["settings"]
    return found


def read_table(path: Path) -> Any:
    """Read a table of a study.

    Args:
        path: The file.

    Returns:
        A data frame; typed Any, because pandas' stubs take a cell for anything from a date to bytes.
    """
    return pd.read_csv(path)
