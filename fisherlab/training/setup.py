"""From a configuration to the things that train: what is wrong with it is found here, before anything is written."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable
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
from fisherlab.streams import Streams, generator, key
from fisherlab.training.schedule import Batches, BatchSize, LearningRate

DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass
class Experiment:
    """One run, ready to train.

    Attributes:
        cfg: Its resolved configuration.
        device: Where it runs.
        dataset: The data, on the device.
        likelihood: Of the model's outputs.
        model: The model, with replica axes (1, 1) where it can have them.
        optimizer: Anything with `step(x, y) -> loss`.
        batches: The order of the data.
        learning_rate: The schedule.
        steps: How many steps the run has.
        replicas: The replica axes: (1, 1), or none.
        reconstructs: Whether the targets are the inputs.
    """

    cfg: DictConfig
    device: torch.device
    dataset: Dataset
    likelihood: Likelihood
    model: nn.Module
    optimizer: Any
    batches: Batches
    learning_rate: LearningRate
    steps: int
    replicas: tuple[int, ...]
    # Looked at in every step, where reading the configuration would cost more than the step's small operations.
    reconstructs: bool

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
            x [*replicas, B, in] and the targets alike.
        """
        train, index = self.dataset.splits["train"], self.batches.next()
        if index is None:
            return self.beside(train.x), self.beside(self.targets(train))
        rows = index.flatten()
        x = self.beside(train.x.index_select(0, rows))
        return x, x if self.reconstructs else self.beside(train.y.index_select(0, rows))

    def beside(self, rows: Tensor) -> Tensor:
        """Give rows of the data the replica axes, without copying.

        Args:
            rows: [B, ...].

        Returns:
            [*replicas, B, ...].
        """
        return rows.view(*self.replicas, *rows.shape)


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


def resolve(cfg: DictConfig) -> DictConfig:
    """Settle what a configuration leaves open (device, threads), so that a resume is the same run.

    Args:
        cfg: The composed configuration.

    Returns:
        A resolved copy without Hydra's own node.
    """
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    plain.pop("hydra", None)
    plain["device"] = str(choose_device(plain["device"]))
    plain["threads"] = plain["threads"] or len(os.sched_getaffinity(0))
    return OmegaConf.create(plain)


def prepare(cfg: DictConfig) -> Experiment:
    """Build the data, the model and the optimizer of a run, and try them on each other.

    Args:
        cfg: A configuration that `resolve` returned.

    Returns:
        The experiment.

    Raises:
        UsageError: If the parts do not fit.
    """
    torch.set_num_threads(cfg.threads)
    device, dtype = torch.device(cfg.device), DTYPES[cfg.dtype]
    data_seed = cfg.seed if cfg.data_seed is None else cfg.data_seed
    dataset = _dataset(cfg, data_seed).to(device, dtype)
    likelihood = make_likelihood(dataset.likelihood if cfg.likelihood == "auto" else cfg.likelihood)
    model = _model(cfg, dataset).to(device, dtype)
    replicated = can_replicate(model)
    model = stack_replicas([model], (1, 1)) if replicated else model
    examples = len(dataset.splits["train"])
    size = BatchSize(_batch_size(cfg, examples), examples, _until_step(cfg))
    batches = Batches(size, Streams([data_seed] if replicated else data_seed, device))
    steps = cfg.steps or batches.steps(cfg.epochs)
    seed = [cfg.seed] if replicated else cfg.seed
    optimizer = build(cfg.optimizer, "optimizer", model=model, likelihood=likelihood, seed=seed)
    schedule = cfg.lr_schedule
    rate = LearningRate(schedule.name, schedule.end_fraction, schedule.warmup_steps, steps)
    replicas = (1, 1) if replicated else ()
    parts = (cfg, device, dataset, likelihood, model, optimizer, batches, rate, steps, replicas)
    experiment = Experiment(*parts, reconstructs=cfg.target == "input")
    _try(experiment)
    return experiment


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


def _model(cfg: DictConfig, dataset: Dataset) -> nn.Module:
    seed = cfg.seed if cfg.init_seed is None else cfg.init_seed
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
    train = experiment.dataset.splits["train"]
    x, y = experiment.beside(train.x[:1]), experiment.beside(experiment.targets(train)[:1])
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
    expected = (*x.shape[:-1], outputs)
    if not isinstance(f, Tensor) or tuple(f.shape) != expected:
        got = tuple(f.shape)[-2:] if isinstance(f, Tensor) else type(f).__name__
        raise UsageError(
            f"model '{name}' gives {got} for one example: likelihood {likelihood} on '{experiment.dataset.name}' "
            f"expects [batch, {outputs}]"
        )
