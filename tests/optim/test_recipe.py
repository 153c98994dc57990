"""The whole recipe of Martens and Grosse (2015) on poor statistics: finite weights, or an error that says why."""

import pytest
import torch

import fisherlab
from fisherlab.errors import SolveError
from fisherlab.streams import generator

STRUCTURES = ["kronecker", "kronecker_tridiagonal"]
X = torch.rand(64, 20, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 5, (64,), generator=torch.Generator().manual_seed(1))
DEPENDENT = torch.cat([X[:, :5], X[:, :5], torch.zeros(64, 10)], -1)  # the first factor has rank 6 of 21


def network(hidden=(16, 16), activation="tanh"):
    return fisherlab.mlp(20, 5, hidden=hidden, activation=activation, generator=generator(0, "init"))


def train(model, x, y, steps, **options):
    """Train; gives the losses before each step."""
    optimizer = fisherlab.KFACMartens(model, "categorical", **options)
    losses = [float(optimizer.step(x, y)) for _ in range(steps)]
    assert all(torch.isfinite(p).all() for p in model.parameters())
    return optimizer, losses


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_layer_that_is_dead_leaves_the_biases_behind_it_to_learn(structure):
    model = network(activation="relu")
    with torch.no_grad():
        model[2].bias.fill_(-50.0)
    before = [p.clone() for p in model.parameters()]
    _, losses = train(model, X, Y, 60, structure=structure, damping_start=1.0, l2=0.0)
    assert losses[-1] < losses[0]
    after = list(model.parameters())
    # No gradient reaches what lies in front of the dead layer, nor the weights that it feeds.
    assert all(torch.equal(a, b) for a, b in zip(after[:5], before[:5], strict=True))
    assert not torch.equal(after[5], before[5])
    # What was reached is the best that a constant can do: the classes' entropy.
    shares = torch.bincount(Y).double() / len(Y)
    assert losses[-1] == pytest.approx(float(-(shares * shares.log()).sum()), rel=1e-3)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("batch", [1, 5])
def test_a_batch_may_be_smaller_than_a_layer(structure, batch):
    x, y = X[:batch], Y[:batch]
    _, losses = train(network((200, 100)), x, y, 60, structure=structure, damping_start=1.0)
    assert losses[-1] < 1e-2 * losses[0]


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_singular_factor_is_damped(structure):
    _, losses = train(network(), DEPENDENT, Y, 60, structure=structure, damping_start=1.0)
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_singular_factor_without_damping_is_a_named_error(structure):
    with pytest.raises(SolveError, match=rf"damped {structure} matrix of layer 'layer1'.* at step 0.*damping=0"):
        train(network(), DEPENDENT, Y, 1, structure=structure, damping=0.0, damping_start=None, l2=0.0)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_lambda_and_gamma_at_their_floors_stay_finite(structure):
    optimizer, losses = train(network(), X, Y, 400, structure=structure, damping_start=1e-30)
    assert losses[-1] < 1e-2 * losses[0]
    assert float(optimizer.param_groups[0]["damping"]) < 1e-30
    assert float(optimizer.report["gamma"]) == pytest.approx(1e-5**0.5, rel=1e-6)  # sqrt(eta)
