"""Which jobs train as one program: rectangles of streams, bounded by number and by memory."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fisherlab.sweep.partition import rectangles, shape, stream

SGD = {"_target_": "fisherlab.optim.SGD", "lr": 0.1, "momentum": 0.9, "nesterov": False, "l2": 0.0}
CONFIG = {
    "seed": 0, "data_seed": None, "init_seed": None, "l2": 0.0, "lr": 0.1, "momentum": 0.9, "batch_size": 128,
    "lr_schedule": {"name": "constant", "end_fraction": 0.0}, "optimizer": SGD,
}  # fmt: skip


def changed(**values) -> dict:
    optimizer = {k.removeprefix("optimizer_"): v for k, v in values.items() if k.startswith("optimizer_")}
    rest = {k: v for k, v in values.items() if not k.startswith("optimizer_")}
    return CONFIG | rest | {"optimizer": SGD | optimizer}


def same(a: dict, b: dict, per_replica=("lr", "momentum", "l2")) -> bool:
    return shape(a, per_replica) == shape(b, per_replica)


@pytest.mark.parametrize(
    "values",
    [
        {"seed": 3},
        {"data_seed": 3},
        {"init_seed": 3},
        {"lr": 1, "optimizer_lr": 1},
        {"lr_schedule": {"name": "constant", "end_fraction": 0.5}},
    ],
)
def test_numbers_that_a_replica_may_have_for_itself(values):
    assert same(CONFIG, changed(**values))


@pytest.mark.parametrize(
    "values",
    [
        {"batch_size": 64},
        {"optimizer_nesterov": True},
        {"optimizer_lr": None},
        {"optimizer_l2": True},
        {"l2": 0.5, "optimizer_l2": 0.5},  # beside none
        {"lr_schedule": {"name": "linear", "end_fraction": 0.0}},
        {"optimizer__target_": "fisherlab.optim.Adam"},
    ],
)
def test_what_makes_another_program(values):
    assert not same(CONFIG, changed(**values))


def test_strengths_of_l2_may_differ():
    assert same(changed(l2=0.1, optimizer_l2=0.1), changed(l2=0.5, optimizer_l2=0.5))


def test_only_what_the_optimizer_names_may_differ():
    other = changed(lr=1.0, optimizer_lr=1.0)
    assert same(CONFIG, other, ("lr",))
    assert not same(CONFIG, other, ("momentum",))
    assert not same(CONFIG, other, ())


def test_a_config_is_left_as_it_is():
    shape(CONFIG, ("lr",))
    assert CONFIG["optimizer"]["lr"] == CONFIG["lr"] == 0.1


def test_data_follow_the_seed_unless_pinned():
    assert stream(CONFIG | {"seed": 4}) == (4, 4)
    assert stream(CONFIG | {"seed": 4, "data_seed": 0}) == (4, 0)


def sizes(streams: list[int], limit: int) -> list[tuple[int, int]]:
    rows = [[(s, h) for h in range(n)] for s, n in enumerate(streams)]
    return [(len(group), len(group[0])) for group in rectangles(rows, limit)]


def test_cuts():
    assert sizes([8, 8, 8], 64) == [(3, 8)]
    assert sizes([48], 16) == [(1, 16)] * 3
    assert sizes([10], 4) == [(1, 3), (1, 3), (1, 4)]
    assert sizes([8, 8, 8], 8) == [(3, 2)] * 4  # first along H
    assert sizes([2] * 5, 3) == [(2, 1), (3, 1)] * 2  # then along S
    assert sizes([3, 1, 3], 64) == [(2, 3), (1, 1)]  # ragged streams
    assert sizes([2, 2], 1) == [(1, 1)] * 4
    assert sizes([], 4) == []


@given(st.lists(st.integers(1, 9), max_size=9), st.integers(1, 20))
def test_every_job_is_in_one_rectangle_within_the_limit(streams, limit):
    rows = [[(s, h) for h in range(n)] for s, n in enumerate(streams)]
    groups = rectangles(rows, limit)
    assert sorted(job for group in groups for row in group for job in row) == [job for row in rows for job in row]
    for group in groups:
        assert len({len(row) for row in group}) == 1
        assert sum(map(len, group)) <= limit
        assert all(len({s for s, _ in row}) == 1 for row in group)


MEASURE = """
import re, sys
from pathlib import Path
import torch
from omegaconf import OmegaConf
from fisherlab.config import compose, job
from fisherlab.sweep.memory import footprint
from fisherlab.training.evaluate import evaluate
from fisherlab.training.setup import prepare, resolve

def peak():  # of this program alone: getrusage would tell that of the process which started it, if it was more
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

base = ["dataset=digits", "threads=1", "epochs=1", *sys.argv[1:]]
cfg = lambda i: resolve(job(compose([*base, f"seed={i}"])))
small = prepare(cfg(0))
for _ in range(2):
    small.optimizer.step(*small.next_batch())
evaluate(small)
one, before, count = footprint(small), peak(), 16
large = prepare([cfg(i) for i in range(count)], (count, 1))
for _ in range(2):
    large.optimizer.step(*large.next_batch())
evaluate(large)
print((peak() - before) / (count * (one.stream + one.replica)))
"""


WIDE = ["model.hidden=[300,300,300]", "batch_size=500"]
RNGD = ["optimizer=rngd", "model.hidden=[100,100,100]", "batch_size=50"]


@pytest.mark.parametrize(
    "overrides",
    [["optimizer=sgd", *WIDE], ["optimizer=kfac", *WIDE], RNGD, [*RNGD, "optimizer.last=layer"]],
    ids=["sgd", "kfac", "rngd", "rngd-softmax"],
)
def test_the_estimated_memory_is_of_the_right_order(overrides):
    command = [sys.executable, "-c", MEASURE, *overrides]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert 0.4 < float(done.stdout) < 1.3


def test_planning_imports_no_torch():
    code = "import sys, fisherlab.sweep.plan, fisherlab.sweep.record; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
