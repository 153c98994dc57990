"""A draw depends on (seed, purpose, counter) and on nothing else."""

import pytest
import torch

from fisherlab.streams import Streams, generator, key

DRAWS = {
    "uniform": lambda s, purpose="p", counter=3: s.uniform(purpose, counter, (5, 2), torch.float64),
    "normal": lambda s, purpose="p", counter=3: s.normal(purpose, counter, (5, 2), torch.float64),
    "permutation": lambda s, purpose="p", counter=3: s.permutation(purpose, counter, 50),
}


@pytest.fixture(params=DRAWS)
def draw(request):
    return DRAWS[request.param]


def test_keys_are_fixed_for_ever():
    # A resumed or repeated run needs these very numbers, in any version.
    expected = [1829853113658518448, 8401410035462850704, 5540934614470127089]
    assert [key(0, "order"), key(1, "order"), key(0, "labels", 7)] == expected


@pytest.mark.parametrize("seed", [0, -1, 2**70])
def test_keys_fit_a_generator(seed):
    assert 0 <= key(seed, "p") < 2**63
    generator(seed, "p")


def test_same_place_same_numbers_whatever_was_drawn_before(draw):
    first = draw(Streams(7))
    streams = Streams(7)
    for other in DRAWS.values():
        other(streams, counter=1)
    assert torch.equal(draw(streams), first)


def test_every_part_of_the_place_counts(draw):
    base = draw(Streams(7))
    for other in (draw(Streams(8)), draw(Streams(7), purpose="q"), draw(Streams(7), counter=4)):
        assert not torch.equal(other, base)


def test_seeds_side_by_side_are_the_single_streams_stacked(draw):
    assert torch.equal(draw(Streams([3, 1, 3])), torch.stack([draw(Streams(s)) for s in (3, 1, 3)]))


def test_one_seed_in_a_list_has_a_stream_axis(draw):
    assert draw(Streams([3])).shape == (1, *draw(Streams(3)).shape)


def test_global_random_state_is_left_alone(draw):
    before = torch.get_rng_state()
    draw(Streams([0, 1]))
    assert torch.equal(torch.get_rng_state(), before)


def test_permutation_holds_everything_once():
    assert Streams(0).permutation("order", 0, 100).sort().values.tolist() == list(range(100))


def test_distributions():
    streams = Streams(0)
    u = streams.uniform("u", 0, (20_000,), torch.float64)
    assert u.min() >= 0
    assert u.max() < 1
    assert abs(u.mean() - 0.5) < 4 * (1 / 12 / 20_000) ** 0.5
    z = streams.normal("z", 0, (20_000,), torch.float64)
    assert abs(z.mean()) < 4 / 20_000**0.5
    assert abs(z.var() - 1) < 4 * (2 / 20_000) ** 0.5


@pytest.mark.parametrize(("seed", "counter"), [(1, 0), (0, 1)])
def test_neighbours_are_unrelated(seed, counter):
    z, neighbour = (Streams(s).normal("z", c, (20_000,), torch.float64) for s, c in ((0, 0), (seed, counter)))
    assert abs((z * neighbour).mean()) < 4 / 20_000**0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype(dtype):
    assert Streams(0).uniform("u", 0, (2,), dtype).dtype == dtype
    assert Streams(0).normal("u", 0, (2,), dtype).dtype == dtype


def test_meta_device_has_shapes_only(draw):
    drawn = draw(Streams([0, 1], "meta"))
    assert drawn.device.type == "meta"
    assert drawn.shape == draw(Streams([0, 1])).shape
