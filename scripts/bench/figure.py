"""The scaling figure, from the rows of the table."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure


def draw(table: pd.DataFrame, path: Path) -> None:
    """Cost per replica against the number of replicas, from the rows of the table.

    The bars span the quartiles of the ratio, which is that of each round.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    for ax, method in zip(axes, ("K-FAC", "SGD"), strict=True):
        panel(ax, table[table["what"].str.startswith(f"{method}, ")], method)
    threads = int(table["threads"].iloc[0])
    figure.suptitle(f"Deep linear net 784-100x5-10, batch 128, one seed, {threads} thread{'s' if threads > 1 else ''}")
    figure.savefig(path, dpi=150)


def panel(ax: Axes, table: pd.DataFrame, method: str) -> None:
    """One method."""
    rows = table[table["against"] == "runs one after another"]
    alone = rows["against_ms"].iloc[0]
    low, high = (rows["ratio"] - rows["ratio_q1"]) * alone, (rows["ratio_q3"] - rows["ratio"]) * alone
    replicas = [1, *rows["replicas"].astype(int)]
    ax.errorbar(replicas, [alone, *rows["ms"]], yerr=[[0, *low], [0, *high]], marker="o", capsize=3, label="replicas")
    ax.axhline(alone, color="black", linestyle="--", label="one run after another")
    for value in table.loc[table["against"].str.startswith("asdl"), "against_ms"]:
        ax.axhline(value, color="tab:red", linestyle=":", label="asdl, one run after another")
    ax.set_xscale("log", base=2)
    ax.set_xticks(replicas, replicas)
    ax.set_ylim(bottom=0)
    ax.set(title=method, xlabel="number of replicas", ylabel="time per replica and step (ms)")
    ax.legend()
