"""Models: the replica-aware layer, the papers' networks, initialisations."""

from fisherlab.models.dense import Dense
from fisherlab.models.initialise import initialise
from fisherlab.models.networks import autoencoder, deep_linear, linear, mlp, wide
from fisherlab.models.normalise import BatchNorm
from fisherlab.models.replicas import can_replicate, stack_replicas

__all__ = [
    "BatchNorm",
    "Dense",
    "autoencoder",
    "can_replicate",
    "deep_linear",
    "initialise",
    "linear",
    "mlp",
    "stack_replicas",
    "wide",
]
