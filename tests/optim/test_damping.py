"""Damping policies: schedules, and Levenberg-Marquardt by the reduction ratio of the exact quadratic model."""

import copy

import pytest
import torch

from fisherlab import KFAC, SGD
from fisherlab.errors import UsageError
from fisherlab.models import mlp, stack_replicas
from fisherlab.streams import generator
from tests.cases import batch_of, label_noise, model_of
from tests.compare import assert_close, assert_same_bits
from tests.reference import Twin, flatten

SCHEDULE = {"damping_start": 2.0, "damping_end": 0.5, "damping_steps": 5}


def dampings(steps=6, likelihood="categorical", **options):
    model, (x, y) = model_of("dense"), batch_of(likelihood)
    optimizer, found = KFAC(model, likelihood, **options), []
    for _ in range(steps):
        optimizer.step(x, y)
        found.append(float(optimizer.param_groups[0]["damping"]))
    return found


def test_linear_goes_along_a_line_and_stays():
    assert dampings(damping="linear", **SCHEDULE) == pytest.approx([2.0, 1.625, 1.25, 0.875, 0.5, 0.5])


def test_exponential_goes_by_equal_factors():
    expected = [2 ** (1 - i / 2) for i in range(5)]
    assert dampings(damping="exponential", **SCHEDULE) == pytest.approx([*expected, 0.5])


def test_a_schedule_is_the_same_as_setting_the_damping_by_hand():
    (x, y), models = batch_of("categorical"), [model_of("dense") for _ in range(2)]
    scheduled = KFAC(models[0], "categorical", damping="linear", inverse_period=1, **SCHEDULE)
    by_hand = KFAC(models[1], "categorical", damping=2.0, inverse_period=1)
    for damping in (2.0, 1.625, 1.25):
        by_hand.param_groups[0]["damping"] = damping
        scheduled.step(x, y)
        by_hand.step(x, y)
    for a, b in zip(*(m.parameters() for m in models), strict=True):
        assert_same_bits(a, b)


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli", "gaussian"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("l2", [0.0, 0.3])
def test_rho_is_the_dense_twin_s(likelihood, momentum, l2):
    model, (x, y) = model_of("dense"), batch_of(likelihood)
    optimizer = KFAC(
        model, likelihood, lr=0.2, damping="lm", damping_start=0.7, momentum=momentum, l2=l2, l2_biases=True
    )
    for _ in range(4):
        optimizer.step(x, y)
        assert torch.isnan(optimizer.report["rho"])
    theta, twin = flatten(model, dict(model.named_parameters())).detach().clone(), Twin(model, likelihood, x, y)
    before, g, fisher = twin.loss + 0.5 * l2 * theta @ theta, twin.gradient + l2 * theta, twin.fisher("exact")
    optimizer.step(x, y)
    after = flatten(model, dict(model.named_parameters())).detach()
    delta = after - theta
    predicted = g @ delta + 0.5 * delta @ (fisher @ delta + l2 * delta)
    change = Twin(model, likelihood, x, y).loss + 0.5 * l2 * after @ after - before
    assert predicted < 0
    assert_close(optimizer.report["rho"], change / predicted, 1e-9)


def test_lm_moves_by_the_ratio_every_five_steps():
    small = dampings(6, damping="lm", damping_start=1e3, lr=0.1, momentum=0.0)  # the model is right: trust it
    assert small[:5] == [1e3] * 5
    assert small[5] == pytest.approx(1e3 * 0.95**5)
    wild = dampings(6, "gaussian", damping="lm", damping_start=1e-3, lr=5.0, momentum=0.0)  # the objective rises
    assert wild[5] == pytest.approx(1e-3 / 0.95**5)


def test_a_ratio_that_is_no_number_raises_the_damping():
    model, _ = model_of("dense"), None
    policy = KFAC(model, "categorical", damping="lm", damping_start=1.0).policy
    policy.tell(torch.tensor([float("nan"), 0.5, 0.8, 0.2]))
    assert policy.damping(5).tolist() == pytest.approx([0.95**-5, 1.0, 0.95**5, 0.95**-5])


def test_lm_falls_to_its_least_and_may_rise_again():
    model, least = model_of("dense"), torch.tensor([0.9, 0.5], dtype=torch.float64)
    policy = KFAC(model, "categorical", damping="lm", damping_start=1.0).policy
    policy = type(policy)(1.0, least)
    policy.tell(torch.tensor([0.9, 0.9]))
    assert policy.damping(5).tolist() == pytest.approx([0.9, 0.95**5])
    policy.tell(torch.tensor([0.1, 0.5]))
    assert policy.damping(10).tolist() == pytest.approx([0.9 / 0.95**5, 0.95**5])
    floored = dampings(6, damping="lm", damping_start=1e3, damping_end=999.0, lr=0.1, momentum=0.0)
    assert floored[5] == pytest.approx(999.0)


def test_every_replica_has_its_own_damping():
    models = [mlp(4, 3, hidden=(3,), generator=generator(seed, "init")) for seed in (0, 0)]
    start = torch.tensor([[1e-4, 1e3]])
    optimizer = KFAC(
        stack_replicas(models, (1, 2)).double(), "categorical", lr=1.0, damping="lm", damping_start=start, seed=[0]
    )
    x, y = torch.randn(1, 1, 8, 4).double(), torch.randint(3, (1, 1, 8))
    for _ in range(6):
        optimizer.step(x, y)
    ratios = optimizer.param_groups[0]["damping"] / start
    assert ratios.shape == (1, 2)
    assert ratios[0, 1] == pytest.approx(0.95**5)


def test_a_policy_s_state_is_part_of_the_optimizer_s():
    (x, y), models = batch_of("categorical"), [model_of("dense") for _ in range(2)]
    options = {"damping": "lm", "damping_start": 100.0, "lr": 0.1}
    first, second = (KFAC(model, "categorical", **options) for model in models)
    for _ in range(7):
        first.step(x, y)
    models[1].load_state_dict(models[0].state_dict())
    second.load_state_dict(first.state_dict())
    for _ in range(5):
        assert_same_bits(first.step(x, y), second.step(x, y))
    assert first.param_groups[0]["damping"] == second.param_groups[0]["damping"]


@pytest.mark.parametrize("kind", ["exact", "mc", "empirical"])
def test_the_trace_that_a_policy_hears_is_the_dense_fisher_s(kind):
    model, (x, y), heard = model_of("ntk"), batch_of("categorical"), []
    optimizer = KFAC(model, "categorical", kind=kind)
    noise = label_noise(optimizer, x)
    optimizer.preconditioner.tell_trace = heard.append
    expected = Twin(model, "categorical", x, y).fisher(kind, noise).trace()
    optimizer.step(x, y)
    assert_close(heard[0], expected, 1e-12)


def heard(policy, losses, traces):
    for loss, trace in zip(losses, traces, strict=True):
        policy.hear_loss(torch.as_tensor(loss))
        policy.hear_trace(torch.as_tensor(trace))
    return policy.damping(0).tolist()


def settling():
    return KFAC(model_of("dense"), "categorical", damping="settling", damping_start=1.0, damping_end=1e-4).policy


def test_settling_is_large_on_the_plateau_also_where_the_fisher_rests():
    assert settling().damping(0) == 1.0
    assert heard(settling(), [[2.3]] * 60, [[2.0]] * 60) == pytest.approx([1.0])


def test_settling_is_small_once_the_loss_has_fallen_and_the_fisher_rests():
    losses, traces = [[2.0, 2.0], *[[0.5, 1.5]] * 60], [[2.0, 2.0]] * 61
    found = heard(settling(), losses, traces)
    assert found[0] == pytest.approx(1e-4, rel=1e-2)
    assert found[1] == pytest.approx(1e-4 * 1e4**0.5, rel=1e-2)  # half of the way to half of the first loss


def test_settling_is_large_where_the_fisher_moves():
    policy = settling()
    heard(policy, [[2.0, 2.0], *[[0.5, 0.5]] * 60], [[2.0, 2.0]] * 61)
    found = heard(policy, [[0.5, 0.5]], [[2.0, 3.0]])
    assert found == pytest.approx([1e-4, 1e-4 * 1e4**0.1], rel=1e-2)  # a fifth of a move by half
    found = heard(policy, [[0.5, 0.5]], [[float("nan"), 1e30]])
    assert found[0] == pytest.approx(1e-4 * 1e4**0.2, rel=1e-2)
    assert found[1] == pytest.approx(1.0)


def test_a_loss_that_is_no_number_leaves_the_damping_large():
    assert heard(settling(), [[2.0], [float("nan")]], [[2.0], [2.0]]) == pytest.approx([1.0])


@pytest.mark.parametrize("policy", ["exponential", "settling"])
def test_a_replica_s_damping_has_the_same_bits_alone(policy):
    count = 5
    start, end = (torch.rand(1, count, generator=generator(0, p), dtype=torch.float64) + 0.1 for p in ("a", "b"))
    model = mlp(4, 3, hidden=(3,), generator=generator(0, "init")).double()
    x, y = torch.randn(1, 1, 8, 4, generator=generator(0, "x")).double(), torch.tensor([[[0, 1, 2, 0, 1, 2, 0, 1]]])

    def run(cut):
        lanes = range(count)[cut]
        optimizer = KFAC(
            stack_replicas([copy.deepcopy(model) for _ in lanes], (1, len(lanes))),
            "categorical",
            damping=policy,
            damping_start=start[:, cut],
            damping_end=end[:, cut],
            damping_steps=9,
            seed=[0],
        )
        for _ in range(7):
            optimizer.step(x, y)
        return optimizer.param_groups[0]["damping"]

    whole = run(slice(None))
    for i in range(count):
        assert_same_bits(run(slice(i, i + 1))[:, 0], whole[:, i])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"damping": "lmm", "damping_start": 1.0}, "damping='lmm' is no number and no policy: did you mean 'lm'?"),
        ({"damping": "lm"}, "damping_start=null does not fit damping=lm: expected the first damping"),
        ({"damping": "lm", "damping_start": 1.0, "damping_end": 0.0}, "damping_end=0.0 is out of range"),
        ({"damping": "linear", "damping_start": 1.0}, "damping_end=null does not fit damping=linear"),
        (
            {"damping": 1.0, "damping_start": 1.0},
            "damping_start has no effect where damping is a number: expected one of linear",
        ),
        ({"damping": "linear", "damping_start": -1.0, "damping_end": 1.0}, "damping_start=-1.0 is out of range"),
    ],
)
def test_mistakes(options, said):
    with pytest.raises(UsageError, match=said.replace("?", r"\?")):
        KFAC(model_of("dense"), "categorical", **options)


def test_a_schedule_without_its_length_says_so():
    x, y = batch_of("categorical")
    optimizer = KFAC(model_of("dense"), "categorical", damping="linear", damping_start=1.0, damping_end=0.1)
    with pytest.raises(UsageError, match="damping_steps=null does not fit a schedule"):
        optimizer.step(x, y)


def test_without_a_preconditioner_there_is_no_policy():
    with pytest.raises(UsageError, match="damping has no effect without a preconditioner"):
        SGD(model_of("dense"), "categorical", damping="lm", damping_start=1.0)
