"""How many operations a step of a method takes, counted while it makes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm

from fisherlab.studies.martens2015.problems import configured
from fisherlab.studies.study import Tables

OPERATIONS = "operations_{}.csv".format
CHUNK = 5000  # cases, above which a batch goes through K-FAC in chunks


def operations(problem: str, methods: Sequence[str], bar: tqdm[Any]) -> Tables:
    """Count the operations of products in steps of a method, per case and per step.

    Twenty steps hold everything that recurs (T_1, T_2, T_3), the first three aside; two batch sizes tell what grows
    with the batch. A batch that goes through in chunks takes another way. Factorisations are not counted.

    Args:
        problem: A key of `PROBLEMS`.
        methods: Keys of `METHODS`.
        bar: Progress.

    Returns:
        operations_PROBLEM.csv: method, giga-operations per case, of a batch whole and in chunks, and per step.
    """
    bar.reset(len(methods) * 2)
    rows = []
    for method in methods:
        whole = _per_case(problem, method)
        bar.update()
        chunks = whole if method == "baseline" else _per_case(problem, method, "optimizer.chunk=80")
        rows.append({"method": method, "per_case": whole[0], "per_step": whole[1], "per_case_in_chunks": chunks[0]})
        bar.update()
    return {OPERATIONS(problem): pd.DataFrame(rows)}


def _per_case(problem: str, method: str, *overrides: str) -> tuple[float, float]:
    """Giga-operations per case, and per step besides."""
    few, many = (_count(problem, method, batch, *overrides) for batch in (160, 320))
    slope = (many - few) / 160
    return slope, few - 160 * slope


def _count(problem: str, method: str, batch: int, *overrides: str) -> float:
    """Giga-operations of a step, the mean of twenty."""
    from fisherlab.training.setup import prepare, resolve

    experiment = prepare(resolve(configured(problem, method, 40, 40, f"batch_size={batch}", *overrides)))
    for _ in range(3):
        experiment.optimizer.step(*experiment.next_batch())
    with Products() as products:
        for _ in range(20):
            experiment.optimizer.step(*experiment.next_batch())
    return products.operations / 20 / 1e9


class Products(TorchDispatchMode):
    """Counts the operations of matrix products.

    Torch's own counter leaves out those that add to what is there in place, as K-FAC's gradients and statistics do.

    Attributes:
        operations: So far, a multiplication and an addition for each pair of factors.
    """

    names = ("mm", "bmm", "addmm", "baddbmm", "addmm_", "baddbmm_")

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Make an operation; count it where it is a product of the last two of its arguments."""
        del types
        if func.overloadpacket.__name__ in self.names:
            left, right = args[-2:]
            self.operations += 2 * left.numel() * right.shape[-1]
        return func(*args, **kwargs or {})
