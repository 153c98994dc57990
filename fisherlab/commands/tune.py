"""`fisherlab tune`: a Bayesian search over numbers of a training, in batches that train side by side."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf, open_dict

from fisherlab.commands.listing import split_config_dir
from fisherlab.composition import conf_dir, digest
from fisherlab.config import Source, compose, job, run_directory, validate
from fisherlab.errors import UsageError, did_you_mean
from fisherlab.files import check_writable, replace
from fisherlab.schema import NULL, TEXT, check, name, show, whole

if TYPE_CHECKING:
    from fisherlab.sweep.search import Search
    from fisherlab.sweep.space import Dimension

PRIMARY = "tune"
METRICS = tuple(f"{split}_{what}" for split in ("train", "valid", "test") for what in ("loss", "error"))
RULES = {
    "objective": name(*METRICS, "objective", "average_error"),
    "at": name("final", "best"),
    "sampler": name("tpe", "random"),
    "sampler_seed": whole() | NULL,
    "parallel": whole(1),
    "seeds": whole(1),
    "storage": TEXT | NULL,
    "name": TEXT | NULL,
}


def main(args: Sequence[str]) -> int:
    """Run `fisherlab tune`.

    Args:
        args: Overrides of a training, of `trials`, `space.*` and `tune.*`; `--config-dir DIR` adds your own configs.

    Returns:
        Exit status.

    Raises:
        UsageError: If something that was asked for makes no sense; nothing is written then.
    """
    overrides, own = split_config_dir(args)
    source = Source(own, PRIMARY)
    composed = compose(overrides, source)
    cfg = job(composed)
    trials, node, options = cfg.trials, cfg.space, cfg.tune
    for section, example in (("space", "space.lr.low=1e-3"), ("tune", "tune.parallel=10")):
        if not OmegaConf.is_dict(cfg[section]):
            raise UsageError(f"{section}={show(cfg[section])}: '{section}' is a section; expected {example}")
    with open_dict(cfg):
        for section in ("trials", "space", "tune"):
            del cfg[section]
    check("trials", trials, whole(1))
    for key, rule in RULES.items():
        check(f"tune.{key}", options.get(key), rule)
    validate(cfg)
    space: Any = OmegaConf.to_container(node, resolve=True)
    _leave_out(space, cfg, overrides)
    folder = run_directory(composed) or Path(cfg.results) / "tune" / digest(
        [o for o in overrides if o.lstrip("+").partition("=")[0] != "trials"]
    )
    choices = {group: composed.hydra.runtime.choices[group] for group in ("dataset", "model", "optimizer")}
    search = _search(cfg, space, options, folder)
    _bring(source, folder)
    return _run(search, trials, choices)


def _leave_out(space: dict[str, Any], cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Leave out what the chosen optimizer does not have, unless it was asked for; says so."""
    for key in [k for k in space if k in ("lr", "momentum", "damping") and k not in cfg]:
        if not any(o.lstrip("+").startswith(f"space.{key}") for o in overrides):
            del space[key]
            print(f"space.{key} is left out: the optimizer has no {key}")


def _bring(source: Source, folder: Path) -> None:
    """Copy the user's configs beside `best.yaml`, which names some of them."""
    for group in source.groups() if source.folder else []:
        for path in source.options(group).values():
            there = folder / group / path.name
            if not path.is_relative_to(conf_dir()) and not (there.exists() and there.samefile(path)):
                there.parent.mkdir(exist_ok=True)
                replace(there, partial(shutil.copyfile, path))


def _search(cfg: DictConfig, node: Mapping[str, Any], options: DictConfig, folder: Path) -> Search:
    """Begin a search, or open it, where all that was asked for makes sense."""
    from fisherlab.sweep.search import Search
    from fisherlab.sweep.space import read_space

    space = read_space(node, cfg)
    _check(cfg, space, options.objective)
    check_writable(folder)
    chosen: Any = OmegaConf.to_container(options)
    chosen["sampler_seed"] = cfg.seed if options.sampler_seed is None else options.sampler_seed
    return Search(cfg, space, folder, **chosen)


def _run(search: Search, trials: int, choices: Mapping[str, str]) -> int:
    from fisherlab.sweep.trials import write_trials

    def told() -> None:
        write_trials(search, choices)
        print(_stand(search, trials), flush=True)

    search.run(trials, told)
    table = write_trials(search, choices)
    states = table["state"].value_counts()
    print(", ".join(f"{count} {state}" for state, count in states.items()))
    print(_stand(search, trials), search.folder, sep="\n")
    return 0


def _stand(search: Search, trials: int) -> str:
    """How far the search is, and the best so far."""
    ended = sum(t.state.name in ("COMPLETE", "PRUNED") for t in search.trials)
    best = search.best
    if best is None:
        return f"{ended}/{trials} trials, none finished yet"
    values = ", ".join(f"{key}={value:.4g}" for key, value in best.params.items())
    return f"{ended}/{trials} trials, best {search.objective} {best.value:.5g} (trial {best.number}: {values})"


def _check(cfg: DictConfig, space: Sequence[Dimension], objective: str) -> None:
    """See that a trial at either end of the space can be trained, and will have the metric."""
    from fisherlab.sweep.space import with_values
    from fisherlab.training.setup import prepare, resolve

    for end in ("low", "high"):
        at = with_values(cfg, {d.key: getattr(d, end) for d in space})
        experiment = prepare(resolve(at))
    dataset = experiment.dataset
    split, splits = objective.partition("_")[0], list(dataset.splits)
    if split in ("train", "valid", "test") and split not in splits:
        fitting = [metric for metric in METRICS if metric.partition("_")[0] in splits]
        raise UsageError(
            f"tune.objective={objective}: '{dataset.name}' has no {split} split; {did_you_mean(objective, fitting)}"
        )
    if objective == "objective" and not at.l2:
        raise UsageError("tune.objective=objective: without l2 it is the training loss; expected train_loss")
    if objective == "average_error" and getattr(experiment.optimizer, "average", None) is None:
        raise UsageError("tune.objective=average_error: expected an optimizer that averages its iterates")
