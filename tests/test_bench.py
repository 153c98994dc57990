"""The benchmark's count of operations, against torch's own counter; tables of partial runs."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, bmm_flop

from fisherlab import KFAC, deep_linear, stack_replicas
from scripts.bench.counting import kfac_step, symmetric
from scripts.bench.table import record
from scripts.bench.timing import compare, quartiles

BADDBMM = torch.ops.aten.baddbmm_  # in place: torch's counter knows only the other


def baddbmm(out, a, b, *args, **kwargs):
    return bmm_flop(a, b)


@pytest.mark.parametrize(("replicas", "period"), [(1, 10), (3, 10), (3, 1)])
def test_products_are_counted_as_torch_counts_them(replicas, period):
    widths, batch = [300, 20, 20, 5], 16
    first = deep_linear(300, 5, layers=3, width=20)
    model = stack_replicas([first] * replicas, (1, replicas))
    optimizer = KFAC(model, "categorical", inverse_period=period, seed=[0])
    x, y = torch.rand(1, 1, batch, 300), torch.zeros(1, 1, batch, dtype=torch.int64)
    optimizer.step(x, y)
    with FlopCounterMode(display=False, custom_mapping={BADDBMM: baddbmm}) as counter:
        optimizer.step(x, y)
    terms = kfac_step(widths, batch, replicas=replicas, period=period)
    assert counter.get_total_flops() == sum(t.flops for t in terms if t.is_product)


def test_a_symmetric_product_is_a_triangle_of_blocks():
    assert symmetric(10, 300) == "2*10*(160*160 + 140*300)"


def test_the_first_layers_inputs_count_once_per_stream():
    few, many = kfac_step([300, 5], 16, replicas=2, streams=1), kfac_step([300, 5], 16, replicas=2, streams=2)
    changed = {a.term for a, b in zip(few, many, strict=True) if a != b}
    assert changed == {"factor A, by blocks"}


def test_what_is_factorised_at_every_step_is_solved_by_triangles():
    (term,) = [t for t in kfac_step([9, 5], 16, period=1) if t.term == "triangular solves with A"]
    assert term.flops == 2 * 5 * 10**2
    assert not term.is_product


def test_a_partial_run_leaves_the_other_sections(tmp_path):
    def row(ms):
        return compare("step", "other", None, {"a": [ms, ms], "b": [1.0, 1.0]}, "a", "b")

    for section, ms in (("second", 1.0), ("first", 2.0), ("second", 3.0)):
        table = record(tmp_path, ["first", "second"], section, [row(ms)], {"ms": ms})
    assert list(table["section"]) == ["first", "second"]
    assert list(table["ratio"]) == [2.0, 3.0]
    assert json.loads((tmp_path / "environment.json").read_text()) == {"first": {"ms": 2.0}, "second": {"ms": 3.0}}


def test_quartiles_of_one_round():
    assert quartiles([2.0]) == [2.0, 2.0, 2.0]
    assert quartiles([3.0, 1.0, 2.0]) == [1.5, 2.0, 2.5]
