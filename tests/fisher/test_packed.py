"""Symmetric matrices by half of their numbers."""

import pytest
import torch

from fisherlab.fisher.packed import ROWS, numbers, outer_products, packed, unpacked
from tests.compare import assert_same_bits


@pytest.mark.parametrize("n", [1, 2, ROWS, ROWS + 1, 4 * ROWS + 1])
def test_the_lower_triangle_comes_back(n):
    m = torch.randn(2, 3, n, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert packed(m).shape == (2, 3, numbers(n))
    assert_same_bits(unpacked(packed(m), n).tril(), m.tril())
    assert numbers(n) <= n * (n + ROWS) / 2


@pytest.mark.parametrize("n", [1, ROWS + 1, 3 * ROWS])
def test_outer_products_are_packed_matrices(n):
    a = torch.randn(4, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert_same_bits(outer_products(a), packed(a.unsqueeze(-1) * a.unsqueeze(-2)))
