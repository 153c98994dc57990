"""What a search leaves: `trials.csv`, `importances.csv`, the best configuration as `best.yaml`, and the figure."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from fisherlab.files import replace
from fisherlab.sweep.search import Search

FACTS = ["status", "step", "seconds", "message"]
FEW = 10  # complete trials below which importances mean nothing
HEAD = """\
# The best of {trials} trials: number {number}, {objective} {value:.6g}. Run it again with
# fisherlab train --config-dir {folder} --config-name best
"""


def trials_table(search: Search) -> pd.DataFrame:
    """Tabulate the trials of a search.

    Args:
        search: The search.

    Returns:
        One row per trial: `number`, `state` (complete, pruned, fail, running), `value`, a column per searched number,
        `status`, `step`, `seconds` of training, `message`, the last metrics (means over the seeds), and `run`, its run
        directory in the search's folder, several joined by spaces; empty where a process in another folder trained it.
    """
    names = [d.key for d in search.space]
    rows = []
    for trial in search.trials:
        facts = {k: v for k, v in trial.user_attrs.items() if k != "batch"}
        metrics = {k: v for k, v in facts.items() if k not in FACTS}
        row = {"number": trial.number, "state": trial.state.name.lower(), "value": trial.value}
        row |= {name: trial.params.get(name) for name in names} | {name: facts.get(name) for name in FACTS} | metrics
        here = trial.user_attrs.get("batch", search.identity).startswith(search.identity)
        rows.append(row | {"run": " ".join(f"runs/{run}" for run in search.runs(trial)) if here else None})
    table = pd.DataFrame(rows)
    return table[[*(c for c in table.columns if c != "run"), "run"]] if rows else table


def write_trials(search: Search, choices: Mapping[str, str]) -> pd.DataFrame:
    """Write the tables of a search, its best configuration and its figure.

    Args:
        search: The search.
        choices: Which data set, model and optimizer the config was composed from.

    Returns:
        The table of the trials.
    """
    with search.locked():
        table = trials_table(search)
        replace(search.folder / "trials.csv", lambda path: table.to_csv(path, index=False))
        if (importances := _importances(search)) is not None:
            replace(search.folder / "importances.csv", lambda path: importances.to_csv(path, index=False))
        if search.best is not None:
            text = best_yaml(search, choices)
            replace(search.folder / "best.yaml", lambda path: path.write_text(text))
            _draw(search.folder, search.objective)
    return table


def best_yaml(search: Search, choices: Mapping[str, str]) -> str:
    """Write the best trial's configuration so that `fisherlab train` takes it.

    Args:
        search: A search with a complete trial.
        choices: Which data set, model and optimizer the config was composed from.

    Returns:
        The file's text. The run has the trial's numbers, records norms and keeps its weights and figures.
    """
    best = search.best
    assert best is not None
    config: Any = OmegaConf.to_container(search.config(best), resolve=True)
    run = search.folder / "runs" / search.runs(best)[0] / "config.yaml"
    if run.exists():  # what was left open, as the trial settled it
        then = OmegaConf.load(run)
        config |= {name: OmegaConf.select(then, name) for name in ("threads", "device")}
    config |= {"keep": "weights", "figures": True, "record_norms": True}
    config.pop("resume", None)
    defaults = ["train", *({f"override {group}": name} for group, name in choices.items()), "_self_"]
    ended = sum(t.state.name in ("COMPLETE", "PRUNED") for t in search.trials)
    head = HEAD.format(
        trials=ended, number=best.number, objective=search.objective, value=best.value, folder=search.folder
    )
    return head + OmegaConf.to_yaml(OmegaConf.create({"defaults": defaults, **config}))


def _importances(search: Search) -> pd.DataFrame | None:
    """How much of the objective's variance each number explains, by Optuna's default evaluator."""
    complete = sum(t.state.name == "COMPLETE" for t in search.trials)
    if complete < FEW or len(search.space) < 2:
        return None
    from optuna.importance import get_param_importances

    found = get_param_importances(search.study)
    return pd.DataFrame({"key": list(found), "importance": list(found.values())})


def _draw(folder: Path, objective: str) -> None:
    try:
        from fisherlab.plots.search import draw_search

        draw_search(folder, objective)
    except Exception as error:
        print(f"fisherlab: warning: no figure for {folder}: {error}", file=sys.stderr)
