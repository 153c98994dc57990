"""Every optimizer runs on every problem of the issue and lowers its loss, on real data and with its own defaults."""

from __future__ import annotations

import pandas as pd
import pytest

FEW = "dataset.splits={train: 2000, test: 500}"
PROBLEMS = {
    "mnist mlp": ["dataset=mnist", FEW, "model=mlp", "steps=60"],
    "mnist deep_linear": ["dataset=mnist", FEW, "model=deep_linear", "steps=60"],
    "mnist autoencoder": ["dataset=mnist", FEW, "model=autoencoder", "steps=12", "batch_size=100"],
    "a1a logistic": ["dataset=a1a", "model=logistic", "steps=60"],
    "digits mlp": ["dataset=digits", "model=mlp", "steps=60"],
}


EVERYWHERE = ["sgd", "adam", "kfac", "efngd"]
SMALL = ["ngd", "kfac_empirical", "kfac_martens", "kfac_tridiag", "nag", "layer_ngd", "unit_ngd", "diag_ngd"]
# Their defaults are the autoencoders'.
OPTIONS = {
    "kfac_martens": ["optimizer.damping_start=1"],
    "kfac_tridiag": ["optimizer.damping_start=1"],
    "nag": ["lr=0.1"],
}
CASES = [(problem, optimizer) for problem in PROBLEMS for optimizer in EVERYWHERE]
CASES += [("digits mlp", "layer_ngd narrow"), *(("a1a logistic", optimizer) for optimizer in SMALL)]
CASES += [("digits mlp", optimizer) for optimizer in SMALL if optimizer != "layer_ngd"]


@pytest.mark.parametrize(("problem", "optimizer"), CASES)
def test_the_loss_falls(run, problem, optimizer):
    optimizer, _, narrow = optimizer.partition(" ")
    hidden = ["model.hidden=[16]"] if narrow else []  # a block of a layer, not of thousands of parameters
    result = run(
        "evaluate_every=null", *PROBLEMS[problem], *hidden, *OPTIONS.get(optimizer, []), f"optimizer={optimizer}"
    )
    loss = pd.read_csv(result.directory / "metrics.csv")["train_loss"]
    assert result.status == "finished"
    assert loss.iloc[-1] < 0.99 * loss.iloc[0]
