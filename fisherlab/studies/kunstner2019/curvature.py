"""Fisher, empirical Fisher and gradient of a convex problem at given parameters, many at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from fisherlab.fisher import Capture, Kind, UnitBlocks, statistics
from fisherlab.studies.kunstner2019.descent import Problem, descend


def curvature(problem: Problem, thetas: Tensor, kind: str) -> tuple[UnitBlocks, list[Tensor]]:
    """Estimate one kind of Fisher.

    Args:
        problem: The problem.
        thetas: Homogeneous parameters [R, P].
        kind: exact or empirical.

    Returns:
        The full matrix (one output: the unit's block) of every run, and the gradient of the mean loss, [1, R, 1, P].
    """
    x, y = problem.batch
    captured = Capture(problem.model(thetas))(x)
    observed, _ = captured.backward(problem.likelihood.residual(captured.output, y))
    structure = UnitBlocks()
    structure.update(statistics(Kind(kind), captured, problem.likelihood, y, observed), 0.0)
    gradient = [i.weighted_sum(g, 1 / len(problem.x)) for i, g in zip(captured.inputs, observed, strict=True)]
    return structure, gradient


def matrices(problem: Problem, thetas: Tensor, kind: str) -> Tensor:
    """Write one kind of Fisher out.

    Args:
        problem: The problem.
        thetas: Homogeneous parameters [R, P].
        kind: exact or empirical.

    Returns:
        Tensor [R, P, P].
    """
    return curvature(problem, thetas, kind)[0].dense().flatten(0, -3)


def directions(problem: Problem, thetas: Tensor, kind: str, damping: float) -> tuple[Tensor, Tensor]:
    """Solve (M + lambda I) u = g.

    Args:
        problem: The problem.
        thetas: Homogeneous parameters [R, P].
        kind: exact or empirical.
        damping: lambda.

    Returns:
        u [R, P], NaN where the matrix could not be factorised, and g [R, P].
    """
    structure, gradient = curvature(problem, thetas, kind)
    failed = structure.refresh(torch.full((1, len(thetas)), damping, dtype=torch.float64)).any(0).flatten()
    u = structure.solve(gradient)[0].flatten(0, -2)
    return torch.where(failed[:, None], torch.nan, u), gradient[0].flatten(0, -2)


def losses(problem: Problem, thetas: Tensor) -> Tensor:
    """Mean losses.

    Args:
        problem: The problem.
        thetas: Homogeneous parameters [R, P].

    Returns:
        Tensor [R].
    """
    x, y = problem.batch
    with torch.no_grad():
        return problem.likelihood.nll(problem.model(thetas)(x), y).mean(-1).flatten()


def optimum(problem: Problem, runs: int = 1) -> Tensor:
    """Find the minimum by Newton's method from zero (for these models the Fisher is the Hessian).

    Args:
        problem: One whose minimum exists.
        runs: How many, where each has labels of its own.

    Returns:
        Parameters [R, P].

    Raises:
        ArithmeticError: If the gradient did not vanish.
    """
    ones = torch.ones(runs, dtype=torch.float64)
    path = descend(problem, "NGD", ones, 1e-12 * ones, 30, keep_path=True).path
    assert path is not None
    found = torch.from_numpy(path[:, -1])
    _, gradient = directions(problem, found, "exact", 1.0)
    scale = matrices(problem, found, "exact").diagonal(dim1=-2, dim2=-1).max()
    if not bool((gradient.abs() <= 1e-10 * scale.clamp(min=1.0)).all()):
        raise ArithmeticError(f"Newton's method did not reach the optimum of '{problem.name}'")
    return found
