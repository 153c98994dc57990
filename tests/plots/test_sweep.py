"""What the figures of a sweep show, by their artists."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from fisherlab.plots.sweep import PANELS, draw_curves, draw_heatmap, draw_sweep, read_sweep
from fisherlab.sweep.outcome import outcome, write_outcome
from tests.sweep.fake import decay, make_run, make_sweep

DAMPINGS = ["1e-2", "1e0", "1e-1"]


def tabulated(folder: Path) -> Path:
    outcome(folder).to_csv(folder / "sweep.csv", index=False)
    return folder


def one_key(folder: Path, seeds: int = 3) -> Path:
    make_sweep(folder, [[f"damping={d}", f"seed={s}"] for d in DAMPINGS for s in range(seeds)])
    return folder


def two_keys(folder: Path, lrs=("1e-1", "1e-2"), seeds: int = 2) -> list[list[str]]:
    jobs = [[f"damping={d}", f"lr={lr}", f"seed={s}"] for d in DAMPINGS for lr in lrs for s in range(seeds)]
    make_sweep(folder, jobs)
    return jobs


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def curves(axis, dashes: str = "-", thick: bool = True):
    return [
        line
        for line in axis.lines
        if (line.get_linewidth() > 1) == thick and line.get_linestyle() == dashes and line.get_marker() == "None"
    ]


def crosses(axis):
    return [line for line in axis.lines if line.get_marker() == "x"]


def test_one_mean_and_band_per_value_in_numeric_order(tmp_path: Path) -> None:
    one_key(tmp_path / "s")
    for job in range(9):
        make_run(tmp_path / "s", job, decay(0.1 * (job + 1)))
    figure = draw_curves(read_sweep(tabulated(tmp_path / "s")))
    loss, error = figure.axes
    for axis in (loss, error):
        assert len(curves(axis)) == 3
        assert len(axis.collections) == 3
    assert legend(figure) == ["1e-2", "1e-1", "1e0", "", "mean of finished runs", "min to max over n = 3\nseeds"]
    assert figure.legends[0].get_title().get_text() == "damping"
    ramp = mpl.colormaps["viridis"](np.linspace(0, 0.9, 3))
    assert [to_rgba(line.get_color()) for line in curves(loss)] == [tuple(row) for row in ramp]
    assert "nats per example" in loss.get_ylabel()
    figure.draw_without_rendering()
    ticks = [tick.get_text() for tick in loss.get_yticklabels()]
    assert loss.get_yscale() == "log"
    assert "0.1" in ticks
    assert error.get_ylabel() == "test error"
    assert loss.get_xlabel() == "epoch"


def test_lines_are_means_and_bands_are_ranges(tmp_path: Path) -> None:
    one_key(tmp_path / "s", seeds=2)
    values = [[2.0, 1.0 + job / 10, 0.5 + job / 10] for job in range(6)]
    for job, losses in enumerate(values):
        make_run(tmp_path / "s", job, losses)
    loss = draw_curves(read_sweep(tabulated(tmp_path / "s"))).axes[0]
    first = curves(loss)[0]
    assert list(first.get_xdata()) == [0, 1, 2]
    np.testing.assert_allclose(first.get_ydata(), np.mean(values[:2], axis=0))
    band = loss.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (0.5, 2.0)


def test_diverged_runs_are_marked_and_counted(tmp_path: Path) -> None:
    one_key(tmp_path / "s")
    for job in range(9):
        if job == 0:
            make_run(tmp_path / "s", job, [2.3, 1.9, 1e9], "diverged", step=25)
        elif job == 1:
            make_run(tmp_path / "s", job, [2.3], "diverged", step=4)
        else:
            make_run(tmp_path / "s", job, decay(0.4))
    figure = draw_curves(read_sweep(tabulated(tmp_path / "s")))
    loss, error = figure.axes
    assert legend(figure)[0] == "1e-2 (2 of 3 diverged)"
    assert "diverged run, where it ended" in legend(figure)
    assert "min to max over n = 1 to 3\nseeds" in legend(figure)
    top = 1.25 * 2.3
    assert [(c.get_xdata()[0], c.get_ydata()[0]) for c in crosses(loss)] == [(2.5, top), (0, top)]
    assert crosses(loss)[0].get_markersize() > crosses(loss)[1].get_markersize()  # nested where they coincide
    assert loss.get_ylim()[1] == top  # the others are not squeezed by a loss of 1e9
    assert len(crosses(error)) == 2
    assert len(curves(loss)) == 3  # the mean is of the one that finished
    np.testing.assert_allclose(curves(loss)[0].get_ydata(), decay(0.4))


def test_a_sweep_of_which_all_diverged_draws_crosses_alone(tmp_path: Path) -> None:
    one_key(tmp_path / "s", seeds=1)
    for job in range(3):
        make_run(tmp_path / "s", job, [2.3, float("nan")], "diverged", step=10)
    figure = draw_curves(read_sweep(tabulated(tmp_path / "s")))
    assert len(crosses(figure.axes[0])) == 3
    assert not curves(figure.axes[0])
    assert not figure.axes[0].collections
    assert legend(figure)[0] == "1e-2 (1 of 1 diverged)"


def test_runs_under_way_are_dashed_and_outside_the_mean(tmp_path: Path) -> None:
    one_key(tmp_path / "s", seeds=2)
    make_run(tmp_path / "s", 0, decay(0.3))
    make_run(tmp_path / "s", 1, decay(0.3)[:3], "running")
    table = tmp_path / "s" / "runs" / "job1" / "metrics.csv"
    table.write_text(table.read_text() + "30,3,300,3.5,0.")  # torn
    figure = draw_curves(read_sweep(tabulated(tmp_path / "s")))
    loss = figure.axes[0]
    assert len(curves(loss)) == 1
    assert [list(line.get_xdata()) for line in curves(loss, "--", thick=False)] == [[0, 1, 2]]
    assert legend(figure)[:3] == ["1e-2 (1 of 2 running)", "1e-1 (2 of 2 waiting)", "1e0 (2 of 2 waiting)"]
    assert {"one run each (n = 1)", "run that has not finished"} <= set(legend(figure))


def test_the_second_key_makes_panels(tmp_path: Path) -> None:
    for job, _ in enumerate(two_keys(tmp_path / "s")):
        make_run(tmp_path / "s", job, decay(0.1 + 0.05 * job))
    figure = draw_curves(read_sweep(tabulated(tmp_path / "s")))
    assert [axis.get_title() for axis in figure.axes] == ["lr = 1e-2", "lr = 1e-1", "", ""]
    assert all(len(curves(axis)) == 3 for axis in figure.axes)
    assert [axis.get_ylabel() != "" for axis in figure.axes] == [True, False, True, False]


def test_many_panels_are_thinned_and_it_says_so(tmp_path: Path) -> None:
    lrs = [f"{i}" for i in range(1, 10)]
    for job, _ in enumerate(two_keys(tmp_path / "s", lrs, seeds=1)):
        make_run(tmp_path / "s", job, decay(0.1))
    figure = draw_curves(read_sweep(tabulated(tmp_path / "s")))
    assert len(figure.axes) == 2 * PANELS
    assert figure.get_suptitle() == "6 of 9 values of lr"
    assert [figure.axes[i].get_title() for i in (0, PANELS - 1)] == ["lr = 1", "lr = 9"]


def test_names_get_categories_and_missing_values_a_name(tmp_path: Path) -> None:
    make_sweep(tmp_path / "s", [["optimizer=sgd"], ["optimizer=kfac"], ["+lr=1"]])
    for job in range(3):
        make_run(tmp_path / "s", job, decay(0.2), split="valid")
    figure = draw_curves(read_sweep(tabulated(tmp_path / "s")))
    assert legend(figure)[:3] == ["sgd", "kfac", "default"]
    drawn = {line.get_color() for axis in figure.axes[:2] for line in curves(axis)}
    assert drawn == set(mpl.color_sequences["tab10"][:3])
    assert [axis.get_title() for axis in figure.axes[:2]] == ["lr = 1", "lr = default"]
    assert {axis.get_ylabel() for axis in figure.axes} >= {"validation error"}


def test_the_same_number_typed_twice_is_one_value(tmp_path: Path) -> None:
    make_sweep(tmp_path / "s", [["lr=0.1", "seed=0"], ["lr=1e-1", "seed=1"], ["lr=1", "seed=0"]])
    for job in range(3):
        make_run(tmp_path / "s", job, decay(0.2))
    assert legend(draw_curves(read_sweep(tabulated(tmp_path / "s"))))[:2] == ["0.1", "1"]


def test_seeds_alone_make_one_mean(tmp_path: Path) -> None:
    make_sweep(tmp_path / "s", [[f"seed={s}"] for s in range(4)])
    for job in range(4):
        make_run(tmp_path / "s", job, decay(0.2, wobble=job))
    figure = draw_curves(read_sweep(tabulated(tmp_path / "s")))
    assert len(curves(figure.axes[0])) == 1
    assert legend(figure)[0] == "all runs"
    assert not (tmp_path / "s" / "heatmap.png").exists()


@pytest.mark.parametrize(
    ("pinned", "expected"),
    [
        ({}, "seeds"),
        ({"data_seed": 0}, "seeds (initialisation only)"),
        ({"init_seed": 0}, "seeds (data order only)"),
    ],
)
def test_it_says_what_the_repeats_differ_in(tmp_path: Path, pinned: dict[str, int], expected: str) -> None:
    one_key(tmp_path / "s")
    for job in range(9):
        make_run(tmp_path / "s", job, decay(0.2), seeds={"seed": job % 3} | pinned)
    figure = draw_curves(read_sweep(tabulated(tmp_path / "s")))
    assert legend(figure)[-1] == f"min to max over n = 3\n{expected}"


def heat(folder: Path) -> Figure:
    """Damping 1e-2 diverges at lr 1e-1 always, damping 1e0 once; nothing has begun at damping 1e-1, lr 1e-2."""
    for job, (damping, lr, seed) in enumerate(two_keys(folder)):
        if (damping, lr) == ("damping=1e-2", "lr=1e-1") or (damping, lr, seed) == ("damping=1e0", "lr=1e-1", "seed=0"):
            make_run(folder, job, [2.3, 99.0], "diverged", step=15)
        elif (damping, lr) != ("damping=1e-1", "lr=1e-2"):
            make_run(folder, job, [2.3, 0.01 * (job + 1)])
    return draw_heatmap(read_sweep(tabulated(folder)))


def test_the_heat_map_shows_means_in_numeric_order(tmp_path: Path) -> None:
    figure = heat(tmp_path / "s")
    axis, bar = figure.axes
    assert [t.get_text() for t in axis.get_xticklabels()] == ["1e-2", "1e-1", "1e0"]
    assert [t.get_text() for t in axis.get_yticklabels()] == ["1e-2", "1e-1"]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("damping", "lr")
    means = np.ma.filled(axis.images[0].get_array(), np.nan)
    np.testing.assert_allclose(means, [[0.035, np.nan, 0.075], [np.nan, 0.095, 0.06]])
    written = {text.get_position(): text.get_text() for text in axis.texts}
    assert written == {
        (0, 0): "0.035",
        (1, 0): "waiting",
        (2, 0): "0.075",
        (0, 1): "2 of 2\ndiverged",
        (1, 1): "0.095",
        (2, 1): "0.06\n1 of 2\ndiverged",
    }
    assert isinstance(axis.images[0].norm, mpl.colors.LogNorm)
    assert "training loss" in bar.get_ylabel()
    assert "n = 2 seeds" in axis.get_title()


def test_the_heat_map_hatches_what_diverged_and_outlines_the_best(tmp_path: Path) -> None:
    axis = heat(tmp_path / "s").axes[0]
    hatched = {(p.get_x() + 0.5, p.get_y() + 0.5) for p in axis.patches if p.get_hatch()}
    assert hatched == {(0, 1), (2, 1)}
    best = [p for p in axis.patches if p.get_label() == "best"]
    assert [(p.get_x() + 0.5, p.get_y() + 0.5) for p in best] == [(0, 0)]


def test_a_large_heat_map_has_no_numbers(tmp_path: Path) -> None:
    make_sweep(tmp_path / "s", [[f"lr={i}", f"damping={j}"] for i in range(1, 12) for j in range(1, 11)])
    for job in range(110):
        make_run(tmp_path / "s", job, [2.3, 0.1 + job])
    axis = draw_heatmap(read_sweep(tabulated(tmp_path / "s"))).axes[0]
    assert not axis.texts
    assert axis.get_title() == "one run each (n = 1); red: lowest"


def test_a_heat_map_where_all_diverged(tmp_path: Path) -> None:
    for job, _ in enumerate(two_keys(tmp_path / "s")):
        make_run(tmp_path / "s", job, [2.3, 99.0], "diverged")
    axis = draw_heatmap(read_sweep(tabulated(tmp_path / "s"))).axes[0]
    assert {text.get_text() for text in axis.texts} == {"2 of 2\ndiverged"}
    assert not [p for p in axis.patches if p.get_label() == "best"]


def test_which_files_are_written(tmp_path: Path) -> None:
    for job, _ in enumerate(two_keys(tmp_path / "two")):
        make_run(tmp_path / "two", job, decay(0.2))
    assert draw_sweep(tabulated(tmp_path / "two")) == [tmp_path / "two" / f"{n}.png" for n in ("curves", "heatmap")]
    one_key(tmp_path / "one")
    make_run(tmp_path / "one", 0, decay(0.2))
    assert draw_sweep(tabulated(tmp_path / "one")) == [tmp_path / "one" / "curves.png"]
    two_keys(tmp_path / "none")
    (tmp_path / "none" / "runs" / "job0").mkdir()
    (tmp_path / "none" / "runs" / "job0" / "metrics.csv").write_text("step,epo")
    assert draw_sweep(tabulated(tmp_path / "none")) == []
    assert sorted(p.name for p in (tmp_path / "none").iterdir()) == ["runs", "sweep.csv", "sweep.json"]


def test_figures_need_the_tables_alone(tmp_path: Path) -> None:
    for job, _ in enumerate(two_keys(tmp_path / "s")):
        make_run(tmp_path / "s", job, decay(0.2))
    write_outcome(tmp_path / "s")
    (tmp_path / "s" / "sweep.json").unlink()
    for figure in (tmp_path / "s").glob("*.png"):
        figure.unlink()
    code = (
        "import sys; from pathlib import Path; from fisherlab.plots.sweep import draw_sweep; "
        "assert len(draw_sweep(Path(sys.argv[1]))) == 2; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "s")], check=False).returncode == 0
