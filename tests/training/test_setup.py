"""What does not fit together is refused in one line, before anything is written."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from torch import nn

from fisherlab.data import Dataset, Split
from fisherlab.errors import UsageError


def odd_model(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, outputs + 1))


def plain_model(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 12), nn.LayerNorm(12), nn.Tanh(), nn.Linear(12, outputs))


def wrong_input_model(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs + 5, outputs))


def not_a_model(inputs: int, outputs: int) -> int:
    return inputs * outputs


def own_dataset(n: int = 40) -> Dataset:
    x = torch.linspace(0, 1, n * 3, dtype=torch.float64).view(n, 3)
    return Dataset("own", "gaussian", 1, {"train": Split(x, x.sum(1, keepdim=True))})


def not_a_dataset() -> list[int]:
    return [1, 2, 3]


HERE = "tests.training.test_setup"


def replaced(name: str) -> str:
    return f"model=logistic model._target_={HERE}.{name} ~model.init ~model.bias"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ("batch_size=100000", r"batch_size=100000 is more than the 1437 training examples.*full"),
        (replaced("odd_model"), r"'odd_model' gives \(1, 11\).*categorical.*expects \[batch, 10\]"),
        (replaced("wrong_input_model"), r"'wrong_input_model' does not take inputs of shape"),
        (replaced("not_a_model"), r"not_a_model' returned int: expected torch.nn.Module"),
        (f"model=logistic model._target_={HERE}.missing", r"model._target_='.*missing' cannot be imported"),
        ("+model.bogus=1", r"model 'fisherlab.models.mlp' cannot be built: .*bogus"),
        ("model.activation=rellu", r"activation='rellu' is unknown: did you mean 'relu'"),
        ("model.init=globrot", r"init='globrot' is no initialisation: did you mean 'glorot'"),
        ("likelihood=gaussian", r"likelihood=gaussian does not fit dataset 'digits', whose targets are classes"),
        ("dataset=toy_linear model=linear likelihood=categorical", r"likelihood=categorical does not fit"),
        ("model=autoencoder target=label likelihood=categorical", r"outputs=10 does not fit an autoencoder"),
        ("optimizer=kfac optimizer.kind=empiricall", r"kind='empiricall' is unknown: did you mean 'empirical'"),
        ("optimizer=kfac optimizer.damping_mode=tracy", r"damping_mode='tracy' does not fit structure=kronecker"),
        (
            "optimizer=efngd +optimizer.inverse_period=5",
            r"inverse_period=5 does not fit structure=(gram|smaller): expected 1",
        ),
        ("optimizer=kfac optimizer.inverse_period=0", r"inverse_period=0 is no period"),
        ("dataset.splits={train:9000,test:1}", r"splits=.*does not fit 'digits'"),
        ("dataset=wine dataset.splits={test:100}", r"expected train"),
        (
            f"dataset=toy_linear dataset._target_={HERE}.not_a_dataset ~dataset.variant ~dataset.n",
            r"returned list: expected",
        ),
        ("batch_schedule.name=exponential", r"until_step=null does not fit"),
    ],
)
def test_one_line_and_nothing_written(run, tmp_path, overrides, says):
    with pytest.raises(UsageError, match=says) as error:
        run(*overrides.split(" "))
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_cuda(run, tmp_path):
    with pytest.raises(UsageError, match="no CUDA device"):
        run("device=cuda")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "kfac", "efngd"])
def test_a_users_own_plain_model_and_dataset_train(run, optimizer):
    """nn.Linear layers without replica axes; LayerNorm takes the plain gradient, and the run says so."""
    own = f"dataset=toy_linear dataset._target_={HERE}.own_dataset ~dataset.variant ~dataset.n"
    result = run(
        *own.split(" "),
        *replaced("plain_model").split(" "),
        f"optimizer={optimizer}",
        "batch_size=8",
        "lr=0.03",
        "epochs=6",
    )
    assert result.status == "finished"
    loss = pd.read_csv(result.directory / "metrics.csv")["train_loss"]
    assert loss.iloc[-1] < 0.8 * loss.iloc[0]
