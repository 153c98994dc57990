"""Where a run's seconds go: phases, processor time beside wall time, and checkpoints from before it was kept."""

import time

import pandas as pd
import torch
from omegaconf import OmegaConf

from fisherlab.training import checkpoint
from fisherlab.training.clock import Clock
from fisherlab.training.recorder import METRICS
from fisherlab.training.run import resume


def busy(seconds):
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def test_processor_time_does_not_count_what_others_do_meanwhile():
    clock = Clock(torch.device("cpu"))
    with clock.phase("training"):
        busy(0.05)
        time.sleep(0.2)  # as where another process has the processor
    with clock.phase("evaluation"):
        busy(0.05)
    assert clock.seconds["training"] > 0.24
    assert 0.045 < clock.cpu_seconds["training"] < 0.15
    assert 0.045 < clock.cpu_seconds["evaluation"] < 0.15


def test_runs_side_by_side_share_both_times():
    clock = Clock(torch.device("cpu"), 4)
    with clock.phase("training"):
        busy(0.1)
        clock.share(2)
        busy(0.1)
    assert 0.07 < clock.cpu_seconds["training"] < 0.12  # a quarter and a half of 0.1
    assert clock.seconds["training"] >= 0.99 * clock.cpu_seconds["training"]


def test_a_clock_goes_on_where_a_checkpoint_left_it():
    clock = Clock(torch.device("cpu"))
    seconds = {"training": 3.0, "evaluation": 2.0, "recording": 1.0}
    clock.load({"seconds": seconds})  # of an older version
    assert clock.state()["seconds"] == seconds
    assert set(clock.state()["cpu_seconds"].values()) == {0.0}
    cpu = {"training": 1.5, "evaluation": 1.0, "recording": 0.5}
    clock.load({"seconds": seconds, "cpu_seconds": cpu})
    assert clock.state() == {"seconds": seconds, "cpu_seconds": cpu}


def test_metrics_tell_processor_time(run):
    table = pd.read_csv(run("optimizer=sgd").directory / "metrics.csv")
    assert table.columns[-1] == "cpu_seconds"
    assert table["cpu_seconds"].iloc[0] == 0
    assert table["cpu_seconds"].is_monotonic_increasing
    assert 0 < table["cpu_seconds"].iloc[-1] < 1.5 * table["seconds"].iloc[-1] + 0.1  # one thread


def test_a_run_that_an_older_version_began_goes_on_with_its_columns(run, tmp_path):
    whole = run("optimizer=sgd", name="whole").directory
    folder = run("optimizer=sgd", "steps=10", "epochs=null", "keep=all", name="part").directory
    # As if it had been stopped at step 10 by a version without the column.
    (folder / "config.yaml").write_text((whole / "config.yaml").read_text())
    (folder / "status.json").write_text('{"status": "running"}')
    path = folder / "metrics.csv"
    pd.read_csv(path, dtype=str).drop(columns="cpu_seconds").to_csv(path, index=False)
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    state["config"] = checkpoint.fingerprint(OmegaConf.load(folder / "config.yaml"))
    state["lanes"][0] |= {"status": "running"}
    state["lanes"][0]["recorder"]["lengths"]["metrics.csv"] = path.stat().st_size
    del state["cpu_seconds"]
    torch.save(state, folder / "checkpoint.pt")
    assert resume(folder).status == "finished"
    table = pd.read_csv(path)
    assert list(table.columns) == METRICS[:-1]
    assert table["step"].tolist() == [0, 10, 20, 22]
    assert (folder / "steps.csv").read_bytes() == (whole / "steps.csv").read_bytes()
    pd.testing.assert_series_equal(table["train_loss"], pd.read_csv(whole / "metrics.csv")["train_loss"])
