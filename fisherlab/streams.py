"""Counter-based random streams: the draw depends on (seed, purpose, counter) and on nothing drawn before it.

An optimizer that draws no labels, or draws them every tenth step, therefore sees the same batches as one that does, and
a resumed run needs no generator state.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from fisherlab.errors import UsageError


def key(seed: int, purpose: str, counter: int = 0) -> int:
    """Hash a place in a stream to a 63-bit generator seed.

    Args:
        seed: The run's seed (any integer).
        purpose: What the numbers are for, for example `"order"`.
        counter: Step or epoch.

    Returns:
        A non-negative integer below 2**63.
    """
    digest = hashlib.blake2b(f"{seed}/{purpose}/{counter}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(seed: int, purpose: str, counter: int = 0, device: torch.device | str = "cpu") -> torch.Generator:
    """Make the generator that stands at one place of a stream.

    Args:
        seed: The run's seed.
        purpose: What the numbers are for.
        counter: Step or epoch.
        device: Where the numbers are drawn.

    Returns:
        A fresh generator on `device`.
    """
    return torch.Generator(device).manual_seed(key(seed, purpose, counter))


class Streams:
    """The random streams of one run, or of several seeds side by side.

    Args:
        seeds: One seed, or a sequence of S seeds whose draws are stacked along a leading stream axis; any integers.
        device: Where the numbers are drawn.

    Raises:
        UsageError: If a seed is no integer.
    """

    def __init__(self, seeds: int | Sequence[int], device: torch.device | str = "cpu") -> None:
        try:
            self.seeds: int | list[int] = (
                [operator.index(seed) for seed in seeds] if isinstance(seeds, Iterable) else operator.index(seeds)
            )
        except TypeError:
            raise UsageError(f"seed={seeds!r} is no seed: expected an integer, or one per stream") from None
        self.device = torch.device(device)

    def _draw(self, purpose: str, counter: int, one: Callable[[torch.Generator | None], Tensor]) -> Tensor:
        def at(seed: int) -> torch.Generator | None:
            # A meta tensor has no numbers, so no generator exists for it.
            return None if self.device.type == "meta" else generator(seed, purpose, counter, self.device)

        if isinstance(self.seeds, int):
            return one(at(self.seeds))
        return torch.stack([one(at(seed)) for seed in self.seeds])

    def uniform(self, purpose: str, counter: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Draw from U[0, 1).

        Args:
            purpose: What the numbers are for.
            counter: Step or epoch.
            shape: Shape of one stream's draw.
            dtype: Floating dtype of the result.

        Returns:
            Tensor [*shape], or [S, *shape] for several seeds.
        """
        return self._draw(purpose, counter, lambda g: torch.rand(*shape, generator=g, dtype=dtype, device=self.device))

    def normal(self, purpose: str, counter: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Draw from N(0, 1).

        Args:
            purpose: What the numbers are for.
            counter: Step or epoch.
            shape: Shape of one stream's draw.
            dtype: Floating dtype of the result.

        Returns:
            Tensor [*shape], or [S, *shape] for several seeds.
        """
        return self._draw(purpose, counter, lambda g: torch.randn(*shape, generator=g, dtype=dtype, device=self.device))

    def permutation(self, purpose: str, counter: int, n: int) -> Tensor:
        """Draw a random order of n things.

        Args:
            purpose: What the order is for.
            counter: Epoch.
            n: How many things.

        Returns:
            int64 tensor [n], or [S, n] for several seeds.
        """
        return self._draw(purpose, counter, lambda g: torch.randperm(n, generator=g, device=self.device))
