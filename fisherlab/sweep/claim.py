"""A claim on a folder: two workers never do the same work, and a dead worker keeps nothing.

On one machine `flock` decides: the kernel takes it back from a process however that ends. Between machines that share
a file system it may not be seen, so the holder also renews a heartbeat, the file's modification time.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from fisherlab.errors import UsageError

NAME = "claim"
BEAT = 10.0  # seconds between heartbeats
DEAD = 60.0  # age in seconds of a heartbeat at which another machine may take over
SETTLE = 2.0  # seconds in which two machines that take over the same dead claim see each other
ATTEMPTS = 10  # how often a claim may be released between opening and locking it

_open: set[int] = set()


class Claim:
    """What `claim` gives; true while the folder is this process's.

    It turns false where the process was halted for so long that another machine took the folder over.

    Args:
        path: The claim's file.
        handle: The open, locked file; None where another worker holds the folder.
        text: What the file says of its holder.
    """

    def __init__(self, path: Path, handle: int | None, text: bytes = b"") -> None:
        self._path, self._handle, self._text = path, handle, text
        self._owner = os.getpid()
        self._lost = threading.Event()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="fisherlab-claim", daemon=True)
        if handle is not None:
            self._thread.start()

    def __bool__(self) -> bool:
        return self._handle is not None and not self._lost.is_set()

    def _renew(self) -> None:
        assert self._handle is not None
        while not self._end.wait(BEAT):
            # A file system that is out of reach for a while costs a heartbeat, not the claim.
            with contextlib.suppress(OSError):
                if _read(self._path) != self._text:
                    self._lost.set()
                    return
                os.utime(self._handle)

    def release(self) -> None:
        """Give the folder back; nothing happens in a forked child, or where nothing is held."""
        if self._handle is None or self._owner != os.getpid():
            return
        self._end.set()
        self._thread.join()
        # The file goes while it is locked, so that who opened it before sees that it is no longer the one to lock.
        with contextlib.suppress(OSError):
            if _read(self._path) == self._text:
                self._path.unlink()
        _close(self._handle)
        self._handle = None


@contextlib.contextmanager
def claim(folder: Path, name: str = NAME) -> Iterator[Claim]:
    """Hold a folder, or one of several things in it, for as long as the block runs.

    Args:
        folder: An existing folder.
        name: Of the file that stands for what is held.

    Yields:
        A claim: false at once where another live worker holds the folder.

    Raises:
        UsageError: If the folder cannot be written to.
    """
    mine = _take(Path(folder) / name)
    try:
        yield mine
    finally:
        mine.release()


def _take(path: Path) -> Claim:
    try:
        for _ in range(ATTEMPTS):
            for attempt in (_create, _enter):
                found = attempt(path)
                if found is not None:
                    return found
    except OSError as error:
        expected = "expected a folder that can be written"
        raise UsageError(f"'{path.parent}' cannot be claimed: {error.strerror or error}; {expected}") from None
    return Claim(path, None)


def _create(path: Path) -> Claim | None:
    """Claim what nobody claims: making the file is atomic on every file system, shared ones included."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return None
    _open.add(handle)
    try:
        # Whoever else locks the empty file finds it fresh and of an unknown holder, and lets go at once: so wait.
        return Claim(path, handle, _sign(handle, _lock(handle, wait=True) is True))
    except BaseException:
        path.unlink(missing_ok=True)
        _close(handle)
        raise


def _enter(path: Path) -> Claim | None:
    """Claim what has a claim already, if its holder is dead; None where the file has gone meanwhile."""
    try:
        handle = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return None
    _open.add(handle)
    keep = False
    try:
        locked = _lock(handle)
        if locked is False:
            return Claim(path, None)
        if not _same(path, handle):
            return None
        here = locked is True and os.pread(handle, 100, 0).startswith(_machine(handle))
        stale = _age(path, handle) > DEAD
        if not (here or stale):
            return Claim(path, None)
        text = _sign(handle, locked is True)
        if stale:
            # Another machine may have judged so too: the last to write keeps it.
            time.sleep(SETTLE)
            if not _same(path, handle) or _read(path) != text:
                return Claim(path, None)
        keep = True
        return Claim(path, handle, text)
    finally:
        if not keep:
            _close(handle)


def _lock(handle: int, wait: bool = False) -> bool | None:
    """Lock the file; False where another has it, None where the file system has no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            return None
        raise
    return True


def _sign(handle: int, locked: bool) -> bytes:
    """Write who holds it, always the same number of bytes, in one call, and the heartbeat."""
    # Without a lock nobody, on this machine or another, may conclude from the machine that the holder is dead.
    machine = _machine(handle) if locked else uuid.uuid4().hex[:16].encode()
    text = machine + b" " + uuid.uuid4().hex.encode() + b"\n"
    os.pwrite(handle, text, 0)
    os.utime(handle)
    return text


def _machine(handle: int) -> bytes:
    """Where the file's locks are seen: this boot of this machine and this mount, as 16 letters that name nobody."""
    try:
        identity = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        identity = str(uuid.getnode())
    return hashlib.sha256(f"fisherlab {identity} {os.fstat(handle).st_dev}".encode()).hexdigest()[:16].encode()


def _read(path: Path) -> bytes | None:
    """What the file says now; opening it anew makes a network file system ask its server."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _same(path: Path, handle: int) -> bool:
    """Whether the open file is still the one at its path."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except FileNotFoundError:
        return False


def _age(path: Path, handle: int) -> float:
    """Seconds since the heartbeat by the file system's clock: those of two machines may differ by minutes."""
    with tempfile.TemporaryFile(dir=path.parent) as probe:
        os.utime(probe.fileno())
        return os.fstat(probe.fileno()).st_mtime - os.fstat(handle).st_mtime


def _close(handle: int) -> None:
    _open.discard(handle)
    os.close(handle)


def _forget() -> None:
    """Close the claims in a forked child, which would else keep the lock of a parent that was killed."""
    while _open:
        with contextlib.suppress(OSError):
            os.close(_open.pop())


os.register_at_fork(after_in_child=_forget)
