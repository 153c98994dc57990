"""A study is made part by part, is not made twice, and is not mixed with another."""

import json
import sys
import threading
import time
from functools import partial
from types import ModuleType

import pandas as pd
import pytest
from matplotlib.figure import Figure

from fisherlab import studies
from fisherlab.cli import main
from fisherlab.errors import UsageError
from fisherlab.studies import report, sharing, study
from fisherlab.studies.study import Claim, Part

FACTS = {"commit": "0123456789abcdef+dirty", "device_name": "abacus"}


@pytest.fixture
def made(monkeypatch):
    """A study of two parts; notes which are made."""
    notes = []

    def part(name, **settings):
        def make(bar):
            notes.append(name)
            time.sleep(settings.get("sleeps", 0))
            if settings.get("fails"):
                raise RuntimeError("power cut")
            return {f"{name}.csv": pd.DataFrame({"x": [1 / 3]}), f"{name}.csv.gz": pd.DataFrame({"x": range(9)})}

        needed = ("fails",) if name == "first" else None
        return Part(name, (f"{name}.csv", f"{name}.csv.gz"), make, settings=needed)

    module = ModuleType("fake_study")
    module.parts = lambda settings, folder: [part("first"), part("second", **settings)]
    module.claims = lambda folder: [Claim("c", "Figure 1", "s", "e", "m", 1, "u", "reproduced")]
    plots = ModuleType("fisherlab.plots.fake")
    plots.figures = lambda folder: {"figure_1": Figure()}
    monkeypatch.setitem(sys.modules, "fake_study", module)
    monkeypatch.setitem(sys.modules, "fisherlab.plots.fake", plots)
    monkeypatch.setitem(studies.STUDIES, "fake", "fake_study")
    return notes


def test_what_is_there_is_not_made_again(made, tmp_path):
    folder = tmp_path / "studies" / "fake" / "smoke"
    with pytest.raises(RuntimeError):
        study.run("fake", {"fails": True}, folder, FACTS, show_bar=False)
    assert sorted(p.name for p in folder.iterdir()) == ["first.csv", "first.csv.gz", "study.json"]
    made.clear()
    (folder / "study.json").write_text((folder / "study.json").read_text().replace("true", "false"))
    study.run("fake", {"fails": False}, folder, FACTS, show_bar=False)
    assert made == ["second"]
    names = ["claims.csv", "figure_1.pdf", "figure_1.png", "first.csv", "first.csv.gz", "second.csv", "second.csv.gz"]
    assert sorted(p.name for p in folder.iterdir()) == [*names, "study.json"]
    assert pd.read_csv(folder / "first.csv")["x"][0] == 1 / 3
    assert list(json.loads((folder / "study.json").read_text())["parts"]) == ["first", "second"]
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    study.run("fake", {"fails": False}, folder, FACTS, show_bar=False)
    assert before == {p.name: p.read_bytes() for p in folder.iterdir()}


def test_other_settings_are_refused(made, tmp_path):
    study.run("fake", {"steps": 1}, tmp_path, FACTS, show_bar=False)
    with pytest.raises(UsageError, match="was made with steps=1, not 2"):
        study.run("fake", {"steps": 2}, tmp_path, FACTS, show_bar=False)


def test_a_setting_may_change_until_a_part_that_depends_on_it_is_begun(made, tmp_path):
    settings = {"fails": 0, "steps": 1}
    study.run("fake", settings, tmp_path, FACTS, show_bar=False)
    path = tmp_path / "study.json"
    record = json.loads(path.read_text())
    del record["parts"]["second"]  # which depends on all of them; the first one only on `fails`
    path.write_text(json.dumps(record))
    (tmp_path / "second.csv").unlink()
    with pytest.raises(UsageError, match="was made with fails=0, not 1"):
        study.run("fake", settings | {"fails": 1}, tmp_path, FACTS, show_bar=False)
    path.write_text(json.dumps(record | {"unfinished": {"second": {"seconds": 1.0}}}))
    with pytest.raises(UsageError, match="was made with steps=1, not 2"):
        study.run("fake", settings | {"steps": 2}, tmp_path, FACTS, show_bar=False)
    path.write_text(json.dumps(record))
    made.clear()
    study.run("fake", settings | {"steps": 2}, tmp_path, FACTS, show_bar=False)
    assert made == ["second"]
    assert json.loads(path.read_text())["settings"] == {"fails": 0, "steps": 2}
    with pytest.raises(UsageError, match="was made with steps=2, not 1"):
        study.run("fake", settings, tmp_path, FACTS, show_bar=False)


def test_the_time_of_a_session_that_stopped_counts(made, tmp_path):
    with pytest.raises(RuntimeError):
        study.run("fake", {"fails": True, "sleeps": 0.3}, tmp_path, FACTS, show_bar=False)
    path = tmp_path / "study.json"
    record = json.loads(path.read_text())
    assert 0.3 <= record["unfinished"]["second"]["seconds"] < 10
    assert list(record["parts"]) == ["first"]
    record["unfinished"]["second"] = {"seconds": 1000.0, "cpu_seconds": 100.0}
    path.write_text(json.dumps(record).replace("true", "false"))
    study.run("fake", {"fails": False, "sleeps": 0.3}, tmp_path, FACTS, show_bar=False)
    record = json.loads(path.read_text())
    assert 1000.3 <= record["parts"]["second"]["seconds"] < 1010
    assert 100 <= record["parts"]["second"]["cpu_seconds"] < 110
    assert "unfinished" not in record


def test_a_part_that_is_not_recorded_is_made_again(made, tmp_path):
    study.run("fake", {}, tmp_path, FACTS, show_bar=False)
    record = json.loads((tmp_path / "study.json").read_text())
    del record["parts"]["second"]  # killed between its tables and the record
    (tmp_path / "study.json").write_text(json.dumps(record))
    made.clear()
    study.run("fake", {}, tmp_path, FACTS, show_bar=False)
    assert made == ["second"]
    part = json.loads((tmp_path / "study.json").read_text())["parts"]["second"]
    assert (part["commit"], part["device_name"]) == (FACTS["commit"], "abacus")


def test_two_processes_share_the_parts(made, tmp_path):
    folder = tmp_path / "studies" / "fake" / "smoke"
    started, waiting = threading.Event(), threading.Event()

    def first(bar):
        started.set()
        assert waiting.wait(60)
        return {"first.csv": pd.DataFrame({"x": [1]})}

    def dependent(bar):
        return {"last.csv": pd.read_csv(folder / "first.csv") + 1}

    def second(bar):
        waiting.set()
        return {"second.csv": pd.DataFrame({"x": [2]})}

    parts = [
        Part("first", ("first.csv",), first),
        Part("last", ("last.csv",), dependent, needs=("first.csv",)),
        Part("second", ("second.csv",), second),
    ]
    sys.modules["fake_study"].parts = lambda settings, folder: parts
    run = partial(study.run, "fake", {}, folder, FACTS, show_bar=False)
    # Claims hold between threads as between processes: each opens the file anew.
    other = threading.Thread(target=run)
    other.start()
    assert started.wait(60)
    run()
    other.join(60)
    assert pd.read_csv(folder / "last.csv")["x"].tolist() == [2]
    record = json.loads((folder / "study.json").read_text())
    assert sorted(record["parts"]) == sorted(record["planned"]) == ["first", "last", "second"]
    assert not list(folder.glob(".*"))


def test_only_the_parts_that_are_asked_for_are_made_and_what_they_need(tmp_path, made):
    def part(name, *needs):
        def make(bar):
            made.append(name)
            return {f"{name}.csv": pd.DataFrame({"x": [1]})}

        return Part(name, (f"{name}.csv",), make, needs=needs)

    parts = [part("grid"), part("curves", "grid.csv"), part("other"), part("last look", "curves.csv")]
    sys.modules["fake_study"].parts = lambda settings, folder: parts
    run = partial(study.run, "fake", {}, tmp_path, FACTS, show_bar=False)
    run(only="look")
    assert made == ["grid", "curves", "last look"]
    assert json.loads((tmp_path / "study.json").read_text())["planned"] == ["grid", "curves", "other", "last look"]
    with pytest.raises(UsageError, match="only='othr' is in no part's name: did you mean 'other'"):
        run(only="othr")
    run()
    assert made[3:] == ["other"]


def test_the_time_of_a_helper_counts_as_the_part_s_and_waiting_does_not(made, tmp_path, monkeypatch):
    monkeypatch.setattr(sharing, "POLL", 0.02)
    begun, helped = threading.Event(), threading.Event()

    def first(bar):
        begun.set()
        return [pd.DataFrame({"x": [1]})]

    def last(bar):
        if not helped.is_set():
            assert begun.wait(60)  # the maker waits for this one
            time.sleep(1.0)
            helped.set()
        return [pd.DataFrame({"x": [2]})]

    pieces = {"first": first, "last": last}
    make = partial(study.gathered, ("only.csv",), pieces.values())
    sys.modules["fake_study"].parts = lambda settings, folder: [Part("only", ("only.csv",), make, pieces=pieces)]
    run = partial(study.run, "fake", {}, tmp_path, FACTS, show_bar=False)
    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    record = json.loads((tmp_path / "study.json").read_text())
    assert "unfinished" not in record
    assert 1.0 <= record["parts"]["only"]["seconds"] < 1.9
    assert pd.read_csv(tmp_path / "only.csv")["x"].tolist() == [1, 2]


def test_a_part_that_is_shared_has_one_number_of_threads(made, tmp_path):
    sys.modules["fake_study"].parts = lambda settings, folder: [
        Part("only", ("only.csv",), lambda bar: {"only.csv": pd.DataFrame()}, pieces={"a": lambda bar: 1 / 0})
    ]
    run = partial(study.run, "fake", {}, tmp_path, show_bar=False)
    with pytest.raises(ZeroDivisionError):
        run(FACTS | {"threads": 1})
    with pytest.raises(UsageError, match=r"threads=2: 'only' in .* was begun with threads=1"):
        run(FACTS | {"threads": 2})


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["fujimori2022", "only=base, tpx"], "did you mean 'base, tpe'?"),
        (["fujimori2022", "only='base, tpx'"], "only='base, tpx' is in no part's name"),
        (["sun2017", "only=12"], "only='12' is in no part's name"),
        (["all", "only=tpe"], "only= names parts of one study"),
    ],
)
def test_parts_that_are_not_there_are_refused_before_anything_is_written(args, says, tmp_path, capsys):
    assert main(["study", *args, "scale=smoke", f"results={tmp_path}"]) == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.json"))


def test_a_study_that_is_judged_as_a_whole_waits_for_its_parts(made, tmp_path):
    run = partial(study.run, "fake", {}, tmp_path, FACTS, show_bar=False)
    run(only="first")
    assert not (tmp_path / "claims.csv").exists()
    run(only="second")
    assert (tmp_path / "claims.csv").exists()


def test_an_unfinished_study_keeps_no_figure_from_being_drawn(made, tmp_path):
    folder = tmp_path / "studies" / "fake" / "smoke"
    study.run("fake", {}, folder, FACTS, show_bar=False)
    (folder / "figure_1.png").unlink()
    study.begin(tmp_path / "studies" / "fake" / "paper", {}, FACTS)
    assert main(["figures", f"results={tmp_path}"]) == 0
    assert (folder / "figure_1.png").exists()


def test_the_report_counts_verdicts(made, tmp_path):
    study.run("fake", {}, tmp_path / "studies" / "fake" / "smoke", FACTS, show_bar=False)
    text = report.write(tmp_path).read_text()
    assert "| [fake](studies/fake/smoke) | smoke | 1 | 0 | 0 | 012345678+dirty | 0.0 |" in text


def test_figures_are_drawn_from_tables_alone(made, tmp_path, capsys):
    folder = tmp_path / "studies" / "fake" / "smoke"
    study.run("fake", {}, folder, FACTS, show_bar=False)
    (folder / "figure_1.png").unlink()
    made.clear()
    assert main(["figures", "fake", f"results={tmp_path}"]) == 0
    assert (folder / "figure_1.png").exists()
    assert not made


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["study"], "expected one name: all, kunstner2019"),
        (["study", "kunstner"], "did you mean 'kunstner2019'?"),
        (["study", "kunstner2019", "scale=papre"], "did you mean 'paper'?"),
        (["study", "kunstner2019", "threads=0"], "threads=0"),
        (["study", "kunstner2019", "study.scales.quick.seeds=0"], "seeds=0: expected a whole number of at least 1"),
        (["study", "kunstner2019", "study.scales.quick.gammas=3"], "gammas=3: expected [log10 of the first"),
        (["study", "kunstner2019", "study.scales.quick.problems=[winee]"], "problems=[winee]"),
        (["study", "kunstner2019", "study.scales.quick.problems=[yacht]"], "'yacht' needs"),
        (["study", "kunstner2019", "steps=3"], "steps"),
        (["figures", "kunstner"], "did you mean 'kunstner2019'?"),
        (["figures"], "holds no tables"),
    ],
)
def test_wrong_usage_is_one_line(args, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(args) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())
