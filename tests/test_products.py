"""A replica's product has the same bits alone and beside others, whatever is repeated for them and however it lies."""

import pytest
import torch

from fisherlab.products import product
from fisherlab.streams import generator
from tests.compare import assert_close, assert_same_bits

LAYOUTS = {"rows": lambda t: t, "columns": lambda t: t.mT.contiguous().mT}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 2, 5, 17, 61])
@pytest.mark.parametrize("m", [1, 2, 5, 17, 61])
@pytest.mark.parametrize("right", LAYOUTS)
@pytest.mark.parametrize("left", LAYOUTS)
def test_alone_as_beside_others(left, right, m, n, dtype):
    a = LAYOUTS[left](torch.randn(2, 3, m, 33, generator=generator(0, "a"), dtype=dtype))
    # The lanes of a stream share it.
    b = LAYOUTS[right](torch.randn(2, 1, 33, n, generator=generator(0, "b"), dtype=dtype))
    both, back = product(a, b), product(b.mT, a.mT)
    for s in range(2):
        for h in range(3):
            one, other = a[s : s + 1, h : h + 1], b[s : s + 1]
            assert_same_bits(product(one, other)[0, 0], both[s, h])
            assert_same_bits(product(other.mT, one.mT)[0, 0], back[s, h])


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
