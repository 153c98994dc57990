"""Optimizers: natural gradient = kind x structure x damping x step rule, and the plain ones beside it."""

from fisherlab.optim.optimizer import FisherOptimizer
from fisherlab.optim.preconditioner import Preconditioner
from fisherlab.optim.presets import EFNGD, KFAC, NAG, RNGD, SGD, Adam, KFACMartens, NaturalGradient

__all__ = [
    "EFNGD",
    "KFAC",
    "NAG",
    "RNGD",
    "SGD",
    "Adam",
    "FisherOptimizer",
    "KFACMartens",
    "NaturalGradient",
    "Preconditioner",
]
