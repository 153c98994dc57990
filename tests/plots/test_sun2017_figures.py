"""The figures of Sun and Nielsen (2017) show the paper's methods where they are, whatever another one does."""

import math

import numpy as np
import pandas as pd
import pytest

from fisherlab.plots.sun2017 import figures
from fisherlab.studies.sun2017 import runs, timing
from fisherlab.studies.sun2017.settled import settled_table
from tests.studies.sun2017_tables import curves, folder


def shown(axis, values):
    low, high = axis.get_ylim()
    return bool(np.all((low < np.asarray(values)) & (np.asarray(values) < high)))


def test_a_method_beyond_the_paper_that_is_far_behind_leaves_the_axis(tmp_path):
    tables = {"sgd": curves(0.12, 0.972), "rngd": curves(0.1, 0.974), "efngd": curves(0.9, 0.8)}
    figure = figures(folder(tmp_path, **tables))["curves_plain"]
    objective, accuracy = figure.axes
    assert shown(accuracy, [0.971, 0.975])
    assert not shown(accuracy, [0.96])
    assert accuracy.patches[0].get_label() == "range of the paper's figure"
    assert shown(objective, [0.1, 0.12])
    assert not shown(objective, [0.9 * 21])


def test_a_better_method_beyond_the_paper_is_shown(tmp_path):
    figure = figures(folder(tmp_path, rngd=curves(0.1, 0.974), kfac=curves(0.01, 0.99)))["curves_plain"]
    assert shown(figure.axes[0], [0.0101])
    assert shown(figure.axes[1], [0.99])


def test_the_legend_tells_the_learning_rate_and_how_many_runs_diverged(tmp_path):
    table = curves(0.1, 0.974)
    table.loc[table["seed"] == 1003, "status"] = "diverged"
    table = table[(table["seed"] != 1003) | (table["epoch"] <= 30)]
    accuracy = figures(folder(tmp_path, rngd=table))["curves_plain"].axes[1]
    label = "RNGD, learning rate 0.1 (1 of 10 diverged)"
    mean, *each = (line for line in accuracy.lines if line.get_xdata().size)
    assert mean.get_label() == label
    assert np.isnan(mean.get_ydata()[30:]).all()
    assert len(each) == 10  # of which nine go on to the end
    assert sum(math.isfinite(line.get_ydata()[-1]) for line in each) == 9


def test_variants_are_shown_beside_rngd_and_sgd_which_they_are_judged_against(tmp_path):
    tables = {name: curves(0.1, 0.974) for name in ("sgd", "adam", "rngd", "rngd, softmax")}
    axis = figures(folder(tmp_path, **tables))["variants_plain"].axes[1]
    labels = [line.get_label().partition(", learning")[0] for line in axis.lines]
    assert labels == ["SGD", "RNGD", "RNGD, softmax RFIM"]


def test_seconds_are_epochs_times_their_measured_time_on_a_log_axis(tmp_path):
    home = folder(tmp_path, sgd=curves(0.1, 0.972), rngd=curves(0.1, 0.974))
    rows = [("sgd", 1.0, 0.0, 1), ("rngd", 4.0, 100.0, 100)]
    cost = pd.DataFrame(rows, columns=["method", "ms", "refresh_ms", "period"]).assign(net="plain", round=1)
    cost.assign(threads=2, others=0.0).to_csv(home / timing.TABLE, index=False)
    axis = figures(home)["seconds_plain"].axes[0]
    assert axis.get_xscale() == "log"
    ends = {line.get_label(): line.get_xdata()[-1] for line in axis.lines}
    assert ends["SGD, learning rate 0.1"] == pytest.approx(100 * 20 * 1e-3)  # 20 steps an epoch
    assert ends["RNGD, learning rate 0.1"] == pytest.approx(100 * 20 * 5e-3)


def test_a_learning_rate_that_diverged_is_marked(tmp_path):
    home = folder(tmp_path, sgd=curves(0.1, 0.972))
    rows = [(1.0, 0, 0.03, 0.2), (1.0, 1, None, None), (0.1, 0, 0.03, 0.2), (0.1, 1, 0.02, 0.3)]
    grid = pd.DataFrame(rows, columns=["lr", "seed", "valid_error", "objective"])
    grid.to_csv(home / runs.grid_table("plain", "sgd"), index=False)
    for axis, mean in zip(figures(home)["learning_rates"].axes, (0.025, 0.25), strict=True):
        marks = {line.get_marker(): line for line in axis.lines}
        assert list(marks["x"].get_xdata()) == [1.0]
        assert list(marks["o"].get_xdata()) == list(marks["*"].get_xdata()) == [0.1]
        assert marks["*"].get_ydata() == pytest.approx([mean])


@pytest.mark.parametrize("lost", [(), ("sgd",), ("sgd", "rngd", "efngd")])
def test_settled_accuracies_are_shown_between_the_paper_s_methods_and_the_best(tmp_path, lost):
    """Whatever one does that is far behind, or of which every run diverged."""
    ends = {"sgd": 0.972, "rngd": 0.974, "efngd": 0.8}
    home = folder(tmp_path, net="bna", **{m: curves(0.1, end) for m, end in ends.items()})
    for method, end in ends.items():
        errors = np.nan if method in lost else 1 - end
        rows = [{"seed": 1000 + i, "epoch": 1, "valid_error": errors} for i in range(10)]
        pd.DataFrame(rows).to_csv(home / settled_table("bna", method), index=False)
    figure = figures(home)["settled"]
    figure.savefig(tmp_path / "settled.png")
    if "rngd" not in lost:
        assert shown(figure.axes[0], [0.974] if lost else [0.972, 0.974])
        assert not shown(figure.axes[0], [0.965])
        assert not shown(figure.axes[0], [0.98])
