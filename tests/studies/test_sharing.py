"""What another process was making when it failed or died is made by those that are left."""

import subprocess
import sys
import threading
import time

import pandas as pd
import pytest

from fisherlab.studies import sharing
from fisherlab.studies.study import Part

DIES = """
import sys, time
from pathlib import Path
from fisherlab.studies.sharing import share
from fisherlab.studies.study import Part

def make(part):
    print(part.name, flush=True)
    time.sleep(600)

share([Part("first part", ("first.csv",), make)], Path(sys.argv[1]), make, lambda: [], make)
"""


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    monkeypatch.setattr(sharing, "POLL", 0.02)


class Study:
    """Parts by name, and which are recorded; a part's maker writes its table."""

    def __init__(self, folder, makers, needs=None, pieces=None):
        self.folder, self.recorded, self.makers, self.pieces = folder, [], makers, pieces or {}
        self.parts = [
            Part(n, (f"{n[:5]}.csv",), makers[n], (needs or {}).get(n, ()), pieces=self.pieces.get(n, {}))
            for n in makers
        ]

    def share(self):
        sharing.share(self.parts, self.folder, self.make, lambda: list(self.recorded), self.piece)

    def piece(self, part, key):
        part.pieces[key](None)

    def make(self, part):
        sharing.pieces(part, self.folder, self.piece)
        self.makers[part.name](None)
        pd.DataFrame({"x": [1]}).to_csv(self.folder / part.tables[0])
        self.recorded.append(part.name)


def test_a_part_whose_maker_raises_is_free_again(tmp_path):
    made, fails = [], threading.Event()
    begun = threading.Event()

    def first(bar):
        made.append(threading.current_thread().name)
        if len(made) == 1:
            begun.set()
            assert fails.wait(60)
            raise RuntimeError("power cut")

    study, caught = Study(tmp_path, {"first part": first}), []

    def other():
        with pytest.raises(RuntimeError, match="power cut"):
            study.share()
        caught.append(True)

    thread = threading.Thread(target=other, name="fails")
    thread.start()
    assert begun.wait(60)
    waiting = threading.Thread(target=study.share, name="waits", daemon=True)
    waiting.start()
    time.sleep(0.1)
    assert made == ["fails"]  # held: nobody else makes it
    fails.set()
    thread.join(60)
    waiting.join(60)
    assert caught
    assert not waiting.is_alive()
    assert made == ["fails", "waits"]
    assert study.recorded == ["first part"]
    assert not list(tmp_path.glob(".*"))


def test_a_dead_process_s_part_is_taken_over(tmp_path, capsys):
    process = subprocess.Popen([sys.executable, "-c", DIES, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline().strip() == "first part"
        made = []
        makers = {"first part": lambda bar: made.append("first"), "other part": lambda bar: made.append("other")}
        study = Study(tmp_path, makers)
        thread = threading.Thread(target=study.share, daemon=True)
        thread.start()
        end = time.monotonic() + 60
        while study.recorded != ["other part"] and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.2)
        assert study.recorded == ["other part"]  # the first one is the other process's while that lives
        assert "waiting for other processes, which make: first part" in capsys.readouterr().out
    finally:
        process.kill()
        process.communicate()
    thread.join(60)
    assert not thread.is_alive()
    assert made == ["other", "first"]
    assert not list(tmp_path.glob(".*"))


def test_what_is_needed_is_waited_for(tmp_path):
    made = []
    makers = {n: lambda bar, n=n: made.append(n) for n in ("final part", "again part", "first part")}
    study = Study(tmp_path, makers, {"final part": ("again.csv",), "again part": ("first.csv",)})
    study.share()
    assert made == ["first part", "again part", "final part"]
    study.share()
    assert len(made) == 3
    (tmp_path / "again.csv").unlink()  # recorded, but its table is gone
    study.share()
    assert made[3:] == ["again part"]


class Pieces:
    """Pieces that take as long as they are held, and who did them; one that is done is done again at once."""

    def __init__(self, *keys):
        self.held = {key: threading.Event() for key in keys}
        self.begun = {key: threading.Event() for key in keys}
        self.did, self.done = [], set()

    def by_name(self):
        return {key: lambda bar, key=key: self.do(key) for key in self.held}

    def do(self, key):
        if key in self.done:
            return
        self.did.append((key, threading.current_thread().name))
        self.begun[key].set()
        assert self.held[key].wait(60)
        self.done.add(key)


def test_a_process_without_a_part_does_the_last_pieces_of_another_s(tmp_path):
    pieces, made = Pieces("a", "b", "c"), []

    def make(bar):
        assert pieces.done == {"a", "b", "c"}
        made.append(threading.current_thread().name)

    study = Study(tmp_path, {"first part": make}, pieces={"first part": pieces.by_name()})
    threads = [threading.Thread(target=study.share, name=name, daemon=True) for name in ("maker", "helper")]
    threads[0].start()
    assert pieces.begun["a"].wait(60)
    threads[1].start()
    assert pieces.begun["c"].wait(60)
    pieces.held["a"].set()
    assert pieces.begun["b"].wait(60)  # the maker goes on to what nobody does
    pieces.held["b"].set()
    time.sleep(0.2)
    assert not made  # and waits for what the other does
    pieces.held["c"].set()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert pieces.did == [("a", "maker"), ("c", "helper"), ("b", "maker")]
    assert made == ["maker"]
    assert not list(tmp_path.glob(".*"))


def test_a_piece_whose_helper_fails_is_the_maker_s(tmp_path):
    pieces = Pieces("a", "b")
    study = Study(tmp_path, {"first part": lambda bar: None}, pieces={"first part": pieces.by_name()})
    maker = threading.Thread(target=study.share, name="maker", daemon=True)
    maker.start()
    assert pieces.begun["a"].wait(60)

    def fails(part, key):
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        sharing.share(study.parts, tmp_path, study.make, lambda: list(study.recorded), fails)
    for event in pieces.held.values():
        event.set()
    maker.join(60)
    assert not maker.is_alive()
    assert pieces.did == [("a", "maker"), ("b", "maker")]
