"""The Fisher information: capture, kinds, structures."""

from fisherlab.fisher.capture import Capture, Captured, Inputs
from fisherlab.fisher.full import Full
from fisherlab.fisher.gram import Gram
from fisherlab.fisher.kinds import Kind, Statistics, statistics
from fisherlab.fisher.kronecker import Kronecker
from fisherlab.fisher.smaller import Smaller
from fisherlab.fisher.structure import Structure

STRUCTURES: dict[str, type[Structure]] = {"kronecker": Kronecker, "gram": Gram, "full": Full, "smaller": Smaller}

__all__ = [
    "STRUCTURES",
    "Capture",
    "Captured",
    "Full",
    "Gram",
    "Inputs",
    "Kind",
    "Kronecker",
    "Smaller",
    "Statistics",
    "Structure",
    "statistics",
]
