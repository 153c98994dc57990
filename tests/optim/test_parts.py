"""A replica's part of a nested state: cut out, forgotten, copied; what replicas share is nobody's own."""

import pytest
import torch

from fisherlab.optim.state import copied, forget, mapped, part

REPLICAS = (2, 3)


def state():
    own, shared = torch.arange(24.0).reshape(2, 3, 4), torch.arange(1.0, 9.0).reshape(2, 1, 4)
    return {"own": [own, own + 100], "shared": shared, "other": torch.ones(7), "step": 5, "none": None}


@pytest.mark.parametrize("places", [[[1], [2]], [[0, 1], [0, 2]], [[1], [2, 0]]])
def test_replicas_are_cut_along_their_axes(places):
    whole = state()
    cut = mapped(whole, lambda t: part(t, places, REPLICAS))
    rows, columns = places
    assert torch.equal(cut["own"][1], whole["own"][1][rows][:, columns])
    assert torch.equal(cut["shared"], whole["shared"][rows])
    assert torch.equal(cut["other"], whole["other"])
    assert (cut["step"], cut["none"]) == (5, None)


def test_forgetting_zeroes_what_is_a_lane_s_own_and_nothing_else():
    whole, before = state(), state()
    forget(whole, (1, 2), REPLICAS)
    for now, then in zip(whole["own"], before["own"], strict=True):
        assert not now[1, 2].any()
        now[1, 2] = then[1, 2]
        assert torch.equal(now, then)
    assert torch.equal(whole["shared"], before["shared"])
    assert torch.equal(whole["other"], before["other"])


def test_without_replica_axes_the_whole_stays():
    t = torch.arange(4.0)
    assert torch.equal(part(t, [], ()), t)


def test_a_copy_shares_nothing():
    whole = state()
    other = copied(whole, torch.device("cpu"))
    other["own"][0].zero_()
    assert whole["own"][0].any()
    assert other["step"] == 5
