"""A step reads no value from a tensor: it runs where tensors have none, and so never stalls an accelerator's queue."""

import pytest
import torch
from torch._subclasses import FakeTensorMode

import fisherlab
from fisherlab.streams import Streams, generator
from tests.cases import LIKELIHOODS, PRESETS, batch_of, model_of
from tests.compare import assert_close

ONLY_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def empty_model(lead, activation, device):
    """A model with replica axes, made in place: under fake mode nothing may come from outside."""
    model = fisherlab.mlp(4, 3, hidden=(5,), activation=activation)
    for module in model.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            setattr(module, name, torch.nn.Parameter(torch.zeros(*lead, *p.shape, device=device)))
    return model


def targets(likelihood, lead, device):
    if likelihood == "categorical":
        return torch.zeros(*lead, 6, dtype=torch.int64, device=device)
    return torch.zeros(*lead, 6, 3, device=device)


def some_steps(name, likelihood, grouped, device):
    cls, options = PRESETS[name]
    lead = (2, 1) if grouped else ()
    model = empty_model((2, 3) if grouped else (), "logistic" if grouped else "elu", device)
    if (
        grouped and device == "meta"
    ):  # hyper-parameters stay on the host, and have values; fake mode would take them away
        options = options | {"lr": torch.full((2, 3), 0.1, dtype=torch.float64)}
    if name == "kfac":
        options = options | {"kl_clip": 1e-3}
    optimizer = cls(model, likelihood, l2=1e-3, seed=[0, 1] if grouped else 0, **options)
    optimizer.record_norms = True
    x, y = torch.zeros(*lead, 6, 4, device=device), targets(likelihood, lead, device)
    for _ in range(3):
        loss = optimizer.step(x, y)
    assert loss.shape == ((2, 3) if grouped else ())
    assert optimizer.report["grad_norm"].shape == loss.shape


@pytest.mark.parametrize("grouped", [False, True], ids=["alone", "group"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("name", PRESETS)
def test_steps_run_on_the_meta_device(name, likelihood, grouped):
    some_steps(name, likelihood, grouped, "meta")


@pytest.mark.filterwarnings("ignore:Accessing the data pointer")
@pytest.mark.parametrize("grouped", [False, True], ids=["alone", "group"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("name", PRESETS)
def test_steps_run_on_fake_tensors(name, likelihood, grouped):
    with FakeTensorMode():
        some_steps(name, likelihood, grouped, "cpu")


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_labels_are_drawn_where_the_model_is_by_now(likelihood):
    optimizer = fisherlab.KFAC(empty_model((), "tanh", "meta"), likelihood)
    optimizer.streams.device = torch.device("cpu")  # as if the model had lain there
    optimizer.step(torch.zeros(6, 4, device="meta"), targets(likelihood, (), "meta"))
    assert optimizer.streams.device == torch.device("meta")


@ONLY_CUDA
def test_a_model_that_moves_after_construction_goes_on():
    model = model_of()
    optimizer = fisherlab.KFAC(model, "categorical")
    model.cuda()
    optimizer.step(*[t.cuda() for t in batch_of("categorical")])


@ONLY_CUDA
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("name", PRESETS)
def test_cuda_steps_are_the_cpu_s(name, likelihood, monkeypatch):
    # The two devices draw different numbers from one seed: give both the CPU's.
    monkeypatch.setattr(Streams, "_draw", lambda self, *place: cpu_draw(self, *place))
    cls, options = PRESETS[name]
    models = [model_of(), model_of().cuda()]
    batch = batch_of(likelihood)
    batches = [batch, tuple(t.cuda() for t in batch)]
    optimizers = [cls(m, likelihood, l2=1e-3, **options) for m in models]
    for _ in range(4):
        losses = [o.step(*b) for o, b in zip(optimizers, batches, strict=True)]
        assert_close(losses[1].cpu(), losses[0], 1e-9)
    for p, q in zip(*[m.parameters() for m in models], strict=True):
        assert_close(q.cpu(), p, 1e-8)


def cpu_draw(streams, purpose, counter, one):
    device, streams.device = streams.device, torch.device("cpu")
    try:
        return one(generator(streams.seeds, purpose, counter)).to(device)
    finally:
        streams.device = device


@ONLY_CUDA
def test_a_state_saved_on_the_cpu_goes_on_on_cuda():
    optimizer = fisherlab.KFAC(model_of(), "categorical", kind="exact")
    optimizer.step(*batch_of("categorical"))
    other = fisherlab.KFAC(model_of().cuda(), "categorical", kind="exact")
    other.load_state_dict(optimizer.state_dict())
    other.step(*[t.cuda() for t in batch_of("categorical")])
