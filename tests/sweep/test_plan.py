"""From a command to its jobs: what is run, what is run once, what is refused, and what is recorded."""

import json
from pathlib import Path

import pytest

from fisherlab.composition import digest
from fisherlab.config import Source, compose, job
from fisherlab.errors import UsageError
from fisherlab.sweep.plan import Group, Trial, partition, plan, swept
from fisherlab.sweep.progress import bar, progress
from fisherlab.sweep.record import Record

SMALL = ["dataset=wine", "steps=2", "threads=1", "model.hidden=[4]"]


def planned(*overrides: str, base=SMALL) -> list[list[tuple[str, ...]]]:
    """The overrides of each job, those of each shape together."""
    return [[one.overrides[len(base) :] for one in trial.jobs] for trial in plan([*base, *overrides])]


def groups(*overrides: str, most: int = 64, workers: int = 1, known=()) -> list[Group]:
    return partition(plan([*SMALL, *overrides]), known, most, workers)


# --- jobs -------------------------------------------------------------------------------------------------------------


def test_jobs_of_a_shape_are_together():
    found = planned("optimizer=sgd,kfac", "lr=0.1,0.2")
    assert [[o[0] for o in alike] for alike in found] == [["optimizer=sgd"] * 2, ["optimizer=kfac"] * 2]
    assert len(planned("model.hidden=[4],[5]", "seed=0,1")) == 2
    assert len(planned("batch_size=10,20", "lr=0.1,0.2")) == 2
    assert len(planned("steps=3,4")) == 2


def test_a_key_that_another_jobs_optimizer_uses_is_left_out():
    sgd, kfac = planned("optimizer=sgd,kfac", "damping=0.1,1", "seed=0,1")
    assert sgd == [("optimizer=sgd", "seed=0"), ("optimizer=sgd", "seed=1")]
    assert len(kfac) == 4
    assert planned("optimizer=sgd,adam", "optimizer.beta1=0.8")[0] == [("optimizer=sgd",)]
    assert planned("model=logistic,mlp", "model.hidden=[3]", base=SMALL[:3])[0] == [("model=logistic",)]


def test_equal_jobs_run_once():
    assert planned("lr=0.1,0.10,1e-1") == [[("lr=0.1",)]]


@pytest.mark.parametrize("line", ["optimizer=kfac damping=1e-3 seed=4", "optimizer=sgd +mine=3", "lr=3 model=logistic"])
def test_a_job_is_composed_as_alone(line):
    overrides = [*SMALL[:3], *line.split()]
    ((one,),) = [trial.jobs for trial in plan(overrides)]
    alone = compose(overrides)
    assert one.config == json.loads(json.dumps(dict(one.config)))
    assert one.config["optimizer"] == dict(job(alone).optimizer)
    assert set(one.config) == {str(k) for k in job(alone)}
    assert one.config["device"] == "auto"
    assert one.name == digest(overrides)


def test_the_users_own_folder(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "narrow.yaml").write_text("_target_: fisherlab.models.mlp\nhidden: [2]\n")
    (trial,) = plan(["model=narrow", "dataset=wine", "seed=0,1"], Source(tmp_path))
    assert [one.config["model"]["hidden"] for one in trial.jobs] == [[2], [2]]


def test_swept_keys_have_more_than_one_value():
    every = [
        one.overrides for trial in plan([*SMALL, "optimizer=sgd,kfac", "damping=0.1,1", "lr=1"]) for one in trial.jobs
    ]
    assert swept(every) == ["optimizer", "damping"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("damping=1e0,-1", "damping=-1: expected a number of at least 0"),
        ("damping=", "damping=: expected"),
        ("optimiser=sgd,kfac", "did you mean 'optimizer'?"),
        ("optimizer=sgd,adam damping=1,2", "damping is not used by optimizer 'sgd'"),
        ("optimizer=glob(z*)", "a sweep over no values"),
        ("lr=interval(0,1)", "has no values to list"),
        ("resume=there,here", "resume stands alone"),
        ("batch_size=10,1000", "more than the 178 training examples"),
        # Numbers alone change nothing in what fits, but each job's optimizer looks at its own.
        ("optimizer=efngd l2_in_curvature=false l2=0.1 damping=1,0", "damping=0 with l2 outside the curvature"),
        ("optimizer=adam optimizer.beta1=0.9,1.5", "beta1=1.5"),
    ],
)
def test_one_mistake_refuses_the_whole_sweep(line, says):
    with pytest.raises(UsageError) as caught:
        plan([*SMALL, *line.split()])
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


# --- groups -----------------------------------------------------------------------------------------------------------


def test_seeds_are_streams_of_a_group():
    (group,) = groups("optimizer=sgd", "lr=0.1,0.2,0.3", "seed=0,1")
    assert group.shape == (2, 3)
    assert [[one.config["seed"] for one in row] for row in group.rows] == [[0] * 3, [1] * 3]
    assert group.steps == 2


def test_groups_are_bounded_and_the_same_each_time():
    asked = ["optimizer=sgd", "lr=0.1,0.2,0.3,0.4", "seed=0,1"]
    cut = groups(*asked, most=4)
    assert [group.shape for group in cut] == [(2, 2), (2, 2)]
    assert len({group.name for group in cut}) == 2
    assert groups(*asked, most=4) == cut
    assert len(groups(*asked, workers=2)) == 2  # no worker stands idle


def test_memory_bounds_a_group():
    (trial,) = plan([*SMALL, "seed=range(8)"])
    assert [g.shape for g in partition([Trial(trial.jobs, 2, capacity=4)], (), 64, 1)] == [(4, 1)] * 2
    assert [g.shape for g in partition([Trial(trial.jobs, 2, capacity=4)], (), 64, 2)] == [(2, 1)] * 4
    assert len(partition([Trial(trial.jobs, 2, capacity=1)], (), 64, 9)) == 8


def test_what_cannot_be_replicated_is_alone(tmp_path, monkeypatch):
    (tmp_path / "alone_module.py").write_text(
        "from torch import nn\ndef my(inputs, outputs):\n    return nn.Sequential(nn.Linear(inputs, outputs))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "mine"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "own.yaml").write_text("_target_: alone_module.my\n")
    trials = plan(["model=own", "dataset=wine", "steps=2", "seed=0,1"], Source(folder))
    found = partition(trials, (), 64, 1)
    assert [group.shape for group in found] == [(1, 1), (1, 1)]


# --- the record -------------------------------------------------------------------------------------------------------


def end(record: Record, name: str, status: str) -> None:
    record.run(name).mkdir(parents=True)
    (record.run(name) / "status.json").write_text(json.dumps({"status": status}))


@pytest.fixture
def record(tmp_path) -> Record:
    """Four jobs in two groups."""
    record = Record.read(tmp_path / "sweep")
    record.folder.mkdir()
    record.add(groups("optimizer=sgd", "lr=0.1,0.2", "seed=0,1", most=2), workers=1)
    record.write(["lr=0.1,0.2", "seed=0,1"])
    return record


def test_the_record_is_read_back(record):
    again = Record.read(record.folder)
    assert again == record
    said = json.loads((record.folder / "sweep.json").read_text())
    assert (said["format"], said["command"], said["swept"]) == (1, ["lr=0.1,0.2", "seed=0,1"], ["lr", "seed"])
    for name in again.open_groups():
        group = again.group(name)
        assert (group["format"], group["shape"], group["workers"], group["steps"]) == (1, [2, 1], 1, 2)
        assert [one["name"] for one in group["jobs"]] == [n for n, e in again.jobs.items() if e.group == name]
        assert group["jobs"][0]["config"]["threads"] == 1


def test_recorded_jobs_keep_their_groups(record):
    before = dict(record.jobs)
    new = groups("optimizer=sgd", "lr=0.1,0.2,0.3", "seed=0,1", known=record.jobs)
    record.add(new, workers=1)
    assert [group.shape for group in new] == [(2, 1)]
    assert {name: record.jobs[name] for name in before} == before
    assert len(record.jobs) == 6


def test_what_another_command_added_meanwhile_is_kept(record):
    other = Record.read(record.folder)
    with other.locked():
        other.add(groups("optimizer=sgd", "lr=0.5", "seed=0,1", known=other.jobs), workers=1)
        other.write([])
    with record.locked():
        assert record == other


def test_open_groups_have_jobs_that_did_not_end(record):
    first, second = record.open_groups()
    names = [name for name, entry in record.jobs.items() if entry.group == first]
    end(record, names[0], "diverged")
    assert record.open_groups() == [first, second]
    end(record, names[1], "failed")
    assert record.open_groups() == [second]
    assert record.named("failed") == [names[1]]
    assert record.counts() == {"waiting": 2, "diverged": 1, "failed": 1}


def test_jobs_that_start_anew_get_a_fresh_folder(record):
    name = record.open_groups()[0]
    (record.folder / "groups" / name / "checkpoint.pt").touch()
    record.add([group for group in groups("optimizer=sgd", "lr=0.1,0.2", "seed=0,1", most=2) if group.name == name], 1)
    assert f"{name}-2" in record.open_groups()
    assert name not in record.open_groups()


def test_a_sweep_with_another_config_is_refused(record):
    jobs = [one for trial in plan([*SMALL, "optimizer=sgd", "lr=0.1,0.2", "seed=0,1"]) for one in trial.jobs]
    record.check(jobs)
    jobs[2].config["optimizer"]["nesterov"] = True
    jobs[1].config["debug"] = True  # of no account
    with pytest.raises(UsageError, match=r"another config \(optimizer.nesterov=true, then false\); results=FOLDER"):
        record.check(jobs)


@pytest.mark.parametrize(("text", "says"), [("{", "no record"), ('{"format": 9, "jobs": []}', "format 9")])
def test_a_damaged_record_is_one_line(text, says, tmp_path):
    Path(tmp_path / "sweep.json").write_text(text)
    with pytest.raises(UsageError, match=says):
        Record.read(tmp_path)


def test_the_bar_adds_up_what_the_groups_tell(record, capsys):
    first, second = record.open_groups()
    said = {"step": 1, "steps": 2, "running": 1, "finished": 0, "diverged": 1, "failed": 0}
    (record.folder / "groups" / first / "progress.json").write_text(json.dumps(said))
    (record.folder / "groups" / second / "progress.json").write_text("{")
    assert progress(record, {first: 4, second: 4}) == (2, {"running": 1, "diverged": 1, "finished": 0, "failed": 0})
    for name in [name for name, entry in record.jobs.items() if entry.group == first]:
        end(record, name, "finished")
    with bar(record, [second], show=True):
        pass
    drawn = capsys.readouterr().err
    assert "finished=2" in drawn
    assert "0/4" in drawn
