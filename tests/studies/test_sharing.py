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

share([Part("first part", ("first.csv",), make)], Path(sys.argv[1]), make, lambda: [])
"""


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    monkeypatch.setattr(sharing, "POLL", 0.02)


class Study:
    """Parts by name, and which are recorded; a part's maker writes its table."""

    def __init__(self, folder, makers, needs=None):
        self.folder, self.recorded, self.makers = folder, [], makers
        self.parts = [Part(n, (f"{n[:5]}.csv",), makers[n], (needs or {}).get(n, ())) for n in makers]

    def share(self):
        sharing.share(self.parts, self.folder, self.make, lambda: list(self.recorded))

    def make(self, part):
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
