"""The figure of a search, from its tables alone."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from fisherlab.plots import search as module
from fisherlab.plots.search import draw_search

STATES = ["complete", "pruned", "complete", "complete", "running"]


def tables(folder: Path, values=(3.0, None, 1.0, 2.0, None), importances: bool = False, states=STATES) -> Path:
    folder.mkdir()
    space = {"lr": [1e-4, 1.0, True], "momentum": [0.0, 0.9, False]}
    (folder / "search.json").write_text(json.dumps({"identity": "x", "space": space}))
    trials = {"number": range(5), "state": states, "value": values, "lr": [1e-3, 0.9, 0.1, 0.2, 0.3]}
    pd.DataFrame(trials | {"momentum": [0.1, 0.2, 0.3, 0.4, 0.5]}).to_csv(folder / "trials.csv", index=False)
    if importances:
        pd.DataFrame({"key": ["lr", "momentum"], "importance": [0.8, 0.2]}).to_csv(folder / "importances.csv")
    return folder


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """Every figure that is made."""
    figures: list[Figure] = []

    class Kept(Figure):
        def __init__(self, *args, **kwargs) -> None:
            super().__init__(*args, **kwargs)
            figures.append(self)

    monkeypatch.setattr(module, "Figure", Kept)
    return figures


def test_best_so_far_and_what_diverged(tmp_path, drawn):
    assert draw_search(tables(tmp_path / "a"), "train_loss") == tmp_path / "a" / "search.png"
    history, lr, momentum = drawn[0].axes
    trials, best, crosses = history.lines
    assert list(trials.get_ydata()) == [3, 1, 2]
    assert list(best.get_ydata()) == [3, 1, 1]
    assert list(crosses.get_xdata()) == [1]
    assert list(lr.lines[0].get_xdata()) == [0.9]
    assert (history.get_ylabel(), history.get_title()) == ("train loss", "5 trials")
    assert [axis.get_xscale() for axis in (lr, momentum)] == ["log", "linear"]
    assert [axis.get_xlim() for axis in (lr, momentum)] == [(1e-4, 1.0), (0.0, 0.9)]
    assert [axis.get_title() for axis in (lr, momentum)] == ["lr", "momentum"]


@pytest.mark.parametrize("importances", [False, True])
@pytest.mark.parametrize("states", [STATES, ["complete"] * 5, ["pruned"] * 4 + ["complete"]])
def test_it_fits_its_panels(tmp_path, importances, states):
    values = [1.0 if state == "complete" else None for state in states]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = draw_search(tables(tmp_path / "a", values, importances, states), "train_loss")
    assert imread(path).shape[1] == (4 if importances else 3) * 396


@pytest.mark.parametrize(
    ("values", "scale"), [((3.0, None, 1.0, 2.0, None), "log"), ((3.0, None, 0.0, 2.0, None), "linear")]
)
def test_a_logarithm_where_all_values_have_one(tmp_path, drawn, values, scale):
    draw_search(tables(tmp_path / "a", values), "test_error")
    assert {axis.get_yscale() for axis in drawn[0].axes} == {scale}


def test_it_needs_no_torch_and_no_optuna(tmp_path):
    code = (
        "import sys; from pathlib import Path; from fisherlab.plots.search import draw_search; "
        "draw_search(Path(sys.argv[1]), 'train_loss'); sys.exit({'torch', 'optuna'} & set(sys.modules) != set())"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tables(tmp_path / "a"))], check=False).returncode == 0
