"""Where enough runs of a group have ended, the rest goes on in a smaller program, to the same bytes."""

import itertools
import json

import pytest
import torch

from fisherlab.sweep import together
from fisherlab.sweep.group import run_group
from fisherlab.training import checkpoint
from fisherlab.training.trainer import Trainer
from tests.sweep.test_group import alone, group, name, runs
from tests.training.conftest import tables

KFAC = ["optimizer=kfac", "optimizer.inverse_period=4", "epochs=3", "evaluate_every=10", "checkpoint_every=0"]


@pytest.fixture
def often(monkeypatch):
    """Look at the losses after every step, and tell how large each program is."""
    sizes, real = [], together.prepare
    monkeypatch.setattr("fisherlab.training.trainer.FLUSH_EVERY", 0.0)
    monkeypatch.setattr(together, "PROGRESS_EVERY", 0.0)
    monkeypatch.setattr(together, "prepare", lambda cfgs, shape: sizes.append(shape) or real(cfgs, shape))
    return sizes


def grid(rates, seeds=(0,), more=()):
    return [[*KFAC, *more, f"lr={lr}", f"seed={seed}"] for seed, lr in itertools.product(seeds, rates)]


@pytest.mark.parametrize(
    ("shape", "rates", "sizes"),
    [
        ([1, 4], (0.01, 1e9, 0.02, 0.03), [(1, 4), (1, 3)]),  # 3 of 4 is the least that pays
        ([1, 5], (0.01, 0.04, 0.02, 1e9, 0.03), [(1, 5)]),
        ([1, 3], (1e9, 0.01, 2e9), [(1, 3), (1, 1)]),
        ([2, 3], (0.01, 1e9, 0.02), [(2, 3), (2, 2)]),
    ],
)
def test_the_rest_goes_on_in_a_smaller_program(often, tmp_path, shape, rates, sizes):
    jobs = grid(rates, range(shape[0]))
    place = group(tmp_path, shape, jobs)
    run_group(place)
    assert often == sizes
    for overrides in jobs:
        assert tables(runs(place) / name(overrides)) == tables(alone(tmp_path, overrides)), overrides
    stand = json.loads((place / "progress.json").read_text())
    assert stand["diverged"] == sum(lr > 1 for lr in rates) * shape[0]
    assert stand["running"] == len(jobs) - stand["diverged"]  # told before the last step's ends


def test_a_stream_in_which_one_run_is_left_keeps_its_row(often, tmp_path):
    """Places are cut along the axes: what is left is rows times columns, some of them frozen."""
    jobs = [
        [*KFAC, f"lr={lr}", f"seed={s}"] for s, lr in ((0, 0.01), (0, 1e9), (0, 2e9), (1, 1e9), (1, 2e9), (1, 0.02))
    ]
    place = group(tmp_path, [2, 3], jobs)
    run_group(place)
    assert often == [(2, 3), (2, 2)]
    for overrides in jobs:
        assert tables(runs(place) / name(overrides)) == tables(alone(tmp_path, overrides)), overrides


@pytest.mark.parametrize("at", [2, 30])
def test_a_group_killed_after_it_was_thinned_goes_on(often, tmp_path, monkeypatch, at):
    jobs = grid((0.01, 1e9, 0.02))
    place, taken, real = group(tmp_path, [1, 3], jobs), 0, Trainer._train_step

    def die(self) -> None:
        nonlocal taken
        taken += len(self.lanes) == 2
        if taken == at:
            raise KeyboardInterrupt
        real(self)

    monkeypatch.setattr(Trainer, "_train_step", die)
    with pytest.raises(KeyboardInterrupt):
        run_group(place)
    monkeypatch.setattr(Trainer, "_train_step", real)
    saved = torch.load(place / checkpoint.NAME)
    assert saved["places"] == [[0], [0, 2]]
    assert [lane["status"] for lane in saved["lanes"]] == ["running", "running"]
    often.clear()
    run_group(place)
    assert often == [(1, 2)]
    for overrides in jobs:
        assert tables(runs(place) / name(overrides)) == tables(alone(tmp_path, overrides)), overrides


def test_a_run_alone_is_never_thinned(often, tmp_path):
    place = group(tmp_path, [1, 1], grid((1e9,)))
    run_group(place)
    assert not often
