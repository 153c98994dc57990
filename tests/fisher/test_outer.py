"""Outer products of fixed inputs: the same unit-wise Fisher, formed once for all replicas."""

import pytest
import torch

from fisherlab.errors import UsageError
from fisherlab.fisher import Inputs, Statistics, UnitBlocks
from fisherlab.fisher.outer import LANES, OuterProducts
from tests.compare import assert_close, assert_same_bits

N, WIDTH, REPLICAS, UNITS = 40, 12, 70, 3  # more replicas than go into one product


def inputs(density: float) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(1, 1, N, WIDTH, generator=generator, dtype=torch.float64)
    return Inputs(a * (torch.rand(a.shape, generator=generator) < density), 1.0)


def gradients(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, REPLICAS, 2, N, UNITS, generator=generator, dtype=torch.float64)


def average(a: Inputs, g: torch.Tensor, outer: OuterProducts | None) -> torch.Tensor:
    structure = UnitBlocks()
    if outer is not None:
        structure.outer[0] = outer
    structure.update(Statistics([a], [g], 0.5), 0.0)
    return structure.dense()


@pytest.mark.parametrize("density", [1.0, 0.1])
def test_equals_the_blocks_formed_row_by_row(density):
    a, g = inputs(density), gradients()
    outer = OuterProducts(a)
    assert outer._products.is_sparse_csr == (density < 1)
    assert_close(average(a, g, outer), average(a, g, None), 1e-14)


@pytest.mark.parametrize("density", [1.0, 0.1])
def test_a_replica_has_the_same_bits_alone(density):
    a, g = inputs(density), gradients()
    outer = OuterProducts(a)
    together = average(a, g, outer)
    for i in (0, 5, LANES - 1, LANES, REPLICAS - 1):
        assert_same_bits(together[:, i : i + 1], average(a, g[:, i : i + 1], outer))


def test_other_inputs_are_not_answered_for():
    a, other, g = inputs(1.0), inputs(0.5), gradients()
    outer = OuterProducts(a)
    assert outer.fits(Inputs(a.a.view(a.a.shape), 1.0))
    assert not outer.fits(other)
    assert_close(average(other, g, outer), average(other, g, None), 1e-14)
    a.a.mul_(2)
    assert not outer.fits(a)


def test_inputs_that_differ_between_replicas_are_refused():
    with pytest.raises(UsageError, match="differ between replicas"):
        OuterProducts(Inputs(torch.zeros(1, 2, N, WIDTH), 1.0))
