"""Which jobs of a sweep train as one program: compatible ones, in rectangles of streams x jobs of a stream."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

# What may differ between replicas whatever the optimizer, as dotted keys.
FREE = ("seed", "data_seed", "init_seed", "lr_schedule.end_fraction", "l2")
# Seeds that follow `seed` where they are null: null and a number are one shape.
FOLLOWING = ("data_seed", "init_seed")
# Keys that an optimizer's own arguments repeat; of no account where the argument is there.
MIRRORED = ("lr", "momentum", "damping")


def shape(config: Mapping[str, Any], per_replica: Sequence[str]) -> str:
    """Tell what jobs must have in common to be replicas of one program.

    Args:
        config: A job's plain, resolved config.
        per_replica: The optimizer's arguments that may differ between replicas, where they are numbers.

    Returns:
        A text, equal for compatible jobs.
    """
    plain = copy.deepcopy(dict(config))
    own = [name for name in per_replica if name in plain["optimizer"]]
    for key in (*FREE, *(f"optimizer.{name}" for name in own)):
        _forget(plain, key)
    for name in set(MIRRORED) & set(own):
        plain.pop(name, None)
    return json.dumps(plain, sort_keys=True)


def _forget(plain: dict[str, Any], key: str) -> None:
    *sections, name = key.split(".")
    for section in sections:
        plain = plain[section]
    if type(plain[name]) in (int, float) or (plain[name] is None and name in FOLLOWING):
        # Without L2 a natural gradient is solved for in fewer operations, and so with other roundings.
        plain[name] = "none" if name == "l2" and not plain[name] else "a number"


def stream(config: Mapping[str, Any]) -> tuple[int, int]:
    """Name the random streams that a job draws from.

    Args:
        config: A job's plain, resolved config.

    Returns:
        (seed, data_seed); jobs with equal pairs see the same batches.
    """
    seed, data_seed = config["seed"], config["data_seed"]
    return seed, seed if data_seed is None else data_seed


def rectangles(streams: Sequence[Sequence[T]], limit: int) -> list[list[list[T]]]:
    """Put compatible jobs into groups [S, H].

    Args:
        streams: The jobs of each stream.
        limit: The most jobs of a group.

    Returns:
        Groups, each a list of S streams of H jobs. Streams with the same number of jobs go together; what is more than
        the limit is cut into parts as equal as possible, first along H, then along S.
    """
    groups = []
    for _, alike in itertools.groupby(sorted(streams, key=len, reverse=True), key=len):
        rows = list(alike)
        width = max(1, limit // len(rows))
        for columns in _parts(range(len(rows[0])), width):
            groups += [[[row[h] for h in columns] for row in some] for some in _parts(rows, max(1, limit))]
    return groups


def _parts(items: Sequence[T], most: int) -> list[Sequence[T]]:
    """Cut into the fewest parts of at most `most`, whose sizes differ by at most one."""
    count = -(-len(items) // most)
    ends = [len(items) * i // count for i in range(count + 1)]
    return [items[a:b] for a, b in itertools.pairwise(ends)]
