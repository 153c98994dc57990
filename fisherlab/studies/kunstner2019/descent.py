"""GD, NGD and EFGD of Kunstner et al. (2019) on convex full-batch problems: a grid of (gamma, lambda) as replicas.

theta <- theta - gamma (M + lambda I)^-1 g with the mean loss; M is the Fisher (NGD), the empirical Fisher (EFGD) or
absent (GD). A run stops where its loss exceeds 100 times the first, as in the authors' code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fisherlab.data.dataset import Dataset
from fisherlab.fisher import Capture, UnitBlocks
from fisherlab.fisher.outer import OuterProducts
from fisherlab.likelihood import Bernoulli, Likelihood, make_likelihood
from fisherlab.models import linear
from fisherlab.models.dense import Dense
from fisherlab.optim import SGD, NaturalGradient
from fisherlab.optim.optimizer import FisherOptimizer

METHODS = ("GD", "NGD", "EFGD")
KINDS = {"NGD": "exact", "EFGD": "empirical"}
CLIP = 1e-8  # of a probability
STOP = 100.0  # times the first loss
LANES = 1024  # runs side by side
COMPACT = 5  # steps between removals of the runs that have stopped


class Clipped(Bernoulli):
    """The logistic likelihood with p kept in [1e-8, 1 - 1e-8], as in the authors' code; off the optimum it matters.

    BreastCancer separates, so NGD drives p to the bounds: it ends at 0.000516 so, at 0.000504 without.
    """

    def mean(self, f: Tensor) -> Tensor:
        """See `Likelihood.mean`."""
        return super().mean(f).clamp(CLIP, 1 - CLIP)

    def nll(self, f: Tensor, y: Tensor) -> Tensor:
        """See `Likelihood.nll`."""
        p = self.mean(f)
        return -(y * p.log() + (1 - y) * (-p).log1p()).sum(-1)

    def _sd(self, f: Tensor) -> Tensor:
        p = self.mean(f)
        return (p * (1 - p)).sqrt()


@dataclass(frozen=True)
class Problem:
    """A convex full-batch problem: one Dense layer with one output, so the unit-wise Fisher is the full matrix.

    Attributes:
        name: Of the data.
        x: Inputs [N, d], float64.
        y: Targets [N, 1], float64; [R, N, 1] where every run has its own.
        likelihood: gaussian or bernoulli.
        bias: Whether a column of ones is appended.
    """

    name: str
    x: Tensor
    y: Tensor
    likelihood: Likelihood
    bias: bool = True

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return self.x.shape[-1] + self.bias

    def model(self, start: Tensor) -> nn.Module:
        """Make models side by side.

        Args:
            start: Homogeneous parameters [R, P], the bias last.

        Returns:
            A model with replica axes [1, R].
        """
        model = linear(self.x.shape[-1], 1, bias=self.bias).double()
        layer = next(m for m in model.modules() if isinstance(m, Dense))
        d = self.x.shape[-1]
        layer.weight = nn.Parameter(start[:, :d].reshape(1, len(start), 1, d).clone())
        if layer.bias is not None:
            layer.bias = nn.Parameter(start[:, d].reshape(1, len(start), 1).clone())
        return model

    @property
    def batch(self) -> tuple[Tensor, Tensor]:
        """All data beside replica axes [1, R]: x [1, 1, N, d] and y [1, 1 or R, N, 1]."""
        return self.x[None, None], self.y.view(1, -1, *self.y.shape[-2:])


def problem(dataset: Dataset, bias: bool = True) -> Problem:
    """Take all rows of a data set, unscaled, as Kunstner et al. do.

    Args:
        dataset: With a Gaussian or Bernoulli likelihood and one output.
        bias: Whether a column of ones is appended.

    Returns:
        The problem, in float64.
    """
    train = dataset.splits["train"]
    x = train.x.double()
    x = x[:, : int(x.any(0).nonzero().max()) + 1]  # a1a: what no row has decouples (zero gradient); 119 are left
    likelihood = Clipped() if dataset.likelihood == "bernoulli" else make_likelihood(dataset.likelihood)
    return Problem(dataset.name, x, train.y.double(), likelihood, bias)


def theta(model: nn.Module) -> Tensor:
    """Read the homogeneous parameters.

    Args:
        model: As `Problem.model` makes it.

    Returns:
        Tensor [R, P], the bias last.
    """
    parts = [p.detach().flatten(0, 1).flatten(1) for p in model.parameters()]
    return torch.cat(parts, -1)


@dataclass(frozen=True)
class Runs:
    """How runs went.

    Attributes:
        losses: Mean loss [R, iterations + 1] before each step and after the last; NaN after a run has stopped,
            infinite where the loss is no number or a matrix could not be factorised.
        path: Parameters [R, iterations + 1, P] where they were asked for, else None.
    """

    losses: NDArray[np.float64]
    path: NDArray[np.float64] | None

    @property
    def last(self) -> NDArray[np.float64]:
        """The last loss of each run; of a stopped run, the one at which it stopped."""
        known = (~np.isnan(self.losses)).cumsum(1).argmax(1)
        last: NDArray[np.float64] = self.losses[np.arange(len(self.losses)), known]
        return last


def descend(
    problem: Problem,
    method: str,
    gammas: Tensor,
    lambdas: Tensor,
    iterations: int,
    *,
    start: Tensor | None = None,
    keep_path: bool = False,
    tick: Callable[[int], Any] = lambda _: None,
) -> Runs:
    """Make runs that differ in step size and damping side by side.

    Args:
        problem: What is minimised.
        method: GD, NGD or EFGD.
        gammas: Step sizes [R].
        lambdas: Dampings [R]; GD takes none.
        iterations: Steps of each run.
        start: First parameters [P] or [R, P]; zero when None.
        keep_path: Whether the parameters are recorded too.
        tick: Called with the number of runs that a chunk has completed.

    Returns:
        Losses, and the paths.
    """
    runs = len(gammas)
    first = torch.zeros(problem.parameters, dtype=torch.float64) if start is None else start
    first = first.expand(runs, -1)
    losses = np.full((runs, iterations + 1), np.nan)
    path = np.full((runs, iterations + 1, problem.parameters), np.nan) if keep_path else None
    outer = outer_products(problem) if method in KINDS else None
    for at in range(0, runs, LANES):
        rows = slice(at, min(at + LANES, runs))
        own = replace(problem, y=problem.y[rows]) if problem.y.ndim == 3 else problem
        for lanes, step, loss, where in _chunk(
            own, method, gammas[rows], lambdas[rows], first[rows], iterations, outer
        ):
            losses[at + lanes, step] = loss
            if path is not None:
                path[at + lanes, step] = where
        tick(rows.stop - rows.start)
    return Runs(losses, path)


def outer_products(problem: Problem) -> OuterProducts:
    """Form the outer products of a problem's inputs.

    Args:
        problem: The problem.

    Returns:
        What spares every run its own.
    """
    capture = Capture(problem.model(torch.zeros(1, problem.parameters, dtype=torch.float64)))
    return OuterProducts(capture(problem.batch[0]).inputs[0])


Found = tuple[NDArray[np.int64], int, NDArray[np.float64], NDArray[np.float64]]


def _chunk(
    problem: Problem,
    method: str,
    gammas: Tensor,
    lambdas: Tensor,
    first: Tensor,
    iterations: int,
    outer: OuterProducts | None,
) -> Iterator[Found]:
    """Lanes, step, their losses and parameters, for every step; what has stopped is left out from then on."""
    x, y = problem.batch
    lanes = torch.arange(len(gammas))
    model, limit = problem.model(first), None
    optimizer = make(problem, model, method, gammas, lambdas, outer)
    live = torch.ones(len(lanes), dtype=torch.bool)
    for step in range(iterations):
        where = theta(model)
        loss = optimizer.step(x, y).flatten().nan_to_num(nan=math.inf, posinf=math.inf)
        yield lanes[live].numpy(), step, loss[live].numpy(), where[live].numpy()
        limit = STOP * loss if limit is None else limit
        failed = live & failures(optimizer, loss)
        if bool(failed.any()):  # no step was taken: it counts as a divergence
            gone = failed.numpy()
            yield lanes[failed].numpy(), step + 1, np.full(gone.sum(), np.inf), where.numpy()[gone]
        live = live & (loss <= limit) & ~failed
        if step % COMPACT == 0 and not bool(live.all()):
            if not bool(live.any()):
                return
            lanes, limit, model = lanes[live], limit[live], problem.model(theta(model)[live])
            y = y[:, live] if y.shape[1] > 1 else y
            live = torch.ones(len(lanes), dtype=torch.bool)
            optimizer = make(problem, model, method, gammas[lanes], lambdas[lanes], outer)
    with torch.no_grad():
        loss = problem.likelihood.nll(model(x), y).mean(-1).flatten().nan_to_num(nan=math.inf, posinf=math.inf)
    yield lanes[live].numpy(), iterations, loss[live].numpy(), theta(model)[live].numpy()


def make(
    problem: Problem,
    model: nn.Module,
    method: str,
    gammas: Tensor,
    lambdas: Tensor,
    outer: OuterProducts | None = None,
) -> FisherOptimizer:
    """Make the optimizer of runs side by side.

    Args:
        problem: What is minimised.
        model: With replica axes [1, R].
        method: GD, NGD or EFGD.
        gammas: Step sizes [R].
        lambdas: Dampings [R].
        outer: The outer products of the inputs, where they are at hand.

    Returns:
        Plain steps: no momentum.
    """
    if method == "GD":
        return SGD(model, problem.likelihood, lr=gammas[None])
    optimizer = NaturalGradient(
        model, problem.likelihood, lr=gammas[None], damping=lambdas[None], kind=KINDS[method], structure="unit"
    )
    assert optimizer.preconditioner is not None
    structure = optimizer.preconditioner.structure
    assert isinstance(structure, UnitBlocks)
    if outer is not None:
        structure.outer[0] = outer
    return optimizer


def failures(optimizer: FisherOptimizer, like: Tensor) -> Tensor:
    """Tell whose damped matrix could not be factorised.

    Args:
        optimizer: As `make` makes it.
        like: Any tensor [R].

    Returns:
        Bool tensor [R].
    """
    found = None if optimizer.preconditioner is None else optimizer.preconditioner.failures()
    return torch.zeros_like(like, dtype=torch.bool) if found is None else (found[0] >= 0).flatten()


def grid(gammas: tuple[float, float, int], lambdas: tuple[float, float, int], method: str) -> tuple[Tensor, Tensor]:
    """Make a grid of step sizes and dampings, gamma outer, lambda inner; GD has no lambda.

    Args:
        gammas: log10 of the first and the last step size, and their number.
        lambdas: The same of the dampings.
        method: GD, NGD or EFGD.

    Returns:
        Step sizes and dampings, [R] each.
    """
    gamma, damping = (torch.from_numpy(np.logspace(*spec)) for spec in (gammas, lambdas))
    if method == "GD":
        return gamma, torch.zeros_like(gamma)
    pairs = torch.cartesian_prod(gamma, damping)
    return pairs[:, 0], pairs[:, 1]


def winner(last: NDArray[np.float64]) -> int:
    """Choose the run with the smallest last loss; the first in grid order among equals.

    Args:
        last: Last losses.

    Returns:
        Its index.

    Raises:
        ValueError: If every run diverged.
    """
    if not math.isfinite(last.min()):
        raise ValueError("every run of the grid diverged")
    return int(last.argmin())
