"""A job inside a group leaves the same tables as alone, byte for byte but for the clock, whatever its neighbours do."""

import json
import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf

from fisherlab.sweep.group import run_group
from fisherlab.training.run import train
from tests.training.conftest import config, tables

OPTIMIZERS = {
    "sgd": ["optimizer=sgd", "momentum=0.9"],
    "adam": ["optimizer=adam"],
    "kfac": ["optimizer=kfac", "optimizer.inverse_period=4", "damping=0.1"],
    "kfac eigenbasis": ["optimizer=kfac", "optimizer.damping_mode=tikhonov", "optimizer.inverse_period=3"],
    "kfac eigenbasis, batch rotated": [
        "optimizer=kfac",
        "optimizer.damping_mode=tikhonov",
        "model.hidden=[12]",
        "batch_size=16",
        "dataset=digits",
    ],
    "efngd": ["optimizer=efngd", "damping=0.5"],
    "rngd, normed": ["optimizer=rngd", "optimizer.inverse_period=3", "model.hidden=[9,8]", "model.batch_norm=after"],
}
RATES = (0.01, 0.05, 1e9)  # the last blows up


def group(folder: Path, shape, jobs: list[list[str]]) -> Path:
    """Write what the sweeper writes: a group with one job per list of overrides, row-major."""
    place = folder / "groups" / "g"
    place.mkdir(parents=True)
    record = {"format": 1, "shape": shape, "workers": 1, "jobs": []}
    for overrides in jobs:
        plain = OmegaConf.to_container(config(*overrides), resolve=True)
        record["jobs"].append({"name": name(overrides), "overrides": overrides, "config": plain})
    (place / "group.json").write_text(json.dumps(record))
    return place


def name(overrides: list[str]) -> str:
    return "_".join(overrides).replace("/", "")


def runs(place: Path) -> Path:
    return place.parent.parent / "runs"


def alone(folder: Path, overrides: list[str]) -> Path:
    train(config(*overrides), folder / "alone" / name(overrides))
    return folder / "alone" / name(overrides)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_alone_and_in_a_group_are_the_same_bytes(tmp_path, optimizer):
    grid = [[*OPTIMIZERS[optimizer], f"lr={lr}", f"seed={seed}"] for seed in (0, 1) for lr in RATES]
    whole = group(tmp_path / "whole", [2, 3], grid)
    run_group(whole)
    cut = group(tmp_path / "cut", [2, 1], [grid[0], grid[3]])
    run_group(cut)
    for overrides in grid:
        single = tables(alone(tmp_path, overrides))
        assert tables(runs(whole) / name(overrides)) == single, overrides
        if overrides in (grid[0], grid[3]):
            assert tables(runs(cut) / name(overrides)) == single, overrides


def test_a_group_leaves_the_files_and_the_weights_of_runs_alone(tmp_path):
    grid = [[*OPTIMIZERS["kfac"], f"lr={lr}"] for lr in RATES]
    place = group(tmp_path, [1, 3], grid)
    run_group(place)
    for overrides, status in zip(grid, ("finished", "finished", "diverged"), strict=True):
        mine, other = runs(place) / name(overrides), alone(tmp_path, overrides)
        assert {p.name for p in mine.iterdir()} == {p.name for p in other.iterdir()}
        assert (mine / "config.yaml").read_text() == (other / "config.yaml").read_text()
        told, expected = (json.loads((d / "status.json").read_text()) for d in (mine, other))
        assert told["status"] == status
        assert {**told, "seconds": 0} == {**expected, "seconds": 0}
        if status == "finished":
            a, b = (torch.load(d / "checkpoint.pt")["model"] for d in (mine, other))
            assert all(torch.equal(a[k], b[k]) and a[k].shape == b[k].shape for k in b)
    assert not (place / "checkpoint.pt").exists()


@pytest.mark.parametrize(
    "swept",
    [
        [["l2=0.001"], ["l2=0.01"], ["l2=0.1"]],
        [[f"l2={value}", "optimizer=kfac", "batch_size=16"] for value in (0.001, 0.01, 0.1)],
        [[f"damping={value}", "optimizer=kfac", "batch_size=8"] for value in (0.1, 1.0, 10.0)],
        [["lr_schedule.name=linear", f"lr_schedule.end_fraction={e}"] for e in (0.0, 0.5, 1.0)],
        [[f"init_seed={s}"] for s in (0, 1, 2)],
        [[f"momentum={m}"] for m in (0.0, 0.5, 0.9)],
        [[f"optimizer.kl_clip={k}", "optimizer=kfac"] for k in (1e-3, 1e-1, 10.0)],
    ],
)
def test_whatever_may_differ_gives_the_same_bytes(tmp_path, swept):
    place = group(tmp_path, [1, 3], swept)
    run_group(place)
    for overrides in swept:
        assert tables(runs(place) / name(overrides)) == tables(alone(tmp_path, overrides)), overrides


def test_each_seed_draws_its_own_split(tmp_path):
    splits = "+dataset.splits={train: 1000, valid: 300, test: -1}"
    grid = [[splits, f"seed={seed}", f"lr={lr}"] for seed in (0, 1) for lr in (0.01, 0.1)]
    place = group(tmp_path, [2, 2], grid)
    run_group(place)
    for overrides in grid:
        assert tables(runs(place) / name(overrides)) == tables(alone(tmp_path, overrides)), overrides


def test_the_whole_set_as_one_batch(tmp_path):
    grid = [["batch_size=full", "steps=5", f"seed={seed}", f"lr={lr}"] for seed in (0, 1) for lr in (0.01, 0.1)]
    place = group(tmp_path, [2, 2], grid)
    run_group(place)
    for overrides in grid:
        assert tables(runs(place) / name(overrides)) == tables(alone(tmp_path, overrides)), overrides


def test_seconds_are_shared_by_those_that_still_train(tmp_path):
    place = group(tmp_path, [1, 2], [["lr=0.01"], ["lr=1e9"]])
    run_group(place)
    finished, diverged = (pd.read_csv(runs(place) / f"lr={lr}" / "metrics.csv") for lr in ("0.01", "1e9"))
    assert math.isfinite(finished["seconds"].iloc[-1])
    assert len(diverged) < len(finished)


def test_a_lane_whose_solve_fails_is_failed_and_the_others_finish(tmp_path):
    grid = [["optimizer=kfac", "momentum=0", f"damping={d}"] for d in (0.0, 1.0)]
    place = group(tmp_path, [1, 2], grid)
    run_group(place)
    for overrides, status in zip(grid, ("failed", "finished"), strict=True):
        mine, other = runs(place) / name(overrides), alone(tmp_path, overrides)
        assert tables(mine) == tables(other)
        told, expected = (json.loads((d / "status.json").read_text()) for d in (mine, other))
        assert told["status"] == expected["status"] == status
        assert told.get("error") == expected.get("error")


def test_jobs_of_a_group_may_keep_nothing_and_draw_nothing(tmp_path):
    quiet = ["optimizer=sgd", "keep=nothing", "figures=false"]
    grid = [[*quiet, f"lr={lr}"] for lr in RATES]
    place = group(tmp_path, [1, 3], grid)
    run_group(place)
    for overrides in grid:
        mine, other = runs(place) / name(overrides), alone(tmp_path, overrides)
        assert tables(mine) == tables(other)
        assert {p.name for p in mine.iterdir()} == {p.name for p in other.iterdir()}
        assert not {p.suffix for p in mine.iterdir()} & {".pt", ".png"}
    assert not (place / "checkpoint.pt").exists()
