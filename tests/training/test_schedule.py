"""The learning rate, the batch size and the order of the data."""

from __future__ import annotations

import itertools

import pytest
import torch

from fisherlab.streams import Streams
from fisherlab.training.schedule import Batches, BatchSize, LearningRate


def test_linear_ends_at_its_fraction_and_cosine_is_halfway_in_the_middle():
    linear = LearningRate("linear", 0.1, 0, 101)
    assert [linear(0), linear(50), linear(100)] == pytest.approx([1.0, 0.55, 0.1])
    cosine = LearningRate("cosine", 0.0, 0, 101)
    assert [cosine(0), cosine(50), cosine(100)] == pytest.approx([1.0, 0.5, 0.0])
    assert LearningRate("constant", 0.0, 0, 10)(7) == 1.0


def test_warm_up_rises_to_the_full_rate():
    rate = LearningRate("constant", 1.0, 4, 100)
    assert [rate(i) for i in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_growing_batch_equals_the_log_of_martens_and_grosse():
    # papers/martens2015.md, "MNIST batch checks from the log", k counted from 1.
    size = BatchSize(1000, 60_000, until_step=500)
    logged = {2: 1008, 5: 1033, 50: 1494, 100: 2253, 200: 5118, 300: 11_626, 400: 26_412, 500: 60_000}
    assert {k: size(k - 1) for k in logged} == logged
    assert size(10_000) == 60_000


def test_an_epoch_holds_no_example_twice_and_follows_the_seed():
    def epoch(seed: int, n: int = 10) -> list[torch.Tensor]:
        batches = Batches(BatchSize(10, 105), Streams(seed))
        return [batches.next() for _ in range(n)]

    one = torch.cat(epoch(0))
    assert len(one.unique()) == 100
    assert torch.equal(one, torch.cat(epoch(0)))
    assert not torch.equal(one, torch.cat(epoch(1)))
    two = torch.cat(epoch(0, 20))
    assert not torch.equal(two[:100], two[100:])


def test_stream_axis_stacks_the_orders_of_single_seeds():
    both = Batches(BatchSize(10, 50), Streams([3, 4])).next()
    each = [Batches(BatchSize(10, 50), Streams(seed)).next() for seed in (3, 4)]
    assert torch.equal(both, torch.stack(each))


def test_batches_drawn_anew_have_no_example_twice_and_what_the_last_had_as_likely_as_any():
    batches = Batches(BatchSize(40, 100), Streams([0, 1]), independent=True)
    drawn = [batches.next() for _ in range(200)]
    assert all(len(one.unique()) == 40 for batch in drawn for one in batch)
    shared = [len(set(a[0].tolist()) & set(b[0].tolist())) for a, b in itertools.pairwise(drawn)]
    assert sum(shared) / len(shared) == pytest.approx(16, abs=1)  # 40 of 100 of 40; of one permutation none
    assert batches.epoch == 99  # an epoch is two steps, as it would be else


@pytest.mark.parametrize("independent", [False, True])
def test_cursor_goes_on_where_it_was(independent):
    size = BatchSize(7, 40, until_step=12)
    whole, first = (Batches(size, Streams(5), independent=independent) for _ in range(2))
    expected = [whole.next() for _ in range(14)]
    for _ in range(6):
        first.next()
    second = Batches(size, Streams(5), independent=independent)
    second.load(first.state())
    for want, got in zip(expected[6:], [second.next() for _ in range(8)], strict=True):
        assert (want is None and got is None) or torch.equal(want, got)
    assert second.state() == whole.state()


@pytest.mark.parametrize(
    ("first", "until", "epochs", "steps"), [(128, None, 1, 468), (60_000, None, 3, 3), (128, None, 0.5, 234)]
)
def test_steps_of_epochs(first, until, epochs, steps):
    assert Batches(BatchSize(first, 60_000, until), Streams(0)).steps(epochs) == steps


def test_steps_of_epochs_with_a_growing_batch_ends_an_epoch():
    batches = Batches(BatchSize(10, 100, until_step=20), Streams(0))
    steps = batches.steps(2)
    for _ in range(steps):
        batches.next()
    assert batches.epoch == 1
    assert batches.epoch_ends


def test_epoch_ends_with_the_last_full_batch():
    batches = Batches(BatchSize(10, 25), Streams(0))
    ends = []
    for _ in range(6):
        batches.next()
        ends.append(batches.epoch_ends)
    assert ends == [False, True] * 3
