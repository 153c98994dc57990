"""The table of a sweep holds what the runs left, and nothing stops it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from fisherlab.errors import UsageError
from fisherlab.plots.sweep import read_sweep
from fisherlab.sweep.outcome import outcome, write_outcome
from tests.sweep.fake import decay, make_run, make_sweep

JOBS = [["damping=1e-2", "seed=0"], ["damping=1e-2", "seed=1"], ["+optimizer=sgd", "seed=0"], ["damping=1e0", "seed=0"]]


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    folder = make_sweep(tmp_path / "sweep", JOBS)
    make_run(folder, 0, [2.0, 1.0, 0.1 + 0.2])
    make_run(folder, 1, [2.0, 0.5, 40.0], "diverged", step=25, message="diverged at step 25:\n loss 1e4")
    make_run(folder, 3, [2.0, math.nan], "failed", error="SolveError: layer 0", message="never shown")
    return folder


def test_one_row_per_job_in_the_order_of_the_plan(sweep: Path) -> None:
    table = outcome(sweep)
    assert list(table["job"]) == ["job0", "job1", "job2", "job3"]
    assert list(table["damping"]) == ["1e-2", "1e-2", "", "1e0"]
    assert list(table["seed"]) == ["0", "1", "0", "0"]
    assert list(table["optimizer"]) == ["", "", "sgd", ""]
    assert list(table["overrides"]) == [" ".join(job) for job in JOBS]
    assert list(table["status"]) == ["finished", "diverged", "waiting", "failed"]
    assert list(table["step"].astype(object)) == [20, 25, pd.NA, 10]
    assert list(table["error"]) == ["", "diverged at step 25: loss 1e4", "", "SolveError: layer 0"]
    assert list(table["seconds"])[:2] == [1.5, 2.5]
    assert math.isnan(table["seconds"][2])


def test_metrics_that_some_job_has(sweep: Path) -> None:
    table = outcome(sweep)
    columns = "job damping seed optimizer overrides status step final_train_loss final_test_error"
    columns += " best_train_loss best_train_loss_step seconds error"
    assert list(table.columns) == columns.split()
    assert list(table["final_train_loss"])[:2] == [0.1 + 0.2, 40.0]
    assert table["final_train_loss"].isna().tolist() == [False, False, True, True]
    assert list(table["best_train_loss"])[:2] == [0.1 + 0.2, 0.5]
    assert list(table["best_train_loss_step"])[:2] == [20, 10]


def test_the_file_reads_back_as_the_same_numbers(sweep: Path) -> None:
    table = write_outcome(sweep)
    read = pd.read_csv(sweep / "sweep.csv", dtype={"damping": str, "optimizer": str, "error": str})
    for column in read.columns:
        for written, found in zip(table[column].astype(object), read[column].astype(object), strict=True):
            if pd.isna(found):
                assert pd.isna(written) or written == ""
            else:
                assert found == written or str(found) == written, column
    assert "1e-2" in (sweep / "sweep.csv").read_text()
    assert (sweep / "curves.png").exists()
    assert not list(sweep.glob(".*"))


def test_it_depends_on_what_the_runs_left_alone(sweep: Path) -> None:
    first = write_outcome(sweep)
    before = (sweep / "sweep.csv").read_bytes()
    pd.testing.assert_frame_equal(write_outcome(sweep), first)
    assert (sweep / "sweep.csv").read_bytes() == before


@pytest.mark.parametrize(
    "text",
    ["", '{"status": "fin', "[]", "3", "{}", '{"status": 7}', b"\xff\xfe", "[" * 100_000],
    ids=["empty", "torn", "list", "number", "nothing", "type", "bytes", "deep"],
)
def test_an_unreadable_status_is_a_status(sweep: Path, text: str | bytes) -> None:
    path = sweep / "runs" / "job0" / "status.json"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    assert write_outcome(sweep)["status"][0] == "unreadable"


def test_a_status_of_another_make_leaves_empty_cells(sweep: Path) -> None:
    odd = {"status": "finished", "final": 3, "best": {"train_loss": 4}, "step": "x", "seconds": [1]}
    odd |= {"final": {"train_loss": 10**30, "test_error": True}, "step": 10**400}
    (sweep / "runs" / "job0" / "status.json").write_text(json.dumps(odd))
    row = outcome(sweep).iloc[0]
    assert row["status"] == "finished"
    assert row[["step", "final_train_loss", "final_test_error", "best_train_loss", "seconds"]].isna().all()


def test_a_sweep_that_has_not_begun(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write_outcome(make_sweep(tmp_path / "sweep", JOBS))
    assert set(table["status"]) == {"waiting"}
    assert list(table.columns) == [
        "job",
        "damping",
        "seed",
        "optimizer",
        "overrides",
        "status",
        "step",
        "seconds",
        "error",
    ]
    assert sorted(p.name for p in (tmp_path / "sweep").iterdir()) == ["runs", "sweep.csv", "sweep.json"]
    assert capsys.readouterr().err == ""


def test_a_figure_that_cannot_be_drawn_is_one_line(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (sweep / "curves.png").mkdir()
    table = write_outcome(sweep)
    assert len(table) == 4
    assert capsys.readouterr().err.count("\n") == 1
    assert (sweep / "sweep.csv").exists()


@pytest.mark.parametrize("rubbish", [b'a,"b\n1,2,3,4\n\xff\n', b"a,b\n1,2\n", b"step,epoch,train_loss\n1,1,x\n"])
def test_a_metrics_table_of_rubbish_costs_its_own_curve(
    sweep: Path, capsys: pytest.CaptureFixture[str], rubbish: bytes
) -> None:
    (sweep / "runs" / "job0" / "metrics.csv").write_bytes(rubbish)
    write_outcome(sweep)
    assert capsys.readouterr().err == ""
    assert (sweep / "curves.png").exists()
    assert set(read_sweep(sweep).curves) == {"job1", "job3"}


@pytest.mark.parametrize("text", [None, "{", "[]", '{"jobs": [{}], "swept": []}'])
def test_a_folder_that_is_no_sweep(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(UsageError, match=r"is no sweep: expected a folder with a readable sweep\.json"):
        write_outcome(tmp_path)
    with pytest.raises(UsageError, match="is no sweep"):
        write_outcome(tmp_path / "missing")


def test_workers_that_end_together_write_in_turn(sweep: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from fisherlab.sweep.outcome import write_outcome; "
        "[write_outcome(Path(sys.argv[1])) for _ in range(2)]"
    )
    workers = [
        subprocess.Popen([sys.executable, "-c", code, str(sweep)], stderr=subprocess.PIPE, text=True) for _ in range(3)
    ]
    assert [worker.communicate()[1] for worker in workers] == ["", "", ""]
    assert not list(sweep.glob(".*"))
    assert len(pd.read_csv(sweep / "sweep.csv")) == 4


def test_curves_come_with_it(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path / "sweep", [["lr=1"], ["lr=2"]])
    make_run(folder, 0, decay(0.3))
    write_outcome(folder)
    assert (folder / "curves.png").stat().st_size > 1000
