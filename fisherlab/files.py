"""Files of a run directory appear whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fisherlab.errors import UsageError


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside its place, then rename it.

    Args:
        path: Where the file goes.
        write: Writes to the path it is given.
    """
    # One name per file, so that what a kill leaves is overwritten next time: a run directory has one writer at a time.
    temporary = path.with_name(f".{path.stem}.new{path.suffix}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file atomically.

    Args:
        path: Where it goes.
        value: Plain values; non-finite numbers are written as null.
    """
    text = json.dumps(_plain(value), indent=2, allow_nan=False) + "\n"
    replace(path, lambda p: p.write_text(text))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and value - value != 0:
        return None
    return value


def check_writable(folder: Path) -> None:
    """See that a folder could be made and filled, leaving nothing behind; before minutes of work, not after.

    Args:
        folder: A folder that may not exist yet.

    Raises:
        UsageError: If it could not.
    """
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"x")
            file.flush()
    except OSError as error:
        raise UsageError(f"'{folder}' cannot be written: {error.strerror}; choose another with results=PATH") from None


def make_folder(folder: Path, files: Mapping[str, str]) -> Path:
    """Make a run directory together with its first files, by one rename.

    Args:
        folder: Where it goes; an empty folder may stand there.
        files: Contents by name.

    Returns:
        The folder.

    Raises:
        UsageError: If it cannot be written, or something is there already.
    """
    temporary: Path | None = None
    made = _missing_parents(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".new-", dir=folder.parent))
        temporary.chmod(0o755)
        for name, text in files.items():
            (temporary / name).write_text(text)
        os.rename(temporary, folder)
    except OSError as error:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        for parent in made:
            parent.rmdir() if parent.is_dir() else None
        reason = "it is there already and not empty" if folder.is_dir() and any(folder.iterdir()) else error.strerror
        raise UsageError(f"'{folder}' cannot be made: {reason}; choose another with hydra.run.dir=PATH") from None
    return folder


def _missing_parents(folder: Path) -> list[Path]:
    """The parents that do not exist yet, innermost first."""
    missing = []
    for parent in folder.parents:
        if parent.exists():
            break
        missing.append(parent)
    return missing
