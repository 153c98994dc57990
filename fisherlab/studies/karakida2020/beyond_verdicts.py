"""What happens beyond the theory: cross-entropy, mini-batches, feature learning, the empirical Fisher; all ours."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fisherlab.studies.asked import Asked, judged, numbers
from fisherlab.studies.judge import Effect, holds
from fisherlab.studies.karakida2020 import cross_entropy, empirical, gap, minibatch
from fisherlab.studies.karakida2020.descent import ISOTROPIC
from fisherlab.studies.karakida2020.tables import NAMES, found, slopes, widths
from fisherlab.studies.study import Claim

NEAR = 0.1  # a tenth: what counts as following a prediction here
UNEVEN = 0.02  # the isotropy error that unit-wise blocks are to stay below
LEAST = 256
SOURCE = "ours, beyond the theory"
WHOLE = NAMES | {"exact": "the whole matrix"}  # the empirical one is not the Fisher


def claims(folder: Path, settings: dict[str, Any], decisive: bool) -> list[Claim]:
    """Judge by the tables that there are.

    Args:
        folder: The study's folder.
        settings: The scale's.
        decisive: Whether a deviation of what is deterministic contradicts.

    Returns:
        The claims.
    """
    made: list[Claim] = []
    judges = (
        (gap.GAP, _features), (cross_entropy.TABLE, partial(_cross_entropy, decisive=decisive)),
        (minibatch.TABLE, _batches),
    )  # fmt: skip
    for name, judge in judges:
        table = found(folder, name) if isinstance(name, str) else widths(folder, name)
        if table is not None:
            made += list(judge(table, settings))
    along, runs = (found(folder, name) for name in (empirical.ALONG, empirical.RUNS))
    if along is not None and runs is not None:
        made += list(_empirical(along, runs, settings))
    return made


def _features(table: Any, settings: dict[str, Any]) -> Iterator[Claim]:
    """Feature learning: the kernel's change during one step at the best rate."""
    own = table[table["network"] == "relu"]
    asked = []
    for variant in ISOTROPIC:
        rows = own[own["variant"] == variant]
        change = rows.groupby("width")["kernel_change"].median()
        still = change[change < NEAR]
        since = f"below {NEAR:g} from width {still.index.min()}" if len(still) else f"nowhere below {NEAR:g}"
        found = slopes(rows, "kernel_change", LEAST)
        wide = f"{max(LEAST, rows['width'].min())} to {rows['width'].max()}"
        asked.append(Asked(
            f"{NAMES[variant]}: the kernel's change in one step, feature learning, falls with width", SOURCE,
            f"{settings['dataset']}, relu, widths {wide}, eta = 1/alpha",
            "a negative slope in log-log (-1/2 or -1 by theories of finite width)",
            f"slope {numbers(found)}; median change {', '.join(f'{w}: {c:.2g}' for w, c in change.items())}; {since}",
            Effect([-s for s in found]), "minus the slope, fitted per seed",
        ))  # fmt: skip
    yield from judged(asked)


def _cross_entropy(table: Any, settings: dict[str, Any], *, decisive: bool) -> Iterator[Claim]:
    far = table.groupby("variant")["isotropy"].max()
    yield Claim(
        "cross-entropy: S of the Fisher's own rows, each weighted by sqrt(p (1 - p)), stays alpha I", SOURCE,
        f"{settings['dataset']}, width {settings['width']}, relu, along {settings['steps']} steps at eta = 1/alpha",
        "isotropy error near zero; K-FAC's last layer has p (1 - p) over its mean in place of 1",
        f"largest: {', '.join(f'{NAMES[v]} {far[v]:.0e}' for v in ISOTROPIC)}", int(table["seed"].nunique()),
        "reproduced below 1e-6, K-FAC below 0.01",
        holds(bool(far.reindex(ISOTROPIC).drop("kfac").max() < 1e-6 and far["kfac"] < 0.01), decisive=decisive),
    )  # fmt: skip
    asked = []
    for variant in (*ISOTROPIC, "unit"):
        own = table[(table["variant"] == variant) & (table["step"] > 0)]
        off = np.exp(np.log(own["loss"] / own["loss_theory"]).abs().groupby(own["seed"]).max()) - 1
        far = table[table["variant"] == variant].groupby("seed")["isotropy"].max()
        apart = own.groupby("seed")["apart"].max()
        asked.append(Asked(
            f"cross-entropy, {NAMES.get(variant, 'unit-wise')}: the loss falls as if outputs moved by "
            "alpha eta (p - y) / (p (1 - p)) in a step", SOURCE,
            f"{settings['dataset']}, width {settings['width']}, relu, eta = 1/alpha, {settings['steps']} steps",
            f"loss within {NEAR:.0%} of that recursion's at every step",
            f"largest factor less 1: {numbers(off.tolist())}; outputs off it by (RMS) up to {numbers(apart.tolist())}; "
            f"isotropy error in that metric {numbers(far.tolist())}",
            Effect([NEAR - v for v in off]), f"{NEAR:g} less the deviation",
        ))  # fmt: skip
    yield from judged(asked)


def _batches(table: Any, settings: dict[str, Any]) -> Iterator[Claim]:
    asked = []
    last = table[(table["epoch"] == table["epoch"].max()) & (table["batch"] == table["batch"].min())]
    start = table[table["epoch"] == 0].groupby(["seed", "variant"])["loss"].first()
    batch, epochs = int(last["batch"].iloc[0]), int(last["epoch"].iloc[0])
    steps = epochs * -(-settings["examples"] // batch)
    rate = f"eta = {settings['slow']:g}/alpha"
    setting = f"{settings['dataset']}, width {settings['middle_width']}, relu, batches of {batch}, {rate}"
    for variant in ISOTROPIC:
        own = last[last["variant"] == variant].set_index("seed")
        share = own["loss"] / start.xs(variant, level="variant")
        closed = (1 - settings["slow"]) ** (2 * steps)
        still = own["loss_frozen"] / start.xs(variant, level="variant")
        off = np.exp(np.log(share / still).abs()) - 1
        asked.append(Asked(
            f"mini-batches, {NAMES[variant]}: the loss is that of kernels that stand still, not (1 - alpha eta)^(2t)",
            f"{SOURCE}; criterion chosen after seeing these seeds",
            f"{setting}, {epochs} epochs, {steps} steps", f"within {NEAR:.0%} of the former; the latter: {closed:.2g}",
            f"left {numbers(share.tolist())}; with kernels that stand still {numbers(still.tolist())}",
            Effect([NEAR - v for v in off]), f"{NEAR:g} less the deviation",
        ))  # fmt: skip
    yield from judged(asked)


def _empirical(along: Any, runs: Any, settings: dict[str, Any]) -> Iterator[Claim]:
    yield from _uneven(along, runs, settings)
    setting = f"{settings['dataset']}, width {settings['middle_width']}, relu, undamped"
    last = runs.sort_values("step").groupby(["variant", "kind", "seed"])["loss"].last()
    asked = []
    for variant in ISOTROPIC:
        losses = {kind: last[variant, kind] for kind in ("empirical", "Fisher")}
        ratio = np.log(losses["empirical"] / losses["Fisher"])
        asked.append(Asked(
            f"empirical Fisher, {WHOLE[variant]}: it ends with a larger loss than the Fisher", SOURCE,
            f"{setting}, {settings['empirical_steps']} steps, first steps of equal mean size", "more than twice",
            f"losses {numbers(losses['empirical'].tolist())} against {numbers(losses['Fisher'].tolist())}",
            Effect((ratio - np.log(2)).tolist()), "log ratio less log 2",
        ))  # fmt: skip
    yield from judged(asked)


def _uneven(along: Any, runs: Any, settings: dict[str, Any]) -> Iterator[Claim]:
    """Isotropy in function space: where training begins, along the Fisher's own path, and along that of each."""
    setting = f"{settings['dataset']}, width {settings['middle_width']}, relu, undamped"
    steps = f"{settings['empirical_steps']} steps of {{}} at {settings['empirical_rate']:g}/alpha"
    common = along[along["kind"] == "empirical"]
    asked: dict[str, list[Asked]] = {"common": [], "own": []}
    for variant in ISOTROPIC:
        path = common[common["variant"] == variant]
        first = path[path["step"] == 0].groupby("seed")["isotropy"].first()
        least, most = (path.groupby("seed")["isotropy"].agg(how) for how in ("min", "max"))
        asked["common"].append(Asked(
            f"empirical Fisher, {WHOLE[variant]}: not isotropic in function space along natural gradients' path",
            f"{SOURCE}; bar that of unit-wise blocks, chosen after seeing these seeds",
            f"{setting}, {steps.format('the Fisher')}", f"isotropy error above {UNEVEN:g} at every step (Fisher: 0)",
            f"at the start {numbers(first.tolist())}, on the way up to {numbers(most.tolist())}",
            Effect([v - UNEVEN for v in least]), f"smallest isotropy error less {UNEVEN:g}",
        ))  # fmt: skip
        own = falling(runs[(runs["variant"] == variant) & (runs["kind"] == "empirical")]).dropna(subset=["isotropy"])
        most, cosine = own.groupby("seed")["isotropy"].max(), own.groupby("seed")["cosine"].min()
        lasted = own.groupby("seed")["step"].max()
        asked["own"].append(Asked(
            f"empirical Fisher, {WHOLE[variant]}: its own path leads where it is far from isotropic", SOURCE,
            f"{setting}, {steps.format('its own')}, those before the loss rises",
            "isotropy error above 0.5 on the way (the Fisher: 0)",
            f"up to {numbers(most.tolist())}, until step {numbers(lasted.tolist())}; smallest cosine of S r with r "
            f"{numbers(cosine.tolist())}",
            Effect([v - 0.5 for v in most]), "largest isotropy error less 0.5",
        ))  # fmt: skip
    for family in asked.values():
        yield from judged(family)


def falling(runs: Any) -> Any:
    """Keep the steps of each seed before its loss first rises.

    Args:
        runs: With columns seed, step and loss.

    Returns:
        The steps up to the last one whose loss is not above the one before.
    """
    runs = runs.sort_values(["seed", "step"])
    rises = runs.groupby("seed")["loss"].diff() > 0
    return runs[rises.groupby(runs["seed"]).cumsum() == 0]
