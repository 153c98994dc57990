"""Parameters in flat vectors: what is written is cut out again, whatever the shapes, strides and replica axes."""

import pytest
import torch

from fisherlab.optim.layout import cut, flat, sizes

SHAPES = [(4, 3), (), (5,)]  # a matrix, a number, a bias


@pytest.mark.parametrize("replicas", [torch.Size(()), torch.Size((2,)), torch.Size((2, 3))])
@pytest.mark.parametrize("strided", [False, True])
def test_what_is_written_is_cut_out_again(replicas, strided):
    parts = [torch.randn((*replicas, *shape)) for shape in SHAPES]
    if strided:
        parts[0] = torch.randn((*replicas, *SHAPES[0][::-1])).mT
    vector = flat(parts, replicas)
    assert vector.shape == (*replicas, sum(sizes(parts, replicas))) == (*replicas, 18)
    assert torch.equal(vector[..., :12], parts[0].reshape(*replicas, 12))
    for found, part in zip(cut(vector, parts, replicas), parts, strict=True):
        assert torch.equal(found, part)
        found.zero_()
    assert not vector.any()


def test_a_vector_given_is_written_into():
    parts, out = [torch.ones(2, 2).mT, torch.ones(3)], torch.zeros(7)
    assert flat(parts, torch.Size(()), out).data_ptr() == out.data_ptr()
    assert torch.equal(out, torch.ones(7))
