"""The contract of a run directory."""

from __future__ import annotations

import json
import math
import os
import resource

import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf

from fisherlab.data import Dataset, Split
from fisherlab.errors import UsageError
from fisherlab.training.recorder import METRICS
from fisherlab.training.run import resume, train
from tests.training.conftest import config, start, tables


def test_a_run_leaves_every_file_of_the_contract(run, capsys):
    result = run("optimizer=kfac", "checkpoints=[5]", "l2=1e-4", "figures=true")
    folder = result.directory
    assert result.status == "finished"
    names = {p.name for p in folder.iterdir()}
    assert names == {
        "config.yaml", "environment.json", "metrics.csv", "steps.csv", "gradient_histogram.csv", "status.json",
        "checkpoint.pt", "curves.png", "gradient_histogram.png", "weights-5.pt",
    }  # fmt: skip
    assert capsys.readouterr().out.rstrip().splitlines()[-1] == str(folder)
    metrics, steps = pd.read_csv(folder / "metrics.csv"), pd.read_csv(folder / "steps.csv")
    assert list(metrics.columns) == METRICS
    assert list(steps.columns[:6]) == ["step", "loss", "grad_norm", "update_norm", "lr", "damping"]
    assert list(steps["step"]) == list(range(1, 23))
    assert list(metrics["step"]) == [0, 10, 20, 22]
    assert metrics["valid_loss"].isna().all()
    assert (metrics["objective"] > metrics["train_loss"]).all()
    assert metrics["train_loss"].iloc[-1] < metrics["train_loss"].iloc[0]
    assert metrics["epoch"].iloc[-1] == pytest.approx(22 * 128 / 1437)
    assert steps.notna().all().all()


def test_figures_that_cannot_be_drawn_cost_no_run(run, monkeypatch, capsys):
    def full(_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("fisherlab.plots.run.draw_run", full)
    result = run("optimizer=sgd", "figures=true")
    assert result.status == "finished"
    assert (result.directory / "checkpoint.pt").exists()
    assert f"warning: no figures for {result.directory}: No space left on device" in capsys.readouterr().err


def test_status_and_environment_open_as_json(run):
    folder = run("optimizer=kfac").directory
    status = json.loads((folder / "status.json").read_text())
    assert status["status"] == "finished"
    assert set(status["seconds"]) == {"setup", "training", "evaluation", "recording"}
    assert status["final"]["train_loss"] == pd.read_csv(folder / "metrics.csv")["train_loss"].iloc[-1]
    assert status["best"]["train_loss"]["value"] <= status["final"]["train_loss"]
    assert status["optimizer"]["kind"] == "mc"
    assert status["optimizer"]["plain_gradient"] == []
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["threads"] == 1
    assert environment["packages"]["torch"] == torch.__version__.split("+")[0]
    assert not any("host" in key or "user" in key for key in environment)


def test_histogram_counts_every_gradient_entry(run):
    table = pd.read_csv(run("optimizer=sgd").directory / "gradient_histogram.csv")
    assert list(table.columns) == ["step", "layer", "bin_left", "bin_right", "count"]
    counts = table.groupby("layer")["count"].sum().to_dict()
    assert counts == {"layer1": 64 * 16 + 16, "layer2": 16 * 10 + 10}
    assert set(table["step"]) == {3}


def test_norms_are_the_gradients_and_the_steps(run):
    """SGD without momentum moves by lr times the gradient."""
    steps = pd.read_csv(run("optimizer=sgd", "momentum=0", "lr=0.1", "l2=0.01").directory / "steps.csv")
    assert steps["update_norm"].to_numpy() == pytest.approx(0.1 * steps["grad_norm"].to_numpy(), rel=1e-5)


def test_the_same_command_gives_the_same_numbers_in_a_new_folder(run):
    first, second = run("optimizer=kfac", name="a"), run("optimizer=kfac", name="b")
    assert tables(first.directory) == tables(second.directory)
    third = run("optimizer=kfac", "seed=1", name="c")
    assert tables(third.directory) != tables(first.directory)


def test_pinned_seeds_pin_what_they_name(run):
    """With data_seed and init_seed pinned, SGD has nothing left that seed could change."""
    pinned = ["optimizer=sgd", "data_seed=0", "init_seed=0", "dataset.splits=null"]
    assert tables(run(*pinned, "seed=1", name="a").directory) == tables(run(*pinned, "seed=2", name="b").directory)
    loose = ["optimizer=sgd", "init_seed=0", "dataset.splits=null"]
    one, two = run(*loose, "seed=1", name="c"), run(*loose, "seed=2", name="d")
    first = [pd.read_csv(r.directory / "metrics.csv") for r in (one, two)]
    assert first[0]["train_loss"][0] == first[1]["train_loss"][0]
    assert first[0]["train_loss"][1] != first[1]["train_loss"][1]


def test_default_folder_is_named_by_time_and_config(tmp_path):
    cfg = config("optimizer=sgd", "epochs=1", f"results={tmp_path}/out")
    folders = [train(cfg).directory for _ in range(2)]
    assert folders[0] != folders[1]
    assert all(f.parent == tmp_path / "out" / "runs" for f in folders)
    assert len({f.name.split("-")[2] for f in folders}) == 1
    assert not [p for p in (tmp_path / "out" / "runs").iterdir() if p not in folders]


def test_config_is_resolved_and_names_threads_and_device(run):
    cfg = OmegaConf.load(run("optimizer=kfac", "damping=0.5").directory / "config.yaml")
    assert (cfg.device, cfg.threads, cfg.optimizer.damping) == ("cpu", 1, 0.5)
    assert "hydra" not in cfg


@pytest.mark.parametrize("overrides", [["optimizer=sgd", "lr=1e6"], ["optimizer=kfac", "lr=1e20"]])
def test_divergence_is_an_outcome_not_an_error(run, overrides):
    result = run(*overrides, "steps=300")
    assert result.status == "diverged"
    status = json.loads((result.directory / "status.json").read_text())
    steps = pd.read_csv(result.directory / "steps.csv")
    # The record ends with the step that diverged, whenever that was noticed.
    assert len(steps) == status["step"] < 300
    last = steps["loss"].iloc[-1]
    assert not math.isfinite(last) or last > 1e3 * steps["loss"].iloc[0]
    assert (steps["loss"].iloc[:-1] <= 1e3 * steps["loss"].iloc[0]).all()
    assert "diverged at step" in status["message"]


def perfectly_fitted(n: int = 8) -> Dataset:
    """Targets that the zero model predicts: every per-example gradient, and so the empirical Fisher, is zero."""
    split = Split(torch.ones(n, 12, dtype=torch.float64), torch.zeros(n, 1, dtype=torch.float64))
    return Dataset("fitted", "gaussian", 1, {"train": split})


def test_a_solve_that_fails_is_a_failed_run_with_its_reason(run):
    own = ["dataset=toy_linear", "~dataset.variant", "~dataset.n", f"dataset._target_={__name__}.perfectly_fitted"]
    result = run(*own, "model=linear", "optimizer=efngd", "damping=0", "batch_size=8", "steps=4")
    assert result.status == "failed"
    status = json.loads((result.directory / "status.json").read_text())
    assert "could not be factorised at step 0" in status["error"]
    assert "expected a larger damping" in status["error"]
    assert (result.directory / "metrics.csv").exists()


def test_lr_schedule_reaches_the_optimizer(run):
    folder = run("optimizer=sgd", "lr=0.1", "lr_schedule.name=linear", "lr_schedule.end_fraction=0.1").directory
    lr = pd.read_csv(folder / "steps.csv")["lr"]
    assert (lr.iloc[0], lr.iloc[-1]) == pytest.approx((0.1, 0.01))


def test_batch_schedule_ends_with_the_whole_set(run):
    overrides = ["batch_size=100", "batch_schedule.name=exponential", "batch_schedule.until_step=12", "steps=14"]
    metrics = pd.read_csv(run("optimizer=kfac", *overrides).directory / "metrics.csv")
    assert metrics["examples"].iloc[-1] - metrics["examples"].iloc[-2] == pytest.approx(3 * 1437 + 1126, abs=20)


def test_a_folder_that_is_not_empty_is_refused(run, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        run("optimizer=sgd")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_run_in_float64_differs_from_float32_only_by_rounding(run):
    single = pd.read_csv(run("optimizer=kfac", name="a").directory / "metrics.csv")["train_loss"]
    double = pd.read_csv(run("optimizer=kfac", "dtype=float64", name="b").directory / "metrics.csv")["train_loss"]
    assert single[0] == pytest.approx(double[0], rel=1e-6)
    assert single[0] != double[0]


def test_a_file_in_place_of_the_results_folder_is_refused_before_any_work(tmp_path, monkeypatch):
    (tmp_path / "results").write_text("mine")
    monkeypatch.setattr("fisherlab.training.run.prepare", lambda cfg: pytest.fail("work began"))
    with pytest.raises(UsageError, match="cannot be written: Not a directory; choose another with results=PATH"):
        train(config(f"results={tmp_path}/results"))
    assert (tmp_path / "results").read_text() == "mine"


def _train_with_files_up_to(limit: int, overrides: list[str], folder) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        status = train(config(*overrides), folder).status
    except UsageError as error:
        status = "refused" if "cannot be written: File too large" in str(error) else str(error)
    os._exit({"refused": 42, "failed": 43}.get(status, 44))


@pytest.mark.parametrize(("limit", "exit_code"), [(0, 42), (30_000, 43)])
def test_a_full_disk(tmp_path, limit, exit_code):
    """Nothing can be written: refused. No more can be written: the run fails, and what it wrote stays readable."""
    overrides = ["optimizer=sgd", "steps=3000", "evaluate_every=100"]
    process = start(_train_with_files_up_to, limit, overrides, tmp_path / "run")
    process.join()
    assert process.exitcode == exit_code
    if not limit:
        assert not list(tmp_path.iterdir())
        return
    steps = pd.read_csv(tmp_path / "run" / "steps.csv")
    assert len(steps) > 100
    assert not [p for p in (tmp_path / "run").iterdir() if p.name.startswith(".")]


def test_a_run_that_blows_up_in_its_last_step_has_diverged(run):
    result = run("optimizer=sgd", "lr=1e30", "steps=1")
    assert result.status == "diverged"
    assert pd.read_csv(result.directory / "metrics.csv")["step"].tolist() == [0, 1]


@pytest.mark.parametrize("model", ["mlp", "plain"])
def test_blowing_up_is_a_divergence_with_and_without_replica_axes(run, model):
    plain = ["model=logistic", "model._target_=tests.training.test_setup.plain_model", "~model.init", "~model.bias"]
    overrides = plain if model == "plain" else []
    result = run("optimizer=kfac", "optimizer.inverse_period=1", "lr=1e30", "steps=50", *overrides)
    assert result.status == "diverged"
    assert not (result.directory / "checkpoint.pt").exists()


@pytest.mark.parametrize("outcome", ["finished", "diverged"])
def test_nothing_is_kept_but_the_tables(run, outcome):
    how = ["lr=1e9"] if outcome == "diverged" else ["lr=0.1", "checkpoint_every=0"]
    result = run("keep=nothing", "figures=false", "optimizer=sgd", "histogram_steps=[1]", "steps=40", *how)
    assert result.status == outcome
    tables = {"metrics.csv", "steps.csv", "gradient_histogram.csv"}
    assert {p.name for p in result.directory.iterdir()} == tables | {"config.yaml", "environment.json", "status.json"}
    assert resume(result.directory).status == outcome
    assert not list(result.directory.glob("*.png"))
