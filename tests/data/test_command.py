"""`fisherlab data`: one line per data set, and mistakes said before anything is fetched."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fisherlab.data import DATASETS, command, sources, tables
from fisherlab.errors import UsageError


def test_all_data_sets_are_reported(capsys):
    assert command.main([]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["data", "set", "examples", "inputs", "targets", "where"]
    assert [line.split()[0] for line in lines] == list(DATASETS)
    assert all(", ok" in line or "counts ok" in line or "not here" in line for line in lines)
    assert sum("not here" in line for line in lines) <= 1  # FACES
    assert "60000 train + 10000 test" in lines[0]
    assert str(sources.data_folder() / "MNIST" / "raw") in lines[0]


def test_named_data_sets_only_each_once(capsys):
    assert command.main(["wine", "digits", "wine"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == ["wine", "digits"]


def test_an_unknown_name_is_refused_before_anything_else(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("FISHERLAB_DATA", str(tmp_path / "data"))
    with pytest.raises(UsageError, match="dataset='minst' is unknown: did you mean 'mnist'"):
        command.main(["boston", "minst"])
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "data").exists()


def test_one_damaged_file_does_not_hide_the_others(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("FISHERLAB_DATA", str(tmp_path))
    path = tmp_path / tables.BOSTON.files[0].path
    path.parent.mkdir()
    path.write_bytes(b"damaged")
    with pytest.raises(UsageError, match=f"{path} is damaged"):
        command.main(["boston", "wine"])
    lines = capsys.readouterr().out.splitlines()[1:]
    assert "FAILED" in lines[0]
    assert "counts ok" in lines[1]
    assert path.read_bytes() == b"damaged"


def test_other_targets_than_known_are_refused(monkeypatch):
    monkeypatch.setitem(command.TARGETS, "wine", {"train": (1, 2, 3)})
    with pytest.raises(UsageError, match=r"'wine' has other targets.*\(1, 2, 3\).*\(59, 71, 48\)"):
        command.check("wine")


def test_importing_the_package_loads_no_other_library():
    code = "import sys, fisherlab.data; print(sorted({'sklearn', 'torchvision', 'pandas', 'hydra'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
