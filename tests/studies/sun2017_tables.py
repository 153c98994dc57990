"""Hand-made tables of the study sun2017, and the verdicts that follow from them."""

import math

import pandas as pd
from tqdm import tqdm

from fisherlab.studies import sun2017
from fisherlab.studies.study import begin
from fisherlab.studies.sun2017 import runs
from fisherlab.studies.sun2017.settings import METHODS

SPLITS = {"train": 1000, "valid": 400, "test": 397}
SETTINGS = {"dataset": "digits", "splits": SPLITS, "batch": 50, "l2": 1e-3, "nets": ["plain"], "variants": []}
SETTINGS |= {"methods": list(METHODS), "rates": [1.0, 0.1, 0.01], "seeds": 10, "epochs": 100}
SETTINGS |= {"grid_seeds": 1, "grid_epochs": 2, "watch_epochs": [1], "watch_cases": 200, "rounds": 2}


def make(part, home):
    for name, table in part.make(tqdm(disable=True)).items():
        table.to_csv(home / name, index=False)


def curves(level, accuracy, *, rate=0.1, epochs=100, status="finished", seeds=10, spread=1e-4):
    """Runs whose objective falls to a level by a rate."""
    rows = []
    for seed in range(seeds):
        for epoch in range(epochs + 1):
            error = 1 - accuracy - spread * (seed - (seeds - 1) / 2)
            objective = level * (1 + 20 * math.exp(-rate * (1 + 0.02 * seed) * epoch))
            numbers = dict.fromkeys(("objective", "train_loss", "batch_loss"), objective)
            numbers |= {"train_error": error, "seconds": epoch}
            rows.append({"epoch": epoch, "step": epoch, "valid_error": error, "test_error": error, **numbers})
            rows[-1] |= {"seed": 1000 + seed, "lr": 0.1, "status": status}
    return pd.DataFrame(rows)


def folder(tmp_path, best=0.1, variants=(), net="plain", **tables):
    """A study's folder with hand-made curves of a net, by method; the best learning rate may be an end of the grid."""
    home = tmp_path / "paper"
    begin(home, SETTINGS | {"variants": list(variants), "nets": [net]}, {})
    for method, table in tables.items():
        table.to_csv(home / runs.curves_table(net, method), index=False)
        errors = [0.02 + abs(math.log10(lr / best)) for lr in SETTINGS["rates"]]
        grid = pd.DataFrame({"lr": SETTINGS["rates"], "seed": 0, "valid_error": errors, "objective": errors})
        grid.to_csv(home / runs.grid_table(net, method), index=False)
    return home


def verdict(home, start):
    found = [claim.verdict for claim in sun2017.claims(home) if claim.claim.startswith(start)]
    return found[0] if found else None
