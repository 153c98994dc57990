"""A folder has one holder, and a dead one keeps nothing; with real processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fisherlab.errors import UsageError
from fisherlab.sweep import claim as module
from fisherlab.sweep.claim import NAME, claim

FOREIGN = b"0" * 16 + b" " + b"1" * 32 + b"\n"
HOLD = """
import sys, time
from pathlib import Path
from fisherlab.sweep.claim import claim
with claim(Path(sys.argv[1])) as mine:
    print(bool(mine), flush=True)
    sys.stdin.readline()
"""
RACE = """
import sys, time
from pathlib import Path
from fisherlab.sweep.claim import claim
sys.stdin.readline()
wins, end = 0, time.perf_counter() + 30
while wins < 100 and time.perf_counter() < end:
    with claim(Path(sys.argv[1])) as mine:
        if mine:
            wins += 1
            alone = Path(sys.argv[1]) / "alone"
            alone.mkdir()  # fails where two are in here
            alone.rmdir()
    time.sleep(1e-4)
print(wins, flush=True)
"""
FORK = """
import os, sys, time
from pathlib import Path
from fisherlab.sweep.claim import claim
with claim(Path(sys.argv[1])) as mine:
    child = os.fork()
    if child == 0:
        os.close(1)
        time.sleep(60)
        os._exit(0)
    print(child, flush=True)
    sys.stdin.readline()
"""


@contextlib.contextmanager
def other(code: str, folder: Path):
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def foreign(folder: Path, age: float, text: bytes = FOREIGN) -> Path:
    """The claim of another machine, whose locks are not seen here."""
    path = folder / NAME
    path.write_bytes(text)
    os.utime(path, (time.time() - age,) * 2)
    return path


def taken(folder: Path) -> bool:
    with claim(folder) as mine:
        return bool(mine)


def test_one_of_two_holds_it_and_the_other_is_told_at_once(tmp_path: Path) -> None:
    with other(HOLD, tmp_path) as holder:
        assert holder.stdout.readline() == "True\n"
        began = time.perf_counter()
        assert not taken(tmp_path)
        assert time.perf_counter() - began < 1
        holder.communicate("\n")
        assert holder.returncode == 0
        assert taken(tmp_path)


def test_within_one_process_too(tmp_path: Path) -> None:
    with claim(tmp_path) as first, claim(tmp_path) as second:
        assert first
        assert not second
    assert taken(tmp_path)


def test_processes_that_compete_are_never_both_inside_and_all_get_their_turn(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(other(RACE, tmp_path)) for _ in range(3)]
        for worker in workers:
            worker.stdin.write("\n")
            worker.stdin.flush()
        assert [worker.communicate()[0] for worker in workers] == ["100\n"] * 3
        assert [worker.returncode for worker in workers] == [0] * 3


@pytest.mark.parametrize("age", [0, 1000])
def test_a_killed_holder_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, age: float) -> None:
    monkeypatch.setattr(module, "SETTLE", 0.01)
    with other(HOLD, tmp_path) as holder:
        holder.stdout.readline()
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert (tmp_path / NAME).exists()
    os.utime(tmp_path / NAME, (time.time() - age,) * 2)
    assert taken(tmp_path)


def test_a_stopped_holder_keeps_it_on_its_own_machine(tmp_path: Path) -> None:
    with other(HOLD, tmp_path) as holder:
        holder.stdout.readline()
        holder.send_signal(signal.SIGSTOP)
        os.utime(tmp_path / NAME, (0, 0))
        assert not taken(tmp_path)


def test_a_child_of_a_killed_holder_keeps_nothing(tmp_path: Path) -> None:
    with other(FORK, tmp_path) as holder:
        child = int(holder.stdout.readline())
        try:
            assert not taken(tmp_path)
            holder.send_signal(signal.SIGKILL)
            holder.wait()
            assert wait_until(lambda: taken(tmp_path))  # the child may not have run yet
        finally:
            os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("text", [FOREIGN, b""])
def test_a_fresh_foreign_heartbeat_is_refused(tmp_path: Path, text: bytes) -> None:
    path = foreign(tmp_path, module.DEAD - 20, text)
    assert not taken(tmp_path)
    assert path.read_bytes() == text


@pytest.mark.parametrize("text", [FOREIGN, b"torn"])
def test_a_stale_foreign_heartbeat_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: bytes) -> None:
    monkeypatch.setattr(module, "SETTLE", 0.05)
    path = foreign(tmp_path, module.DEAD + 20, text)
    with claim(tmp_path) as mine:
        assert mine
        assert path.read_bytes() != text
        assert time.time() - path.stat().st_mtime < 5
    assert not path.exists()


def test_of_two_machines_that_take_over_the_last_to_write_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SETTLE", 0.5)
    path = foreign(tmp_path, 1000)
    rival = threading.Timer(0.2, path.write_bytes, [FOREIGN])
    rival.start()
    assert not taken(tmp_path)
    rival.join()
    assert path.read_bytes() == FOREIGN


def test_the_age_is_by_the_clock_of_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign(tmp_path, 5)
    monkeypatch.setattr(time, "time", lambda: 1e10)
    assert not taken(tmp_path)


def test_the_heartbeat_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT", 0.02)
    with claim(tmp_path) as mine:
        os.utime(tmp_path / NAME, (0, 0))
        assert wait_until(lambda: (tmp_path / NAME).stat().st_mtime > 0)
        assert mine


def test_a_claim_that_another_machine_took_over_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT", 0.02)
    with claim(tmp_path) as mine:
        (tmp_path / NAME).write_bytes(FOREIGN)
        assert wait_until(lambda: not mine)
    assert (tmp_path / NAME).read_bytes() == FOREIGN


def test_an_exception_releases_it(tmp_path: Path) -> None:
    with pytest.raises(KeyError), claim(tmp_path):
        raise KeyError
    assert os.listdir(tmp_path) == []
    assert taken(tmp_path)


def test_without_locks_the_heartbeat_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_lock", lambda handle, wait=False: None)
    monkeypatch.setattr(module, "SETTLE", 0.01)
    with claim(tmp_path) as first:
        assert first
        assert not taken(tmp_path)
        os.utime(tmp_path / NAME, (0, 0))
        assert taken(tmp_path)


def test_a_claim_released_while_another_opens_it_is_not_taken_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = module._take(tmp_path / NAME)
    lock = module._lock

    def slow(handle: int, wait: bool = False) -> bool | None:
        first.release()  # between the second's opening and its locking
        return lock(handle, wait)

    monkeypatch.setattr(module, "_lock", slow)
    with claim(tmp_path) as second:
        assert second
        assert (tmp_path / NAME).exists()
        monkeypatch.undo()
        assert not taken(tmp_path)


def test_nobody_is_named(tmp_path: Path) -> None:
    with claim(tmp_path):
        text = (tmp_path / NAME).read_text()
    machine, holder = text.split()
    assert len(machine) == 16
    assert len(holder) == 32
    int(machine + holder, 16)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'.*gone' cannot be claimed: No such file or directory; expected a folder"):
        taken(tmp_path / "gone")


def test_a_full_disk_leaves_no_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_sign", full)
    with pytest.raises(UsageError, match="cannot be claimed: No space left on device"):
        taken(tmp_path)
    assert os.listdir(tmp_path) == []


def test_it_needs_no_torch() -> None:
    code = "import sys, fisherlab.sweep.claim, fisherlab.sweep.outcome; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def wait_until(condition, seconds: float = 5) -> bool:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        if condition():
            return True
        time.sleep(0.01)
    return False
