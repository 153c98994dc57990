"""The paper's claims, and what we asked beyond them, held against the tables."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fisherlab.ntk import theory
from fisherlab.studies.asked import Asked, below, judged, numbers
from fisherlab.studies.judge import LEAST as JUDGED
from fisherlab.studies.judge import Effect, holds, prediction
from fisherlab.studies.karakida2020 import beyond_verdicts, cost, dynamics, gap, isotropy, refusals, unitwise
from fisherlab.studies.karakida2020.descent import ISOTROPIC
from fisherlab.studies.karakida2020.tables import NAMES, found, slopes, widths
from fisherlab.studies.study import Claim, settings_of

BARS = {"exact": 3e-3, "layer": 3e-3, "tridiagonal": 1e-2}
LEAST = 256  # width from which slopes are fitted: below, a step at the best rate diverges for some
FEW = 0.05  # "a few percent"
PUBLISHED = 2e-4  # training loss after one step in the released README


def claims(folder: Path) -> list[Claim]:
    """Judge by the tables that there are.

    Args:
        folder: The study's folder.

    Returns:
        The claims.
    """
    settings, decisive = settings_of(folder), folder.name == "paper"
    judges = {
        gap.GAP: _gap, dynamics.TABLE: _dynamics, isotropy.TABLE: _isotropy, unitwise.TABLE: _unitwise,
        gap.KERNELS: _kernels, refusals.TABLE: _refusals, cost.TABLE: _cost,
    }  # fmt: skip
    made = []
    for name, judge in judges.items():
        table = found(folder, name) if isinstance(name, str) else widths(folder, name)
        if table is not None:
            made += list(judge(table, settings, decisive, folder))
    return [*made, *beyond_verdicts.claims(folder, settings, decisive)]


def _setting(settings: dict[str, Any], width: int) -> str:
    first, second = settings["classes"]
    return (
        f"{settings['dataset']} {first} against {second}, N = {settings['examples']}, L = {settings['layers']}, "
        f"relu, no biases, width {width}"
    )


def _gap(table: Any, settings: dict[str, Any], decisive: bool, folder: Path) -> Iterator[Claim]:
    """One step at eta = 1 / alpha."""
    own = table[table["network"] == "relu"]
    width = min(settings["width"], int(own["width"].max()))
    setting = f"{_setting(settings, width)}; one step at eta = 1/alpha"
    asked = []
    for variant, bar in BARS.items():
        left = own[(own["variant"] == variant) & (own["width"] == width)]["left"].tolist()
        asked.append(Asked(
            f"{NAMES[variant]}: one step at eta = 1/alpha leaves next to nothing",
            "released README (the whole Fisher); bar ours",
            setting, f"below {bar:g} of the starting loss left (theory: 0)",
            f"left: {numbers(left)}", below(left, bar), "log of the bar over what is left",
        ))  # fmt: skip
    yield from judged(asked)
    asked = []
    for variant in ISOTROPIC:
        rows = own[own["variant"] == variant]
        found = slopes(rows, "left", LEAST)
        wide = f"{max(LEAST, rows['width'].min())} to {rows['width'].max()}"
        asked.append(Asked(
            f"{NAMES[variant]}: what one step leaves falls with width", "ours",
            _setting(settings, width).replace(f"width {width}", f"widths {wide}"), "a negative slope in log-log",
            f"slope {numbers(found)}", Effect([-s for s in found]), "minus the slope, fitted per seed",
        ))  # fmt: skip
    yield from judged(asked)


def _dynamics(table: Any, settings: dict[str, Any], decisive: bool, folder: Path) -> Iterator[Claim]:
    slow = table[(table["factor"] == settings["slow"]) & table["variant"].isin(ISOTROPIC)].copy()
    start = slow[slow["step"] == 0].set_index(["seed", "variant"])["train_loss"]
    slow["share"] = slow["train_loss"] / start.loc[list(zip(slow["seed"], slow["variant"], strict=True))].to_numpy()
    slow["off"] = (slow["share"] / (1 - settings["slow"]) ** (2 * slow["step"]) - 1).abs()
    off = slow.groupby(["variant", "seed"])["off"].max()
    setting = (
        f"{_setting(settings, settings['width'])}; eta = {settings['slow']:g}/alpha, {settings['slow_steps']} steps"
    )
    yield from judged([
        Asked(
            f"{NAMES[variant]}: the training loss follows (1 - alpha eta)^(2t)",
            "released code's form; alpha and bar ours", setting, f"within {FEW:.0%} at every step",
            f"largest deviation: {numbers(off[variant].tolist())}",
            Effect([FEW - v for v in off[variant]]), f"{FEW:g} less the deviation",
        )
        for variant in ISOTROPIC
    ])  # fmt: skip
    yield _kfac_rate(slow, settings, setting)
    yield from _published(table, settings, decisive)
    yield from _test_outputs(table, folder, settings)


def _kfac_rate(slow: Any, settings: dict[str, Any], setting: str) -> Claim:
    """Caution 1 of the sheet: alpha as the loss shows it."""
    n, layers = settings["examples"], settings["layers"]
    own = slow[(slow["variant"] == "kfac") & (slow["step"] == 1)]
    alpha = ((1 - own["share"] ** 0.5) / own["eta"]).to_numpy()
    ours, theirs = theory.alpha("kfac", layers, examples=n), n * layers
    below_middle = (ours + theirs) / 2 - alpha
    return judged([
        Asked(
            f"K-FAC's speed is nearer to N (L - 1) + 1 = {ours:g} than to the released code's N L = {theirs}",
            "ours, against the code",
            setting, f"alpha from the loss's first decay nearer to {ours:g}", f"alpha = {numbers(alpha.tolist())}",
            Effect(below_middle.tolist()), "how far below the middle of both",
        )
    ])[0]  # fmt: skip


def _published(table: Any, settings: dict[str, Any], decisive: bool) -> Iterator[Claim]:
    """The run that the released README shows: width 4096, MNIST 0 and 1, the whole Fisher at eta = 1."""
    own = table[(table["variant"] == "exact") & (table["factor"] == 1) & (table["step"] == 1)]
    if (settings["dataset"], settings["width"]) != ("mnist", 4096) or own["seed"].nunique() < JUDGED:
        return
    setting = f"{_setting(settings, settings['width'])}; float64, images in the original's order; theirs float32, tfds"
    low, high = prediction(own["train_loss"].tolist())
    yield Claim(
        "the whole Fisher's training loss after one step is the released README's", "released README", setting,
        f"{PUBLISHED:g} (from 0.134)", numbers(own["train_loss"].tolist()), len(own),
        f"95 % prediction interval of one more run [{low:.2g}, {high:.2g}]",
        holds(low <= PUBLISHED <= high, decisive=decisive),
    )  # fmt: skip
    errors = own[["train_error", "test_error"]].max(axis=1)
    yield Claim(
        "after one step of the whole Fisher all training and test examples are on their side", "released README",
        setting, "accuracy 1", f"errors at most {errors.max():.3g}", len(own), "reproduced where every seed has none",
        holds(bool(errors.max() == 0), decisive=decisive),
    )  # fmt: skip


def _test_outputs(runs: Any, folder: Path, settings: dict[str, Any]) -> Iterator[Claim]:
    """Training agrees, test outputs differ, and as theory has it; two criteria came after the first had failed."""
    table = found(folder, dynamics.OUTPUTS)
    if table is None:
        return
    setting = f"{_setting(settings, settings['width'])}; after {settings['steps']} steps at eta = 1/alpha"
    last = runs[(runs["factor"] == 1) & (runs["step"] == settings["steps"])]
    ends = last.set_index(["variant", "seed"])["train_loss"]
    whole = table[table["variant"] == "exact"].set_index(["seed", "example"])
    asked: dict[str, list[Asked]] = {"same": [], "differ": [], "further": [], "like": [], "common": []}
    strays = (whole["measured"] - whole["theory"]).rename("whole")
    for variant in ("layer", "tridiagonal", "kfac"):
        asked["same"].append(_same_training(runs, variant, settings))
        own = table[table["variant"] == variant].set_index(["seed", "example"])
        apart = own[["measured", "theory"]] - whole[["measured", "theory"]]
        size, off = np.array(_rms(apart["measured"])), np.array(_rms(own["measured"] - own["theory"]))
        # The residuals that are left bound how far the training outputs of both can be apart.
        training = (np.sqrt(2 * ends[variant]) + np.sqrt(2 * ends["exact"])).to_numpy()
        asked["differ"].append(Asked(
            f"{NAMES[variant]} and the whole Fisher both interpolate the training set, and differ at test inputs",
            "summary of the paper; criterion ours, chosen after seeing these seeds", setting,
            "test outputs more than ten times further apart (RMS) than training outputs can be",
            f"{numbers(size.tolist())} against at most {numbers(training.tolist())}",
            Effect((np.log(size / training) - np.log(10)).tolist()), "log ratio less log 10",
        ))  # fmt: skip
        asked["further"].append(Asked(
            f"{NAMES[variant]}: its test outputs are further from the whole Fisher's than from its own theory", "ours",
            setting, "the variants differ by more than finite width changes each",
            f"apart (RMS) {numbers(size.tolist())}, off its theory {numbers(off.tolist())}",
            Effect(np.log(size / off).tolist()), "log ratio of both distances",
        ))  # fmt: skip
        alike = [one["measured"].corr(one["theory"]) for _, one in apart.groupby(level="seed")]
        asked["like"].append(Asked(
            f"{NAMES[variant]}: what sets its test outputs apart from the whole Fisher's is what Q predicts",
            "ours, chosen after seeing these seeds", setting, "a correlation above 0.5 over the test examples",
            f"correlation {numbers(alike)}; RMS {numbers(size.tolist())}, predicted {numbers(_rms(apart['theory']))}",
            Effect([c - 0.5 for c in alike]), "correlation less 0.5",
        ))  # fmt: skip
        both = (own["measured"] - own["theory"]).rename("own").to_frame().join(strays)
        alike = [one["own"].corr(one["whole"]) for _, one in both.groupby(level="seed")]
        asked["common"].append(Asked(
            f"{NAMES[variant]}: finite width moves its test outputs off theory as it moves the whole Fisher's",
            "ours, chosen after seeing these seeds", setting, "a correlation above 0.5 over the test examples",
            f"correlation {numbers(alike)}", Effect([c - 0.5 for c in alike]), "correlation less 0.5",
        ))  # fmt: skip
    for family in asked.values():
        yield from judged(family)


def _same_training(runs: Any, variant: str, settings: dict[str, Any]) -> Asked:
    """Where the curve can be seen: at a slow rate, step by step."""
    slow = runs[runs["factor"] != 1].set_index(["variant", "seed", "step"])["train_loss"]
    differ = (slow[variant] / slow["exact"] - 1).abs().groupby(level="seed").max().tolist()
    return Asked(
        f"{NAMES[variant]} and the whole Fisher share one training curve", "summary of the paper; bar ours",
        f"{_setting(settings, settings['width'])}; eta = {settings['slow']:g}/alpha, {settings['slow_steps']} steps",
        f"training losses within {FEW:.0%} at every step", f"largest difference {numbers(differ)}",
        Effect([FEW - d for d in differ]), f"{FEW:g} less the difference",
    )  # fmt: skip


def _rms(values: Any) -> list[float]:
    return [float(np.sqrt(np.mean(own**2))) for _, own in values.groupby(level="seed")]


def _isotropy(table: Any, settings: dict[str, Any], decisive: bool, folder: Path) -> Iterator[Claim]:
    own = table[table["axis"] == "width"]
    top = int(own["width"].max())
    all_widths = _setting(settings, top).replace(f"width {top}", f"widths {own['width'].min()} to {top}")
    near = table[table["axis"].isin(["width", "layers"]) & table["variant"].isin(ISOTROPIC)]
    worst = near.groupby("variant")["isotropy"].max()
    off = (near["alpha"] / near["alpha_theory"] - 1).abs().max()
    refused = int(near["isotropy"].isna().sum())
    yield Claim(
        "S = J G^-1 J^T / N is alpha I for the whole Fisher, layer-wise, block-tridiagonal and K-FAC",
        "summary of the paper; an identity where undamped, so a check of the solves",
        f"{all_widths}; L = {', '.join(map(str, settings['depths']))} at width {settings['middle_width']}; undamped",
        "isotropy error near zero, alpha = 1, L, s or s + 1, N (L - 1) + 1",
        f"largest isotropy error: {', '.join(f'{NAMES[v]} {worst[v]:.0e}' for v in ISOTROPIC)}; "
        f"alpha off by {off:.0e}; {refused} of {len(near)} refused as singular",
        int(near["seed"].nunique()), "0 means at most 1e-6", holds(bool(worst.max() < 1e-6) and off < 1e-6),
    )  # fmt: skip
    unit, diagonal = (own[own["variant"] == v] for v in ("unit", "diagonal"))
    at_top = unit[unit["width"] == top]["isotropy"].tolist()
    falls, trend = slopes(unit, "isotropy"), slopes(diagonal, "isotropy")
    least = diagonal.groupby("seed")["isotropy"].min().tolist()
    rho = f"rho {settings['unit_rho']:g} of each block's mean eigenvalue"
    yield from judged([
        Asked(
            "unit-wise S is near isotropic in a wide network", "summary of the paper; bar ours",
            f"{_setting(settings, top)}; {rho}", "isotropy error below 0.02", numbers(at_top),
            below(at_top, 0.02), "log of 0.02 over the error",
        ),
        Asked(
            "unit-wise S becomes more isotropic with width", "summary of the paper", f"{all_widths}; {rho}",
            "a negative slope in log-log (-1/2 where active units are counted)", f"slope {numbers(falls)}",
            Effect([-s for s in falls]), "minus the slope, fitted per seed",
        ),
        Asked(
            "the entry-wise diagonal Fisher's S is not isotropic at any width", "summary of the paper",
            f"{all_widths}; undamped",
            "isotropy error above 0.5 at every width",
            f"smallest over the widths {numbers(least)}; slope with width {numbers(trend)}",
            Effect([v - 0.5 for v in least]), "the smallest error less 0.5",
        ),
    ])  # fmt: skip


def _unitwise(table: Any, settings: dict[str, Any], decisive: bool, folder: Path) -> Iterator[Claim]:
    rhos, top = settings["unit_rhos"], int(table["width"].max())
    most = max(rhos)
    relative = table[table["scale"] == "relative"]
    at_top = relative[relative["width"] == top].set_index(["rho", "seed"])
    near = min(rhos, key=lambda r: abs(np.log(r / settings["unit_rho"])))
    worse = np.log(at_top.loc[most]["isotropy"] / at_top.loc[near]["isotropy"]).tolist()
    off = (at_top.loc[near]["alpha"] / at_top.loc[near]["alpha_theory"] - 1).tolist()
    given = {scale: own[own["rho"] == near] for scale, own in table.groupby("scale")}
    change = {scale: slopes(own, "isotropy") for scale, own in given.items()}
    left = slopes(given["relative"], "left")
    setting = _setting(settings, top)
    yield from judged([
        Asked(
            "unit-wise isotropy needs a small rho", "summary of the paper (not its bound)", setting,
            f"isotropy error at rho = {most:g} more than twice that at {near:g}",
            f"ratio {numbers(np.exp(worse).tolist())}",
            Effect([w - np.log(2) for w in worse]), "log ratio less log 2",
        ),
        Asked(
            "unit-wise alpha is gamma (L - 1) M + 1 with gamma = 1/2 for relu", "released code (the 1 is ours)",
            f"{setting}; rho = {near:g}, relative", f"mean diagonal of S within {FEW:.0%}", f"off by {numbers(off)}",
            Effect([FEW - abs(v) for v in off]), f"{FEW:g} less the deviation",
        ),
        Asked(
            "an absolute rho loses its isotropy with width where a relative one gains", "ours",
            f"{setting.replace(f'width {top}', f'widths to {top}')}; rho = {near:g} of the mean at the smallest width",
            "slope of the isotropy error against width larger for the absolute one",
            f"slopes {numbers(change['absolute'])} and {numbers(change['relative'])}",
            Effect((np.array(change["absolute"]) - np.array(change["relative"])).tolist()), "difference of slopes",
        ),
        Asked(
            "unit-wise: what one step leaves falls with width", "summary of the paper",
            f"{setting}; eta = 1 / mean diagonal of S",
            "a negative slope in log-log",
            f"slope {numbers(left)}; left at width {top}: {numbers(at_top.loc[near]['left'].tolist())}, with S held "
            f"still {numbers(at_top.loc[near]['left_theory'].tolist())}",
            Effect([-s for s in left]), "minus the slope",
        ),
        _best_rho(at_top, near, f"{setting}; eta = 1 / mean diagonal of S"),
    ])  # fmt: skip


def _best_rho(table: Any, near: float, setting: str) -> Asked:
    """Isotropy against nonlinearity: the smaller rho, the larger the step in the weights."""
    middle = table["left"].groupby(level="rho").median()
    best = float(middle[middle.index >= near].idxmin())
    gain = np.log(table.loc[near]["left"] / table.loc[best]["left"])
    told = ", ".join(f"{r:g}: {v:.2g}" for r, v in middle.items())
    return Asked(
        "unit-wise: one step leaves least at a rho above the usual one", "ours; the best rho chosen on these seeds",
        setting, f"less than half left at rho = {best:g} of what {near:g} leaves",
        f"median left {told}; ratio {numbers(np.exp(gain).tolist())}",
        Effect([g - np.log(2) for g in gain]), "log ratio less log 2",
    )  # fmt: skip


def _kernels(table: Any, settings: dict[str, Any], decisive: bool, folder: Path) -> Iterator[Claim]:
    own = table[(table["kernel"] == "total") & (table["examples"] == "train")]
    asked = []
    for network, rows in own.groupby("network"):
        found, top = slopes(rows, "distance"), rows["width"].max()
        asked.append(Asked(
            f"{network}: the empirical kernel approaches that of infinite width",
            "released code's kernel; bar ours" if network == "relu" else "ours",
            f"widths {rows['width'].min()} to {top}, N = {settings['examples']}, relative Frobenius distance of Theta",
            "a slope near -1/2: below -0.35",
            f"slope {numbers(found)}; distance at {top}: {numbers(rows[rows['width'] == top]['distance'].tolist())}",
            Effect([-0.35 - s for s in found]), "-0.35 less the slope",
        ))  # fmt: skip
    yield from judged(asked)


def _refusals(table: Any, settings: dict[str, Any], decisive: bool, folder: Path) -> Iterator[Claim]:
    said = table.fillna("").set_index("case")["said"]
    yield Claim(
        "a singular depth, a duplicated and a dependent input are refused with the reason", "ours",
        "; ".join(said.index), "singular, and what would do", "; ".join(said),
        len(said), "deterministic", holds(bool(said.str.contains("singular").all())),
    )  # fmt: skip


def _cost(table: Any, settings: dict[str, Any], decisive: bool, folder: Path) -> Iterator[Claim]:
    seconds, memory = table["seconds"].sum(), table["peak_gib"].max()
    each = zip(table["variant"], table["seconds"] / table["steps"], strict=True)
    yield Claim(
        "five steps of every variant take under 2 minutes and 4 GiB", "ours (needs no Jacobian)",
        f"{_setting(settings, int(table['width'].iloc[0]))}; threads={table['threads'].iloc[0]}, this machine, shared",
        "under 120 s and 4 GiB",
        f"{seconds:.0f} s ({table['cpu_seconds'].sum():.0f} s of processor time), {memory:.2f} GiB; per step "
        f"{', '.join(f'{v} {s:.2f} s' for v, s in each)}",
        1, "one measurement", holds(bool(seconds < 120 and memory < 4), decisive=decisive),
    )  # fmt: skip
