"""Each data set is what its source says it is, and splits are cut as asked."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import fisherlab.data as data
from fisherlab.data.command import TARGETS, summarize
from fisherlab.errors import UsageError

CONF = Path(__file__).parents[2] / "conf" / "dataset"
SHAPES = {
    "mnist": {"train": (60000, 784), "test": (10000, 784)},
    "a1a": {"train": (1605, 123), "test": (30956, 123)},
    "digits": {"train": (1797, 64)},
    "breast_cancer": {"train": (569, 30)},
    "wine": {"train": (178, 13)},
    "boston": {"train": (506, 13)},
    "curves": {"train": (20000, 784), "test": (10000, 784)},
    "toy_gaussian": {"train": (1000, 2)},
    "toy_linear": {"train": (1000, 1)},
}


@pytest.fixture(scope="module")
def mnist():
    return data.mnist()


@pytest.fixture(scope="module")
def a1a():
    return data.a1a()


@pytest.mark.parametrize("name", [name for name in data.DATASETS if name != "faces"])
def test_shapes_dtypes_and_targets(name):
    loaded = data.DATASETS[name]()
    floating = torch.float32 if name in ("mnist", "curves") else torch.float64
    assert loaded.name == {"curves": "curves (synthetic)"}.get(name, name)
    assert {part: tuple(split.x.shape) for part, split in loaded.splits.items()} == SHAPES[name]
    for part, split in loaded.splits.items():
        assert split.x.dtype == floating
        assert split.x.isfinite().all()
        if loaded.likelihood == "categorical":
            assert split.y.dtype == torch.int64
            assert split.y.shape == (len(split),)
        else:
            assert split.y.dtype == floating
            assert split.y.shape == (len(split), loaded.outputs)
        assert summarize(loaded, split) == TARGETS[loaded.name][part]


def test_mnist_pixels_and_torchvision_agree(mnist):
    from torchvision.datasets import MNIST

    for part, train in (("train", True), ("test", False)):
        theirs = MNIST(data.data_folder(), train=train, download=False)
        pixels = theirs.data.reshape(-1, 784).to(torch.float32) / 255
        assert torch.equal(mnist.splits[part].x, pixels)
        assert torch.equal(mnist.splits[part].y, theirs.targets)
    assert mnist.splits["train"].x.max() == 1


def test_the_packed_mnist_files_are_the_canonical_ones(mnist):
    from torchvision.datasets import MNIST

    raw = data.data_folder() / "MNIST" / "raw"
    found = {
        name: hashlib.md5((raw / name).read_bytes()).hexdigest() for name, _ in MNIST.resources if (raw / name).exists()
    }
    assert found.items() <= dict(MNIST.resources).items()


def test_mnist_loads_fast(mnist):
    start = time.perf_counter()
    data.mnist()
    assert time.perf_counter() - start < 5, "about 0.15 s on an idle machine"


def test_a1a_is_the_undamaged_copy(a1a):
    train, test = (a1a.splits[part].x for part in ("train", "test"))
    assert set(train.unique().tolist()) == {0.0, 1.0}
    never = (train.sum(0) == 0).nonzero().flatten() + 1
    assert never.tolist() == [12, 60, 89, 96, 111, 116, 120, 121, 122, 123]
    assert test[:, 119:].sum() == 71, "the damaged copy of a1a.t lacks these entries"
    assert torch.linalg.matrix_rank(torch.cat([train, torch.ones(len(train), 1)], 1)) == 98


def test_wine_as_regression_is_on_the_class_number():
    classes, regression = data.wine(), data.wine(task="regression")
    assert (classes.likelihood, classes.outputs) == ("categorical", 3)
    assert (regression.likelihood, regression.outputs) == ("gaussian", 1)
    assert torch.equal(regression.splits["train"].y[:, 0], classes.splits["train"].y.double())


@pytest.mark.parametrize("name", ["a1a", "boston", "breast_cancer", "wine"])
def test_standardize_uses_the_train_split_only(name):
    raw, scaled = data.DATASETS[name](), data.DATASETS[name](standardize=True)
    x = scaled.splits["train"].x
    varies = raw.splits["train"].x.std(0) > 0
    torch.testing.assert_close(x.mean(0), torch.zeros(x.shape[1], dtype=x.dtype), rtol=0, atol=1e-12)
    torch.testing.assert_close(x.std(0, correction=0)[varies], torch.ones(int(varies.sum()), dtype=x.dtype))
    assert all(s.x.isfinite().all() for s in scaled.splits.values())
    for part, split in raw.splits.items():
        mean, deviation = raw.splits["train"].x.mean(0), raw.splits["train"].x.std(0, correction=0)
        torch.testing.assert_close(scaled.splits[part].x[:, varies], ((split.x - mean) / deviation)[:, varies])


def test_standardize_after_a_new_split_looks_at_its_train_part_only():
    sizes = {"train": 300, "test": 206}
    scaled = data.load_dataset("boston", splits=sizes, seed=3, dtype=torch.float64, standardize=True)
    raw = data.load_dataset("boston", splits=sizes, seed=3, dtype=torch.float64)
    torch.testing.assert_close(scaled.splits["test"].x, data.standardized(raw).splits["test"].x)


# Numbers recomputed from the paper's definitions, independent of this code (the sheet on Kunstner et al. 2019).


def logistic_optimum(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    theta = np.zeros(x.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-x @ theta))
        fisher = (x * (p * (1 - p))[:, None]).T @ x / len(x)
        theta -= np.linalg.solve(fisher, x.T @ (p - y) / len(x))
    empirical = (x * ((p - y) ** 2)[:, None]).T @ x / len(x)
    loss = -np.mean(y * np.log(p) + (1 - y) * np.log(1 - p))
    return theta, fisher, empirical, loss


@pytest.mark.parametrize(
    ("variant", "accuracy"), [("correct", 0.733), ("misspecified_a", 0.856), ("misspecified_b", 0.852)]
)
def test_toy_gaussian_is_figure_2(variant, accuracy):
    train = data.toy_gaussian(variant).splits["train"]
    x, y = train.x.numpy(), train.y[:, 0].numpy()
    theta, fisher, empirical, loss = logistic_optimum(x, y)
    assert np.mean((x @ theta > 0) == (y == 1)) == pytest.approx(accuracy, abs=5e-4)
    if variant == "correct":
        np.testing.assert_allclose(theta, [-0.4896, -0.5064], atol=1e-4)
        assert loss == pytest.approx(0.5020, abs=1e-4)
        ratios = np.sort(np.linalg.eigvals(np.linalg.solve(fisher, empirical)).real)
        np.testing.assert_allclose(ratios, [0.876, 1.050], atol=1e-3)
    if variant == "misspecified_b":
        assert fisher[0, 1] == pytest.approx(-0.106, abs=1e-3)
        assert empirical[0, 1] == pytest.approx(0.102, abs=1e-3)


def test_toy_linear_is_figure_1():
    train = data.toy_linear().splits["train"]
    x = np.concatenate([np.ones((1000, 1)), train.x.numpy()], 1)
    y = train.y[:, 0].numpy()
    theta = np.linalg.lstsq(x, y, rcond=None)[0]
    np.testing.assert_allclose(theta, [2.0386, 1.9804], atol=1e-4)
    assert np.mean((x @ theta - y) ** 2) / 2 == pytest.approx(0.4684, abs=1e-4)
    np.testing.assert_allclose(x.T @ x / 1000, [[1, 1.273], [1.273, 2.751]], atol=1e-3)


@pytest.mark.parametrize(
    ("variant", "slope", "intercept"),
    [
        ("correct", (0.8, 1.1), (0.85, 1.15)),
        ("misspecified_a", (0.775, 1.075), (0.85, 1.15)),
        ("misspecified_b", (0.775, 1.075), (1.325, 1.625)),
    ],
)
def test_toy_linear_optimum_lies_in_the_window_of_figure_4(variant, slope, intercept):
    train = data.toy_linear(variant).splits["train"]
    x = np.concatenate([train.x.numpy(), np.ones((1000, 1))], 1)
    theta = np.linalg.lstsq(x, train.y[:, 0].numpy(), rcond=None)[0]
    assert slope[0] < theta[0] < slope[1]
    assert intercept[0] < theta[1] < intercept[1]


def test_toys_do_not_touch_the_global_generator():
    np.random.seed(7)
    expected = np.random.RandomState(7).rand()
    data.toy_gaussian()
    data.toy_linear()
    assert np.random.rand() == expected


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: data.load_dataset("minst"), "dataset='minst'.*did you mean 'mnist'"),
        (lambda: data.load_dataset("wine", tusk="regression"), "dataset.tusk.*did you mean 'task'"),
        (lambda: data.load_dataset("digits", standardize=True), "dataset.standardize is unknown.*no options"),
        (lambda: data.wine(task="regresion"), "'regresion'.*did you mean 'regression'"),
        (lambda: data.toy_gaussian("corect"), "'corect'.*did you mean 'correct'"),
        (lambda: data.toy_linear("log"), "'log'"),
        (lambda: data.toy_gaussian(n=999), "dataset.n=999"),
        (lambda: data.toy_linear(n=0), "dataset.n=0"),
    ],
)
def test_mistakes_are_one_line(call, words):
    with pytest.raises(UsageError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def rows(split: data.Split) -> set[tuple[float, ...]]:
    return {tuple(row) for row in split.x.tolist()}


def test_new_splits_are_disjoint_complete_and_named_by_the_seed():
    raw = data.breast_cancer()
    sizes = {"train": 400, "valid": 100, "test": -1}
    cut = raw.resplit(sizes, seed=1)
    assert {k: len(s) for k, s in cut.splits.items()} == {"train": 400, "valid": 100, "test": 69}
    parts = [rows(s) for s in cut.splits.values()]
    assert sum(len(p) for p in parts) == len(set.union(*parts)) == len(rows(raw.splits["train"]))
    label = {tuple(x): y for x, y in zip(raw.splits["train"].x.tolist(), raw.splits["train"].y.tolist(), strict=True)}
    assert all(
        label[tuple(x)] == y for s in cut.splits.values() for x, y in zip(s.x.tolist(), s.y.tolist(), strict=True)
    )
    assert torch.equal(raw.resplit(sizes, seed=1).splits["test"].x, cut.splits["test"].x)
    assert not torch.equal(raw.resplit(sizes, seed=2).splits["test"].x, cut.splits["test"].x)


@pytest.mark.parametrize(
    "sizes",
    [
        {"train": 600},
        {"train": 0, "test": 5},
        {"train": -2},
        {"test": 5},
        {"train": -1, "test": -1},
        {"train": 569, "test": -1},
    ],
)
def test_splits_that_do_not_fit_are_refused(sizes):
    with pytest.raises(UsageError, match=r"does not fit 'breast_cancer'.*569"):
        data.breast_cancer().resplit(sizes, seed=0)


def test_load_dataset_moves_and_splits():
    loaded = data.load_dataset("digits", splits={"train": 1437, "test": 360}, seed=5)
    assert loaded.splits["train"].x.dtype == torch.float32
    assert loaded.splits["train"].y.dtype == torch.int64
    assert [len(s) for s in loaded.splits.values()] == [1437, 360]
    assert loaded.inputs == 64


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda p: p.stem)
def test_each_config_names_a_loader_and_its_options(path):
    text = path.read_text()
    assert text.startswith("# ")
    config = yaml.safe_load(text)
    module, _, name = config.pop("_target_").rpartition(".")
    load = getattr(importlib.import_module(module), name)
    splits = config.pop("splits")
    if path.stem in data.DATASETS:
        defaults = {k: p.default for k, p in inspect.signature(load).parameters.items()}
        assert load is data.DATASETS[path.stem]
        assert config == defaults
        assert splits == ({"train": 1437, "test": 360} if path.stem == "digits" else None)


def test_each_loader_has_a_config():
    assert set(data.DATASETS) <= {path.stem for path in CONF.glob("*.yaml")}
