"""Rows of steps: taken from the device by replica, written by column, cut where a run ends."""

import math

import pandas as pd
import torch
from omegaconf import OmegaConf

from fisherlab.training.lane import Lane
from fisherlab.training.recorder import Recorder, StepLog
from fisherlab.training.tables import Table

NAN = float("nan")


def rows(losses, lr=0.1, report=True):
    """Waiting rows of a group of 1 x 2, one tensor of losses per step."""
    log = StepLog((1, 2))
    for i, loss in enumerate(losses):
        loss = torch.tensor([loss])
        log.add(i + 1, loss, {"grad_norm": 2 * loss, "rho": 3 * loss} if report else {}, lr, None)
    return log.take()


def lane(folder, at=(0, 0)):
    return Lane(OmegaConf.create({}), Recorder(folder, 9), at, limit=100.0)


def test_each_replica_gets_its_own_numbers(tmp_path):
    first, second = rows([[1.0, 2.0], [3.0, 4.0]], lr=torch.tensor([[0.5, 0.25]], dtype=torch.float64))
    lane(tmp_path).record(second, None)
    table = pd.read_csv(tmp_path / "steps.csv")
    assert list(table) == ["step", "loss", "grad_norm", "update_norm", "lr", "damping", "rho"]
    assert table["loss"].tolist() == [2.0, 4.0]
    assert table["grad_norm"].tolist() == [4.0, 8.0]
    assert table["rho"].tolist() == [6.0, 12.0]
    assert table["lr"].tolist() == [0.25, 0.25]
    assert table[["update_norm", "damping"]].isna().all(axis=None)
    assert first.columns[1] == [1.0, 3.0]


def test_nothing_waits_twice_and_an_empty_log_writes_nothing(tmp_path):
    log = StepLog(())
    log.add(1, torch.tensor(1.0), {}, None, None)
    assert len(log.take()) == 1
    assert log.take() == []
    lane(tmp_path).record(rows([[1.0, 1.0]])[0].first(0), None)
    assert not (tmp_path / "steps.csv").exists()


def test_a_run_ends_with_the_first_row_beyond_its_limit(tmp_path):
    for bad in (NAN, math.inf, 100.5):
        folder = tmp_path / str(bad)
        folder.mkdir()
        it = lane(folder)
        it.record(rows([[1.0, 1.0], [bad, 1.0], [2.0, 1.0]])[0], None)
        assert (it.status, it.step) == ("diverged", 2)
        assert len(pd.read_csv(folder / "steps.csv")) == 2


def test_a_failed_solve_ends_it_too_but_not_before_a_divergence(tmp_path):
    it = lane(tmp_path)
    it.record(rows([[1.0, 1.0]] * 4)[0], (3, "why"))
    assert (it.status, it.step, it.message) == ("failed", 3, "why")
    assert len(pd.read_csv(tmp_path / "steps.csv")) == 3
    other = lane(tmp_path)
    other.record(rows([[NAN, 1.0]] * 4)[0], (3, "why"))
    assert (other.status, other.step) == ("diverged", 1)


def test_columns_and_rows_write_the_same_bytes(tmp_path):
    values = [[1, 0.1, NAN], [2, 1e-30, math.inf], [3, -2.5, 1 / 3]]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    one, other = Table(tmp_path / "a" / "t.csv", "xyzw", 9), Table(tmp_path / "b" / "t.csv", "xyzw", 9)
    one.append([[*row, None] for row in values])
    other.append_columns([*map(list, zip(*values, strict=True)), None])
    assert one.path.read_bytes() == other.path.read_bytes()
