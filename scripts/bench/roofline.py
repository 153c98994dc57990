"""How much of the machine's matrix-product rate a K-FAC step reaches."""

from __future__ import annotations

import statistics
from pathlib import Path

import pandas as pd
import torch

from fisherlab import load_dataset
from scripts.bench import kfac, peers, replicas
from scripts.bench.counting import Term, kfac_step
from scripts.bench.timing import Seconds, compare, interleaved, timed

SIZES = (256, 512, 1024, 2048)
REPLICAS = 32
RATE = "matrix products"
DEEP = f"{REPLICAS} K-FAC replicas, deep linear net, batch {replicas.BATCH}, inverse every {replicas.PERIOD}"


def product(size: int) -> float:
    """Seconds per operation of a square float32 product, over about 4e9 of them."""
    a, b = torch.rand(2, size, size)
    out = torch.empty(size, size)
    torch.mm(a, b, out=out)
    return timed(lambda: torch.mm(a, b, out=out), max(1, int(2e9 / size**3))) / (2 * size**3)


def settings() -> dict[str, tuple[peers.Step, int, list[Term]]]:
    """By name: the step, how many make a timing, and the operations that one needs."""
    train = load_dataset("mnist").splits["train"]
    x, y = train.x[:1000].clone(), train.y[:1000].clone()
    deep = kfac_step(peers.DEEP_LINEAR, replicas.BATCH, replicas=REPLICAS, period=replicas.PERIOD)
    found = {DEEP: (replicas.ours("K-FAC", REPLICAS), replicas.PERIOD, deep)}
    for period in (1, 20):
        name = f"K-FAC, 784-80-80-80-10, batch 1000, inverse every {period}"
        found[name] = (kfac.ours(x, y, period), 20, kfac_step(peers.MLP, len(x), period=period))
    return found


def bench(rounds: int, path: Path) -> list[dict[str, object]]:
    """The time that the needed operations take at the measured rate, over the time of the step: the fraction reached.

    The rate is that of the size with the best median. Writes every term of the count to `path`.
    """
    cases = settings()
    for step, steps, _ in cases.values():
        timed(step, steps)
    tasks = {f"{RATE}, {size}": lambda size=size: product(size) for size in SIZES}
    tasks |= {name: lambda step=step, steps=steps: timed(step, steps) for name, (step, steps, _) in cases.items()}
    seconds = interleaved(tasks, rounds)
    best = min((n for n in seconds if n.startswith(RATE)), key=lambda n: statistics.median(seconds[n]))
    rows = []
    for name, (_, _, terms) in cases.items():
        flops = sum(t.flops for t in terms)
        seconds[f"{name}, needed"] = [flops * s for s in seconds[best]]
        what = f"operations needed, at the rate of {RATE} (a bar is the least)"
        rows.append(compare(what, name, 0.4 if name == DEEP else None, seconds, f"{name}, needed", name))
    table = pd.DataFrame(listing(cases, seconds, best))
    table.to_csv(path, index=False, float_format="%.6g")
    return rows


def listing(
    cases: dict[str, tuple[peers.Step, int, list[Term]]], seconds: Seconds, best: str
) -> list[dict[str, object]]:
    """The rates; then for each setting every term, their sum, the time, and what follows."""
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    sizes = [(n, medians[n]) for n in medians if n.startswith(RATE)]
    rows = [measured("machine", f"float32 product, {n.split()[-1]}^2", 1e-9 / s, "GFLOP/s") for n, s in sizes]
    for name, (_, _, terms) in cases.items():
        rows += [
            {"setting": name, "quantity": t.term, "layer": t.layer, "operations": t.expression, "times": t.times}
            | {"value": t.flops / 1e9, "unit": "GFLOP"}
            for t in terms
        ]
        total = sum(t.flops for t in terms) / 1e9
        rows.append(measured(name, "all operations of a step", total, "GFLOP"))
        rows.append(measured(name, "time of a step", 1e3 * medians[name], "ms"))
        rows.append(measured(name, "rate reached", total / medians[name], "GFLOP/s"))
        rows.append(
            measured(name, "fraction of the best product's rate", total * 1e9 * medians[best] / medians[name], "")
        )
    return [row | {"threads": torch.get_num_threads()} for row in rows]


def measured(setting: str, quantity: str, value: float, unit: str) -> dict[str, object]:
    """A row that is no term of the count."""
    term = {"setting": setting, "quantity": quantity, "layer": "", "operations": "", "times": None}
    return term | {"value": value, "unit": unit}
