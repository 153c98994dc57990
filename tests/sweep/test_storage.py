"""Where the trials of a search are kept: what a kill leaves is survived, what cannot be opened is refused."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest

from fisherlab.errors import UsageError
from fisherlab.sweep.storage import JOURNAL, open_study

ABOUT = {"objective": "train_loss", "space": {"lr": [0.1, 1.0, True]}, "config": {"seed": 0, "results": "here"}}
STORAGES = [None, "sqlite:///{}/some.db", "{}/elsewhere/some.journal"]
DIE = """
import os, signal, sys
from pathlib import Path
from fisherlab.sweep.storage import _Lock
_Lock(Path(sys.argv[1])).acquire()
os.kill(os.getpid(), signal.SIGKILL)
"""


def study(folder: Path, storage: str | None = None, name: str = "name", **changed):
    return open_study(storage and storage.format(folder), folder / "search", name, {**ABOUT, **changed})


@pytest.mark.parametrize("storage", STORAGES)
def test_who_opens_it_again_finds_its_trials(tmp_path, storage):
    first = study(tmp_path, storage)
    first.tell(first.ask({"lr": optuna.distributions.FloatDistribution(0, 1)}), 3.0)
    again = study(tmp_path, storage)
    assert [(t.value, t.params) for t in again.trials] == [(3.0, first.trials[0].params)]
    assert not study(tmp_path, storage, "other").trials
    again.ask()
    assert len(first.trials) == 2
    assert first.direction.name == "MINIMIZE"


@pytest.mark.parametrize("torn", [b'{"op_code": 4, "wor', b"{", b"\xff"])
def test_a_torn_last_line_is_survived(tmp_path, torn):
    first = study(tmp_path)
    first.tell(first.ask(), 1.0)
    path = tmp_path / "search" / JOURNAL
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    again = study(tmp_path)
    again.tell(again.ask(), 2.0)
    assert path.read_bytes().startswith(whole + b"{")
    assert [t.value for t in study(tmp_path).trials] == [1.0, 2.0]


def test_a_journal_that_is_torn_from_its_first_line(tmp_path):
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / JOURNAL).write_bytes(b'{"op_c')
    assert not study(tmp_path).trials
    assert study(tmp_path).user_attrs["about"] == ABOUT


def test_a_killed_process_keeps_no_lock(tmp_path):
    study(tmp_path)
    subprocess.run([sys.executable, "-c", DIE, str(tmp_path / "search" / JOURNAL)], check=False)
    assert (tmp_path / "search" / f"{JOURNAL}.lock").exists()
    began = time.perf_counter()
    study(tmp_path).ask()
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize(
    "storage", ["nonsense", "sqlite:///{}/nowhere/some.db", "{}/file/some.journal", "nosuchdb://host/name"]
)
def test_what_cannot_be_opened_is_refused_and_nothing_is_written(tmp_path, storage):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError) as refused:
        study(tmp_path, storage)
    says = str(refused.value)
    assert says.startswith(f"tune.storage={storage.format(tmp_path)} cannot be opened (")
    assert "expected a URL such as sqlite:///FILE.db, a path that ends in .journal, or null" in says
    assert "\n" not in says
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("storage", STORAGES)
def test_a_search_begun_otherwise_is_refused_and_stays(tmp_path, storage):
    study(tmp_path, storage)
    with pytest.raises(
        UsageError, match=r"'name' was begun otherwise \(space.lr=\[0.1,2.0,true\], then \[0.1,1.0,true\]"
    ):
        study(tmp_path, storage, space={"lr": [0.1, 2.0, True]})
    with pytest.raises(UsageError, match=r"\(config.seed=1, then 0\): expected another tune.name or results="):
        study(tmp_path, storage, config={"seed": 1, "results": "here"})
    assert study(tmp_path, storage).user_attrs["about"] == ABOUT


def test_without_optuna_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UsageError, match=r"needs Optuna: expected pip install 'fisherlab\[tune\]'"):
        study(tmp_path)
    assert not list(tmp_path.iterdir())
