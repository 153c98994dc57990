"""Floating-point operations that a K-FAC step needs, counted from the sizes of its layers.

A multiplication and an addition are two. Counted are the products, factorisations and inverses; sums, activations,
damping and the rest of what is linear in the number of elements are not. A symmetric product counts as it is computed:
each block of the upper triangle once.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from fisherlab.fisher.kronecker import INVERSE_FROM
from fisherlab.fisher.linalg import BLOCK


@dataclass(frozen=True)
class Term:
    """One kind of operation in one layer.

    Attributes:
        term: What is computed.
        layer: Its inputs and outputs.
        expression: How many operations, once, as arithmetic that Python evaluates.
        times: How often per step: replicas or streams, over the period.
    """

    term: str
    layer: str
    expression: str
    times: float

    @property
    def flops(self) -> float:
        """Operations per step."""
        return eval(self.expression, {"__builtins__": {}}) * self.times  # our own string, from numbers

    @property
    def is_product(self) -> bool:
        """Whether it is a matrix product, which torch's own counter can count."""
        return not self.term.startswith(("Cholesky", "inverse", "triangular"))


def symmetric(rows: int, n: int) -> str:
    """The lower triangle of x^T x for x of rows x n, by blocks of rows."""
    ends = [min(start + BLOCK, n) for start in range(0, n, BLOCK)]
    blocks = [f"{end - start}*{end}" for start, end in zip([0, *ends], ends, strict=False)]
    return f"2*{rows}*({' + '.join(blocks)})"


def kfac_step(widths: Sequence[int], batch: int, *, replicas: int = 1, streams: int = 1, period: int = 1) -> list[Term]:
    """Every term of one K-FAC step: sampled Fisher, one sample, biases, factored damping; per step, inverses amortised.

    Args:
        widths: Inputs, hidden units, outputs.
        batch: Examples per stream.
        replicas: In all streams together.
        streams: Batches; what the first layer's inputs alone decide is computed once for each.
        period: Steps between factorisations.

    Returns:
        The terms.
    """
    terms = []
    for i, (n, m) in enumerate(itertools.pairwise(widths)):
        layer, product = f"{n}-{m}", f"2*{batch}*{n}*{m}"
        terms.append(Term("forward", layer, product, replicas))
        if i:
            terms.append(Term("backward to the inputs, observed labels", layer, product, replicas))
            terms.append(Term("backward to the inputs, sampled labels", layer, product, replicas))
        terms.append(Term("gradient of the weights", layer, f"2*{batch}*{n + 1}*{m}", replicas))
        terms.append(Term("factor A, by blocks", layer, symmetric(batch, n + 1), replicas if i else streams))
        terms.append(Term("factor G, by blocks", layer, symmetric(batch, m), replicas))
        terms += solving(n + 1, m, batch, layer, replicas, period)
    return terms


def solving(n: int, m: int, batch: int, layer: str, replicas: int, period: int) -> list[Term]:
    """Factorise, and solve for an m x n gradient: by explicit inverses where there are several solves for each.

    A small batch is solved for before its gradient is summed: as many columns as examples, for each factor.
    """
    terms = [Term(f"Cholesky of {f}", layer, f"{size}**3/3", replicas / period) for f, size in (("A", n), ("G", m))]
    how = "triangular solves with"
    if period >= INVERSE_FROM:
        inverses = (("A", n), ("G", m))
        terms += [Term(f"inverse of {f}", layer, f"2*{size}**3/3", replicas / period) for f, size in inverses]
        how = "product with the inverse of"
    by_example = batch * (m * m + n * n) < m * n * (m + n)
    for_g, for_a = (batch, batch) if by_example else (n, m)
    terms.append(Term(f"{how} G", layer, f"2*{m}**2*{for_g}", replicas))
    terms.append(Term(f"{how} A", layer, f"2*{for_a}*{n}**2", replicas))
    return terms
