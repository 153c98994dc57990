"""What `--help` says of every command."""

import pytest

from fisherlab.cli import COMMANDS, main


@pytest.mark.parametrize("args", [[], ["--help"], ["-h"]])
def test_help_is_a_table_with_examples(args, capsys):
    assert main(args) == 0
    out = capsys.readouterr().out
    assert all(f"fisherlab {name} " in out for name in COMMANDS)
    assert "fisherlab train optimizer=kfac damping=1e0" in out


def test_train_help_shows_every_key_with_its_value_and_meaning(capsys):
    assert main(["train", "--help", "optimizer=sgd", "lr=0.25"]) == 0
    out = capsys.readouterr().out
    for line in ("lr=0.25 ", "batch_size=128 ", "lr_schedule.name=constant ", "optimizer=sgd ", "--config-dir DIR "):
        assert f"  {line}" in out or f", {line}" in out
    assert "examples per step, or full" in out
    assert "damping=" not in out.partition("Examples")[0]
    assert main(["train", "--help"]) == 0
    assert "damping=" in capsys.readouterr().out.partition("Examples")[0]


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "train"])
def test_help_of_the_other_commands(name, capsys):
    assert main([name, "--help"]) == 0
    assert COMMANDS[name].summary in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["tune"], ["tune.parallel=20 ", "trials that are asked for at a time", "every key of a training"]),
        (["compare"], ["compare.probes=20 ", "every key of a training"]),
        (["study"], ["scale=quick ", "kunstner2019  Kunstner, Balles and Hennig (2019)"]),
        (["study", "sun2017", "scale=paper"], ["study.scales.paper.seeds=10 ", "fresh ones, with the best"]),
    ],
)
def test_help_lists_the_keys_that_are_the_command_s_own(args, says, capsys):
    assert main([*args, "--help"]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in says), out
