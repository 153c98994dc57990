"""What a search varies: read from the config, refused in one line where it makes no sense."""

from __future__ import annotations

import math

import optuna
import pytest

from fisherlab.errors import UsageError
from fisherlab.sweep.space import Dimension, read_space, with_values
from tests.sweep.searches import tiny

LINEAR = "lr_schedule.name=linear"


def test_sections_are_dotted_keys_in_order():
    node = {
        "lr": {"low": 1e-4, "high": 1.0, "log": True},
        "lr_schedule": {"end_fraction": {"low": 0.01, "high": 1.0}},
        "optimizer": {"inverse_period": {"low": 1, "high": 20}},
        "damping": {"low": 1, "high": 10},
    }
    found = read_space(node, tiny("optimizer=kfac", "damping=0.1", LINEAR))
    assert found == [
        Dimension("lr", 1e-4, 1.0, log=True),
        Dimension("lr_schedule.end_fraction", 0.01, 1.0),
        Dimension("optimizer.inverse_period", 1, 20, whole=True),
        Dimension("damping", 1, 10),  # its bounds alone make no whole number
    ]


@pytest.mark.parametrize(
    ("node", "says"),
    [
        ({}, "space={}: expected at least one number to search, for example space.lr"),
        ({"lrr": {"low": 0, "high": 1}}, "space.lrr: the config has no such key; did you mean 'lr'?"),
        ({"optimizer": {"rl": {"low": 0, "high": 1}}}, "space.optimizer.rl: the config has no such key; expected "),
        ({"data_seed": {"low": 1, "high": 9}}, "space.data_seed: a seed names a repeat; expected tune.seeds"),
        ({"optimizer": {"lr": {"low": 0.1, "high": 1}}}, "space.optimizer.lr: its value is that of 'lr'; expected sp"),
        ({"batch_size": {"low": 1, "high": 9, "whole": 1}}, "space.batch_size.whole=1: expected true, with whole"),
        ({"l2": {"low": 0.5, "high": 9, "whole": True}}, "space.l2.whole=true: expected true, with whole numbers low"),
        ({"likelihood": {"low": 1, "high": 9}}, "space.likelihood: likelihood=auto is no number; "),
        ({"l2_biases": {"low": 0, "high": 1}}, "space.l2_biases: l2_biases=false is no number; "),
        ({"optimizer": {"low": 0, "high": 1}}, "space.optimizer: 'optimizer' is no number; expected one of"),
        ({"lr": 3}, "space.lr=3: expected low and high, for example {low:0,high:1}"),
        ({"lr": None}, "space.lr=null: expected low and high"),
        ({"lr": {"low": 1, "hgih": 2}}, "space.lr.hgih: there is no such key; did you mean 'high'?"),
        ({"lr": {"low": 1}}, "space.lr={low:1}: expected numbers low and high"),
        ({"lr": {"low": 1, "high": "big"}}, "space.lr={low:1,high:big}: expected numbers"),
        ({"lr": {"low": True, "high": 2}}, "space.lr={low:true,high:2}: expected numbers"),
        ({"lr": {"low": 1, "high": 2, "log": 1}}, "and log true or false"),
        ({"lr": {"low": 1, "high": 0.1}}, "space.lr: low=1, high=0.1: expected low below high"),
        ({"lr": {"low": 1, "high": 1}}, "space.lr: low=1, high=1: expected low below high"),
        ({"lr": {"low": 0, "high": math.inf}}, "expected low below high"),
        ({"lr": {"low": math.nan, "high": 1}}, "expected low below high"),
        ({"lr": {"low": 0.0, "high": 1, "log": True}}, "space.lr.low=0.0: expected a number above 0, because its log"),
        ({"lr": {"low": 0.0, "high": 1}}, "lr=0.0: expected a number above 0"),
        ({"momentum": {"low": 0, "high": 1.0}}, "momentum=1.0: expected a number from 0 to below 1"),
        ({"batch_size": {"low": 1.5, "high": 3.5}}, "batch_size=1.5: expected a whole number"),
        ({"lr_schedule": {"end_fraction": {"low": 0, "high": 1}}}, "has no effect with lr_schedule.name=constant"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_in_one_line(node, says):
    with pytest.raises(UsageError) as refused:
        read_space(node, tiny())
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_end_fraction_is_searched_with_a_schedule():
    bounds = {"lr_schedule": {"end_fraction": {"low": 0, "high": 1}}}
    assert len(read_space(bounds, tiny(LINEAR))) == 1


def test_a_number_that_may_be_a_fraction_is_searched_as_one_however_it_is_written():
    node = {"damping": {"low": 1, "high": 100, "log": True}, "optimizer": {"samples": {"low": 1, "high": 4}}}
    found = read_space(node, tiny("optimizer=kfac", "damping=1"))
    assert [d.whole for d in found] == [False, True]
    (damping,) = read_space({"damping": node["damping"] | {"whole": True}}, tiny("optimizer=kfac", "damping=1"))
    assert damping.whole


def test_whole_numbers_stay_whole():
    (layers,) = read_space({"model": {"layers": {"low": 2, "high": 4}}}, tiny("model=deep_linear"))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    values = [layers.suggest(study.ask()) for _ in range(20)]
    assert set(values) == {2, 3, 4}
    assert {type(v) for v in values} == {int}


@pytest.mark.parametrize("whole", [False, True])
def test_the_logarithm_is_searched_where_asked_for(whole):
    low, high = (1, 10_000) if whole else (1.0, 10_000.0)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    values = [Dimension("lr", low, high, log=True, whole=whole).suggest(study.ask()) for _ in range(100)]
    assert 30 < sum(v < 100 for v in values) < 70
    assert low <= min(values) <= max(values) <= high


def test_values_reach_what_refers_to_them_and_the_config_stays():
    cfg = tiny("lr=0.5")
    assert with_values(cfg, {"lr": 0.25, "model.hidden.0": 3}).optimizer.lr == 0.25
    assert with_values(cfg, {"model.hidden.0": 3}).model.hidden == [3]
    assert (cfg.lr, cfg.model.hidden) == (0.5, [8])
