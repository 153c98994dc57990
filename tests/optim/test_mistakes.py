"""What is wrong is refused at construction, in one line that names the value and what was expected."""

import pytest
import torch
from torch import nn

import fisherlab
from fisherlab.errors import UsageError
from tests.cases import model_of


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
        (lambda m: natural(m, "categorical", structure="gram", ema=0.9), "structure=gram keeps no moving average"),
        (lambda m: fisherlab.EFNGD(m, "categorical", stats_period=2), "structure=smaller keeps no moving average"),
        (lambda m: fisherlab.KFAC(m, "categorical", ema_start="zero"), "ema_start='zero' is unknown"),
        (lambda m: fisherlab.SGD(m, "categorial"), "likelihood='categorial' is unknown: did you mean 'categorical'"),
        (lambda m: fisherlab.SGD(nn.Tanh(), "categorical"), "no trainable parameters"),
        (lambda m: fisherlab.KFAC(nn.PReLU(), "categorical"), "no layer that a natural gradient covers"),
        (lambda m: fisherlab.SGD(m, "categorical", lr=torch.tensor([0.1, -1.0])), "lr=[0.1"),
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
