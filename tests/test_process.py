"""What a process settles, tried in processes of their own, because it cannot be undone."""

import os
import platform
import subprocess
import sys

import pytest

from fisherlab.process import keep_freed_memory

GLIBC = sys.platform == "linux" and platform.libc_ver()[0] == "glibc"
FAULTS = """
import resource, sys
from fisherlab.process import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
bytearray(64 << 20)
before = faults()
for _ in range(10):
    bytearray(64 << 20)
print((faults() - before) / 10)
"""

DENORMALS = """
import torch
from fisherlab.process import settle

torch.set_num_threads(2)
settle()
print((torch.full((1 << 20,), 1e-40) * 1.0).count_nonzero().item(), (torch.tensor(1e-37) * 1.0).item() > 0)
"""


def faults(what, **environment):
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    command = [sys.executable, "-c", FAULTS, what]
    done = subprocess.run(command, env=kept | environment, capture_output=True, text=True, check=True)
    return float(done.stdout)


@pytest.mark.skipif(not GLIBC, reason="concerns glibc only")
def test_a_repeated_allocation_faults_no_page():
    # 64 MB are 16384 small pages, or 32 huge ones.
    assert faults("leave") >= 32
    assert faults("keep") < 1


@pytest.mark.skipif(not GLIBC, reason="concerns glibc only")
def test_what_the_user_has_set_stays():
    assert faults("keep", MALLOC_MMAP_MAX_="65536") >= 32


def test_elsewhere_nothing_happens(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    assert not keep_freed_memory()


def test_another_c_library(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert not keep_freed_memory()


def test_denormals_are_flushed_in_every_thread():
    done = subprocess.run([sys.executable, "-c", DENORMALS], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "True"]
