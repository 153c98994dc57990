"""The in-memory data set: tensors on the device, with named splits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fisherlab.errors import UsageError
from fisherlab.streams import generator


@dataclass(frozen=True)
class Split:
    """One named part of a data set.

    Attributes:
        x: Inputs, floating, shape [N, inputs].
        y: Targets: int64 class indices [N] (categorical), else floating [N, outputs].
    """

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        """Count the examples."""
        return len(self.x)


@dataclass(frozen=True)
class Dataset:
    """A data set that lives in memory as tensors.

    Attributes:
        name: Its name, as on the command line.
        likelihood: The natural likelihood of its targets: categorical, bernoulli or gaussian.
        outputs: Size of the model output that this likelihood needs (classes, or target columns).
        splits: The parts by name; always has `train`, and `valid` and `test` where they exist.
    """

    name: str
    likelihood: str
    outputs: int
    splits: Mapping[str, Split]

    @property
    def inputs(self) -> int:
        """Number of input features."""
        return self.splits["train"].x.shape[-1]

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Dataset:
        """Move to a device and floating dtype; class indices stay int64.

        Args:
            device: Where the tensors go.
            dtype: float32 or float64.

        Returns:
            A new data set.
        """

        def move(t: Tensor) -> Tensor:
            return t.to(device, dtype if t.is_floating_point() else t.dtype)

        return replace(self, splits={k: Split(move(s.x), move(s.y)) for k, s in self.splits.items()})

    def resplit(self, sizes: Mapping[str, int], seed: int) -> Dataset:
        """Pool all parts, shuffle and cut anew, as Sun and Nielsen (2017) do with MNIST's 70 000 images.

        Args:
            sizes: Number of examples per new split, in order; must have `train`. -1 takes what is left.
            seed: Names the shuffle (stream `split`).

        Returns:
            A new data set.

        Raises:
            UsageError: If the sizes do not fit the data.
        """
        x = torch.cat([s.x for s in self.splits.values()])
        y = torch.cat([s.y for s in self.splits.values()])
        counts = dict(sizes)
        rest = [k for k, n in counts.items() if n == -1]
        for k in rest[:1]:
            counts[k] = len(x) - sum(n for n in counts.values() if n != -1)
        if "train" not in counts or len(rest) > 1 or min(counts.values()) < 1 or sum(counts.values()) > len(x):
            raise UsageError(
                f"splits={dict(sizes)} does not fit '{self.name}': expected train and positive sizes (one may be -1, "
                f"the rest) adding up to at most {len(x)}"
            )
        order = torch.randperm(len(x), generator=generator(seed, "split")).to(x.device)
        parts = dict(zip(counts, order[: sum(counts.values())].split(list(counts.values())), strict=True))
        return replace(self, splits={k: Split(x[i], y[i]) for k, i in parts.items()})
