"""A preconditioner = kind x structure x damping, with its moving average and its periods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fisherlab.errors import UsageError, did_you_mean
from fisherlab.fisher import STRUCTURES, Captured, Kind, Mixed, Statistics, Structure, statistics
from fisherlab.fisher.capture import Layer
from fisherlab.fisher.inputs import MeanGradient
from fisherlab.fisher.kinds import MAX_COLUMNS
from fisherlab.fisher.linalg import full_precision
from fisherlab.fisher.mixed import ends
from fisherlab.fisher.relative import Form, check_relu, relative_statistics
from fisherlab.likelihood import Likelihood
from fisherlab.optim.relative import check_used, forms
from fisherlab.streams import Streams

# What a structure that keeps no moving average goes with.
WITHOUT_AVERAGE = {"tau1": 1, "ema": 0, "ema_start": "batch", "stats_period": 1, "inverse_period": 1}


def _period(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"{name}={value!r} is no period: expected an integer of at least 1")
    return value


def stride_of(name: str, part: float) -> int:
    """Check a part of a batch, 1/k.

    Args:
        name: Its name, for the message.
        part: 1, 1/2, 1/3, ...

    Returns:
        k: every k-th example is taken.

    Raises:
        UsageError: If it is no such fraction.
    """
    if isinstance(part, bool) or not isinstance(part, (int, float)) or not 0 < part <= 1:
        raise UsageError(f"{name}={part!r} is out of range: expected 1, 1/2, 1/3, ..., for example 0.125")
    stride = round(1 / part)
    if abs(stride * part - 1) > 1e-3:
        raise UsageError(f"{name}={part} is no fraction 1/k: the nearest is 1/{stride}, {1 / stride:.4g}")
    return stride


def examples(y: Tensor, x: Tensor, part: slice) -> Tensor:
    """Take some examples' targets.

    Args:
        y: Targets [..., B] or [..., B, K].
        x: The inputs, or outputs, beside them, [..., B, n].
        part: Which.

    Returns:
        A view.
    """
    return y[..., part] if y.ndim < x.ndim else y[..., part, :]


def _structure(name: str, damping_mode: str | None) -> Structure:
    if name not in STRUCTURES:
        raise UsageError(f"structure={name!r} is unknown: {did_you_mean(str(name), STRUCTURES)}")
    modes = STRUCTURES[name].damping_modes
    if damping_mode is not None and damping_mode not in modes:
        raise UsageError(f"damping_mode={damping_mode!r} does not fit structure={name}: expected {' or '.join(modes)}")
    return STRUCTURES[name](damping_mode)


def _check_choices(kind: str, late: bool, ema: float, ema_start: str) -> None:
    """Refuse a kind that is unknown, and an average that is none."""
    if kind not in list(Kind):
        raise UsageError(f"kind={kind!r} is unknown: {did_you_mean(str(kind), Kind)}")
    if not isinstance(late, bool):
        raise UsageError(f"late={late!r}: expected true or false")
    if late and kind != Kind.RELATIVE:
        raise UsageError(f"late=true does not fit kind={kind}: expected kind=relative, or late=false")
    if ema_start not in ("batch", "identity"):
        nearest = did_you_mean(str(ema_start), ("batch", "identity"))
        raise UsageError(f"ema_start={ema_start!r} is unknown: {nearest}")
    if not isinstance(ema, (int, float)) or not 0 <= ema < 1:
        raise UsageError(f"ema={ema!r} is out of range: expected a number in [0, 1)")


class Preconditioner:
    """Turns gradients into natural gradients.

    Args:
        kind: exact, mc, empirical or relative.
        structure: kronecker, kronecker_tridiagonal, full, gram, smaller (full or gram, whichever system is smaller),
            layer, pairs, unit, shared or diagonal.
        damping_mode: factored, tikhonov or trace; the structure's first when None.
        first: The structure of the first layer, where another.
        last: The structure of the last layer, where another.
        ema: eps_max of the moving average, eps = min(1 - 1/k, eps_max) at the k-th update; 0 keeps the last batch only.
        ema_start: `batch`: the first average is the first batch's statistic; `identity`: starts from I, eps = eps_max.
        stats_period: Steps between updates of the average.
        inverse_period: Steps between factorisations: the first batch's serves until step `inverse_period`.
        inverse_early: Where not 0, the first so many steps factorise, and then every step whose number, counted from 1,
            `inverse_period` divides (Martens and Grosse 2015, Section 8: 3).
        tau1: The part of a batch's examples from which the statistics are taken, 1/k for a whole k: every k-th example
            (Martens and Grosse 2015, Section 8, take 1/8).
        samples: Labels per example for mc.
        max_columns: The most outputs for exact.
        late: For relative: whether the statistics are those after the step, by another forward pass over the same
            batch, normalised as in evaluation (Sun and Nielsen 2017, their code).
        activation: For relative: of the hidden layers; None finds it in the model.
        zone: For relative: iota, omega and sigma of the relu's zone.

    Raises:
        UsageError: If a choice is unknown, or the combination makes no sense; says why.
    """

    def __init__(
        self,
        kind: str = "mc",
        structure: str = "kronecker",
        damping_mode: str | None = None,
        *,
        first: str | None = None,
        last: str | None = None,
        ema: float = 0.0,
        ema_start: str = "batch",
        stats_period: int = 1,
        inverse_period: int = 1,
        inverse_early: int = 0,
        tau1: float = 1.0,
        samples: int = 1,
        max_columns: int = MAX_COLUMNS,
        late: bool = False,
        activation: str | None = None,
        zone: Mapping[str, float] | None = None,
    ) -> None:
        _check_choices(kind, late, ema, ema_start)
        self.structure_names = (first or structure, structure, last or structure)
        found = [_structure(name, damping_mode) for name in self.structure_names]
        self.kind = Kind(kind)
        mixed = len(set(self.structure_names)) > 1
        self.structure_name = ", ".join(self.structure_names) if mixed else structure
        self.structure: Structure = Mixed(*found) if mixed else found[1]
        self.late, self.activation, self.zone = late, activation, dict(zone or {})
        check_relu(**self.zone)
        self.forms: list[Form] = []
        self.ema, self.ema_start = ema, ema_start
        self.stats_period = _period("stats_period", stats_period)
        self.inverse_period = _period("inverse_period", inverse_period)
        self.inverse_early = inverse_early if inverse_early == 0 else _period("inverse_early", inverse_early)
        self.tau1, self.stride = tau1, stride_of("tau1", tau1)
        self.samples = _period("samples", samples)
        self.max_columns = _period("max_columns", max_columns)
        self.step, self.updates = 0, 0
        self.tell_trace: Callable[[Tensor], None] | None = None  # whom to tell the trace of each batch's Fisher
        self.refreshed: Tensor | None = None  # which blocks the last factorisation could not make, bool [blocks, ...]
        self._failed: tuple[Tensor, Tensor] | None = None
        self._failed_before: tuple[Tensor, Tensor] | None = None
        self._stale = False
        if not self.structure.keeps:
            self._check_basis()

    def _check_basis(self) -> None:
        """Refuse what a structure has no use for that keeps no moving average, because its basis is the batch."""
        for name, only in WITHOUT_AVERAGE.items():
            if (value := getattr(self, name)) != only:
                raise UsageError(
                    f"{name}={value} does not fit structure={self.structure_names[1]}: expected {only}, for its basis "
                    "is the whole batch, and it keeps no moving average"
                )

    def meet(self, model: nn.Module, layers: Sequence[Layer]) -> None:
        """Get to know the model, before its first step.

        Args:
            model: The model.
            layers: Its covered layers.

        Raises:
            UsageError: If a layer asks for too much, or the relative Fisher does not know it.
        """
        self.structure.check([layer.shape for layer in layers])
        if self.kind is Kind.RELATIVE:
            mixed = isinstance(self.structure, Mixed)
            where = ends(len(layers)) if mixed else [slice(0, 0), slice(0, len(layers)), slice(0, 0)]
            parts = list(zip(self.structure_names, where, strict=True))
            self.forms = forms(model, layers, parts, self.activation)
            check_used(self.zone, self.forms)

    @property
    def observes(self) -> bool:
        """Whether it is the statistics' turn at this step."""
        return self.step % self.stats_period == 0

    @property
    def takes_gradients(self) -> bool:
        """Whether the statistics of this step are back-propagated: the relative Fisher's within two layers only."""
        taken = self.observes and not (self.late and self.step)  # later ones come from the pass after the step
        return taken and (self.kind is not Kind.RELATIVE or any(form.next for form in self.forms))

    def observe(
        self,
        captured: Captured,
        likelihood: Likelihood,
        y: Tensor,
        observed: list[Tensor],
        mean: Tensor,
        streams: Streams,
        *,
        thinned: bool = False,
        spanned: bool = True,
    ) -> None:
        """Update the statistics from a batch, where it is their turn.

        Args:
            captured: The forward pass.
            likelihood: Of its outputs.
            y: Observed targets.
            observed: Pre-activation gradients of the observed targets.
            mean: E[y | f] at the outputs.
            streams: Source of label noise.
            thinned: Whether these are but the examples that statistics are taken from, every `stride`-th.
            spanned: Whether the gradient is the mean of the examples' own: not where batch normalisation couples them.
        """
        if not self.observes or (self.late and self.step):
            return
        if self.stride > 1 and not thinned:
            captured, mean = captured.thinned(self.stride), mean[..., :: self.stride, :]
            observed = [g[..., :: self.stride, :] for g in observed]
            y = examples(y, captured.output, slice(None, None, self.stride))
        noise = None
        if self.kind is Kind.MC:
            shape = (self.samples, *captured.output.shape[-2:])
            streams.device = captured.output.device  # the model may have moved
            noise = likelihood.noise(streams, self.step, shape, captured.output.dtype)
            # A stream axis [S, ...] stands beside the replicas' [S, H, ...].
            noise = noise.unsqueeze(1) if noise.ndim == 4 else noise
        with full_precision():
            if self.kind is Kind.RELATIVE:
                found = relative_statistics(captured, likelihood, self.forms, self.zone)
            else:
                found = statistics(self.kind, captured, likelihood, y, observed, noise, self.max_columns, mean)
            if not self.late:
                self._update(found if spanned else replace(found, coefficients=None))
            elif self.ema_start == "identity":
                self.structure.start_at_identity(found)
            else:  # for this step alone: the average starts after it, from the same batch
                self.structure.update(found, 0.0)

    def observe_late(self, captured: Captured, likelihood: Likelihood) -> None:
        """Update the statistics after a step, where it was their turn.

        Args:
            captured: A forward pass by the new weights.
            likelihood: Of its outputs.
        """
        with full_precision():
            self._update(relative_statistics(captured.thinned(self.stride), likelihood, self.forms, self.zone))

    @property
    def observes_late(self) -> bool:
        """Whether the step just taken asks for statistics after it."""
        return self.late and (self.step - 1) % self.stats_period == 0

    def __call__(self, gradient: MeanGradient, extra: list[Tensor] | None, damping: Tensor) -> list[Tensor]:
        """Make one natural gradient, with a fresh factorisation where it is its turn.

        Args:
            gradient: Of the mean nll; not formed where the structure needs none.
            extra: L2's part of the objective's gradient, per layer.
            damping: lambda (plus L2 where it counts as curvature), float64 [...].

        Returns:
            (F + lambda I)^-1 (gradient + extra), per layer.
        """
        self._failed_before = self._failed
        with full_precision():
            if self._stale or self._due():
                self._stale = False
                self.refreshed = self.structure.refresh(damping, self.inverse_period)
                self._mark(self.refreshed)
            direction = self.structure.solve_mean(gradient, extra)
        self.step += 1
        return direction

    def again(self, gradient: MeanGradient, extra: list[Tensor] | None, damping: Tensor) -> list[Tensor]:
        """Make the natural gradient of the step just made anew, with another damping.

        What cannot be factorised is told by `refreshed` alone: whether it counts, `settle` says.

        Args:
            gradient: As before.
            extra: As before.
            damping: lambda, float64 [...].

        Returns:
            (F + lambda I)^-1 (gradient + extra), per layer.
        """
        with full_precision():
            self.refreshed = self.structure.refresh(damping, self.inverse_period)
            return self.structure.solve_mean(gradient, extra)

    def settle(self, failed: Tensor) -> None:
        """Let count, of the factorisations of the step just made, only the one that was chosen.

        Args:
            failed: Which of its blocks could not be made, bool [blocks, ...].
        """
        self.refreshed, self._failed = failed, self._failed_before
        self._mark(failed, self.step - 1)

    def _due(self) -> bool:
        """Whether this step factorises."""
        if self.inverse_early:
            return self.step < self.inverse_early or (self.step + 1) % self.inverse_period == 0
        return self.step % self.inverse_period == 0

    def _update(self, stats: Statistics) -> None:
        self.updates += 1
        decay = self.ema
        if self.ema_start == "batch":
            decay = min(1 - 1 / self.updates, self.ema)
        elif self.updates == 1 and not self.late:
            self.structure.start_at_identity(stats)
        self.structure.update(stats, decay)
        if self.tell_trace is not None:
            self.tell_trace(stats.trace)

    def _mark(self, failed: Tensor, at: int | None = None) -> None:
        """Remember the first failure of each replica, without reading it."""
        hit = failed.any(0)
        if self._failed is None:
            never = torch.full_like(hit, -1, dtype=torch.int64)
            self._failed = (never, never)
        step, block = self._failed
        fresh = hit & (step < 0)
        now = torch.full_like(step, self.step if at is None else at)
        self._failed = (torch.where(fresh, now, step), torch.where(fresh, failed.int().argmax(0), block))

    def failures(self) -> tuple[Tensor, Tensor] | None:
        """Where the solves first failed; reading the tensors synchronises.

        Returns:
            First failed step (-1 for none) and block, int64 [...]; None before the first refresh.
        """
        return self._failed

    def forgive(self) -> None:
        """Forget the failures, and factorise anew at the next step, whose damping may be larger."""
        self._failed, self._stale = None, True

    def state_dict(self) -> dict[str, Any]:
        """Collect the state that a bit-exact resume needs.

        Returns:
            Counters, failures and the structure's factors.
        """
        failed = None if self._failed is None else list(self._failed)
        counters = {"step": self.step, "updates": self.updates, "stale": self._stale}
        return counters | {"failed": failed, "structure": self.structure.state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Args:
            state: As `state_dict` returned it.
        """
        self.step, self.updates, self._stale = state["step"], state["updates"], state["stale"]
        self._failed = None if state["failed"] is None else (state["failed"][0], state["failed"][1])
        self.structure.load(state["structure"])
