"""One K-FAC step at batch 1000 on 784-80-80-80-10, against the packages that have one."""

from __future__ import annotations

from torch import Tensor

from fisherlab import KFAC, load_dataset
from scripts.bench import peers
from scripts.bench.timing import LR, compare, interleaved, timed

STEPS = 20
# In the order of the table: name, its bar, and which step stands for it at inverses every 1 and every 20.
OTHERS = {
    "asdl": (0.8, {1: "asdl 1", 20: "asdl 20"}),
    "curvlinops, both rebuilt": (None, {1: "curvlinops"}),
    "singd, empirical Fisher": (None, {1: "singd 1"}),
    "singd, empirical Fisher, statistics every 20 too": (None, {20: "singd 20"}),
    "torch SGD": (None, {1: "SGD", 20: "SGD"}),
}


def ours(x: Tensor, y: Tensor, period: int, tau1: float = 1.0) -> peers.Step:
    """One K-FAC step of fisherlab: sampled Fisher, EMA, factored damping."""
    model = peers.plain_net(peers.MLP)
    optimizer = KFAC(model, "categorical", lr=LR, damping=1e-2, momentum=0.9, inverse_period=period, tau1=tau1)
    return lambda: optimizer.step(x, y)


def steps_of_all() -> dict[str, peers.Step]:
    """Every step by its name; all on the same 1000 examples."""
    train = load_dataset("mnist").splits["train"]
    x, y = train.x[:1000].clone(), train.y[:1000].clone()
    steps = {
        "SGD": peers.torch_sgd(peers.plain_net(peers.MLP), lambda: (x, y)),
        "curvlinops": peers.curvlinops_kfac(peers.plain_net(peers.MLP), lambda: (x, y)),
    }
    for period in (1, 20):
        steps[f"fisherlab {period}"] = ours(x, y, period)
        steps[f"fisherlab {period}, tau1"] = ours(x, y, period, 1 / 8)
        steps[f"asdl {period}"] = peers.asdl_kfac(peers.plain_net(peers.MLP), lambda: (x, y), period, len(x))
        steps[f"singd {period}"] = peers.singd(peers.plain_net(peers.MLP), lambda: (x, y), period)
    return steps


def bench(rounds: int) -> list[dict[str, object]]:
    """K-FAC at batch 1000, inverse at every step and every 20; torch.optim.SGD for scale.

    The bar is that of asdl, whose settings are equal; what the others do differently stands in `peers`.
    """
    steps = steps_of_all()
    for step in steps.values():
        timed(step, STEPS)
    seconds = interleaved({name: lambda step=step: timed(step, STEPS) for name, step in steps.items()}, rounds)
    rows = [
        compare(
            f"K-FAC step, batch 1000, inverse every {period}", against, bar, seconds, f"fisherlab {period}", of[period]
        )
        for period in (1, 20)
        for against, (bar, of) in OTHERS.items()
        if period in of
    ]
    for period, bar in ((1, None), (20, 0.5)):
        what = f"K-FAC step, batch 1000, inverse every {period}, statistics from 1/8 of the batch"
        rows.append(compare(what, "asdl", bar, seconds, f"fisherlab {period}, tau1", f"asdl {period}"))
    return rows
