"""Measure speed as ratios against named alternatives, interleaved in one run; writes results/bench/.

Run by `make bench`. The bars are those of the design: a K-FAC step at most 0.8 of asdl's at equal settings, 0.5 with
statistics from an eighth of the batch; an exact EF-NGD step at most 2.5 steps of torch.optim.SGD; 32 replicas
at most 0.6 of 32 runs one after another and 0.35 of asdl's, at 0.4 of the matrix-product rate, and 128 of them cost no
more each than 8; the trainer with all records at most 1.10 (without norms 1.05) of a bare loop of the same optimizer.
"""

from __future__ import annotations

import os

from fisherlab.cli import ENVIRONMENT

# As the command line runs, here and at the start of `main`; before torch is imported.
os.environ.update(dict(ENVIRONMENT) | dict(os.environ))

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch

from fisherlab.process import settle
from scripts.bench.table import Rows, peers, record

OUT = Path("results/bench")


def bench_kfac(rounds: int) -> Rows:
    """The K-FAC step at batch 1000 against asdl, curvlinops, singd."""
    from scripts.bench import kfac

    return kfac.bench(rounds)


def bench_exact(rounds: int) -> Rows:
    """Exact full-matrix steps against SGD and an iterative solve."""
    from scripts.bench import exact

    return exact.bench(rounds)


def bench_matrices(rounds: int) -> Rows:
    """Dense matrices and products with a vector."""
    from scripts.bench import matrices

    return matrices.bench(rounds)


def bench_grid(rounds: int) -> Rows:
    """A grid of convex full-batch runs."""
    from scripts.bench import grid

    return grid.bench(rounds)


def bench_replicas(rounds: int) -> Rows:
    """Replicas against runs one after another and against asdl, by number of replicas."""
    from scripts.bench import replicas

    return replicas.bench(rounds)


def bench_roofline(rounds: int) -> Rows:
    """Operations needed, at the measured rate; writes roofline.csv."""
    from scripts.bench import roofline

    return roofline.bench(rounds, OUT / "roofline.csv")


def bench_trainer(rounds: int) -> Rows:
    """The trainer against a bare loop."""
    from scripts.bench import trainer

    return trainer.bench(rounds)


SECTIONS: dict[str, Callable[[int], Rows]] = {
    "kfac": bench_kfac,
    "exact": bench_exact,
    "matrices": bench_matrices,
    "grid": bench_grid,
    "replicas": bench_replicas,
    "roofline": bench_roofline,
    "trainer": bench_trainer,
}


def measure(section: str, rounds: int) -> None:
    """Measure a section, write and print its rows."""
    from fisherlab.training.environment import environment

    began = time.perf_counter()
    rows = SECTIONS[section](rounds)
    table = record(OUT, list(SECTIONS), section, rows, environment(torch.device("cpu")) | {"peers": peers()})
    mine = table[table["section"] == section]
    shown = mine.drop(columns=["section", "replicas", "rounds", "threads"])
    print(f"{section}: {time.perf_counter() - began:.0f} s")
    print(shown.to_string(index=False, na_rep="", float_format=lambda v: f"{v:.3g}"), flush=True)
    if section == "replicas":
        figures(pd.read_csv(OUT / "bench.csv"))  # as `--figures` will


def figures(table: pd.DataFrame) -> None:
    """Draw what there is to draw of the table."""
    from scripts.bench.figure import draw

    draw(table[table["section"] == "replicas"], OUT / "scaling.png")
    print(OUT / "scaling.png")


def main() -> None:
    """Measure, print, write; each section as soon as it is done."""
    parser = argparse.ArgumentParser(prog="python -m scripts.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="how often everything takes its turn (%(default)s)")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", type=int, default=cores, help="of torch (all cores, here %(default)s)")
    parser.add_argument(
        "--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="sections; others' rows stay"
    )
    parser.add_argument("--figures", action="store_true", help="only draw anew, from the table")
    options = parser.parse_args()
    if options.figures:
        return figures(pd.read_csv(OUT / "bench.csv"))
    settle()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore", FutureWarning)  # peers use what torch deprecates
    OUT.mkdir(parents=True, exist_ok=True)
    for section in options.only:
        measure(section, options.rounds)


if __name__ == "__main__":
    main()
