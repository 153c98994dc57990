"""The Fisher against the empirical Fisher at one point of a training path, with controls.

At one damping the cosine of the two natural gradients mixes label bias, sampling noise and damping. So beside EF stand
a Fisher of one sampled label per example (noise without bias), K-FAC's approximations, a grid of dampings at equal and
at trace-matched lambda, and curvature from the gradient's batch and from an independent one. All in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fisherlab.fisher.capture import Capture, Captured
from fisherlab.fisher.kinds import MAX_COLUMNS, Kind, Statistics, statistics
from fisherlab.fisher.matrices import KFAC, Matrix, Vectors
from fisherlab.likelihood import Likelihood
from fisherlab.streams import Streams

Row = dict[str, float | int | str]
Batch = tuple[Tensor, Tensor]
# What is held against what: the control, and the matrix that it stands for.
CONTROLS = {"ef": "fisher", "mc": "fisher", "kfac": "fisher", "kfac_ef": "kfac"}
PROBES = 20  # of the Hessian; its norms are estimates with a relative deviation of about a tenth
SPECTRUM = 20  # eigenvalues that are told
LINE = range(-12, 3)  # powers of two of the line search


@dataclass(frozen=True)
class Settings:
    """What is compared.

    Attributes:
        dampings: Values of lambda, each above 0.
        samples: None takes the exact Fisher for the Fisher, a number that many sampled labels per example (for models
            with many outputs).
        probes: Random vectors for the norms of the Hessian; 0 leaves it out.
        seed: Of the sampled labels and the probes.
        max_columns: The most outputs for the exact Fisher.
    """

    dampings: Sequence[float] = (1e-4, 1e-2, 1.0)
    samples: int | None = None
    probes: int = PROBES
    seed: int = 0
    max_columns: int = MAX_COLUMNS


class Point:
    """A model at one point of its path, with the gradient of a batch.

    Args:
        model: In float64, in evaluation mode, without replica axes.
        likelihood: Of its outputs.
        batch: Gives the gradient, and the measured loss.
        settings: What is compared.
    """

    def __init__(self, model: nn.Module, likelihood: Likelihood, batch: Batch, settings: Settings) -> None:
        self.capture, self.likelihood, self.batch, self.settings = Capture(model), likelihood, batch, settings
        self.model = model
        captured, observed = self._captured(batch)
        n = captured.output.shape[-2]
        self.gradient = [i.weighted_sum(g, 1 / n) for i, g in zip(captured.inputs, observed, strict=True)]
        self.residual = float(likelihood.residual(captured.output, batch[1]).square().sum(-1).mean())
        self.loss = float(likelihood.nll(captured.output, batch[1]).mean())

    @property
    def names(self) -> list[str]:
        """The covered layers."""
        return [layer.name for layer in self.capture.layers]

    def _captured(self, batch: Batch) -> tuple[Captured, list[Tensor]]:
        captured = self.capture(batch[0])
        observed, _ = captured.backward(self.likelihood.residual(captured.output, batch[1]))
        return captured, observed

    def matrices(self, batch: Batch, purpose: int) -> dict[str, Matrix]:
        """Estimate all matrices from one batch.

        Args:
            batch: Inputs and targets.
            purpose: Tells the label noise of several batches apart.

        Returns:
            fisher, ef, mc, kfac (of the Fisher), kfac_ef (of EF).
        """
        captured, observed = self._captured(batch)
        streams, settings = Streams(self.settings.seed, captured.output.device), self.settings

        def of(kind: Kind, samples: int = 1, counter: int = 0) -> Statistics:
            shape = (samples, *captured.output.shape[-2:])
            mc = kind is Kind.MC
            noise = self.likelihood.noise(streams, 2 * purpose + counter, shape, torch.float64) if mc else None
            return statistics(kind, captured, self.likelihood, batch[1], observed, noise, settings.max_columns)

        ef = of(Kind.EMPIRICAL)
        fisher = of(Kind.EXACT) if settings.samples is None else of(Kind.MC, settings.samples, 1)
        vectors = {"fisher": Vectors(fisher), "ef": Vectors(ef), "mc": Vectors(of(Kind.MC))}
        return {**vectors, "kfac": KFAC(fisher), "kfac_ef": KFAC(ef)}

    def descent(self, direction: list[Tensor], curvature: Matrix) -> Row:
        """Go along a direction by the step at which the quadratic model with the Fisher is lowest.

        Args:
            direction: v, per layer; the step is theta - alpha v.
            curvature: The Fisher F.

        Returns:
            best_step alpha = g^T v / v^T F v, predicted decrease (g^T v)^2 / (2 v^T F v), measured decrease of the
            batch's loss there; and line_step, line_decrease: the best of this step and its fractions and multiples by
            powers of two, because the model may not hold that far. Decreases are in nats.
        """
        along, form = _dot(self.gradient, direction), curvature.quadratic(direction)
        if form <= 0:
            return dict.fromkeys(("best_step", "predicted", "measured", "line_step", "line_decrease"), math.nan)
        alpha = along / form
        tried = {alpha * 2.0**k: self.loss - self.loss_along(direction, alpha * 2.0**k) for k in LINE}
        best = max(tried, key=lambda step: tried[step] if math.isfinite(tried[step]) else -math.inf)
        found: Row = {"best_step": alpha, "predicted": along**2 / form / 2, "measured": tried[alpha]}
        return {**found, "line_step": best, "line_decrease": tried[best]}

    @torch.no_grad()
    def loss_along(self, direction: list[Tensor], alpha: float) -> float:
        """The batch's loss after a step; the weights come back to the bit.

        Args:
            direction: v, per layer.
            alpha: Step size.

        Returns:
            The loss at theta - alpha v.
        """
        parameters = [p for layer in self.capture.layers for p in layer.parameters]
        before = [p.clone() for p in parameters]
        parts = (part for layer, v in zip(self.capture.layers, direction, strict=True) for part in layer.split(v))
        for p, part in zip(parameters, parts, strict=True):
            p.sub_(part, alpha=alpha)
        after = float(self.likelihood.nll(self.model(self.batch[0]), self.batch[1]).mean())
        for p, old in zip(parameters, before, strict=True):
            p.copy_(old)
        return after

    def hessian_distance(self, fisher: Matrix) -> float:
        """||H - F|| / ||H|| of the gradient's batch, by random vectors: E|Hz|^2 = ||H||^2 for standard normal z.

        Args:
            fisher: F of the same batch.

        Returns:
            The ratio; NaN without probes, and where F is sampled, whose noise would be part of the distance.
        """
        if self.settings.samples is not None:
            return math.nan
        parameters = [p for layer in self.capture.layers for p in layer.parameters]
        with torch.enable_grad():
            loss = self.likelihood.nll(self.model(self.batch[0]), self.batch[1]).mean()
            gradients = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
        streams, whole, apart = Streams(self.settings.seed, self.batch[0].device), 0.0, 0.0
        for probe in range(self.settings.probes):
            z = [streams.normal(f"probe/{i}", probe, p.shape, p.dtype) for i, p in enumerate(parameters)]
            options = {"retain_graph": True, "materialize_grads": True}
            hz = self._joined(list(torch.autograd.grad(gradients, parameters, z, **options)))
            fz = fisher.structure.matvec(self._joined(z))
            whole += _dot(hz, hz)
            apart += sum(float((h - f).square().sum()) for h, f in zip(hz, fz, strict=True))
        return math.sqrt(apart / whole) if whole > 0 else math.nan

    def _joined(self, parts: list[Tensor]) -> list[Tensor]:
        left = iter(parts)
        return [layer.join([next(left) for _ in layer.parameters]) for layer in self.capture.layers]


def compare(point: Point, batches: dict[str, Batch]) -> tuple[list[Row], list[Row]]:
    """Hold all matrices of all batches against each other.

    Args:
        point: The model, with the gradient of the batch `same`.
        batches: Where the curvature comes from: `same`, and `independent` where there are enough examples.

    Returns:
        Rows of fisher.csv, one per batch, control, damping, match and layer (`all`, then each); and of its spectra.
    """
    rows: list[Row] = []
    spectra: list[Row] = []
    for number, (name, batch) in enumerate(batches.items()):
        matrices = point.matrices(batch, number)
        own = name == "same"
        distance = point.hessian_distance(matrices["fisher"]) if own else math.nan
        about: Row = {"batch": name, "loss": point.loss, "residual": point.residual, "hessian_distance": distance}
        rows += [about | row for row in _Contest(point, matrices, own).rows()]
        for kind, matrix in matrices.items():
            top = matrix.eigenvalues[:SPECTRUM].tolist()
            spectra += [{"batch": name, "matrix": kind, "index": i, "eigenvalue": v} for i, v in enumerate(top)]
    return rows, spectra


class _Contest:
    """The matrices of one curvature batch."""

    def __init__(self, point: Point, matrices: dict[str, Matrix], own: bool) -> None:
        self.point, self.matrices, self.own = point, matrices, own
        self.fisher = matrices["fisher"]
        self.sizes = {name: _sizes(matrix) for name, matrix in matrices.items()}

    def rows(self) -> Iterator[Row]:
        """All controls at all dampings, F itself first."""
        for damping in self.point.settings.dampings:
            gradient = self.point.gradient
            plain = {name: m.solve(gradient, damping, own=self.own) for name, m in self.matrices.items()}
            yield from self._tell("fisher", plain["fisher"], plain["fisher"], damping, "equal")
            for control, against in CONTROLS.items():
                yield from self._tell(control, plain[control], plain[against], damping, "equal")
                # Where there is no trace, no damping matches.
                scale = self.sizes[control][0][0] / (self.sizes[against][0][0] or math.nan)
                if scale > 0:
                    matched = self.matrices[control].solve(gradient, damping * scale, own=self.own)
                    yield from self._tell(control, matched, plain[against], damping, "trace")

    def _tell(
        self, control: str, direction: list[Tensor], other: list[Tensor], damping: float, match: str
    ) -> Iterator[Row]:
        """Rows of one direction, for all layers and for each."""
        against = CONTROLS.get(control, "fisher")
        reference = self.matrices[against]
        whole, layers = self.matrices[control].inners(reference)
        descent = self.point.descent(direction, self.fisher)
        for i, (layer, inner) in enumerate(zip(["all", *self.point.names], [whole, *layers], strict=True)):
            part = slice(None) if i == 0 else slice(i - 1, i)
            row: Row = {"layer": layer, "lambda": damping, "match": match, "control": control, "against": against}
            row["cosine"] = _cosine(direction[part], other[part])
            row["cosine_gradient"] = _cosine(direction[part], self.point.gradient[part])
            for name, of in (("fisher", "fisher"), ("ef", "ef"), ("control", control)):
                trace, norm = self.sizes[of][i]
                row |= {f"trace_{name}": trace, f"norm_{name}": norm, f"rank_{name}": _rank(trace, norm)}
            row |= _distances(inner, self.sizes[control][i][1], self.sizes[against][i][1])
            yield row | (descent if i == 0 else {})


def _sizes(matrix: Matrix) -> list[tuple[float, float]]:
    """Trace and norm: of all, then of every layer."""
    whole, layers = matrix.squares
    traces = matrix.traces
    return [(sum(traces), math.sqrt(whole)), *zip(traces, map(math.sqrt, layers), strict=True)]


def _distances(inner: float, norm: float, reference: float) -> Row:
    """||R - M|| / ||R||, plain and at the scale c that makes ||R - c M|| least."""
    if norm == 0 or reference == 0:
        return {"distance": math.nan, "best_scale": math.nan, "distance_scaled": math.nan}
    plain = max(reference**2 - 2 * inner + norm**2, 0.0)
    scaled = max(reference**2 - (inner / norm) ** 2, 0.0)
    found = {"distance": math.sqrt(plain) / reference, "best_scale": inner / norm**2}
    return {**found, "distance_scaled": math.sqrt(scaled) / reference}


def _rank(trace: float, norm: float) -> float:
    """Effective rank, (tr M)^2 / tr M^2: n for n equal eigenvalues."""
    return (trace / norm) ** 2 if norm > 0 else math.nan


def _dot(left: list[Tensor], right: list[Tensor]) -> float:
    return sum(float((a * b).sum()) for a, b in zip(left, right, strict=True))


def _cosine(left: list[Tensor], right: list[Tensor]) -> float:
    norms = math.sqrt(_dot(left, left) * _dot(right, right))
    return _dot(left, right) / norms if norms > 0 else math.nan
