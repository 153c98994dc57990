"""CURVES and FACES, the other two problems of Hinton and Salakhutdinov (2006): pictures to be reconstructed."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.io import loadmat
from torch import Tensor

from fisherlab.data.dataset import Dataset, Split
from fisherlab.data.sources import data_folder
from fisherlab.errors import UsageError
from fisherlab.streams import generator

# Pixels: of a picture, standard deviation of the pen, left free for the points; and points along a stroke.
SIDE, PEN, MARGIN, SAMPLES = 28, 0.8, 3.0, 64
CURVES, FACES = "digs3pts_1.mat", "newfaces_rot_single.mat"
TRAIN, TEST = 20_000, 10_000
FACE_PIXELS = 625


def curves() -> Dataset:
    """Load CURVES: strokes through three random points, of six degrees of freedom.

    Where the authors' file `digs3pts_1.mat` lies in the folder `curves` of the data folder, it is read; else strokes
    are generated, always the same, and the data set's name says synthetic.

    Returns:
        Pixels in [0, 1] as float32 [N, 784], 20 000 to train and 10 000 to test; the targets are the pictures.
    """
    path = data_folder() / "curves" / CURVES
    if path.exists():
        raw = _matrices(path)
        parts = {"train": _pixels(path, raw, "bdata", SIDE**2), "test": _pixels(path, raw, "bdatatest", SIDE**2)}
        return _reconstruction("curves", "bernoulli", parts)
    drawn = _drawn()
    return _reconstruction("curves (synthetic)", "bernoulli", {"train": drawn[:TRAIN], "test": drawn[TRAIN:]})


def faces_file() -> Path:
    """Name the authors' file of FACES.

    Returns:
        Its path in the data folder, whether it is there or not.
    """
    return data_folder() / "faces" / FACES


def faces() -> Dataset:
    """Load FACES: 165 600 faces of 25 x 25 pixels; the first 25/40 train, the last 10/40 test, as in the authors' code.

    Returns:
        Pixels as float32 [N, 625]; the targets are the pictures, with a Gaussian likelihood.

    Raises:
        UsageError: If the authors' file is not there: it cannot be made from anything else.
    """
    path = faces_file()
    if not path.exists():
        raise UsageError(
            f"dataset=faces needs the authors' file '{path}', which no registry carries: put {FACES} there, or take "
            "dataset=mnist or curves"
        )
    found = next((m for m in _matrices(path).values() if FACE_PIXELS in m.shape), None)
    if found is None:
        raise UsageError(f"'{path}' holds no matrix of faces: expected one with {FACE_PIXELS} rows or columns")
    pixels = torch.from_numpy(np.ascontiguousarray(found if found.shape[1] == FACE_PIXELS else found.T)).float()
    train, test = len(pixels) * 25 // 40, len(pixels) * 10 // 40
    return _reconstruction("faces", "gaussian", {"train": pixels[:train], "test": pixels[len(pixels) - test :]})


@cache
def _drawn() -> Tensor:
    return strokes(torch.rand(TRAIN + TEST, 3, 2, generator=generator(0, "curves")))


def strokes(points: Tensor) -> Tensor:
    """Draw a parabola through each three points, with a soft pen.

    Args:
        points: [N, 3, 2] in [0, 1]; first, middle and last of a stroke.

    Returns:
        Pixels in [0, 1], [N, 784].
    """
    t = torch.linspace(0, 1, SAMPLES).unsqueeze(-1)
    weights = torch.cat([2 * (t - 0.5) * (t - 1), -4 * t * (t - 1), 2 * t * (t - 0.5)], -1)  # Lagrange, at 0, 1/2, 1
    slopes = torch.cat([4 * t - 3, 4 - 8 * t, 4 * t - 1], -1)
    grid, pictures = torch.arange(SIDE, dtype=torch.float32), []
    for some in (MARGIN + points * (SIDE - 1 - 2 * MARGIN)).split(2000):
        path, speed = weights @ some, torch.linalg.vector_norm(slopes @ some, dim=-1)  # [n, samples, 2]
        pen = (path.unsqueeze(-1) - grid).square_().mul_(-0.5 / PEN**2).exp_()  # [n, samples, 2, side]
        # The integral along the stroke: as bright where the pen is slow as where it is fast.
        ink = (pen[:, :, 1] * (speed / SAMPLES).unsqueeze(-1)).mT @ pen[:, :, 0]
        pictures.append((ink / (math.sqrt(2 * math.pi) * PEN)).clamp_(max=1).flatten(1))
    return torch.cat(pictures)


def _reconstruction(name: str, likelihood: str, parts: dict[str, Tensor]) -> Dataset:
    width = parts["train"].shape[-1]
    return Dataset(name, likelihood, width, {part: Split(x, x) for part, x in parts.items()})


def _matrices(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = loadmat(path)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"'{path}' cannot be read ({reason}): expected the authors' {path.name}") from error
    return {name: m for name, m in found.items() if isinstance(m, np.ndarray) and m.ndim == 2}


def _pixels(path: Path, raw: dict[str, Any], name: str, width: int) -> Tensor:
    if name not in raw or width not in raw[name].shape:
        raise UsageError(f"'{path}' has no {name} with {width} pixels: expected the authors' {path.name}")
    m = raw[name] if raw[name].shape[1] == width else raw[name].T
    return torch.from_numpy(np.ascontiguousarray(m)).float()
