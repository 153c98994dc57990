"""The figures of a sweep, from its table and the tables of its runs."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from fisherlab.files import replace
from fisherlab.plots.ticks import plain

SEEDS = ("seed", "data_seed", "init_seed")  # what tells repeats apart, and is never a colour
PANELS = 6
WRITTEN_CELLS = 100
LABELS = {
    "train_loss": "training loss\n(mean nll, nats per example)",
    "test_error": "test error",
    "valid_error": "validation error",
}


@dataclass(frozen=True)
class Sweep:
    """What the figures are drawn from.

    Attributes:
        table: `sweep.csv`; swept values are text, and one text per number.
        keys: The swept keys that are no seeds and take several values.
        curves: The readable part of `metrics.csv` by job, where there is any.
        spread: What the runs of one setting differ in.
    """

    table: pd.DataFrame
    keys: list[str]
    curves: dict[str, pd.DataFrame]
    spread: str = "seeds"


def draw_sweep(folder: Path) -> list[Path]:
    """Draw `curves.png` and, where exactly two keys other than seeds are swept, `heatmap.png`.

    Args:
        folder: A sweep folder with `sweep.csv`.

    Returns:
        The files written; none where no run has anything to draw.
    """
    sweep = read_sweep(folder)
    written = []
    if sweep.curves:
        written.append(_save(draw_curves(sweep), folder / "curves.png"))
    if len(sweep.keys) == 2 and sweep.table["status"].isin(["finished", "diverged"]).any():
        written.append(_save(draw_heatmap(sweep), folder / "heatmap.png"))
    return written


def _save(figure: Figure, path: Path) -> Path:
    replace(path, lambda temporary: figure.savefig(temporary, dpi=120))
    return path


def read_sweep(folder: Path) -> Sweep:
    """Read the tables of a sweep.

    Args:
        folder: A sweep folder with `sweep.csv`.

    Returns:
        The tables.
    """
    table = pd.read_csv(folder / "sweep.csv", dtype=str, keep_default_na=False)
    swept = list(table.columns[1 : list(table.columns).index("overrides")])
    for key in swept:
        table[key] = _one_text_per_number(list(table[key]))
    for column in table.columns:
        if column in ("step", "seconds") or column.startswith(("final_", "best_")):
            table[column] = pd.to_numeric(table[column])
    keys = [key for key in swept if key not in SEEDS and table[key].nunique() > 1]
    curves = {job: _metrics(folder / "runs" / job / "metrics.csv") for job in table["job"]}
    curves = {job: curve for job, curve in curves.items() if np.isfinite(curve["train_loss"]).any()}
    return Sweep(table, keys, curves, _spread(folder, table[table["job"].isin(list(curves))], keys))


def _metrics(path: Path) -> pd.DataFrame:
    """What can be read of a run's table, all its whole lines; one run's broken file costs no figure of the others."""
    columns = ["step", "epoch", "train_loss"]
    try:
        text = path.read_text()
        table = pd.read_csv(io.StringIO(text[: text.rfind("\n") + 1]))
        return table.astype(dict.fromkeys(columns, float))
    except (OSError, ValueError, KeyError):
        return pd.DataFrame(columns=columns, dtype=float)


def _spread(folder: Path, table: pd.DataFrame, keys: Sequence[str]) -> str:
    """What the runs of one setting differ in, by their configurations."""
    seeds = {job: _seeds(folder / "runs" / job / "config.yaml") for job in table["job"]}
    groups = [[seeds[job] for job in table["job"][rows]] for rows in _settings(table, keys).values()]
    data, initial = (any(len({one[i] for one in group}) > 1 for group in groups) for i in (0, 1))
    if initial and not data:
        return "seeds (initialisation only)"
    return "seeds (data order only)" if data and not initial else "seeds"


def _seeds(path: Path) -> tuple[str, str]:
    """The seeds of the data and of the initialisation."""
    text = path.read_text() if path.exists() else ""
    found = dict(re.findall(rf"^({'|'.join(SEEDS)}): *(\S+)", text, re.MULTILINE))
    seed, data, initial = (found.get(key, "null") for key in SEEDS)
    return (seed if data == "null" else data, seed if initial == "null" else initial)


def _settings(table: pd.DataFrame, keys: Sequence[str]) -> dict[tuple[str, ...], Any]:
    """The rows of each setting: jobs that differ in seeds alone."""
    setting = pd.Series([tuple(row) for row in table[list(keys)].to_numpy()], index=table.index, dtype=object)
    return {one: setting == one for one in dict.fromkeys(setting)}


def _one_text_per_number(values: list[str]) -> list[str]:
    """Write 0.1 and 1e-1 alike: as whichever comes first."""
    first: dict[float | str, str] = {}
    return [first.setdefault(_number(value), value) for value in values]


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _ordered(values: Sequence[str]) -> list[str]:
    """Distinct values: numbers first and by size, then names as they come."""
    distinct = list(dict.fromkeys(values))
    numbers = [value for value in distinct if _is_number(value)]
    return sorted(numbers, key=float) + [value for value in distinct if value not in numbers]


def _is_number(text: str) -> bool:
    return isinstance(_number(text), float)


def _name(value: str) -> str:
    return value or "default"


def _colours(values: Sequence[str]) -> dict[str, Any]:
    """A ramp for numbers, evenly spaced so that neighbours can be told apart; else categories."""
    if len(values) == 1:
        return {values[0]: "tab:blue"}
    if all(_is_number(value) for value in values if value):
        ramp = mpl.colormaps["viridis"](np.linspace(0, 0.9, len(values)))
        return dict(zip(values, ramp, strict=True))
    categories = mpl.color_sequences["tab10" if len(values) <= 10 else "tab20"]
    return {value: categories[i % len(categories)] for i, value in enumerate(values)}


def draw_curves(sweep: Sweep) -> Figure:
    """Draw learning curves: colours by the first swept key, panels by the others.

    Args:
        sweep: The tables; at least one run has a curve.

    Returns:
        The figure.
    """
    table = sweep.table[sweep.table["job"].isin(list(sweep.curves))]
    columns = {column for curve in sweep.curves.values() for column in curve.columns[curve.notna().any()]}
    shown = ["train_loss", *[c for c in ("test_error", "valid_error") if c in columns][:1]]
    colours = _colours(_ordered(list(sweep.table[sweep.keys[0]])) if sweep.keys else [""])
    panels = _panels(table, sweep.keys[1:])
    wide = len(panels) > 1
    size = (len(shown), len(panels)) if wide else (1, len(shown))
    figure = Figure(figsize=(3.3 * size[1] + 2.6, 2.9 * size[0] + 0.3), layout="constrained")
    grid = figure.subplots(*size, sharex=True, sharey="row" if wide else False, squeeze=False)
    for i, quantity in enumerate(shown):
        axes = list(grid[i]) if wide else [grid[0][i]]
        top = _top(table, sweep.curves, quantity)
        for axis, (title, rows) in zip(axes, panels.items(), strict=True):
            axis.set_title("" if i else title, fontsize=10)
            for value, colour in colours.items():
                group = table[rows & (table[sweep.keys[0]] == value)] if sweep.keys else table[rows]
                _draw_group(axis, group, sweep.curves, quantity, colour, top)
        _finish(axes, table, sweep.curves, quantity, top)
    for axis in grid[-1]:
        axis.set_xlabel("epoch")
    settings = len(_settings(table, sweep.keys[1:]))
    if settings > len(panels):
        figure.suptitle(f"{len(panels)} of {settings} values of {', '.join(sweep.keys[1:])}", fontsize=10)
    _legend(figure, sweep, table, colours)
    return figure


def _panels(table: pd.DataFrame, keys: Sequence[str]) -> dict[str, Any]:
    """The rows of each panel by its title: the values of the other keys, in order, spread where there are too many."""
    order = {key: _ordered(list(table[key])) for key in keys}
    settings = _settings(table, keys)
    values = sorted(settings, key=lambda one: [order[k].index(v) for k, v in zip(keys, one, strict=True)])
    chosen = sorted({round(i) for i in np.linspace(0, len(values) - 1, min(PANELS, len(values)))})
    named = ((values[i], ", ".join(f"{k} = {_name(v)}" for k, v in zip(keys, values[i], strict=True))) for i in chosen)
    return {title: settings[one] for one, title in named}


def _finite(curve: pd.DataFrame, quantity: str) -> pd.DataFrame:
    if quantity not in curve:
        return curve.iloc[:0].assign(**{quantity: 0.0})
    return curve[np.isfinite(curve[quantity])]


def _top(table: pd.DataFrame, curves: dict[str, pd.DataFrame], quantity: str) -> float:
    """Where an axis ends so that a diverged run cannot squeeze the others: a little above where runs start and stay."""
    kept = [0.0]
    for job, status in zip(table["job"], table["status"], strict=True):
        values = _finite(curves[job], quantity)[quantity]
        kept += list(values.iloc[:1] if status == "diverged" else values)
    return 1.25 * max(kept) or 1.0


def _draw_group(
    axis: Axes, group: pd.DataFrame, curves: dict[str, pd.DataFrame], quantity: str, colour: Any, top: float
) -> None:
    """Draw the mean and the range of the finished runs of one setting, and each other run by itself."""
    finished = [_finite(curves[job], quantity) for job in group["job"][group["status"] == "finished"]]
    finished = [curve for curve in finished if len(curve)]
    if finished:
        steps = pd.concat(finished).groupby("step")
        common = steps[quantity].count() == len(finished)
        epoch, values = steps["epoch"].mean()[common], steps[quantity].agg(["mean", "min", "max"])[common]
        axis.plot(epoch, values["mean"], color=colour, lw=1.6, zorder=3)
        if len(finished) > 1:
            axis.fill_between(epoch, values["min"], values["max"], color=colour, alpha=0.22, lw=0)
    for row in group[group["status"] != "finished"].itertuples():
        curve = _finite(curves[str(row.job)], quantity)
        x, y = list(curve["epoch"]), list(curve[quantity].clip(upper=top))
        if row.status == "diverged" and x:
            if quantity == "train_loss":
                x, y = [*x, max(x[-1], _end(curve, row.step))], [*y, top]
            axis.plot(x[-1:], y[-1:], "x", color=colour, ms=6, mew=1.6, clip_on=False, zorder=4)
        axis.plot(x, y, color=colour, lw=0.8, ls="--" if row.status != "diverged" else "-", zorder=2)


def _end(curve: pd.DataFrame, step: Any) -> float:
    """The epoch of a step after the last evaluation."""
    last = curve.iloc[-1]
    if not last["step"] or pd.isna(step):
        return float(last["epoch"])
    return float(last["epoch"] / last["step"] * step)


def _finish(
    axes: Sequence[Axes], table: pd.DataFrame, curves: dict[str, pd.DataFrame], quantity: str, top: float
) -> None:
    """Scale and label one row of panels."""
    values = np.concatenate([_finite(curves[job], quantity)[quantity].to_numpy(dtype=float) for job in table["job"]])
    wide = values.size and values.min() > 0 and min(values.max(), top) > 5 * values.min()
    diverged = quantity == "train_loss" and bool((table["status"] == "diverged").any())
    for axis in axes:
        if wide:
            axis.set_yscale("log")
            plain(axis)
        if diverged:
            axis.set_ylim(top=top)
        axis.grid(alpha=0.25, lw=0.6)
        # Crosses often fall on one place: the later, the smaller, so that all are seen.
        crosses = [line for line in axis.lines if line.get_marker() == "x"]
        for cross, size in zip(crosses, np.linspace(12, 6, len(crosses)), strict=True):
            cross.set_markersize(float(size))
    axes[0].set_ylabel(LABELS[quantity])


def _legend(figure: Figure, sweep: Sweep, table: pd.DataFrame, colours: dict[str, Any]) -> None:
    """Say which colour is what, how many runs it stands for, and what lines, bands and crosses mean."""
    handles: list[Artist] = []
    for value, colour in colours.items():
        rows = sweep.table[sweep.table[sweep.keys[0]] == value] if sweep.keys else sweep.table
        label = f"{_name(value) if sweep.keys else 'all runs'}{_unfinished(rows['status'])}"
        handles.append(Line2D([], [], color=colour, lw=2, label=label))
    handles.append(Line2D([], [], lw=0, label=""))  # a gap: what follows is no value
    status = table["status"]
    counts = [int((status[rows] == "finished").sum()) for rows in _settings(table, sweep.keys).values()]
    most, least = max(counts), min((n for n in counts if n), default=0)
    if most == 1:
        handles.append(Line2D([], [], color="0.4", lw=1.6, label="one run each (n = 1)"))
    elif most:
        n = f"n = {most}" if least == most else f"n = {least} to {most}"
        handles.append(Line2D([], [], color="0.4", lw=1.6, label="mean of finished runs"))
        handles.append(Patch(color="0.4", alpha=0.22, lw=0, label=f"min to max over {n}\n{sweep.spread}"))
    if (status == "diverged").any():
        handles.append(Line2D([], [], color="0.4", lw=0.8, marker="x", mew=1.6, label="diverged run, where it ended"))
    if (~status.isin(["finished", "diverged"])).any():
        handles.append(Line2D([], [], color="0.4", lw=0.8, ls="--", label="run that has not finished"))
    look: dict[str, Any] = {"frameon": False, "fontsize": 8, "title_fontsize": 9, "alignment": "left"}
    title, columns = sweep.keys[0] if sweep.keys else None, 1 + len(handles) // 26
    figure.legend(handles=handles, loc="outside right upper", title=title, ncols=columns, **look)


def _unfinished(status: pd.Series) -> str:
    """How many of the runs did not finish, and why."""
    counts = status[status != "finished"].value_counts().sort_index()
    told = ", ".join(f"{count} of {len(status)} {name}" for name, count in counts.items())
    return f" ({told})" if told else ""


def draw_heatmap(sweep: Sweep) -> Figure:
    """Draw the final training loss over two swept keys.

    Args:
        sweep: The tables, with exactly two keys.

    Returns:
        The figure.
    """
    across, up = (_ordered(list(sweep.table[key])) for key in sweep.keys)
    cells = {(x, y): _cell(sweep, x, y) for x in across for y in up}
    means = np.array([[cells[x, y]["mean"] for x in across] for y in up])
    known = means[np.isfinite(means)]
    logarithmic = known.size and known.min() > 0 and known.max() > known.min()
    norm = (LogNorm if logarithmic else Normalize)(*((known.min(), known.max()) if known.size else (0, 1)))
    figure = Figure(figsize=(min(1.0 * len(across) + 2.6, 16), min(0.7 * len(up) + 1.7, 12)), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(means, origin="lower", aspect="auto", cmap="viridis", norm=norm)
    bar = figure.colorbar(image, ax=axis, label="final training loss\n(mean nll, nats per example)")
    if logarithmic:
        plain(bar.ax)
    for (x, y), cell in cells.items():
        colour = image.cmap(norm(cell["mean"])) if np.isfinite(cell["mean"]) else (0.88, 0.88, 0.88, 1.0)
        _draw_cell(axis, (across.index(x), up.index(y)), cell, colour, len(cells) <= WRITTEN_CELLS)
    sound = {place: cell["mean"] for place, cell in cells.items() if np.isfinite(cell["mean"]) and not cell["diverged"]}
    most = max(cell["runs"] for cell in cells.values())
    title = f"mean over n = {most} {sweep.spread}" if most > 1 else "one run each (n = 1)"
    if sound:
        x, y = min(sound, key=lambda place: sound[place])
        place = (across.index(x) - 0.5, up.index(y) - 0.5)
        axis.add_patch(Rectangle(place, 1, 1, fill=False, ec="red", lw=2.5, clip_on=False, zorder=5, label="best"))
        title += "; red: lowest"
    if any(cell["diverged"] for cell in cells.values()):
        title += "\nhatched: runs diverged (the mean is of the others)"
    axis.set_title(title, fontsize=9)
    axis.set_xlabel(sweep.keys[0])
    axis.set_ylabel(sweep.keys[1])
    long = len(across) > 10 or max(map(len, across)) > 8
    axis.set_xticks(range(len(across)), [_name(x) for x in across], rotation=60 if long else 0)
    axis.set_yticks(range(len(up)), [_name(y) for y in up])
    return figure


def _cell(sweep: Sweep, x: str, y: str) -> dict[str, Any]:
    """What the runs of one cell came to."""
    rows = sweep.table[(sweep.table[sweep.keys[0]] == x) & (sweep.table[sweep.keys[1]] == y)]
    losses = rows.get("final_train_loss", pd.Series(np.nan, rows.index))[rows["status"] == "finished"]
    losses = losses[np.isfinite(losses)]
    diverged = int((rows["status"] == "diverged").sum())
    mean = float(losses.mean()) if len(losses) else float("nan")
    rest = "" if len(losses) or diverged or rows.empty else str(rows["status"].iloc[0])
    return {"mean": mean, "diverged": diverged, "runs": len(rows), "rest": rest}


def _draw_cell(axis: Axes, place: tuple[int, int], cell: dict[str, Any], colour: Any, written: bool) -> None:
    """Hatch a cell whose runs diverged, and write its number."""
    x, y = place
    if not np.isfinite(cell["mean"]):
        axis.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fc=colour, ec="white", lw=0))
    if cell["diverged"]:
        axis.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, ec="0.6", lw=0, hatch="///"))
    lines = [f"{cell['mean']:.3g}"] if np.isfinite(cell["mean"]) else [cell["rest"]] if cell["rest"] else []
    if cell["diverged"]:
        lines.append(f"{cell['diverged']} of {cell['runs']}\ndiverged")
    if not written or not lines:
        return
    dark = np.dot(colour[:3], [0.299, 0.587, 0.114]) < 0.5
    box = {"fc": colour, "ec": "none", "pad": 1.0}
    axis.text(x, y, "\n".join(lines), ha="center", va="center", fontsize=8, color="w" if dark else "k", bbox=box)
