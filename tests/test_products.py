"""A replica's product has the same bits alone and beside others, whatever is repeated for them and however it lies."""

import pytest
import torch

from fisherlab.products import product, summed
from fisherlab.streams import generator
from tests.compare import assert_close, assert_same_bits

LAYOUTS = {"rows": lambda t: t, "columns": lambda t: t.mT.contiguous().mT}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [1, 7, 33])
@pytest.mark.parametrize("n", [1, 2, 17, 61])
@pytest.mark.parametrize("m", [1, 2, 17, 61])
@pytest.mark.parametrize("right", LAYOUTS)
@pytest.mark.parametrize("left", LAYOUTS)
def test_alone_as_beside_others(left, right, m, n, k, dtype):
    a = LAYOUTS[left](torch.randn(2, 3, m, k, generator=generator(0, "a"), dtype=dtype)).requires_grad_()
    # The lanes of a stream share it.
    b = LAYOUTS[right](torch.randn(2, 1, k, n, generator=generator(0, "b"), dtype=dtype))

    def both_ways(a, b):
        found = [product(a, b), product(b.mT, a.mT)]
        return [t for f in found for t in (f.detach(), *torch.autograd.grad(f.tanh().sum(), a))]

    whole = both_ways(a, b)
    for s in range(2):
        for h in range(3):
            for one, all_of_them in zip(both_ways(a[s : s + 1, h : h + 1], b[s : s + 1]), whole, strict=True):
                assert_same_bits(one[0, 0], all_of_them[s, h])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [1, 2, 5, 16])
def test_so_are_sums(count, dtype):
    terms = torch.randn(count, 2, 3, dtype=dtype, generator=generator(0, "t"))
    alone = [[summed(terms[:, s : s + 1, h : h + 1])[0, 0] for h in range(3)] for s in range(2)]
    assert_same_bits(summed(terms), torch.stack([torch.stack(row) for row in alone]))


def test_so_do_its_gradients():
    def gradients(a, b):
        a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
        return torch.autograd.grad(product(a, b.mT).tanh().sum(), (a, b))

    a = torch.randn(2, 3, 1, 61, generator=generator(0, "a"))
    b = torch.randn(2, 1, 201, 61, generator=generator(0, "b"))
    whole, _ = gradients(a, b)
    for s in range(2):
        for h in range(3):
            assert_same_bits(gradients(a[s : s + 1, h : h + 1], b[s : s + 1])[0][0, 0], whole[s, h])


def test_it_is_the_matrix_product():
    a, b = torch.randn(3, 1, 7, dtype=torch.float64), torch.randn(2, 1, 7, 4, dtype=torch.float64)
    assert_close(product(a, b), torch.einsum("hik,skj->shij", a, b.squeeze(1)), 1e-14)
    assert_same_bits(product(a[0], b[0, 0]), a[0] @ b[0, 0])
