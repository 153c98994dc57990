"""A search asks for batches of trials, trains them side by side, tells how they ended, and goes on where it was."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import optuna
import pandas as pd
import pytest
from omegaconf import OmegaConf

from fisherlab.errors import UsageError
from fisherlab.sweep import search as module
from fisherlab.sweep.claim import claim
from fisherlab.sweep.record import Record
from fisherlab.sweep.space import Dimension
from fisherlab.sweep.storage import JOURNAL
from fisherlab.sweep.trials import trials_table
from tests.sweep.searches import outcomes, search, states

LR = (Dimension("lr", 1e-3, 1.0, log=True),)
HUGE = (Dimension("lr", 1e20, 1e22, log=True),)


def ask(found, number: str | None = None, *, whole: bool = True) -> dict[str, float]:
    """What a process leaves that was killed before the trial was put into a group; before its batch was told."""
    trial = found.study.ask()
    if number is not None:
        (found.folder / "batches" / number).mkdir(parents=True, exist_ok=True)
        trial.set_user_attr("batch", f"{found.identity}/{number}")
    for dimension in found.space[: None if whole else 1]:
        dimension.suggest(trial)
    return trial.params


def status(found, run: str) -> dict:
    return json.loads((found.folder / "runs" / run / "status.json").read_text())


# --- what a trial is --------------------------------------------------------------------------------------------------


def test_a_search_from_scratch_is_reproducible(tmp_path):
    found = [search(tmp_path / name) for name in "ab"]
    for one in found:
        one.run(6)
    assert states(found[0]) == ["COMPLETE"] * 6
    assert outcomes(found[0]) == outcomes(found[1])
    other = search(tmp_path / "c", sampler_seed=1)
    other.run(1)
    assert outcomes(other)[0][1] != outcomes(found[0])[0][1]


def test_a_batch_trains_as_one_program_and_its_values_are_those_of_the_runs(tmp_path):
    found = search(tmp_path)
    found.run(6)
    assert sorted(len(Record.read(tmp_path).group(p.name)["jobs"]) for p in (tmp_path / "groups").iterdir()) == [2, 4]
    for trial in found.trials:
        (run,) = found.runs(trial)
        assert trial.value == status(found, run)["final"]["train_loss"] == trial.user_attrs["train_loss"]
        cfg = OmegaConf.load(tmp_path / "runs" / run / "config.yaml")
        assert {"lr": cfg.lr, "momentum": cfg.momentum} == trial.params
        assert cfg.optimizer.lr == cfg.lr
        assert 1e-3 <= cfg.lr <= 1
        assert 0 <= cfg.momentum <= 0.9
    assert found.best.value == min(t.value for t in found.trials)


def test_the_objective_is_any_column_final_or_best(tmp_path):
    found = search(tmp_path / "a", "steps=12", "evaluate_every=1", "lr=0.1", objective="test_error", at="best")
    found.run(4)
    for trial in found.trials:
        table = pd.read_csv(tmp_path / "a" / "runs" / found.runs(trial)[0] / "metrics.csv")
        assert trial.value == table["test_error"].min()
    assert [t.value for t in found.trials] != [t.user_attrs["test_error"] for t in found.trials]


def test_the_mean_over_seeds_is_the_objective(tmp_path):
    found = search(tmp_path, seeds=3, parallel=2)
    found.run(2)
    for trial in found.trials:
        runs = found.runs(trial)
        assert runs == [f"{trial.number:05d}-{seed}" for seed in range(3)]
        losses = [status(found, run)["final"]["train_loss"] for run in runs]
        assert len(set(losses)) == 3
        assert trial.value == trial.user_attrs["train_loss"] == pytest.approx(np.mean(losses))
        configs = [OmegaConf.load(tmp_path / "runs" / run / "config.yaml") for run in runs]
        assert [c.seed for c in configs] == [0, 1, 2]
        assert {c.lr for c in configs} == {trial.params["lr"]}
    assert len(list((tmp_path / "groups").iterdir())) == 1


@pytest.mark.parametrize(
    ("end", "state"),
    [
        ({"status": "diverged", "message": "at step 3", "final": {"train_loss": None, "test_loss": 5.0}}, "PRUNED"),
        ({"status": "failed", "error": "no solve", "final": {}}, "PRUNED"),
        ({"status": "failed", "error": "boom", "traceback": "..."}, "FAIL"),
    ],
)
@pytest.mark.parametrize("order", [1, -1])
def test_one_seed_that_does_not_finish_decides_how_the_trial_ended(tmp_path, monkeypatch, end, state, order):
    finished = {"status": "finished", "final": {"train_loss": 1.0, "test_loss": 3.0}}
    ends = dict(zip(("00000-0", "00000-1"), [finished, end][::order], strict=True))

    def train(folder: Path) -> None:
        for run, content in ends.items():
            (tmp_path / "runs" / run).mkdir(parents=True)
            (tmp_path / "runs" / run / "status.json").write_text(json.dumps(content))

    monkeypatch.setattr(module, "run_group", train)
    found = search(tmp_path, seeds=2, parallel=1)
    with pytest.raises(RuntimeError, match="boom") if state == "FAIL" else contextlib.nullcontext():
        found.run(1)
    (trial,) = found.trials
    assert (trial.state.name, trial.value, trial.user_attrs["status"]) == (state, None, end["status"])
    assert trial.user_attrs["message"] == end.get("message", end.get("error"))
    assert "train_loss" not in trial.user_attrs


def test_a_diverged_trial_is_pruned_and_counts(tmp_path):
    found = search(tmp_path, "steps=20", space=HUGE)
    found.run(6)
    assert states(found) == ["PRUNED"] * 6
    assert {t.user_attrs["status"] for t in found.trials} == {"diverged"}
    assert all("diverged at step" in t.user_attrs["message"] for t in found.trials)
    assert found.best is None


def test_a_solve_that_fails_is_pruned(tmp_path):
    found = search(tmp_path, "optimizer=kfac", "damping=0", "momentum=0", space=LR, parallel=2)
    found.run(2)
    assert states(found) == ["PRUNED"] * 2
    assert {t.user_attrs["status"] for t in found.trials} == {"failed"}
    assert "could not be factorised" in found.trials[0].user_attrs["message"]


def test_where_a_whole_batch_fails_the_search_ends(tmp_path, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("boom")

    found, told = search(tmp_path), []
    with monkeypatch.context() as patch:
        patch.setattr("fisherlab.sweep.together.prepare", broken)
        patch.setattr("fisherlab.sweep.group.train", broken)
        with pytest.raises(RuntimeError, match="all 4 trials of a batch failed: RuntimeError: boom"):
            found.run(8, lambda: told.append(states(found)))
    assert told == [["FAIL"] * 4]
    found.run(2)  # failed ones do not count
    assert Counter(states(found)) == {"FAIL": 4, "COMPLETE": 2}


# --- what is searched -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "key", "low", "high"),
    [
        (["model=deep_linear", "model.width=8"], "model.layers", 2, 4),
        ([], "batch_size", 16, 64),
        ([], "model.hidden.0", 2, 9),
        (["optimizer=kfac"], "optimizer.inverse_period", 1, 3),
        (["batch_size=128"], "l2", 0.0, 0.1),
    ],
)
def test_any_number_can_be_searched_and_whole_ones_stay_whole(tmp_path, overrides, key, low, high):
    whole = isinstance(low, int)
    found = search(tmp_path, *overrides, space=[*LR, Dimension(key, low, high, whole=whole)], parallel=3)
    found.run(3)
    assert states(found) == ["COMPLETE"] * 3
    values = [t.params[key] for t in found.trials]
    assert len(set(values)) > 1
    assert {type(v) for v in values} == {int if whole else float}
    runs = [OmegaConf.load(tmp_path / "runs" / found.runs(t)[0] / "config.yaml") for t in found.trials]
    assert [OmegaConf.select(cfg, key) for cfg in runs] == values
    # Whole numbers shape the program; others may differ between the replicas of one.
    assert len(list((tmp_path / "groups").iterdir())) == (len(set(values)) if whole else 1)


def test_random_draws_do_not_depend_on_the_outcomes_and_those_of_tpe_do(tmp_path):
    drawn = {}
    for sampler in ("random", "tpe"):
        for seed in (0, 1):
            found = search(tmp_path / f"{sampler}{seed}", f"seed={seed}", sampler=sampler, parallel=11)
            found.run(13)
            drawn[sampler, seed] = [t.params for t in found.trials]
    assert drawn["random", 0] == drawn["random", 1]
    assert drawn["tpe", 0][:11] == drawn["tpe", 1][:11]
    assert drawn["tpe", 0][11:] != drawn["tpe", 1][11:]
    assert drawn["tpe", 0][11:] != drawn["random", 0][11:]


# --- going on ---------------------------------------------------------------------------------------------------------


def test_more_trials_later_are_those_of_a_longer_search(tmp_path):
    search(tmp_path / "a").run(4)
    again = search(tmp_path / "a")
    again.run(4)
    assert len(again.trials) == 4
    again.run(8)
    straight = search(tmp_path / "b")
    straight.run(8)
    assert outcomes(again) == outcomes(straight)


def test_a_batch_that_was_recorded_ends_as_undisturbed(tmp_path, monkeypatch):
    whole, begun = search(tmp_path / "whole"), search(tmp_path / "begun")
    whole.run(10)

    def interrupt(folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        begun.run(4)
        patch.setattr(module, "run_group", interrupt)
        with pytest.raises(KeyboardInterrupt):
            begun.run(10)
    assert states(begun) == ["COMPLETE"] * 4 + ["RUNNING"] * 4
    again = search(tmp_path / "begun")
    again.run(10)
    assert outcomes(again) == outcomes(whole)


@pytest.mark.parametrize("batch", ["0000", None])
def test_what_was_never_put_into_a_group_is_failed_and_asked_again(tmp_path, batch):
    params = ask(search(tmp_path), batch)
    again = search(tmp_path)
    again.run(5)
    assert states(again) == ["FAIL"] + ["COMPLETE"] * 5
    assert again.trials[1].params == params
    assert len({str(t.params) for t in again.trials[1:]}) == 5
    assert Counter(run for run in Record.read(tmp_path).jobs) == Counter(again.runs(t)[0] for t in again.trials[1:])


def test_half_a_trial_is_failed_and_not_asked_again(tmp_path):
    params = ask(search(tmp_path), "0000", whole=False)
    again = search(tmp_path)
    again.run(2)
    assert states(again) == ["FAIL", "COMPLETE", "COMPLETE"]
    assert all(t.params["lr"] != params["lr"] for t in again.trials[1:])


def test_a_batch_that_another_process_holds_is_left_to_it(tmp_path):
    found = search(tmp_path)
    ask(found, "0000")
    with claim(tmp_path / "batches" / "0000"):
        found.finish_stale()
        assert states(found) == ["RUNNING"]
    found.finish_stale()
    assert states(found) == ["FAIL", "WAITING"]


def test_what_another_process_trains_is_waited_for_and_taken_up_where_it_dies(tmp_path, monkeypatch):
    found, looks = search(tmp_path), []
    ask(found, "0000")
    with claim(tmp_path / "batches" / "0000") as other:

        def look(_) -> None:
            looks.append(states(found))
            if len(looks) == 3:
                other.release()

        monkeypatch.setattr(module, "time", SimpleNamespace(sleep=look, time=time.time))
        found.run(1)
    assert looks == [["RUNNING"]] * 3
    assert states(found) == ["FAIL", "COMPLETE"]


def test_a_young_trial_of_a_shared_storage_may_be_anothers(tmp_path, monkeypatch):
    storage = str(tmp_path / "shared.journal")
    first = search(tmp_path / "a", storage=storage, name="shared")
    second = search(tmp_path / "b", storage=storage, name="shared")
    ask(first)
    second.finish_stale()
    assert states(second) == ["RUNNING"]
    monkeypatch.setattr(module, "ORPHAN", 0.0)
    second.finish_stale()
    assert Counter(states(second)) == {"FAIL": 1, "WAITING": 1}


def test_folders_that_share_a_storage_share_the_trials_and_leave_each_others_batches(tmp_path):
    storage = f"sqlite:///{tmp_path}/shared.db"
    first = search(tmp_path / "a", storage=storage, name="shared", parallel=2)
    second = search(tmp_path / "b", storage=storage, name="shared", parallel=2)
    ask(first, "0000")
    second.run(3)
    assert states(second) == ["RUNNING", "COMPLETE", "COMPLETE"]
    first.run(4)
    assert Counter(states(first)) == {"FAIL": 1, "COMPLETE": 4}
    assert len({str(t.params) for t in first.trials[1:]}) == 4
    assert sorted(p.name for p in tmp_path.glob("*/runs/*")) == [f"{number:05d}" for number in (1, 2, 3, 4)]
    for one in (first, second):  # each lists all trials, and the runs that it has
        own = [path for path in trials_table(one)["run"].dropna() if path != "runs/00000"]
        assert sorted(own) == sorted(f"runs/{p.name}" for p in one.folder.glob("runs/*"))


def test_what_two_folders_ask_for_at_once_is_not_too_much(tmp_path, monkeypatch):
    storage = f"sqlite:///{tmp_path}/shared.db"
    first = search(tmp_path / "a", storage=storage, name="shared", parallel=2)
    second = search(tmp_path / "b", storage=storage, name="shared", parallel=2)
    first.run(3)
    monkeypatch.setattr(second, "_count", lambda *_: 2)  # as it was before the other asked for its last
    second.run(3)
    assert states(first) == ["COMPLETE"] * 3 + ["FAIL"]
    assert not list((tmp_path / "b").glob("runs/*"))


def test_a_torn_last_line_of_the_journal_costs_nothing(tmp_path):
    search(tmp_path / "a").run(4)
    with (tmp_path / "a" / JOURNAL).open("ab") as file:
        file.write(b'{"op_code": 4, "worker_id": "x", "study_i')
    again, straight = search(tmp_path / "a"), search(tmp_path / "b")
    again.run(8)
    straight.run(8)
    assert outcomes(again) == outcomes(straight)


# --- refused ----------------------------------------------------------------------------------------------------------


def files(folder: Path) -> dict[Path, bytes]:
    """Of a search, but for the journal, which has a line for each time it was opened."""
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != JOURNAL}


@pytest.mark.parametrize(
    ("overrides", "options", "says"),
    [
        (["l2=0.5"], {}, r"begun otherwise \(config.l2=0.5, then 0.0\)"),
        ([], {"objective": "test_loss"}, r"\(objective=test_loss, then train_loss\)"),
        ([], {"seeds": 2}, r"\(seeds=2, then 1\)"),
        ([], {"space": LR}, r"\(space.momentum=null, then \[0.0,0.9,false\]\)"),
        ([], {"name": "other"}, "holds runs of 'search' that 'other' in tune.storage=null does not know: expected the"),
        (
            [],
            {"storage": "new.journal"},
            "that 'search' in tune.storage=.*new.journal does not know: expected the tune",
        ),
    ],
)
def test_what_would_mix_two_searches_is_refused(tmp_path, overrides, options, says):
    search(tmp_path / "search", parallel=1).run(1)
    before = files(tmp_path / "search")
    if "storage" in options:
        options = {"storage": str(tmp_path / "new.journal")}
    with pytest.raises(UsageError, match=says) as refused:
        search(tmp_path / "search", *overrides, **options)
    assert "\n" not in str(refused.value)
    assert files(tmp_path / "search") == before
    assert states(search(tmp_path / "search")) == ["COMPLETE"]


def test_the_same_numbers_of_another_search_are_not_its_own(tmp_path):
    storage = f"sqlite:///{tmp_path}/shared.db"
    for folder in "ab":
        search(tmp_path / folder, storage=storage, name=folder, parallel=1).run(1)
    with pytest.raises(UsageError, match=r"holds runs of 'a' that 'b' in tune\.storage=.*shared\.db does not know"):
        search(tmp_path / "a", storage=storage, name="b")


def test_without_its_journal_the_runs_are_no_longer_known(tmp_path):
    search(tmp_path, parallel=1).run(1)
    (tmp_path / JOURNAL).unlink()
    with pytest.raises(UsageError, match="does not know"):
        search(tmp_path)


def test_what_changes_no_number_may_change(tmp_path):
    search(tmp_path, parallel=2).run(2)
    search(tmp_path, "threads=null", "results=elsewhere", "figures=true", sampler="random").run(3)
    assert states(search(tmp_path)) == ["COMPLETE"] * 3


def test_the_storage_is_plain_optuna(tmp_path):
    search(tmp_path / "search", storage=f"sqlite:///{tmp_path}/some.db").run(4)
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{tmp_path}/some.db")
    assert study.best_value == min(t.value for t in study.trials)
