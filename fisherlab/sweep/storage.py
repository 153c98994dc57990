"""Where a search's trials are kept: an Optuna storage that several processes may share."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from fisherlab.errors import UsageError
from fisherlab.schema import show
from fisherlab.sweep.record import difference

JOURNAL = "optuna.journal"
MEANWHILE = ("already exists", "UNIQUE constraint", "duplicate key", "database is locked")  # another process did it


def open_study(storage: str | None, folder: Path, name: str, about: Mapping[str, Any]) -> Any:
    """Open a search in its storage, or begin it there.

    Args:
        storage: URL of an Optuna storage, a `.journal` file, or None for a journal in the folder.
        folder: The search's folder.
        name: Of the search in its storage.
        about: What all that take part in it agree in.

    Returns:
        A study of Optuna, to be minimised.

    Raises:
        UsageError: If Optuna is not installed, the storage cannot be opened, or holds a search of that name with
            another space, objective or config; names the first key that differs.
    """
    try:
        import optuna
    except ImportError:
        raise UsageError("fisherlab tune needs Optuna: expected pip install 'fisherlab[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        study = _create(optuna, storage, folder, name)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"tune.storage={show(storage)} cannot be opened ({reason}): expected a URL such as sqlite:///FILE.db, a "
            "path that ends in .journal, or null"
        ) from error
    now = json.loads(json.dumps(about))
    then = study.user_attrs.get("about")
    if then is None:
        study.set_user_attr("about", now)
    elif changed := difference(then, now):
        raise UsageError(f"the search '{name}' was begun otherwise ({changed}): expected another tune.name or results=")
    return study


def _create(optuna: Any, storage: str | None, folder: Path, name: str, attempts: int = 10) -> Any:
    """Open a study; once more where another process is just making the tables of the same new database."""
    try:
        return optuna.create_study(
            storage=_open(storage, folder), study_name=name, direction="minimize", load_if_exists=True
        )
    except Exception as error:
        if attempts <= 1 or not any(sign in str(error) for sign in MEANWHILE):
            raise
        time.sleep(0.2)
        return _create(optuna, storage, folder, name, attempts - 1)


def _open(storage: str | None, folder: Path) -> Any:
    if storage is not None and not storage.endswith(".journal"):
        return storage
    from optuna.storages import JournalStorage
    from optuna.storages.journal import BaseJournalBackend, JournalFileBackend

    path = folder / JOURNAL if storage is None else Path(storage)
    path.parent.mkdir(parents=True, exist_ok=True)
    backend: BaseJournalBackend = JournalFileBackend(str(path), lock_obj=_Lock(path))  # type: ignore[arg-type]
    return JournalStorage(backend)


class _Lock:
    """A journal's lock that the kernel takes back from a killed process; Optuna's own is waited for 30 s then.

    While it is held nobody writes, so a line that a killed process has torn is cut off before the next is written:
    Optuna refuses to read a journal with such a line in its midst.

    Args:
        path: The journal.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(f"{path}.lock")

    def acquire(self) -> bool:
        """Wait for the lock."""
        self._lock.acquire()
        if self.path.exists():
            _cut_torn_line(self.path)
        return True

    def release(self) -> None:
        """Let it go."""
        self._lock.release()


def _cut_torn_line(path: Path) -> None:
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        if not size or (file.seek(-1, os.SEEK_END), file.read(1))[1] == b"\n":
            return
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
