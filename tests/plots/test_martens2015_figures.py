"""What the figures of the study martens2015 show, by their artists."""

import json

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.colors import LogNorm

from fisherlab.plots.martens2015 import figures
from fisherlab.plots.martens2015_matrices import INVERSE, OWN
from fisherlab.studies.judge import prediction
from fisherlab.studies.martens2015.matrices import TABLES, difference
from tests.studies.martens2015_tables import DIAGONAL, NOISE, SETTINGS, TRI, folder, named, paired, rate_to, run, took

NO_MOMENTUM, BASELINE = "block-tridiagonal, no momentum", "baseline"
SEEDS, LONG = 10, 3  # of them, as many go on to iteration 500


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def lines(axis, label):
    return [line for line in axis.lines if line.get_label().startswith(label)]


def two_problems():
    """Runs of all methods on two problems, whose processors are not as fast."""
    tables = {}
    for problem, rate in (("mnist", 90.0), ("curves", 150.0)):
        for names in ((TRI, 0), (DIAGONAL, 0), (BASELINE, 0), (NO_MOMENTUM, "batch", 2000)):
            tables[named(*names, problem=problem)] = run(0.01)
            tables |= took(*names, problem=problem, product_rate=rate + (names[0] == TRI) * 30)
    return tables


@pytest.fixture
def drawn(tmp_path):
    return figures(folder(tmp_path, two_problems()))


def test_iterations_of_other_batches_are_told_from_each_other(drawn):
    (mnist, _, curves, _) = (axis.get_xlabel() for axis in drawn["figure_11"].axes)
    assert mnist == "iteration (the baseline's: of 500 cases)"
    assert curves == "iteration (the baseline's: of 250 cases)"
    assert {f"{TRI} (growing batch)", f"{NO_MOMENTUM} (batches of 2000)", "baseline"} <= set(legend(drawn["figure_11"]))


def test_seconds_are_told_with_how_fast_the_problem_s_machine_was(drawn):
    mnist, far, curves, _ = (axis.get_title() for axis in drawn["figure_10"].axes)
    assert mnist == "mnist, seed 0\n(2000 x 2000 products: 90 GFLOP/s)"
    assert curves == "curves, seed 0\n(2000 x 2000 products: 150 GFLOP/s)"
    assert "GFLOP" not in far
    assert not any("GFLOP" in axis.get_title() for name in ("figure_11", "cases") for axis in drawn[name].axes)


def test_a_machine_that_no_run_tells_of_is_left_out(tmp_path):
    tables = {name: table for name, table in two_problems().items() if not name.startswith("took")}
    assert figures(folder(tmp_path, tables))["figure_10"].axes[0].get_title() == "mnist, seed 0"


@pytest.mark.parametrize("name", ["figure_10", "figure_11", "cases"])
def test_every_evaluation_is_a_dot_and_titles_and_legend_have_room(drawn, name):
    figure = drawn[name]
    figure.draw_without_rendering()
    for axis in figure.axes:
        assert [len(line.get_xdata()) for line in axis.lines if line.get_marker() == "o"] == [50] * 4
        assert axis.title.get_window_extent().width < axis.get_window_extent().width
    below = min(axis.get_tightbbox().y0 for axis in figure.axes)
    assert figure.legends[0].get_window_extent().y1 < below
    assert max(axis.get_window_extent().x1 for axis in figure.axes) > 0.95 * figure.bbox.width


def seeds():
    """Ten seeds, of which three go on."""
    rates = [rate_to(20.0 * np.exp(noise), 100) for noise in NOISE[:SEEDS]]
    return {named(TRI, i): run(rate, 500 if i < LONG else 100, test=1.1) for i, rate in enumerate(rates)}


def test_errors_are_shown_by_those_of_the_authors_log(tmp_path):
    tables = seeds()
    ratios = figures(folder(tmp_path, tables))["seeds"].axes[2]
    told = [text.get_text().replace("\n", " ") for text in ratios.get_xticklabels()]
    assert told == ["training, 100 (n = 10)", "training, 500 (n = 3)", "test, 100 (n = 10)", "test, 500 (n = 3)"]
    found = [t.set_index("step") for t in tables.values()]
    at = {(c, s): [t[c][s] for t in found if s in t.index] for c in ("train_error", "test_error") for s in (100, 500)}
    logs = [23.58, 0.987, 23.25, 4.21]  # of the authors, in this order
    dots, bars = lines(ratios, TRI), ratios.patches
    for errors, log, line, bar in zip(at.values(), logs, dots, bars, strict=True):
        np.testing.assert_allclose(line.get_ydata(), np.array(errors) / log)
        np.testing.assert_allclose([bar.get_y(), bar.get_y() + bar.get_height()], np.array(prediction(errors)) / log)
    assert [line for line in ratios.lines if set(line.get_ydata()) == {1}]
    low, high = ratios.get_ylim()
    assert low < min(bar.get_y() for bar in bars) < max(bar.get_y() + bar.get_height() for bar in bars) < high


def test_the_band_is_cut_where_it_rests_on_fewer_runs(tmp_path):
    for axis in figures(folder(tmp_path, seeds()))["seeds"].axes[:2]:
        bands = [c for c in axis.collections if isinstance(c, PolyCollection)]
        spans = [(b.get_paths()[0].vertices[:, 0].min(), b.get_paths()[0].vertices[:, 0].max()) for b in bands]
        assert spans == [(0, 100), (110, 500)]


@pytest.mark.parametrize(("seeds", "dots", "bars"), [(2, 2, 0), (3, 3, 2)])
def test_no_interval_of_two_runs(tmp_path, seeds, dots, bars):
    tables = {name: table[table["step"] <= 100] for name, table in paired(1.1, seeds=seeds).items()}
    *errors, ratios = figures(folder(tmp_path, tables))["seeds"].axes
    assert [len(line.get_xdata()) for line in lines(ratios, TRI)] == [dots, 0, dots, 0]
    assert len(ratios.patches) == bars
    assert all(bool(axis.collections) == bool(bars) for axis in errors)


def test_without_the_authors_log_there_is_nothing_to_divide_by(tmp_path):
    home = folder(tmp_path, {named(TRI, 0, problem="curves"): run(0.01)})
    (home / "study.json").write_text(json.dumps({"settings": SETTINGS | {"problems": ["curves"]}}))
    assert len(figures(home)["seeds"].axes) == 2


def test_runs_of_a_later_problem_alone_are_drawn(tmp_path):
    drawn = figures(folder(tmp_path, {named(TRI, 0, problem="curves"): run(0.01)}))
    assert set(drawn) == {"figure_10", "figure_11", "cases"}


def test_the_zoom_is_k_fac_s(tmp_path):
    sizes = SETTINGS["fixed_batches"]
    tables = {named(m, "batch", s): run(0.008, cases=s) for m in (TRI, NO_MOMENTUM) for s in sizes}
    tables |= {named(BASELINE, "batch", s): run(1e-4, last=100, cases=s) for s in sizes}
    *_, iterations, cases = figures(folder(tmp_path, tables))["figure_9"].axes
    assert iterations.get_xlim() == (250, 500)  # not of the baseline's 100
    assert cases.get_xlim() == (500 * sizes[0] / 2, 500 * sizes[0])
    assert iterations.get_ylim() == pytest.approx((0.9 * 200 * np.exp(-4), 1.1 * 200 * np.exp(-2)))
    assert cases.get_ylim()[1] < 150  # the baseline of the largest batches is near 200


def test_the_recipe_s_thin_line_is_above_the_wide_pale_one(tmp_path):
    columns = ("damping", "gamma", "rho", "alpha", "mu")
    table = pd.DataFrame({"step": range(1, 9)} | dict.fromkeys(columns, 1.0) | {"model_change": -1.0})
    figure = figures(folder(tmp_path, {f"steps_mnist_{m}_0.csv.gz": table for m in (TRI, DIAGONAL)}))["recipe"]
    for axis in figure.axes:
        pale, thin = axis.lines[:2]
        assert [pale.get_label(), thin.get_label()] == [DIAGONAL, TRI]
        assert pale.get_linewidth() > 2 * thin.get_linewidth()
        assert pale.get_alpha() < 1
    assert "authors' log (lambda: set by iteration 5, used in 6)" in legend(figure)


def matrices():
    """Two layers of two units: inverses whose diagonal is a thousand times the rest."""
    ways = ("block-diagonal", "block-tridiagonal")
    pairs = [("F", "F tilde"), *((OWN, w) for w in ways), *((INVERSE, f"{w}, inverse") for w in ways)]
    entries = 1e-3 + np.eye(4)
    names = {*(n for pair in pairs for n in pair), *(difference(*pair) for pair in pairs)}
    shown = {n: np.zeros((4, 4)) if n == "block-diagonal, inverse" else entries for n in names}
    blocks = [{"matrix": INVERSE, "row": i, "column": j, "mean": 10.0 ** -(i != j)} for i in (0, 1) for j in (0, 1)]
    images = pd.concat([pd.DataFrame(m).assign(matrix=n) for n, m in shown.items()])
    return {TABLES[0]: images, TABLES[1]: pd.DataFrame(blocks)}


def test_inverses_are_grey_by_the_logarithm_and_what_is_zero_is_black(tmp_path):
    drawn = figures(folder(tmp_path, matrices()))
    for name, logs in (("figure_2", [False] * 3), ("figure_3", [False, True, True]), ("figure_5", [False] * 6)):
        images = [axis.images[0] for axis in drawn[name].axes if axis.images]
        assert [isinstance(image.norm, LogNorm) for image in images] == logs
    images = [axis.images[0] for axis in drawn["figure_6"].axes if axis.images]
    assert len({(type(image.norm), image.norm.vmin, image.norm.vmax) for image in images}) == 1  # they compare
    assert isinstance(images[0].norm, LogNorm)
    for image in images:
        assert not np.ma.getmaskarray(image.norm(image.get_array())).any()
    assert images[1].norm(images[1].get_array()).max() == 0


def test_the_stamp_of_the_scale_touches_no_label(tmp_path):
    figure = figures(folder(tmp_path, matrices()))["figure_3"]
    stamp = figure.text(0.995, 0.003, "scale paper", ha="right", va="bottom", fontsize=7)
    figure.draw_without_rendering()
    assert not any(stamp.get_window_extent().overlaps(axis.xaxis.label.get_window_extent()) for axis in figure.axes)
