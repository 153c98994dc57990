"""Hand-made tables of the study martens2015, and the verdicts that follow from them."""

import json
import math

import numpy as np
import pandas as pd
from omegaconf import OmegaConf

from fisherlab.composition import conf_dir
from fisherlab.studies.martens2015 import claims
from fisherlab.studies.martens2015.problems import label
from fisherlab.studies.martens2015.run_verdicts import DIAGONAL, TRI

SETTINGS = OmegaConf.to_container(OmegaConf.load(conf_dir() / "study" / "martens2015.yaml").scales.paper)
NOISE = 0.02 * np.sin(3.0 * np.arange(10))  # of ten seeds, on the logarithm


def folder(tmp_path, tables, scale="paper"):
    """A study's folder with these tables, by file name."""
    home = tmp_path / scale
    home.mkdir(parents=True)
    (home / "study.json").write_text(json.dumps({"settings": SETTINGS}))
    for name, table in tables.items():
        table.to_csv(home / name, index=False)
    return home


def claim(home, begins, setting=""):
    """The one claim that begins so, and whose setting has these words; None where there is none."""
    found = claims(home)
    assert len({(c.claim, c.setting) for c in found}) == len(found)
    own = [c for c in found if c.claim.startswith(begins) and setting in c.setting]
    assert len(own) <= 1
    return own[0] if own else None


def verdict(home, begins, setting=""):
    """Its verdict; None where there is no such claim."""
    found = claim(home, begins, setting)
    return found and found.verdict


def run(rate, last=500, seconds=1.0, cases=1000, start=200.0, test=1.0):
    """A run whose error falls exponentially by step; processor seconds and cases of a step, on a busy machine."""
    steps = np.arange(0, last + 1, 10)
    errors = start * np.exp(-rate * steps)
    columns = {"step": steps, "examples": cases * steps, "seconds": 40 * steps**0.5}
    errors = {"train_error": errors, "test_error": test * errors}
    return pd.DataFrame(columns | errors | {"cpu_seconds": seconds * steps})


def took(*names, problem="mnist", **changed):
    """What a run took, by file name."""
    usual = {
        "product_rate": 50.0,
        "threads": 1,
        "peak_gib": 2.0,
        "data": problem,
        "status": "finished",
        "last_step": 500,
    }
    return {f"took_{label(problem, *names)}.csv": pd.DataFrame([usual | changed])}


def named(method, *more, problem="mnist"):
    return f"evaluations_{label(problem, method, *more)}.csv"


def rate_to(error, step):
    return math.log(200.0 / error) / step


def paired(ratio, seeds=10, spread=1.0):
    """Runs of both inverses; the error of the block-diagonal ones is so much larger at iteration 100, roughly."""
    found = {}
    for seed, noise in enumerate(NOISE[:seeds]):
        found[named(TRI, seed)] = run(rate_to(20.0, 100))
        found[named(DIAGONAL, seed)] = run(rate_to(20.0 * ratio * math.exp(spread * noise), 100))
    return found
