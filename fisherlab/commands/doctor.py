"""`fisherlab doctor`: one line for each thing that fisherlab stands on."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fisherlab import __version__
from fisherlab.config import conf_dir
from fisherlab.errors import UsageError

REQUIRED = (
    "torch", "torchvision", "numpy", "hydra-core", "omegaconf", "pandas", "matplotlib", "scikit-learn", "tqdm",
    "platformdirs", "filelock",
)  # fmt: skip
OPTIONAL = {"optuna": "tune", "hydra-joblib-launcher": "parallel", "hydra-submitit-launcher": "slurm"}
OK, WARN, FAIL = "ok", "warn", "FAIL"

Finding = tuple[str, str, str]


def main(args: Sequence[str]) -> int:
    """Run `fisherlab doctor`.

    Args:
        args: Nothing.

    Returns:
        Exit status: 1 if fisherlab cannot work here.

    Raises:
        UsageError: If there are arguments.
    """
    if args:
        raise UsageError(f"doctor {' '.join(args)}: expected no arguments")
    broken = False
    for verdict, what, finding in findings():
        print(f"{verdict:<6}{what:<24}{finding}", flush=True)
        broken |= verdict == FAIL
    return int(broken)


def findings() -> Iterator[Finding]:
    """Look at everything.

    Yields:
        Verdict, what was looked at, what was found.
    """
    yield OK, "fisherlab", f"{__version__}, configs in {conf_dir()}"
    yield OK, "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield from (_installed(name) for name in REQUIRED)
    yield from (_optional(name, extra) for name, extra in OPTIONAL.items())
    yield from _machine()
    yield from _data()
    yield _writable("results", Path("results"), "results=FOLDER names another")


def _installed(name: str) -> Finding:
    try:
        return OK, name, version(name)
    except PackageNotFoundError:
        return FAIL, name, "not installed; installing fisherlab with pip brings it"


def _optional(name: str, extra: str) -> Finding:
    try:
        return OK, name, version(name)
    except PackageNotFoundError:
        return OK, name, f"not installed (optional, extra '{extra}')"


def _machine() -> Iterator[Finding]:
    try:
        import torch
    except (ImportError, OSError) as error:
        yield FAIL, "import torch", str(error)
        return
    gpus = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    yield OK, "device", f"cuda ({', '.join(gpus)})" if gpus else "cpu (no CUDA device)"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    verdict, why = (WARN, ": more threads than cores slow each other down") if threads > cores else (OK, "")
    yield verdict, "threads", f"{threads} on {cores} cores{why}"
    drift = "the same run may give other bits alone and in a sweep"
    mkl = torch.backends.mkl.is_available()
    yield (OK, "BLAS", "MKL") if mkl else (WARN, "BLAS", f"not MKL: {drift}")
    mode = os.environ.get("MKL_CBWR", "not set")
    yield (OK, "MKL_CBWR", mode) if mode == "AUTO,STRICT" else (WARN, "MKL_CBWR", f"{mode}, not AUTO,STRICT: {drift}")


def _data() -> Iterator[Finding]:
    from fisherlab.data.command import FETCHED
    from fisherlab.data.sources import data_folder

    folder = data_folder()
    yield _writable("data folder", folder, "FISHERLAB_DATA names another")
    for name, collection in FETCHED.items():
        there = all((folder / file.path).exists() for file in collection.files)
        yield (
            OK,
            f"data {name}",
            "there" if there else f"not there yet; `fisherlab data {name}` fetches it, as first use does",
        )


def _writable(what: str, folder: Path, otherwise: str) -> Finding:
    """Try to write in a folder, or in the nearest one above it that exists; nothing is left behind."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"?")
            file.flush()
    except OSError as error:
        return FAIL, what, f"{folder} cannot be written ({error.strerror}); {otherwise}"
    return OK, what, f"{folder.absolute()} can be written"
