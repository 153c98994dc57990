"""The Fisher information: capture, kinds, structures."""

from fisherlab.fisher.blocks import Blocks
from fisherlab.fisher.capture import Capture, Captured
from fisherlab.fisher.diagonal import Diagonal
from fisherlab.fisher.full import Full
from fisherlab.fisher.gram import Gram
from fisherlab.fisher.inputs import Inputs
from fisherlab.fisher.kinds import Kind, Statistics, statistics
from fisherlab.fisher.kronecker import Kronecker
from fisherlab.fisher.layer import LayerBlocks
from fisherlab.fisher.mixed import Mixed
from fisherlab.fisher.pairs import PairBlocks
from fisherlab.fisher.shared import SharedBlocks
from fisherlab.fisher.smaller import Smaller
from fisherlab.fisher.structure import Structure
from fisherlab.fisher.tridiagonal import KroneckerTridiagonal
from fisherlab.fisher.unit import UnitBlocks

STRUCTURES: dict[str, type[Structure]] = {
    "kronecker": Kronecker,
    "kronecker_tridiagonal": KroneckerTridiagonal,
    "gram": Gram,
    "full": Full,
    "smaller": Smaller,
    "layer": LayerBlocks,
    "pairs": PairBlocks,
    "unit": UnitBlocks,
    "shared": SharedBlocks,
    "diagonal": Diagonal,
}

__all__ = [
    "STRUCTURES",
    "Blocks",
    "Capture",
    "Captured",
    "Diagonal",
    "Full",
    "Gram",
    "Inputs",
    "Kind",
    "Kronecker",
    "KroneckerTridiagonal",
    "LayerBlocks",
    "Mixed",
    "PairBlocks",
    "SharedBlocks",
    "Smaller",
    "Statistics",
    "Structure",
    "UnitBlocks",
    "statistics",
]
