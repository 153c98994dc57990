"""From a configuration to the things that train: what is wrong with it is found here, before anything is written."""

from __future__ import annotations

import inspect
import itertools
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import hydra.utils
import torch
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from fisherlab.data import standardized
from fisherlab.data.dataset import Dataset, Split
from fisherlab.errors import UsageError
from fisherlab.likelihood import Likelihood, make_likelihood
from fisherlab.models import can_replicate, stack_replicas
from fisherlab.process import settle
from fisherlab.streams import Streams, generator, key
from fisherlab.training.schedule import Batches, BatchSize, LearningRate

DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass
class Experiment:
    """One run, or several side by side, ready to train.

    Attributes:
        cfgs: The resolved configuration of each run, row-major on the replica axes.
        device: Where they run.
        datasets: The data of each stream, on the device; one for all where no split is drawn at random.
        likelihood: Of the model's outputs.
        model: The model, with replica axes [S, H] where it can have them.
        optimizer: Anything with `step(x, y) -> loss`.
        batches: The order of the data.
        learning_rate: The schedule.
        steps: How many steps the runs have.
        replicas: The replica axes [S, H], streams and the runs of a stream; or none.
        reconstructs: Whether the targets are the inputs.
    """

    cfgs: list[DictConfig]
    device: torch.device
    datasets: list[Dataset]
    likelihood: Likelihood
    model: nn.Module
    optimizer: Any
    batches: Batches
    learning_rate: LearningRate
    steps: int
    replicas: tuple[int, ...]
    # Looked at in every step, where reading the configuration would cost more than the step's small operations.
    reconstructs: bool

    @property
    def cfg(self) -> DictConfig:
        """What all runs agree in."""
        return self.cfgs[0]

    @property
    def dataset(self) -> Dataset:
        """The data; with a split of its own for each stream, the first stream's."""
        return self.datasets[0]

    @property
    def places(self) -> list[tuple[int, ...]]:
        """The index of each run on the replica axes."""
        return list(itertools.product(*map(range, self.replicas)))

    def targets(self, split: Split) -> Tensor:
        """What the model predicts of a split: its labels, or its inputs.

        Args:
            split: A part of the data.

        Returns:
            y, or x itself.
        """
        return split.x if self.reconstructs else split.y

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """Gather the next mini-batch.

        Returns:
            x [S, 1, B, in] and the targets alike, [1, 1, B, in] where all streams see the same; without replica axes
            [B, in].
        """
        index = self.batches.next()
        if index is None:
            return self.rows("train", slice(None))
        if len(self.datasets) == 1:
            train, shape = self.dataset.splits["train"], self.beside(index)
            x = train.x.index_select(0, index.flatten()).view(*shape, -1)
            if self.reconstructs:
                return x, x
            y = train.y.index_select(0, index.flatten())
            return x, y.view(*shape, *y.shape[1:])
        return self._stacked("train", list(index))

    def rows(self, name: str, rows: slice) -> tuple[Tensor, Tensor]:
        """Take rows of a split in their own order.

        Args:
            name: The split.
            rows: Which.

        Returns:
            As `next_batch`.
        """
        if len(self.datasets) > 1:
            return self._stacked(name, [rows] * len(self.datasets))
        split, lead = self.dataset.splits[name], (1,) * len(self.replicas)
        x, y = split.x[rows], self.targets(split)[rows]
        return x.view(*lead, *x.shape), y.view(*lead, *y.shape)

    def _stacked(self, name: str, rows: Sequence[slice | Tensor]) -> tuple[Tensor, Tensor]:
        """The rows of each stream's own split, behind the stream axis."""
        splits = [dataset.splits[name] for dataset in self.datasets]
        x = torch.stack([split.x[r] for split, r in zip(splits, rows, strict=True)]).unsqueeze(1)
        y = torch.stack([self.targets(split)[r] for split, r in zip(splits, rows, strict=True)]).unsqueeze(1)
        return x, y

    def beside(self, index: Tensor) -> tuple[int, ...]:
        """Shape of a batch of rows beside the replica axes.

        Args:
            index: Rows [S, B], or [B] without replica axes.

        Returns:
            (S, 1, B), or (B,).
        """
        return (len(index), 1, index.shape[-1]) if self.replicas else tuple(index.shape)


def build(node: DictConfig, what: str, **given: Any) -> Any:
    """Call the `_target_` of a configuration node; its mistakes become one line.

    Args:
        node: The node.
        what: dataset, model or optimizer, for the message.
        **given: Arguments from the program; `generator` and `seed` are passed only where they are accepted.

    Returns:
        What the target returns.

    Raises:
        UsageError: If there is no such target, or it rejects its arguments.
    """
    logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # it would say the same again in three lines
    logging.getLogger("hydra._internal.utils").setLevel(logging.CRITICAL)
    try:
        target = hydra.utils.get_object(node["_target_"])
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{what}._target_={node.get('_target_')!r} cannot be imported: {reason}") from error
    given = {k: v for k, v in given.items() if k not in ("generator", "seed") or _accepts(target, k)}
    try:
        return hydra.utils.instantiate(node, _convert_="all", **given)
    except InstantiationException as error:
        cause = error.__cause__ or error
        if isinstance(cause, UsageError):
            raise cause from None
        if isinstance(cause, (TypeError, ValueError)):
            raise UsageError(f"{what} '{node['_target_']}' cannot be built: {str(cause).splitlines()[0]}") from error
        raise cause from None


def _accepts(target: Callable[..., Any], name: str) -> bool:
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):
        return False
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def choose_device(name: str) -> torch.device:
    """Resolve `device`; that a named one exists is checked with the configuration.

    Args:
        name: auto, cpu, cuda or cuda:N.

    Returns:
        The device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def resolve(cfg: DictConfig, workers: int = 1) -> DictConfig:
    """Settle what a configuration leaves open (device, threads), so that a resume is the same run.

    Args:
        cfg: The composed configuration.
        workers: How many processes share the cores.

    Returns:
        A resolved copy without Hydra's own node.
    """
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    plain.pop("hydra", None)
    plain["device"] = str(choose_device(plain["device"]))
    plain["threads"] = plain["threads"] or max(1, len(os.sched_getaffinity(0)) // workers)
    return OmegaConf.create(plain)


def prepare(cfgs: DictConfig | Sequence[DictConfig], shape: tuple[int, int] = (1, 1)) -> Experiment:
    """Build the data, the models and the optimizer of a run, or of several side by side, and try them on each other.

    Args:
        cfgs: A configuration that `resolve` returned, or one per replica, row-major on the replica axes; those of a row
            share seed and data seed, and all of them agree in what is no number of the optimizer.
        shape: The replica axes [streams, runs per stream].

    Returns:
        The experiment.

    Raises:
        UsageError: If the parts do not fit.
    """
    cfgs = [cfgs] if isinstance(cfgs, DictConfig) else list(cfgs)
    cfg = cfgs[0]
    settle()
    torch.set_num_threads(cfg.threads)
    device = torch.device(cfg.device)
    streams = cfgs[:: shape[1]]
    datasets = _datasets(cfg, [_data_seed(one) for one in streams])
    likelihood = make_likelihood(datasets[0].likelihood if cfg.likelihood == "auto" else cfg.likelihood)
    fresh = {seed: _model(cfg, datasets[0], seed).to(device, DTYPES[cfg.dtype]) for seed in set(map(_init_seed, cfgs))}
    models = [fresh[_init_seed(one)] for one in cfgs]
    replicas = shape if can_replicate(models[0]) else ()
    if not replicas and len(cfgs) > 1:
        raise UsageError(f"model '{cfg.model._target_}' has no replica axes: expected its runs one at a time")
    model = stack_replicas(models, shape) if replicas else models[0]
    examples = len(datasets[0].splits["train"])
    size = BatchSize(_batch_size(cfg, examples), examples, _until_step(cfg))
    seeds = [_data_seed(one) for one in streams]
    independent = cfg.batch_sampling == "independent"
    batches = Batches(size, Streams(seeds if replicas else seeds[0], device), independent=independent)
    steps = cfg.steps or batches.steps(cfg.epochs)
    given = {"model": model, "likelihood": likelihood, "seed": [c.seed for c in streams] if replicas else cfg.seed}
    given |= _hypers([one.optimizer for one in cfgs], shape)
    optimizer = build(cfg.optimizer, "optimizer", **given)
    if (policy := getattr(optimizer, "policy", None)) is not None:
        policy.steps = steps
    schedule = cfg.lr_schedule
    end = _numbers([one.lr_schedule.end_fraction for one in cfgs], shape)
    rate = LearningRate(schedule.name, end, schedule.warmup_steps, steps)
    parts = (cfgs, device, datasets, likelihood, model, optimizer, batches, rate, steps, replicas)
    experiment = Experiment(*parts, reconstructs=cfg.target == "input")
    _try(experiment)
    return experiment


def _data_seed(cfg: DictConfig) -> int:
    return int(cfg.seed if cfg.data_seed is None else cfg.data_seed)


def _init_seed(cfg: DictConfig) -> int:
    return int(cfg.seed if cfg.init_seed is None else cfg.init_seed)


def _hypers(nodes: list[DictConfig], shape: tuple[int, int]) -> dict[str, Tensor]:
    """The optimizer's arguments in which runs differ, one value per replica."""
    differ = [name for name in nodes[0] if any(node[name] != nodes[0][name] for node in nodes)]
    return {str(name): torch.as_tensor(_numbers([node[name] for node in nodes], shape)) for name in differ}


def _numbers(values: list[float], shape: tuple[int, int]) -> float | Tensor:
    """A number where all are equal, else one per replica."""
    if all(value == values[0] for value in values):
        return values[0]
    return torch.tensor(values, dtype=torch.float64).view(shape)


def _datasets(cfg: DictConfig, seeds: Sequence[int]) -> list[Dataset]:
    """The data of each stream; one for all where nothing in it is drawn from the seed."""
    whole = seeds[:1] if cfg.dataset.get("splits") is None else list(dict.fromkeys(seeds))
    found = {seed: _dataset(cfg, seed).to(torch.device(cfg.device), DTYPES[cfg.dtype]) for seed in whole}
    return [found[seed] for seed in (seeds if len(whole) > 1 else whole)]


def _dataset(cfg: DictConfig, seed: int) -> Dataset:
    node = cfg.dataset.copy()
    splits = node.pop("splits", None)
    dataset = build(node, "dataset")
    if not isinstance(dataset, Dataset):
        raise UsageError(
            f"dataset '{node._target_}' returned {type(dataset).__name__}: expected fisherlab.data.Dataset"
        )
    if splits is None:
        return dataset
    dataset = dataset.resplit(splits, seed)
    # The statistics of the new train split, not of the pooled rows.
    return standardized(dataset) if node.get("standardize") else dataset


def _model(cfg: DictConfig, dataset: Dataset, seed: int) -> nn.Module:
    outputs = dataset.inputs if cfg.target == "input" else dataset.outputs
    # A user's model may draw from the global generator: pin it for the time of the call. Drawn in float32 whatever the
    # dtype, so that float32 and float64 runs start alike.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key(seed, "init"))
        given = {"inputs": dataset.inputs, "outputs": outputs, "generator": generator(seed, "init")}
        model = build(cfg.model, "model", **given)
    if not isinstance(model, nn.Module):
        raise UsageError(f"model '{cfg.model._target_}' returned {type(model).__name__}: expected torch.nn.Module")
    return model


def _batch_size(cfg: DictConfig, examples: int) -> int:
    if cfg.batch_size == "full":
        return examples
    if cfg.batch_size > examples:
        raise UsageError(
            f"batch_size={cfg.batch_size} is more than the {examples} training examples: "
            f"expected at most {examples}, or full"
        )
    return int(cfg.batch_size)


def _until_step(cfg: DictConfig) -> int | None:
    schedule = cfg.batch_schedule
    if schedule.name == "constant":
        return None
    if schedule.until_step is None:
        raise UsageError("batch_schedule.until_step=null does not fit batch_schedule.name=exponential: expected a step")
    return int(schedule.until_step)


def _try(experiment: Experiment) -> None:
    """Push one example through the model and the likelihood."""
    x, y = experiment.rows("train", slice(1))
    name = experiment.cfg.model._target_.rpartition(".")[2]
    training = experiment.model.training
    try:
        with torch.no_grad():
            f = experiment.model.eval()(x)
    except UsageError:
        raise
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"model '{name}' does not take inputs of shape {tuple(x.shape)}: {reason}") from error
    finally:
        experiment.model.train(training)
    _check_output(experiment, name, f, x, y)


def draws(experiment: Experiment) -> bool:
    """Tell whether the model draws from the global generator while it trains (dropout).

    Args:
        experiment: A run.

    Returns:
        True where its numbers would depend on what runs beside it.
    """
    training, buffers = experiment.model.training, [b.clone() for b in experiment.model.buffers()]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        before = torch.get_rng_state()
        experiment.model.train()(experiment.rows("train", slice(1))[0])
        moved = not torch.equal(before, torch.get_rng_state())
        for buffer, kept in zip(experiment.model.buffers(), buffers, strict=True):  # batch normalisation's averages
            buffer.copy_(kept)
    experiment.model.train(training)
    return moved


def _check_output(experiment: Experiment, name: str, f: Any, x: Tensor, y: Tensor) -> None:
    likelihood = experiment.likelihood.name
    categorical = likelihood == "categorical"
    if categorical and y.is_floating_point():
        raise UsageError(
            f"likelihood=categorical does not fit dataset '{experiment.dataset.name}', whose targets are no classes: "
            f"expected likelihood={experiment.dataset.likelihood}"
        )
    if not categorical and not y.is_floating_point():
        raise UsageError(
            f"likelihood={likelihood} does not fit dataset '{experiment.dataset.name}', whose targets are classes: "
            "expected likelihood=categorical"
        )
    outputs = experiment.dataset.outputs if categorical else y.shape[-1]
    expected = (*experiment.replicas, 1, outputs)
    if not isinstance(f, Tensor) or tuple(f.shape) != expected:
        got = tuple(f.shape)[-2:] if isinstance(f, Tensor) else type(f).__name__
        raise UsageError(
            f"model '{name}' gives {got} for one example: likelihood {likelihood} on '{experiment.dataset.name}' "
            f"expects [batch, {outputs}]"
        )
