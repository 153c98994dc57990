"""The dense matrix over all covered parameters (its solves: test_gram.py)."""

import pytest
import torch

from fisherlab.errors import UsageError
from fisherlab.fisher import Full, blocks
from fisherlab.fisher.full import parameters, per_example
from tests.cases import LAYERS, batch_of, batch_statistics, flat, like, model_of
from tests.compare import assert_close, assert_same_bits
from tests.reference import Twin

DAMPING = torch.tensor(1e-2, dtype=torch.float64)


def stats(seed=0, **options):
    return batch_statistics(model_of(**options), "categorical", "exact", *batch_of("categorical", seed=seed))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layer", LAYERS)
def test_per_example_vectors_are_the_gradients_of_each_example(layer, bias):
    model, (x, y) = model_of(layer, bias=bias), batch_of("bernoulli")
    found, _ = batch_statistics(model, "bernoulli", "empirical", x, y)
    expected = Twin(model, "bernoulli", x, y).per_example
    assert_close(per_example(found), expected, 1e-12)
    assert parameters(found) == expected.shape[1]


def test_average_moves_towards_the_batch():
    structure, first, second = Full(), Full(), Full()
    first.update(stats(0)[0], 0.0)
    second.update(stats(1)[0], 0.0)
    structure.update(stats(0)[0], 0.0)
    structure.update(stats(1)[0], 0.75)
    assert_close(structure.matrix, 0.75 * first.matrix + 0.25 * second.matrix, 1e-14)


def test_identity_start():
    structure = Full()
    structure.start_at_identity(stats()[0])
    assert_same_bits(structure.matrix, torch.eye(43, dtype=torch.float64))


def test_solving_changes_neither_matrix_nor_arguments():
    (batch, gradient), structure = stats(), Full()
    extra = like(gradient)
    structure.update(batch, 0.0)
    structure.refresh(DAMPING)
    kept = [t.clone() for t in (structure.matrix, *gradient, *extra)]
    first = flat(structure.solve(gradient, extra))
    structure.refresh(DAMPING)
    assert_same_bits(flat(structure.solve(gradient, extra)), first)
    for t, old in zip((structure.matrix, *gradient, *extra), kept, strict=True):
        assert_same_bits(t, old)


def test_singular_without_damping_is_marked():
    structure = Full()
    structure.update(stats()[0], 0.0)
    assert structure.refresh(0 * DAMPING).all()


def test_a_matrix_too_large_is_refused(monkeypatch):
    monkeypatch.setattr(blocks, "MAX_SIZE", 42)
    with pytest.raises(
        UsageError, match=r"structure=full needs a 43 x 43 matrix: expected at most 42 parameters in a block"
    ):
        Full().update(stats()[0], 0.0)
