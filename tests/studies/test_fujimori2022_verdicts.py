"""Fujimori et al. (2022): verdicts follow the numbers, by synthetic tables of both kinds."""

import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest

from fisherlab.studies.fujimori2022 import policies
from fisherlab.studies.fujimori2022.policy_verdicts import policy_claims
from fisherlab.studies.fujimori2022.verdicts import _stability, claims

DAMPINGS = (1e-5, 1e-4, 1.0, 10.0, 100.0)
SEEDS = range(10)
LOSS = {1e-4: 0.4, 1.0: 0.3, 10.0: 0.35, 100.0: 0.5, math.nan: 0.32}
SQUARES = {  # log10, at the first and the last step, and at the highest and the lowest loss
    1e-4: (-4.0, -1.0, -2.0, -1.0),
    1.0: (-1.0, -2.0, -1.0, -2.0),
    10.0: (-1.0, -2.0, -1.0, -2.0),
    100.0: (-3.0, -3.0, -3.0, -3.0),
}
ESCAPE = {1e-4: 90, 1.0: 30, 10.0: 45, 100.0: 100}


def judged(folder, lr=0.01, loss=LOSS, squares=SQUARES, escape=ESCAPE, diverged=300, lost=()):
    """The verdicts by claim, of the base setting: 300 trials per damping, two configurations on ten seeds."""
    settings = {"settings": ["base"], "small": [], "dampings": [1e-4, 1.0, 10.0, 100.0], "moments": [60, 360]}
    (folder / "study.json").write_text(json.dumps({"settings": settings}))
    trials = [
        {"damping": d, "state": state, "value": loss.get(d, 1.0) if state == "complete" else None, "lr": lr}
        for d in (*DAMPINGS, math.nan)
        for state in ["pruned"] * (diverged if d == 1e-5 else 0) + ["complete"] * (300 - (diverged if d == 1e-5 else 0))
    ]
    pd.DataFrame(trials).assign(momentum=0.5).to_csv(folder / "trials_base_tpe.csv.gz", index=False)
    runs = [{"damping": d, "rank": rank, "seed": seed, "step": 469} for d in loss for rank in (0, 1) for seed in SEEDS]
    ends = []
    for run in runs:
        gone = (run["damping"], run["seed"]) in lost
        value = None if gone else loss[run["damping"]] * 1.002 ** run["seed"]
        ends.append(run | {"train_loss": value, "status": "diverged" if gone else "finished"})
    pd.DataFrame(ends).to_csv(folder / "reruns_base.csv", index=False)
    rows = []
    for run in (run for run in runs if run["damping"] in squares and (run["damping"], run["seed"]) not in lost):
        first, last, high, low = (value + 0.01 * run["seed"] for value in squares[run["damping"]])
        own = {k: run[k] for k in ("damping", "rank", "seed")} | {"layer": "all"}
        rows += [own | {"when": "step", "at": at, "step": at, "log10": v} for at, v in ((60, first), (360, last))]
        rows += [own | {"when": "loss", "at": at, "step": 1, "log10": v} for at, v in ((2.0, high), (0.5, low))]
        if (step := escape.get(run["damping"])) is not None:
            rows.append(own | {"when": "loss", "at": 1.0, "step": step + run["seed"] % 2, "log10": 0.0})
    pd.DataFrame(rows).to_csv(folder / "gradients_base.csv.gz", index=False)
    found = {claim.claim: claim for claim in claims(folder)}
    return {name: claim.verdict for name, claim in found.items()}, found


def test_where_all_is_as_the_paper_says(tmp_path):
    verdicts, found = judged(tmp_path)
    assert set(verdicts.values()) == {"reproduced"}
    assert found["damping 1e0 ends with a lower training loss than 1e-05"].measured == "no trial of 1e-05 finished"
    assert found["damping 1e0 leaves the plateau sooner than 0.0001"].measured.startswith("log10 ratio 0.47")


def test_where_nothing_is(tmp_path):
    loss = {1e-5: 0.25, 1e-4: 0.25, 1.0: 0.3, 10.0: 0.25, 100.0: 0.25, math.nan: 0.3}
    squares = {d: SQUARES[1e-4] if d >= 1 else SQUARES[10.0] for d in DAMPINGS}
    verdicts, _ = judged(tmp_path, loss=loss, squares=squares, escape=ESCAPE | {1e-5: 100, 1.0: 120}, diverged=0)
    # A search by TPE keeps away from what diverges: it cannot show that little does.
    assert verdicts.pop("damping 1e-05 is unstable: more than half of its trials diverge") == "inconclusive"
    assert set(verdicts.values()) == {"contradicted"}


def test_a_winner_at_a_bound_decides_nothing(tmp_path):
    verdicts, _ = judged(tmp_path, lr=0.9)
    decided = {name for name, verdict in verdicts.items() if verdict != "inconclusive"}
    assert decided == {
        "damping 1e-05 is unstable: more than half of its trials diverge",
        "damping 1e0 ends with a lower training loss than 1e-05",
        "damping 100 ends with a higher training loss than SGD",  # that bound is what is claimed
    }


def test_runs_that_diverged_count_apart_and_many_leave_the_others_undecided(tmp_path):
    lost = [(1e-4, seed) for seed in range(7)]
    verdicts, found = judged(tmp_path, loss=LOSS | {1e-4: 0.2}, lost=lost)
    assert verdicts["on fresh seeds more of the best trials of damping 0.0001 diverge than of 1e0"] == "reproduced"
    claim = found["damping 1e0 ends with a lower training loss than 0.0001"]
    assert claim.measured == f"log10 ratio {math.log10(0.2 / 0.3):.3f}; runs without: 0.0001: 14 of 20"
    about = [v for name, v in verdicts.items() if "0.0001" in name and "on fresh seeds" not in name]
    assert set(about) == {"inconclusive"}
    assert verdicts["damping 1e0 ends with a lower training loss than 10"] == "reproduced"


def test_what_diverges_at_a_bound_might_hold_beyond_it(tmp_path):
    verdicts, found = judged(tmp_path, lr=0.9, lost=[(1e-4, seed) for seed in range(7)])
    name = "on fresh seeds more of the best trials of damping 0.0001 diverge than of 1e0"
    assert found[name].measured.startswith("0.70 against 0.00; best trial at a bound: ")
    assert verdicts[name] == "inconclusive"


def test_a_setting_is_not_judged_by_trials_of_the_base():
    trials = pd.DataFrame({"damping": [1e-5] * 60 + [100.0] * 60, "state": ["pruned"] * 60 + ["complete"] * 60})
    assert [claim.verdict for claim in _stability({"tpe": trials}, "glorot")] == ["reproduced"]
    assert not list(_stability({"tpe": trials}, "scaled"))  # which searches dampings above 1 only


def test_a_run_that_ends_on_the_plateau_left_it_at_the_last_step_at_the_earliest(tmp_path):
    _, found = judged(tmp_path, escape={d: s for d, s in ESCAPE.items() if d != 1e-4})
    claim = found["damping 1e0 leaves the plateau sooner than 0.0001"]
    assert claim.verdict == "reproduced"
    assert claim.measured == f"log10 ratio {np.mean([math.log10(469 / (30 + seed % 2)) for seed in SEEDS]):.3f}"


def test_gradients_of_a_damping_that_never_finished_are_not_compared(tmp_path):
    _, found = judged(tmp_path, squares={d: v for d, v in SQUARES.items() if d != 1e-4})
    own = [claim for name, claim in found.items() if "squared gradients" in name]
    assert len(own) == 8
    assert {(claim.verdict, claim.measured) for claim in own} == {
        ("inconclusive", "not reached by both; runs without: 0.0001: 20 of 20")
    }


def policies_judged(folder, net="mlp", lost=(), damping=1.0, **losses):
    """Three searches of each policy, ten fresh seeds; a loss of None is a search of which no trial finished."""
    rows = []
    for policy, search, seed in itertools.product(losses, range(3), range(10)):
        none, gone = losses[policy] is None, (policy, search, seed) in lost
        loss = None if none or gone else losses[policy] * 1.01**seed
        status = policies.NONE if none else "diverged" if gone else "finished"
        chosen = {"lr": None if none else 0.01, "momentum": 0.5, "damping": damping}
        rows.append({"policy": policy, "search": search, "seed": seed, "train_loss": loss, "status": status, **chosen})
    pd.DataFrame(rows).to_csv(folder / policies.ENDS(net), index=False)
    pd.DataFrame(rows)[["policy", "search"]].to_csv(folder / policies.TRIALS(net), index=False)
    return {tuple(claim.claim.split()[2:4]): claim for claim in policy_claims(folder)}


def test_policies_are_held_against_the_constant(tmp_path):
    found = policies_judged(tmp_path, constant=0.1, linear=0.08, settling=0.12)
    assert {policy: claim.verdict for (policy, _), claim in found.items()} == {
        "linear": "reproduced",
        "settling": "contradicted",
    }


def test_what_a_policy_costs_is_held_against_a_twentieth_of_a_step(tmp_path):
    per_step = {"constant": 10.0, "lm": 10.8, "settling": 10.2}
    rows = [
        {"policy": p, "round": i, "ms": ms * (1 + 0.001 * (i % 3))} for p, ms in per_step.items() for i in range(10)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "policy_cost.csv", index=False)
    found = {claim.claim.split()[2]: (claim.measured, claim.verdict) for claim in policy_claims(tmp_path)}
    assert found == {
        "lm": ("median ratio 1.080", "contradicted"),
        "settling": ("median ratio 1.020", "reproduced"),
    }


@pytest.mark.parametrize("damping", [1.5e-5, 70.0])
def test_a_damping_at_its_bound_decides_nothing(tmp_path, damping):
    claim = policies_judged(tmp_path, constant=0.1, linear=0.08, damping=damping)["linear", "ends"]
    assert "; winner at a bound: constant 0, constant 1, constant 2, linear 0" in claim.measured
    assert claim.verdict == "inconclusive"


def test_what_diverged_is_no_loss(tmp_path):
    lost = [("constant", search, seed) for search in range(3) for seed in range(7)]
    found = policies_judged(tmp_path, constant=0.1, linear=0.12, lost=lost)
    loss, survival = found["linear", "ends"], found["linear", "diverges"]
    assert loss.measured.startswith(f"log10 ratio {math.log10(0.1 / 0.12):.3f}; by search [-0.079, -0.079, -0.079]")
    assert loss.measured.endswith("fresh runs that diverged: constant 21 of 30, linear 0 of 30")
    assert (loss.verdict, survival.verdict) == ("inconclusive", "reproduced")


def test_searches_that_disagree_decide_nothing(tmp_path):
    lost = [("constant", search, seed) for search in range(2) for seed in range(10)]
    found = policies_judged(tmp_path, constant=0.1, linear=0.12, lost=lost)
    assert found["linear", "diverges"].verdict == "inconclusive"


def test_a_policy_of_which_every_trial_diverged_is_worse_and_says_so(tmp_path):
    found = policies_judged(tmp_path, constant=0.1, lm=None)
    assert {claim.verdict for claim in found.values()} == {"contradicted"}
    assert "lm: every trial diverged in 3 searches" in found["lm", "ends"].measured


@pytest.mark.parametrize(("slope", "verdict"), [(0.1, "reproduced"), (-0.1, "contradicted"), (0.0, "inconclusive")])
def test_what_sets_searches_apart_is_the_damping_at_their_end(tmp_path, slope, verdict):
    ends = np.random.default_rng(0).permutation(12)
    rows = [
        {
            "policy": policy, "search": search, "seed": seed, "status": "finished", "lr": 0.01, "momentum": 0.5,
            "damping": 10.0 ** -(ends[i] / 4) if policy == "constant" else None,
            "optimizer.damping_end": None if policy == "constant" else 10.0 ** -(ends[i] / 4),
            "train_loss": 10 ** (-slope * ends[i] + 0.01 * ((7 * i) % 12)),
        }
        for i, (policy, search) in enumerate(itertools.product(["constant", "linear", "lm", "settling"], range(3)))
        for seed in range(2)
    ]  # fmt: skip
    pd.DataFrame(rows).to_csv(tmp_path / policies.ENDS("mlp"), index=False)
    pd.DataFrame(rows)[["policy", "search"]].to_csv(tmp_path / policies.TRIALS("mlp"), index=False)
    found = next(claim for claim in policy_claims(tmp_path) if "whatever the policy" in claim.claim)
    assert (found.n, found.verdict) == (12, verdict)
