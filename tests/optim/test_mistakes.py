"""What is wrong is refused at construction, in one line that names the value and what was expected."""

import numpy as np
import pytest
import torch
from torch import nn

import fisherlab
from fisherlab.errors import UsageError
from fisherlab.models import stack_replicas
from fisherlab.optim import FisherOptimizer, Preconditioner
from tests.cases import PRESETS, batch_of, model_of


def natural(model, likelihood, **options):
    return fisherlab.NaturalGradient(model, likelihood, **options)


MISTAKES = [
    (lambda m, lr: fisherlab.SGD(m, "categorical", lr=lr), v, f"lr={v!r} is ")
    for v in (0, -1.0, float("nan"), float("inf"), "abc", True, None)
]
MISTAKES += [
    (lambda m, v, cls=cls, key=key: cls(m, "categorical", **{key: v}), value, f"{key}={value!r} is ")
    for cls, key, values in (
        (fisherlab.SGD, "momentum", (1.0, -0.1, 1.5)),
        (fisherlab.SGD, "l2", (-1.0, float("nan"))),
        (fisherlab.Adam, "beta1", (1.0,)),
        (fisherlab.Adam, "beta2", (-0.5,)),
        (fisherlab.Adam, "eps", (0.0,)),
        (fisherlab.KFAC, "damping", (-1.0, "abc", float("inf"))),
        (fisherlab.KFAC, "kl_clip", (0.0, -1.0)),
        (fisherlab.KFAC, "ema", (1.0, -0.1)),
        (fisherlab.KFAC, "stats_period", (0, 1.5, True)),
        (fisherlab.KFAC, "inverse_period", (-1,)),
        (fisherlab.KFAC, "samples", (0,)),
        (fisherlab.KFAC, "tau1", (0, 1.5, True)),
    )
    for value in values
]


@pytest.mark.parametrize(("build", "value", "message"), MISTAKES, ids=[m for *_, m in MISTAKES])
def test_bad_values_are_refused_at_construction_by_name(build, value, message):
    with pytest.raises(UsageError) as error:
        build(model_of(), value)
    assert message in str(error.value)
    assert "expected" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda m: natural(m, "categorical", kind="exakt"), "kind='exakt' is unknown: did you mean 'exact'"),
        (
            lambda m: natural(m, "categorical", structure="kroneker"),
            "structure='kroneker' is unknown: did you mean 'kronecker'",
        ),
        (
            lambda m: natural(m, "categorical", structure="gram", damping_mode="factored"),
            "damping_mode='factored' does not fit structure=gram",
        ),
        (
            lambda m: natural(m, "categorical", structure="gram", ema=0.9),
            "ema=0.9 does not fit structure=gram: expected 0, ",
        ),
        (
            lambda m: fisherlab.EFNGD(m, "categorical", stats_period=2),
            "stats_period=2 does not fit structure=smaller: expected 1, ",
        ),
        (lambda m: fisherlab.KFAC(m, "categorical", tau1=0.4), "tau1=0.4 is no fraction 1/k: the nearest is 1/2, 0.5"),
        (lambda m: fisherlab.EFNGD(m, "categorical", tau1=0.5), "tau1=0.5 does not fit structure=smaller: expected 1"),
        (lambda m: fisherlab.KFAC(m, "categorical", ema_start="zero"), "ema_start='zero' is unknown"),
        (lambda m: fisherlab.SGD(m, "categorial"), "likelihood='categorial' is unknown: did you mean 'categorical'"),
        (lambda m: fisherlab.SGD(nn.Tanh(), "categorical"), "no trainable parameters"),
        (lambda m: fisherlab.KFAC(nn.PReLU(), "categorical"), "no layer that a natural gradient covers"),
        (lambda m: fisherlab.SGD(m, "categorical", lr=torch.tensor([0.1, -1.0])), "lr=[0.1"),
        (lambda m: FisherOptimizer(m, "categorical", lr=0.1, rule="adm"), "rule='adm' is unknown: did you mean 'adam'"),
        (
            lambda m: FisherOptimizer(m, "categorical", lr=0.1, rule_options={"momentum": None}),
            "momentum=None is no number: expected a number in [0, 1)",
        ),
        (
            lambda m: FisherOptimizer(m, "categorical", lr=0.1, rule_options={"momentun": 0.9}),
            "rule=momentum has no option 'momentun': did you mean 'momentum'",
        ),
        (lambda m: fisherlab.SGD(m, "categorical", damping=1.0), "damping has no effect without a preconditioner"),
        (lambda m: fisherlab.Adam(m, "categorical", kl_clip=1.0), "kl_clip has no effect without a preconditioner"),
        (lambda m: fisherlab.SGD(m, "categorical", lr_uncovered=1.0), "lr_uncovered has no effect without a"),
        (
            lambda m: FisherOptimizer(m, "categorical", lr=0.1, preconditioner=Preconditioner()),
            "damping=None does not fit a preconditioner",
        ),
        (lambda m: fisherlab.KFAC(m, "categorical", seed="7"), "seed='7' is no seed"),
        (lambda m: fisherlab.KFAC(m, "categorical", seed=0.5), "seed=0.5 is no seed"),
        (lambda m: fisherlab.KFAC(m, "categorical", seed=[0]), "seed=[0] does not fit"),
        (lambda m: fisherlab.KFAC(stack_replicas([m] * 6, (2, 3)), "categorical", seed=[0] * 3), "seed=[0, 0, 0] does"),
        *[
            (
                lambda m, key=key: fisherlab.KFAC(
                    stack_replicas([m] * 6, (2, 3)), "categorical", **{key: torch.full((2,), 0.5)}
                ),
                f"{key} of shape (2,) does not fit: expected a number, or a tensor that broadcasts to the",
            )
            for key in ("lr", "damping", "momentum", "l2", "kl_clip", "lr_uncovered")
        ],
        (lambda m: fisherlab.SGD(m, "categorical", lr=torch.tensor([0.1])), "lr of shape (1,) does not fit"),
        (
            lambda m: fisherlab.EFNGD(
                stack_replicas([m] * 2, (1, 2)),
                "categorical",
                damping=torch.tensor([1.0, 0.0]),
                l2=torch.tensor([0.0, 0.1]),
                l2_in_curvature=False,
            ),
            "damping=0 with l2 outside the curvature",
        ),
        (
            lambda m: fisherlab.KFAC(nn.Sequential(m, nn.LayerNorm(3)), "categorical", lr_uncovered=-2.0),
            "lr_uncovered=-2.0 is out of range",
        ),
    ],
)
def test_senseless_choices_are_refused_with_the_reason(build, message):
    with pytest.raises(UsageError) as error:
        build(model_of())
    assert message in str(error.value)


def test_an_unknown_argument_is_an_error():
    with pytest.raises(TypeError, match="dampening"):
        fisherlab.KFAC(model_of(), "categorical", dampening=1.0)


@pytest.mark.parametrize("seed", [np.int64(7), np.array([7, 8]), (7, np.int32(8))])
def test_seeds_are_any_integers(seed):
    model = stack_replicas([model_of()] * 2, (2, 1))
    seeds = fisherlab.KFAC(model, "categorical", seed=seed).streams.seeds
    assert seeds in (7, [7, 8])
    assert {type(s) for s in (seeds if isinstance(seeds, list) else [seeds])} == {int}


@pytest.mark.parametrize("name", ["sgd", "kfac"])
def test_targets_that_would_broadcast_are_refused(name):
    cls, options = PRESETS[name]
    x, y = batch_of("gaussian", outputs=1)
    with pytest.raises(UsageError, match=r"targets of shape \(6,\) do not fit outputs of shape \(6, 1\)"):
        cls(model_of(widths=(4, 5, 1)), "gaussian", **options).step(x, y[:, 0])


@pytest.mark.parametrize("name", ["sgd", "kfac"])
def test_a_parameter_frozen_after_construction_is_refused(name):
    cls, options = PRESETS[name]
    model = model_of()
    optimizer = cls(model, "categorical", **options)
    model[0].bias.requires_grad_(False)
    with pytest.raises(UsageError, match=r"'layer0.bias' was frozen after construction"):
        optimizer.step(*batch_of("categorical"))


def test_autocast_is_refused_around_a_natural_step_only():
    x, y = batch_of("categorical", dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fisherlab.SGD(model_of().float(), "categorical").step(x, y)
        with pytest.raises(UsageError, match=r"torch.autocast\('cpu'\) is on"):
            fisherlab.KFAC(model_of().float(), "categorical").step(x, y)


def test_a_further_parameter_group_is_refused():
    with pytest.raises(UsageError, match="the parameter groups follow from the model"):
        fisherlab.SGD(model_of(), "categorical").add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
