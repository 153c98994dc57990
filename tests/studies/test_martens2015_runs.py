"""Martens and Grosse (2015), its runs: operations, sessions, failures as outcomes, the order of the parts, threads."""

import json
from functools import partial
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from tqdm import tqdm

from fisherlab.composition import conf_dir
from fisherlab.errors import SolveError, UsageError
from fisherlab.files import write_json
from fisherlab.optim import KFACMartens
from fisherlab.studies.martens2015 import baseline, derived, parts, runs
from fisherlab.studies.martens2015.operations import Products, _per_case
from fisherlab.studies.martens2015.problems import METHODS, configured
from fisherlab.studies.martens2015.run_verdicts import TRI, run_claims
from fisherlab.studies.martens2015.runs import Session, product_rate
from fisherlab.studies.study import begin
from fisherlab.training.setup import prepare, resolve

BAR = partial(tqdm, disable=True)
SCALES = OmegaConf.to_container(OmegaConf.load(conf_dir() / "study" / "martens2015.yaml").scales)
WIDTHS = (64, 40, 20, 6, 20, 40, 64)  # of the digits' autoencoder
PRODUCTS = [2 * m * n for m, n in pairwise(WIDTHS)]  # operations of a case in each layer's weights


def by_hand(method, in_chunks):
    """Operations of a case in a step: the mean of twenty, with one search for gamma and four ratios rho."""
    inputs, outputs = [w + 1 for w in WIDTHS[:-1]], WIDTHS[1:]
    forwards, backwards = sum(PRODUCTS), sum(PRODUCTS[1:])  # to the pre-activations: not through the first layer
    if method == "baseline":
        return 2 * forwards + backwards  # its gradient's bias is a sum
    gradient = 2 * sum(m * n for m, n in zip(inputs, outputs, strict=True))
    moments = 2 * sum(n * n for n in (*inputs, *outputs))
    if "tridiagonal" in method:
        moments += 2 * sum(m * n for sizes in (inputs, outputs) for m, n in pairwise(sizes))
    vectors = 1 if "no momentum" in method else 2
    # f and, for each vector, its product with the inputs and the weights' with the change of them, which is zero in
    # the first layer, and the same for all.
    tangents = forwards + vectors * (forwards + backwards) + PRODUCTS[0]
    sampled = (forwards + backwards) / 8 if in_chunks else backwards  # in chunks an eighth of the cases, once more
    return forwards + backwards + gradient + sampled + moments / 8 + 1.1 * tangents + forwards / 5


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_operations_are_those_that_a_hand_counts(method):
    assert _per_case("digits", method)[0] == pytest.approx(1e-9 * by_hand(method, False), rel=1e-9)
    if method != "baseline":
        found = _per_case("digits", method, "optimizer.chunk=80")[0]
        assert found == pytest.approx(1e-9 * by_hand(method, True), rel=1e-9)


def test_products_in_place_are_counted():
    a, b, c = torch.rand(3, 10, 20), torch.rand(3, 20, 30), torch.zeros(3, 10, 30)
    with Products() as products:
        c.baddbmm_(a, b, beta=0.5)
        assert products.operations == 3 * 12_000
        c[0].addmm_(a[0], b[0])
        assert products.operations == 4 * 12_000
        a @ b
        a[0] @ b[0]
        torch.baddbmm(c, a, b)
        assert products.operations == 11 * 12_000
        c.mul_(2).add_(1)
    assert products.operations == 11 * 12_000


def test_a_beginning_is_put_before_the_rest_of_a_run():
    later = pd.DataFrame({"step": [0, 600, 900], "seconds": [0.0, 6.0, 9.0], "cpu_seconds": [0.0, 3.0, 4.5]})
    early = pd.DataFrame({"step": range(0, 601, 100)}).assign(seconds=lambda t: t["step"] / 50, cpu_seconds=0.0)
    early["cpu_seconds"] = early["step"] / 400
    found = baseline.joined(early.assign(train_error=1.0), later.assign(train_error=2.0))
    assert found["step"].tolist() == [*range(0, 601, 100), 900]
    assert found["train_error"].tolist() == [2.0, *[1.0] * 5, 2.0, 2.0]
    assert found["seconds"].tolist() == pytest.approx([0, 1, 2, 3, 4, 5, 6, 9])  # half of what was measured early
    assert found["cpu_seconds"].tolist() == pytest.approx([0, 0.5, 1, 1.5, 2, 2.5, 3, 4.5])
    # A run that diverged before both were evaluated again.
    assert baseline.joined(early, later.head(1))["step"].tolist() == early["step"].tolist()


def test_a_session_that_was_killed_counts(tmp_path):
    home = tmp_path / "runs" / "one"
    first = Session(home)
    first.note()
    first.note()  # not within ten seconds
    path = tmp_path / "runs" / "one.sessions.json"
    record = json.loads(path.read_text())
    assert len(record["sessions"]) == 1
    record["sessions"][0] = {"product_rate": 1e9, "peak_gib": 77.0, "seconds": 1000.0, "cpu_seconds": 500.0}
    path.write_text(json.dumps(record))  # as it was when it was killed
    told = Session(home).end()
    assert told["product_rate"] == 1e9
    assert told["peak_gib"] == 77.0
    assert told["sessions"] == 2
    assert 1000 < told["seconds_in_all"] < 1060
    assert 500 < told["cpu_seconds_in_all"] < 530
    assert 0.05 < json.loads(path.read_text())["sessions"][1]["peak_gib"] < 60


def test_the_rate_of_products_is_per_processor_second(monkeypatch):
    now = iter(range(100))
    monkeypatch.setattr(runs.time, "process_time", lambda: 0.5 * next(now))
    assert product_rate() == 32.0  # 16 giga-operations in half a second


def config():
    return configured("digits", TRI, 12, 4, "batch_size=100", "keep=nothing", "threads=1")


def test_a_solve_that_fails_is_an_outcome_and_not_tried_again(tmp_path, monkeypatch):
    home = tmp_path / "runs" / "one"
    cfg = config()
    monkeypatch.setattr(KFACMartens, "failures", fail_at(7))
    found = runs.trained(cfg, "digits", "one", home, BAR())
    evaluations, steps, took = (found[name] for name in runs.tables_of("one"))
    assert took[["status", "last_step", "data"]].values.tolist() == [["failed", 8, "digits"]]
    assert "could not be factorised" in took["message"][0]
    assert evaluations["step"].tolist() == [0, 4]
    assert steps["step"].tolist() == list(range(1, 9))
    monkeypatch.undo()  # from the checkpoint it would come further now
    again = runs.trained(cfg, "digits", "one", home, BAR())
    assert again[runs.tables_of("one")[2]]["status"].tolist() == ["failed"]
    pd.testing.assert_frame_equal(again[runs.tables_of("one")[1]], steps)


def fail_at(step):
    """What `failures` of an optimizer gives once it has come to a step."""

    def failures(self):
        told = SolveError("the damped matrix could not be factorised at step 7", step)
        return {(0,) * len(self.replicas): told} if self.preconditioner.step > step else {}

    return failures


def test_an_error_of_the_program_is_none(tmp_path, monkeypatch):
    def wrong(self, x):
        raise ValueError("a bug")

    monkeypatch.setattr(KFACMartens, "look", wrong)
    with pytest.raises(RuntimeError, match="one' failed: ValueError: a bug"):
        runs.trained(config(), "digits", "one", tmp_path / "runs" / "one", BAR())


def test_a_grid_without_a_best_setting_is_an_outcome(tmp_path):
    settings = SCALES["smoke"] | {"problems": ["digits"]}
    grid = pd.DataFrame([{"lr": lr, "momentum": 0.9, "same_as": 0.9, "status": "diverged"} for lr in baseline.RATES])
    grid.assign(train_error=np.nan).to_csv(tmp_path / "grid_digits.csv", index=False)
    for part in (baseline.parts("digits", settings, tmp_path)[1], baseline.fixed("digits", 100, settings, tmp_path)):
        for name, table in part.make(BAR()).items():
            table.to_csv(tmp_path / name, index=False)
        assert all((tmp_path / name).exists() for name in part.tables)
        took = pd.read_csv(tmp_path / part.tables[2])
        assert took[["status", "data"]].values.tolist() == [["diverged", "digits"]]
    (tmp_path / "study.json").write_text(json.dumps({"settings": settings}))
    assert derived(tmp_path)["runs.csv"]["status"].tolist() == ["diverged"] * 2
    told = {c.claim: c for c in run_claims(tmp_path, settings, decisive=True)}
    assert [c.verdict for c in told.values()] == ["contradicted"]


def test_k_fac_averages_from_the_first_iteration_where_batches_have_one_size():
    settings = SCALES["paper"]
    fixed = {m: runs.one_size("mnist", m, 2000, settings) for m in METHODS}
    assert {cfg.optimizer.average_from for cfg in fixed.values()} == {0}
    assert {cfg.optimizer.average for cfg in fixed.values()} == {0.99}
    assert {m: (cfg.steps, cfg.evaluate_every) for m, cfg in fixed.items()} == dict.fromkeys(METHODS, (1500, 62)) | {
        "baseline": (1000, 42)
    }
    assert configured("mnist", TRI, 500, 10).optimizer.average_from == 200


@pytest.mark.parametrize("method", METHODS)
def test_k_fac_draws_each_batch_anew_and_the_baseline_goes_through_the_data(method):
    experiment = prepare(resolve(configured("digits", method, 12, 4)))
    assert experiment.batches.independent == (method != "baseline")


def test_parts_come_in_the_order_in_which_they_are_wanted(tmp_path):
    settings = SCALES["paper"]
    names, best = [part.name for part in parts(settings, tmp_path)], settings["no_momentum_batch"]
    others = [size for size in settings["fixed_batches"] if size != best]
    assert len(names) == len(set(names)) == 42
    wanted = [
        "matrices", "invariance", f"mnist, {TRI}, seed 0", "mnist, improvement against gamma",
        "mnist, block-diagonal, seed 0", "mnist, baseline's grid", "mnist, baseline", "mnist, operations",
        f"mnist, {TRI}, no momentum, batch {best}", f"mnist, {TRI}, seed 3 to iteration 100",
    ]  # fmt: skip
    assert names[:10] == wanted
    assert all("to iteration 100" in one for one in names[9:25])
    assert names[25:27] == [f"mnist, {TRI}, seed {seed}" for seed in (1, 2)]
    assert names[27:29] == [f"mnist, {TRI}, no momentum, batch {size}" for size in others]
    curves = [i for i, one in enumerate(names) if one.startswith("curves")]
    assert curves == list(range(36, 42))


def test_the_batch_without_momentum_may_be_chosen_once_all_sizes_are_made(tmp_path):
    settings = SCALES["smoke"] | {"problems": ["digits"]}
    made = parts(settings, tmp_path)
    record = begin(tmp_path, settings, {})
    write_json(tmp_path / "study.json", record | {"parts": {part.name: {} for part in made}})
    other = settings | {"no_momentum_batch": 100}
    again = parts(other, tmp_path)
    assert {part.name for part in again} == {part.name for part in made}
    assert begin(tmp_path, other, {}, again)["settings"]["no_momentum_batch"] == 100
    with pytest.raises(UsageError, match="was made with iterations=30, not 40"):
        begin(tmp_path, other | {"iterations": 40}, {}, again)


def test_other_threads_than_those_of_the_beginning_are_refused(tmp_path):
    settings, now = SCALES["smoke"], torch.get_num_threads()
    for then in (now, None):
        (tmp_path / "study.json").write_text(json.dumps({"settings": {}, "environment": {"threads": then}}))
        assert parts(settings, tmp_path)
    (tmp_path / "study.json").write_text(json.dumps({"settings": {}, "environment": {"threads": now + 1}}))
    with pytest.raises(
        UsageError, match=rf"threads={now}: .* begun with threads={now + 1}: expected threads={now + 1}"
    ):
        parts(settings, tmp_path)
