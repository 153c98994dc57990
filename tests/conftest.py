"""Set up before torch is imported: the same bits whatever the memory alignment, one thread."""

import os

os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
