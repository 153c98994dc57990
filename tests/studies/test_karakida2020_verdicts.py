"""Karakida and Osawa (2020): verdicts follow the numbers, by synthetic tables of both kinds."""

import json

import numpy as np
import pandas as pd
import pytest

from fisherlab.ntk import theory
from fisherlab.studies.karakida2020 import beyond_verdicts, verdicts
from tests.studies.test_karakida2020 import SETTINGS

ISOTROPIC = ("exact", "layer", "tridiagonal", "kfac")
SPREAD = [0.01 * np.sin(3.0 * seed) for seed in range(10)]  # over seeds


def verdict(found, start):
    """Of the one claim that begins so."""
    (one,) = [v for claim, v in found.items() if claim.startswith(start)]
    return one


def study(folder, made, settings=SETTINGS):
    folder.mkdir()
    (folder / "study.json").write_text(json.dumps({"settings": settings}))
    for name, table in made.items():
        pd.DataFrame(table).to_csv(folder / name, index=False)
    return {claim.claim: claim.verdict for claim in verdicts.claims(folder)}


def gaps(width, share):
    """What is left falls as 1 / width, with a spread over seeds."""
    rows = []
    for variant in ("exact", "layer", "tridiagonal", "kfac"):
        for seed in range(10):
            spread = np.exp(0.2 * np.sin(3 * seed + width))
            told = {"network": "relu", "width": width, "layers": 3, "seed": seed, "variant": variant, "eta": 1.0}
            rows.append(told | {"left": share * spread, "kernel_change": 10 / width * spread})
    return rows


@pytest.mark.parametrize(
    ("shares", "ends", "falls"),
    [
        ((2e-3, 1e-3), "reproduced", "reproduced"),
        ((2e-2, 1e-2), "contradicted", "reproduced"),
        ((1e-3, 2e-3), "reproduced", "contradicted"),
        ((3e-3, 3e-3), "inconclusive", "inconclusive"),
    ],
)
def test_verdicts_on_the_gap_follow_the_numbers(shares, ends, falls, tmp_path):
    made = {f"gap_{w}.csv": gaps(w, share) for w, share in zip((256, 512), shares, strict=True)}
    found = study(tmp_path / "paper", made)
    assert found["the whole Fisher: one step at eta = 1/alpha leaves next to nothing"] == ends
    assert found["layer-wise: what one step leaves falls with width"] == falls


def test_fewer_than_ten_seeds_decide_nothing(tmp_path):
    made = {f"gap_{w}.csv": [row for row in gaps(w, 0.5 / w) if row["seed"] < 9] for w in (256, 512)}
    assert set(study(tmp_path / "paper", made).values()) == {"inconclusive"}


def slow_runs(alpha):
    """Losses as if the speed of K-FAC were alpha."""
    rows = []
    for variant, rate in (("exact", 1.0), ("layer", 1.0), ("tridiagonal", 1.0), ("kfac", alpha / 21)):
        for seed in range(10):
            for step in range(4):
                share = (1 - 0.1 * rate * (1 + 1e-3 * np.sin(seed))) ** (2 * step)
                told = {"seed": seed, "variant": variant, "factor": 0.1, "step": step, "train_loss": 0.13 * share}
                rows.append(told | {"eta": 0.1 / 21 if variant == "kfac" else 0.1})
    return rows


@pytest.mark.parametrize(
    ("alpha", "nearer", "follows"), [(21, "reproduced", "reproduced"), (30, *["contradicted"] * 2)]
)
def test_k_fac_s_rate_is_read_off_the_loss(alpha, nearer, follows, tmp_path):
    found = study(tmp_path / "paper", {"dynamics.csv": slow_runs(alpha)})
    assert found["K-FAC's speed is nearer to N (L - 1) + 1 = 21 than to the released code's N L = 30"] == nearer
    assert found["K-FAC: the training loss follows (1 - alpha eta)^(2t)"] == follows
    assert found["the whole Fisher: the training loss follows (1 - alpha eta)^(2t)"] == "reproduced"


def errors(unit, diagonal, kfac):
    rows = []
    for width in (256, 512):
        for seed in range(10):
            spread = 1 + 0.05 * np.sin(2 * seed + width)
            for variant, value in (("unit", unit * (512 / width) ** 0.5), ("diagonal", diagonal), ("kfac", kfac)):
                alpha = theory.alpha("kfac", 3, examples=10)
                told = {"axis": "width", "seed": seed, "variant": variant, "width": width, "layers": 3}
                rows.append(told | {"isotropy": value * spread, "alpha": alpha, "alpha_theory": alpha})
        for variant in ("exact", "layer", "tridiagonal"):
            told = {"axis": "width", "seed": 0, "variant": variant, "width": width, "layers": 3}
            rows.append(told | {"isotropy": 1e-14, "alpha": 1.0, "alpha_theory": 1.0})
    return rows


@pytest.mark.parametrize(
    ("values", "expected"),
    [((0.01, 0.9, 1e-13), "reproduced"), ((0.04, 0.3, 1e-2), "contradicted")],
)
def test_verdicts_on_isotropy_follow_the_numbers(values, expected, tmp_path):
    found = study(tmp_path / "paper", {"isotropy.csv": errors(*values)})
    names = (
        "S = J G^-1 J^T / N is alpha I",
        "unit-wise S is near isotropic",
        "the entry-wise diagonal Fisher's S is not",
    )
    for name in names:
        (verdict,) = [v for claim, v in found.items() if claim.startswith(name)]
        assert verdict == expected, name


def outputs(apart, off, common):
    """Test outputs: how far variants are apart, how far off theory, and how much of that is common to all."""
    rows, runs = [], []
    x = np.linspace(-1, 1, 20)
    for variant in ISOTROPIC:
        own = 0.0 if variant == "exact" else apart
        for seed, spread in enumerate(SPREAD):
            place = ISOTROPIC.index(variant) + 1
            stray = off * (common * np.cos(5 * x) + (1 - common) * np.cos((9 + 7 * place) * x + seed))
            theory_says = x + own * np.sin((3 + place) * x)
            told = {"seed": seed, "variant": variant}
            for i, (t, m) in enumerate(zip(theory_says, theory_says + stray * (1 + spread), strict=True)):
                rows.append(told | {"example": i, "theory": t, "measured": m})
            runs.append(told | {"factor": 1.0, "step": 2, "eta": 1.0, "train_loss": 1e-9 * (1 + spread)})
    return {"predictions.csv.gz": rows, "dynamics.csv": slow_runs(21) + runs}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((0.5, 0.05, 1.0), ("reproduced", "reproduced", "reproduced", "reproduced")),
        ((0.01, 0.3, 1.0), ("reproduced", "contradicted", "reproduced", "reproduced")),
        ((1e-3, 0.3, 0.0), ("reproduced", "reproduced", "contradicted", "contradicted")),
        ((1e-5, 1e-6, 1.0), ("contradicted", "reproduced", "reproduced", "reproduced")),
    ],
)
def test_verdicts_on_test_outputs_follow_the_numbers(given, expected, tmp_path):
    found = study(tmp_path / "paper", outputs(*given))
    names = (
        "layer-wise and the whole Fisher both interpolate",
        "layer-wise: its test outputs are further from",
        "layer-wise: what sets its test outputs apart",
        "layer-wise: finite width moves its test outputs",
    )
    assert tuple(verdict(found, name) for name in names) == expected


def published(loss, error):
    """The whole Fisher's first step at the released code's setting."""
    told = {"variant": "exact", "factor": 1.0, "eta": 1.0, "test_error": 0.0}
    ends = [
        told | {"seed": s, "step": 1, "train_loss": loss * (1 + SPREAD[s]), "train_error": error} for s in range(10)
    ]
    return slow_runs(21) + ends


@pytest.mark.parametrize(("loss", "error", "expected"), [(2e-4, 0.0, "reproduced"), (5e-4, 0.1, "contradicted")])
def test_the_published_run_is_held_against_ours(loss, error, expected, tmp_path):
    theirs = SETTINGS | {"dataset": "mnist", "width": 4096}
    found = study(tmp_path / "paper", {"dynamics.csv": published(loss, error)}, theirs)
    assert verdict(found, "the whole Fisher's training loss after one step is") == expected
    assert verdict(found, "after one step of the whole Fisher all") == expected
    elsewhere = study(tmp_path / "other", {"dynamics.csv": published(loss, error)})
    assert not [claim for claim in elsewhere if "after one step" in claim]  # it is the released run's or nothing


def units(near, far, alpha, falls, best):
    """Unit-wise blocks: isotropy at the small and the large rho, alpha over theory's, what is left."""
    rows = []
    for scale in ("relative", "absolute"):
        for width in (256, 512):
            for seed, spread in enumerate(SPREAD):
                for rho, error in ((1e-4, near), (1e-2, 2 * near), (0.1, far)):
                    told = {"width": width, "seed": seed, "scale": scale, "rho": rho, "alpha_theory": 257.0}
                    size = width ** (falls if scale == "relative" else -falls)
                    left = (best if rho == 1e-2 else 1.0) * size * (1 + spread * width / 100)
                    told |= {"isotropy": error * size * (1 + spread), "alpha": 257.0 * alpha * (1 + spread)}
                    rows.append(told | {"left": left, "left_theory": 1e-4})
    return rows


@pytest.mark.parametrize(
    ("given", "expected"),
    [((0.01, 0.5, 1.0, -0.5, 0.1), "reproduced"), ((0.3, 0.4, 1.2, 0.5, 0.8), "contradicted")],
)
def test_verdicts_on_unit_wise_blocks_follow_the_numbers(given, expected, tmp_path):
    settings = SETTINGS | {"unit_rhos": [1e-4, 1e-2, 0.1]}
    found = study(tmp_path / "paper", {"unitwise.csv": units(*given)}, settings)
    assert set(found.values()) == {expected}
    assert len(found) == 5


@pytest.mark.parametrize(("slope", "expected"), [(-0.5, "reproduced"), (-0.1, "contradicted")])
def test_verdicts_on_kernels_follow_the_numbers(slope, expected, tmp_path):
    made = {}
    for width in (256, 512):
        told = {"network": "erf", "width": width, "kernel": "total", "examples": "train"}
        rows = [told | {"seed": s, "distance": width**slope * (1 + SPREAD[s] * width / 1000)} for s in range(10)]
        other = [row | {"examples": "test", "distance": width**0.5} for row in rows]  # which is not judged
        made[f"kernels_{width}.csv"] = rows + other
    assert study(tmp_path / "paper", made) == {"erf: the empirical kernel approaches that of infinite width": expected}


@pytest.mark.parametrize(
    ("seconds", "peak", "expected"),
    [(10, 1.0, "reproduced"), (70, 1.0, "contradicted"), (10, 4.5, "contradicted")],
)
def test_the_cost_is_held_against_both_bars(seconds, peak, expected, tmp_path):
    row = {"variant": "exact", "width": 4096, "steps": 5, "threads": 1, "seconds": seconds, "cpu_seconds": seconds}
    made = {"cost.csv": [row | {"peak_gib": 0.5}, row | {"variant": "unit", "peak_gib": peak}]}
    found = study(tmp_path / "paper", made)
    assert set(found.values()) == {expected}
    slower = study(tmp_path / "quick", made)  # another scale's bar is nobody's
    assert set(slower.values()) == {"inconclusive" if expected == "contradicted" else expected}


# --- beyond the theory ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("slope", "expected"), [(-1.0, "reproduced"), (0.5, "contradicted")])
def test_feature_learning_is_read_off_the_kernel_s_change(slope, expected, tmp_path):
    made = {
        f"gap_{w}.csv": [r | {"kernel_change": 10 * w**slope * r["left"]} for r in gaps(w, 1.0)] for w in (256, 512)
    }
    found = study(tmp_path / "paper", made)
    for name in ("the whole Fisher", "K-FAC"):
        assert verdict(found, f"{name}: the kernel's change in one step") == expected


def entropy(isotropy, kfac, off):
    rows = []
    for variant in (*ISOTROPIC, "unit"):
        for seed, spread in enumerate(SPREAD):
            for step in range(3):
                told = {"seed": seed, "variant": variant, "step": step, "apart": 0.1, "loss_theory": 0.7 / 4**step}
                loss = told["loss_theory"] * (1 + (step > 0) * off * (1 + spread))
                rows.append(told | {"isotropy": kfac if variant == "kfac" else isotropy, "loss": loss})
    return rows


@pytest.mark.parametrize(
    ("given", "follows", "isotropic"),
    [
        ((1e-13, 1e-3, 0.02), "reproduced", "reproduced"),
        ((1e-13, 0.2, 0.3), "contradicted", "contradicted"),
        ((1e-3, 1e-3, -0.02), "reproduced", "contradicted"),
    ],
)
def test_verdicts_on_cross_entropy_follow_the_numbers(given, follows, isotropic, tmp_path):
    found = study(tmp_path / "paper", {"cross_entropy.csv": entropy(*given)})
    assert verdict(found, "cross-entropy: S of the Fisher's own rows") == isotropic
    assert {v for claim, v in found.items() if "the loss falls as if outputs moved" in claim} == {follows}
    smaller = study(tmp_path / "smoke", {"cross_entropy.csv": entropy(*given)})  # K-FAC's bar is for N = 100
    assert verdict(smaller, "cross-entropy: S of the Fisher's own rows") in ("reproduced", "inconclusive")


@pytest.mark.parametrize(("ratio", "expected"), [(1.03, "reproduced"), (0.97, "reproduced"), (1.5, "contradicted")])
def test_mini_batches_are_held_against_kernels_that_stand_still(ratio, expected, tmp_path):
    rows = []
    for variant in ISOTROPIC:
        for seed, spread in enumerate(SPREAD):
            for batch in (10, 5):
                for epoch, loss in ((0, 0.1), (2, 0.01)):
                    told = {"seed": seed, "variant": variant, "batch": batch, "epoch": epoch, "loss_frozen": loss}
                    # Batches of everything are right anyway; the smallest ones are what is judged.
                    off = ratio * (1 + spread) if epoch and batch == 5 else 1.0
                    rows.append(told | {"loss": loss * off})
    found = study(tmp_path / "paper", {"minibatch.csv": rows})
    assert set(found.values()) == {expected}
    assert len(found) == 4


def empirical(common, own, late, end):
    """Isotropy along the Fisher's path and each one's own, until and after the loss rises; and where both end."""
    along, runs = [], []
    for variant in ISOTROPIC:
        for seed, spread in enumerate(SPREAD):
            told = {"seed": seed, "variant": variant}
            for step in range(4):
                here = told | {"step": step}
                along.append(here | {"kind": "empirical", "isotropy": common * (1 + spread)})
                along.append(here | {"kind": "Fisher", "isotropy": 1e-13})
                loss = [0.1, 0.05, 0.02, end][step] * (1 + spread)
                errors = {"isotropy": (late if step == 3 else own) * (1 + spread), "cosine": 0.5}
                runs.append(here | {"kind": "empirical", "loss": loss} | errors)
                runs.append(here | {"kind": "Fisher", "loss": 0.1 / 2**step, "isotropy": 1e-13, "cosine": 1.0})
    return {"empirical_isotropy.csv": along, "empirical_runs.csv": runs}


@pytest.mark.parametrize(
    ("given", "uneven", "far", "worse"),
    [
        ((0.2, 0.8, 0.9, 40.0), "reproduced", "reproduced", "reproduced"),
        ((0.01, 0.3, 0.9, 40.0), "contradicted", "contradicted", "reproduced"),  # what comes after a rise is no path
        ((0.01, 0.3, 0.9, 0.01), "contradicted", "reproduced", "contradicted"),
    ],
)
def test_verdicts_on_the_empirical_fisher_follow_the_numbers(given, uneven, far, worse, tmp_path):
    found = study(tmp_path / "paper", empirical(*given))
    for said, expected in (("not isotropic in function", uneven), ("its own path", far), ("it ends with a", worse)):
        assert {v for claim, v in found.items() if said in claim} == {expected}, said


def test_a_path_ends_where_its_loss_first_rises():
    losses = [[3.0, 2.0, 2.5, 1.0], [3.0, 3.0, 1.0, np.inf], [3.0, np.inf, np.inf, np.inf]]
    rows = [{"seed": s, "step": t, "loss": v} for s, own in enumerate(losses) for t, v in enumerate(own)]
    kept = beyond_verdicts.falling(pd.DataFrame(rows).sample(frac=1, random_state=0))
    assert kept.groupby("seed")["step"].apply(list).tolist() == [[0, 1], [0, 1, 2], [0]]
