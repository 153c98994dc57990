"""Capture records what every kind of Fisher needs, and leaves no trace."""

import pytest
import torch
from torch import nn

from fisherlab.errors import UsageError
from fisherlab.fisher import Capture
from fisherlab.likelihood import make_likelihood
from fisherlab.models import Dense, mlp, stack_replicas
from fisherlab.streams import generator
from tests.cases import LAYERS, batch_of, model_of
from tests.compare import assert_close
from tests.reference import Twin

X, Y = batch_of("categorical")


def gradients(model, x=X, y=Y, extra=()):
    """Gradient of the mean nll by way of the capture: per layer, and of the extra parameters."""
    captured = Capture(model)(x)
    g, rest = captured.backward(make_likelihood("categorical").residual(captured.output, y), extra)
    batch = captured.output.shape[-2]
    return [i.weighted_sum(one) / batch for i, one in zip(captured.inputs, g, strict=True)], [r / batch for r in rest]


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())


class Uses(nn.Module):
    """Two layers and a body given by the test."""

    def __init__(self, body):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4).double(), nn.Linear(4, 3).double()
        self.body = body

    def forward(self, x):
        return self.body(self, x)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", LAYERS)
def test_gradient_inputs_and_output_are_the_twin_s(kind, bias):
    model = model_of(kind, bias=bias)
    twin = Twin(model, "categorical", X, Y)
    found, _ = gradients(model)
    assert_close(torch.cat([m.flatten() for m in found]), twin.gradient, 1e-13)
    captured = Capture(model)(X)
    assert_close(captured.output, twin.outputs, 1e-15)
    for inputs, (a, _) in zip(captured.inputs, twin.factors("empirical"), strict=True):
        abar = inputs.joined
        assert_close(abar.mT @ abar / len(X), a, 1e-13)


def test_joined_weighted_sum_and_parts_agree():
    captured = Capture(model_of("ntk"))(X)
    layer = Capture(model_of("ntk")).layers[0]
    inputs, g = captured.inputs[0], torch.randn(6, 5, dtype=torch.float64)
    assert_close(inputs.weighted_sum(g), g.mT @ inputs.joined, 1e-14)
    weight, bias = layer.split(inputs.weighted_sum(g))
    assert weight.shape == (5, 4)
    assert torch.equal(layer.join([weight, bias]), inputs.weighted_sum(g))


def test_several_cotangents_are_single_ones_stacked():
    captured = Capture(model_of())(X)
    cotangents = torch.randn(2, 6, 3, dtype=torch.float64)
    for layer, (first, second) in zip(
        captured.backward_each(cotangents),
        zip(*[captured.backward(c)[0] for c in cotangents], strict=True),
        strict=True,
    ):
        assert torch.equal(layer, torch.stack([first, second]))


def test_no_trace_is_left():
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)).double().eval()
    for p in model.parameters():
        p.grad = torch.full_like(p, 7)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    random_state = torch.get_rng_state()
    gradients(model)
    assert hooks(model) == 0
    assert all((p.grad == 7).all() for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_no_hook_is_left_by_a_model_that_raises():
    def body(model, x):
        model.first(x)
        raise RuntimeError("the model's own")

    model = Uses(body)
    with pytest.raises(RuntimeError, match="the model's own"):
        Capture(model)(X)
    assert hooks(model) == 0


def test_capture_works_without_gradients_enabled():
    model = model_of()
    expected = gradients(model)[0]
    with torch.no_grad():
        for a, b in zip(gradients(model)[0], expected, strict=True):
            assert torch.equal(a, b)


def test_inplace_relu_is_right():
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 3)).double()
    twin = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    twin.load_state_dict(model.state_dict())
    assert_close(torch.cat([m.flatten() for m in gradients(model)[0]]), Twin(twin, "categorical", X, Y).gradient, 1e-13)


def test_dropout_draws_once_for_everything():
    model = nn.Sequential(nn.Linear(4, 50), nn.Dropout(0.5), nn.Linear(50, 3)).double()
    captured = Capture(model)(X)
    dropped = captured.inputs[1].a == 0
    assert dropped.any()
    g = captured.backward(torch.ones(6, 3, dtype=torch.float64))[0][0]
    assert torch.equal(g == 0, dropped)


def in_place_output(m, x):
    return m.second(torch.relu_(m.first(x)))


def in_place_input(m, x):
    h = m.first(x)
    k = torch.tanh(h)
    out = m.second(k)
    k.mul_(2)
    return out


REFUSED = {
    "used twice": (lambda m, x: m.second(m.first(m.first(x))), "layer 'first' is used twice"),
    "unused": (lambda m, x: m.second(x), "layer 'first' was not used"),
    "output modified": (in_place_output, "the output of layer 'first' was modified in place"),
    "input modified": (in_place_input, "the input of layer 'second' was modified in place"),
    "tied by hand": (lambda m, x: m.second(m.first(x) @ m.first.weight), "layer 'first' are used more than once"),
    "rows that are no examples": (
        lambda m, x: m.second(m.first(x)).view(3, 2, 3).mean(1),
        r"layer 'first' gave \(6, 4\) where the model gave \(3, 3\)",
    ),
    "sequences": (lambda m, x: m.second(m.first(x.view(2, 3, 4))), "layer 'first' was fed"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_be_silently_wrong_is_refused(case):
    body, message = REFUSED[case]
    model = Uses(body)
    with pytest.raises(UsageError, match=message):
        Capture(model)(X)
    assert hooks(model) == 0


def test_shared_parameters_are_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    with pytest.raises(UsageError, match="layers '0' and '1' share a parameter"):
        Capture(model)


def test_batch_norm_in_training_mode_is_refused_and_in_evaluation_is_right():
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double()
    with pytest.raises(UsageError, match=r"'1' \(BatchNorm1d\) in training mode"):
        Capture(model)(X)
    check_against_autograd(model.eval())


def test_batch_norm_without_running_statistics_is_refused_in_evaluation_too():
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5, track_running_stats=False), nn.Linear(5, 3)).double()
    with pytest.raises(UsageError, match=r"'1' \(BatchNorm1d\) without running statistics couples"):
        Capture(model.eval())(X)


def check_against_autograd(model):
    capture = Capture(model)
    rest = [p for _, p in capture.uncovered]
    layers, extra = gradients(model, extra=rest)
    torch.nn.functional.cross_entropy(model(X), Y).backward()
    for layer, found in zip(capture.layers, layers, strict=True):
        assert_close(found, layer.join([p.grad for p in layer.parameters]), 1e-12)
    for p, found in zip(rest, extra, strict=True):
        assert_close(found, p.grad, 1e-12)


def test_parameters_outside_dense_layers_are_named_and_get_their_gradient():
    model = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.PReLU(), nn.Linear(5, 3)).double()
    assert [n for n, _ in Capture(model).uncovered] == ["1.weight", "1.bias", "2.weight"]
    check_against_autograd(model)


def test_a_reparametrised_layer_counts_as_uncovered():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 3)).double()
    capture = Capture(model)
    assert [layer.name for layer in capture.layers] == ["2"]
    assert len(capture.uncovered) == 3
    check_against_autograd(model)


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class DoubledDense(Dense):
    def forward(self, a):
        return 2 * super().forward(a)


@pytest.mark.parametrize("layer", [Doubled, DoubledDense])
def test_a_layer_with_a_forward_of_its_own_counts_as_uncovered(layer):
    torch.manual_seed(0)
    model = nn.Sequential(layer(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    torch.nn.init.normal_(model[0].weight)
    assert [one.name for one in Capture(model).layers] == ["2"]
    check_against_autograd(model)


def test_a_user_s_hook_that_changes_the_output_is_respected():
    model = model_of("linear")
    model[0].register_forward_hook(lambda _module, _args, s: 2 * s)
    check_against_autograd(model)


def test_a_frozen_bias_leaves_its_weight_uncovered():
    model = model_of("linear")
    model[0].bias.requires_grad_(False)
    assert [name for name, _ in Capture(model).uncovered] == ["layer0.weight"]
    check_against_autograd(model)


def test_frozen_layers_are_left_out():
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    model[0].requires_grad_(False)
    capture = Capture(model)
    assert [layer.name for layer in capture.layers] == ["2"]
    assert capture.uncovered == []
    check_against_autograd(model)


def test_a_model_that_is_one_layer_has_a_name():
    assert [layer.name for layer in Capture(nn.Linear(4, 3)).layers] == ["linear"]


@pytest.mark.parametrize("streams", [(2, 1), (2, 3)])
def test_replicas_are_captured_each_as_alone(streams):
    models = [mlp(4, 3, hidden=(5,), activation="tanh", generator=generator(i, "init")).double() for i in range(6)]
    x = torch.randn(*streams, 6, 4, dtype=torch.float64, generator=generator(0, "x"))
    y = torch.randint(3, (*streams, 6), generator=generator(0, "y"))
    found, _ = gradients(stack_replicas(models, (2, 3)), x, y)
    for i, model in enumerate(models):
        own = (i // 3, i % 3 if streams[1] == 3 else 0)
        for layer, alone in zip(found, gradients(model, x[own], y[own])[0], strict=True):
            assert_close(layer[i // 3, i % 3], alone, 1e-13)


def test_dense_layers_of_a_user_s_own_module_are_found_by_name():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.ModuleDict({"a": Dense(4, 3)})

        def forward(self, x):
            return self.body["a"](x)

    assert [layer.name for layer in Capture(Own()).layers] == ["body.a"]
