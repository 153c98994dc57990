"""What an optimizer says of damped matrices that could not be factorised."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fisherlab.errors import SolveError
from fisherlab.optim.hyper import host

if TYPE_CHECKING:
    from fisherlab.optim.optimizer import FisherOptimizer


def failures(optimizer: FisherOptimizer) -> dict[tuple[int, ...], SolveError]:
    """Which replicas' damped matrices could not be factorised; synchronises.

    Args:
        optimizer: Any.

    Returns:
        By the replica's index, an error that names the layer and the step at which it failed first.
    """
    if optimizer.preconditioner is None or (marks := optimizer.preconditioner.failures()) is None:
        return {}
    steps, blocks = (t.cpu() for t in marks)
    hit = [tuple(at) for at in (steps >= 0).nonzero().tolist()]
    return {at: failure(optimizer, int(steps[at]), int(blocks[at]), at) for at in hit}


def failure(optimizer: FisherOptimizer, step: int, block: int, at: tuple[int, ...]) -> SolveError:
    """Say which damped matrix of a replica could not be factorised.

    Args:
        optimizer: Any.
        step: When it failed first.
        block: Which matrix.
        at: The replica's index.

    Returns:
        The error.
    """
    pre, hyper = optimizer.preconditioner, (optimizer.param_groups[0]["damping"], optimizer.l2)
    assert pre is not None
    place = f"of layer '{optimizer.capture.layers[block].name}' " if pre.structure.per_layer else ""
    damping, l2 = (host(v).expand(optimizer.replicas)[at].item() for v in hyper)
    given = f"damping={damping}" + (f", and l2={l2} in the curvature" if optimizer.l2_in_curvature and l2 else "")
    return SolveError(
        f"the damped {pre.structure_name} matrix {place}could not be factorised at step {step}, "
        f"not in float64 either ({given}): expected a larger damping, or a smaller lr if the statistics are not finite",
        step,
    )
