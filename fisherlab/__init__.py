"""fisherlab: natural gradient and Fisher information in PyTorch.

The public library; importing it imports neither Hydra nor matplotlib.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fisherlab.data import load_dataset
    from fisherlab.fisher import Capture
    from fisherlab.likelihood import Bernoulli, Categorical, Gaussian
    from fisherlab.models import BatchNorm, Dense, autoencoder, deep_linear, linear, mlp, stack_replicas, wide
    from fisherlab.optim import EFNGD, KFAC, NAG, RNGD, SGD, Adam, KFACMartens, NaturalGradient

_HOMES = {
    "fisherlab.data": ["load_dataset"],
    "fisherlab.fisher": ["Capture"],
    "fisherlab.likelihood": ["Bernoulli", "Categorical", "Gaussian"],
    "fisherlab.models": ["BatchNorm", "Dense", "autoencoder", "deep_linear", "linear", "mlp", "stack_replicas", "wide"],
    "fisherlab.optim": ["EFNGD", "KFAC", "NAG", "RNGD", "SGD", "Adam", "KFACMartens", "NaturalGradient"],
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
__all__ = [
    "EFNGD",
    "KFAC",
    "NAG",
    "RNGD",
    "SGD",
    "Adam",
    "BatchNorm",
    "Bernoulli",
    "Capture",
    "Categorical",
    "Dense",
    "Gaussian",
    "KFACMartens",
    "NaturalGradient",
    "autoencoder",
    "deep_linear",
    "linear",
    "load_dataset",
    "mlp",
    "stack_replicas",
    "wide",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `fisherlab --help` must not wait for torch."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'fisherlab' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME_OF[name]), name)
