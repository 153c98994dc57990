"""K-FAC against SGD and Adam: which reaches the lower training loss in 5 epochs, each tuned with the same budget.

Everything is trained by `fisherlab train -m`. Each optimizer gets 20 settings (5 learning rates x 4 values of one other
hyper-parameter) on 2 seeds; the setting with the lowest mean training loss is trained on 10 fresh seeds. The difference
of the log training losses is paired by seed (equal seed: equal batches and initial weights), with a 95 % t interval;
below -log 1.05 counts as lower, above as higher, else it is undecided; so it is where the loser's setting lies on the
edge of its grid, beyond which it might do better. Interrupted, the same call goes on.

Writes results/comparison/: tuning.csv, final.csv, verdicts.csv, comparison.png.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

OUT = Path("results/comparison")
MODELS = {"mlp": "MLP 784-80-80-80-10, relu", "deep_linear": "deep linear 784-100x5-10"}
# By optimizer: the learning rates, the other key and its values; the rest is at its default (K-FAC: momentum 0.9).
GRIDS: dict[str, tuple[tuple[float, ...], str, tuple[float, ...]]] = {
    "kfac": ((1e-4, 3e-4, 1e-3, 3e-3, 1e-2), "damping", (3e-4, 1e-3, 3e-3, 1e-2)),
    "sgd": ((3e-3, 1e-2, 3e-2, 1e-1, 3e-1), "momentum", (0.5, 0.9, 0.97, 0.99)),
    "adam": ((1e-4, 3e-4, 1e-3, 3e-3, 1e-2), "optimizer.beta1", (0.0, 0.5, 0.95, 0.98)),
}
TUNING_SEEDS, FRESH_SEEDS = range(100, 102), range(10)
SMALLEST = math.log(1.05)


def sweep(name: str, overrides: list[str], scratch: Path) -> pd.DataFrame:
    """Run a sweep by the command line, or go on with it; its table."""
    folder = scratch / name
    command = [sys.executable, "-m", "fisherlab", "train", "-m", f"hydra.sweep.dir={folder}", *overrides]
    print(" ".join(command[2:]), flush=True)
    subprocess.run(command, check=True)
    return pd.read_csv(folder / "sweep.csv")


def joined(values: object) -> str:
    """Values of a key, as the command line wants them."""
    return ",".join(f"{v:g}" for v in values)  # type: ignore[attr-defined]


def tuned(model: str, optimizer: str, common: list[str], scratch: Path) -> pd.DataFrame:
    """Every setting of an optimizer's grid: mean training loss over the tuning seeds; a divergence counts as inf."""
    rates, key, values = GRIDS[optimizer]
    asked = [f"model={model}", f"optimizer={optimizer}", f"lr={joined(rates)}", f"{key}={joined(values)}"]
    table = sweep(f"tune-{model}-{optimizer}", [*asked, f"seed={joined(TUNING_SEEDS)}", *common], scratch)
    table = table[table["lr"].isin(rates) & table[key].isin(values)]  # an earlier grid may have left more
    loss = table["final_train_loss"].where(table["status"] == "finished", math.inf)
    rows = table.assign(loss=loss, other=table[key]).groupby(["lr", "other"], as_index=False)
    found = rows.agg(train_loss=("loss", "mean"), diverged=("status", lambda s: int((s == "diverged").sum())))
    return found.assign(model=model, optimizer=optimizer, other_key=key, seeds=len(TUNING_SEEDS))


def fresh(model: str, optimizer: str, best: pd.Series, common: list[str], scratch: Path) -> pd.DataFrame:
    """The best setting on the fresh seeds."""
    asked = [f"model={model}", f"optimizer={optimizer}", f"lr={best.lr:g}", f"{best.other_key}={best.other:g}"]
    name = f"final-{model}-{optimizer}-{best.lr:g}-{best.other:g}"
    table = sweep(name, [*asked, f"seed={joined(FRESH_SEEDS)}", *common], scratch)
    kept = table[["seed", "status", "final_train_loss", "final_test_error", "seconds"]]
    return kept.assign(model=model, optimizer=optimizer, lr=best.lr, other_key=best.other_key, other=best.other)


def on_edge(best: pd.Series) -> str:
    """Which of the best setting's values lie on a bound of the grid; 0 is no bound that could be moved."""
    rates, key, values = GRIDS[best.optimizer]
    edges = {"lr": (best.lr, rates), key: (best.other, values)}
    return ", ".join(k for k, (v, grid) in edges.items() if v in (min(grid), max(grid)) and v != 0)


def verdicts(best: pd.DataFrame, final: pd.DataFrame) -> pd.DataFrame:
    """K-FAC's log training loss less another's, paired by seed."""
    rows = []
    for model in best["model"].unique():
        losses = final[final["model"] == model].pivot(index="seed", columns="optimizer", values="final_train_loss")
        edge = {o: on_edge(b) for o, b in best[best["model"] == model].set_index("optimizer", drop=False).iterrows()}
        for other in ("sgd", "adam"):
            d = (losses["kfac"].map(math.log) - losses[other].map(math.log)).dropna()
            low, high = stats.t.interval(0.95, len(d) - 1, loc=d.mean(), scale=stats.sem(d))
            decided, loser = "undecided", ""
            if high < -SMALLEST:
                decided, loser = "lower", other
            elif low > SMALLEST:
                decided, loser = "higher", "kfac"
            bounds = "; ".join(f"{o}: {edge[o]}" for o in ("kfac", other) if edge[o])
            rows.append({
                "model": model, "against": other, "n": len(d), "kfac_train_loss": losses["kfac"].mean(),
                "against_train_loss": losses[other].mean(), "log_ratio": d.mean(), "sd": d.std(), "low": low,
                "high": high, "p": stats.ttest_1samp(d, 0.0).pvalue, "on_grid_bound": bounds,
                "kfac_is": "undecided" if edge.get(loser) else decided,
            })  # fmt: skip
    table = pd.DataFrame(rows)
    table["p_holm"] = holm(table["p"])
    table.loc[table["p_holm"] > 0.05, "kfac_is"] = "undecided"
    return table


def holm(p: pd.Series) -> pd.Series:
    """Holm's correction of a family of p values."""
    order = p.sort_values().index
    scaled = p[order] * pd.Series(range(len(p), 0, -1), index=order)
    return scaled.cummax().clip(upper=1.0).reindex(p.index)


def draw(tuning: pd.DataFrame, final: pd.DataFrame) -> Figure:
    """Training loss against learning rate while tuning, and of the fresh seeds, by model."""
    models = list(tuning["model"].unique())
    figure = Figure(figsize=(11, 3.6 * len(models)), layout="constrained")
    grid = figure.subplots(len(models), 2, squeeze=False, sharey="row")
    colours = dict(zip(GRIDS, mpl.color_sequences["tab10"], strict=False))
    for (left, right), model in zip(grid, models, strict=True):
        for optimizer, part in tuning[tuning["model"] == model].groupby("optimizer", sort=False):
            for (value, line), marker in zip(part.groupby("other"), "o^sv", strict=False):
                label = f"{optimizer}, {line['other_key'].iloc[0].rpartition('.')[2]} {value:g}"
                shown = line[line["train_loss"].map(math.isfinite)]
                left.plot(shown["lr"], shown["train_loss"], color=colours[str(optimizer)], marker=marker, label=label)
        left.set(xscale="log", yscale="log", xlabel="learning rate", ylabel="training loss after 5 epochs (nats)")
        left.set_title(f"{MODELS[model]}: tuning, mean of {len(TUNING_SEEDS)} seeds", fontsize=9)
        losses = final[final["model"] == model].pivot(index="seed", columns="optimizer", values="final_train_loss")
        losses = losses[[o for o in GRIDS if o in losses]]
        right.plot(list(losses), losses.T, color="0.8", lw=0.8, zorder=0)
        for optimizer in losses:
            right.plot([optimizer] * len(losses), losses[optimizer], "o", color=colours[str(optimizer)])
        right.set_title(f"best setting, {len(losses)} fresh seeds (a line joins equal seeds)", fontsize=9)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside right center", fontsize=8, frameon=False)
    return figure


def save(tuning: pd.DataFrame, final: pd.DataFrame) -> None:
    """Draw and write the figure."""
    draw(tuning, final).savefig(OUT / "comparison.png", dpi=120, metadata={"Software": None})
    print(OUT / "comparison.png")


def main() -> None:
    """Tune, train the best on fresh seeds, compare, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scratch", type=Path, default=Path("results/sweeps/comparison"))
    parser.add_argument("overrides", nargs="*", help="further overrides of every run, for example epochs=1")
    parser.add_argument("--figures", action="store_true", help="only draw anew, from the tables")
    options = parser.parse_args()
    if options.figures:
        return save(pd.read_csv(OUT / "tuning.csv"), pd.read_csv(OUT / "final.csv"))
    common = options.overrides or ["epochs=5"]
    pairs = [(model, optimizer) for model in MODELS for optimizer in GRIDS]
    tuning = pd.concat([tuned(m, o, common, options.scratch) for m, o in pairs], ignore_index=True)
    best = tuning.loc[tuning.groupby(["model", "optimizer"], sort=False)["train_loss"].idxmin()]
    rows = [fresh(b.model, b.optimizer, b, common, options.scratch) for _, b in best.iterrows()]
    final = pd.concat(rows, ignore_index=True)
    OUT.mkdir(parents=True, exist_ok=True)
    table = verdicts(best, final)
    for name, one in (("tuning", tuning), ("final", final), ("verdicts", table)):
        one.to_csv(OUT / f"{name}.csv", index=False, float_format="%.6g")
    save(tuning, final)
    print(best.to_string(), table.to_string(), sep="\n")


if __name__ == "__main__":
    main()
