"""Shared fixtures. Nested calls are shape-checked too, and uninitialised memory is NaN."""

import os

os.environ.setdefault("TRANSMAMBA_CHECK", "all")
# tensors are tiny: a second thread only waits, and on a busy machine it makes the others wait
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings

# a busy machine does not count as a failure
settings.register_profile("patient", deadline=None, derandomize=True)
# `--hypothesis-profile=explore` draws other examples every time, as the weekly run does
settings.register_profile("explore", deadline=None)
settings.load_profile("patient")
torch.utils.deterministic.fill_uninitialized_memory = True


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _poison():
    # deterministic mode also fills the results of torch.empty with NaN, so that a forgotten write shows
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def pytest_collection_modifyitems(config, items):
    skip_gpu = pytest.mark.skip(reason="needs an NVIDIA GPU")
    skip_slow = pytest.mark.skip(reason="takes minutes: run with -m slow")
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(skip_gpu)
        if item.get_closest_marker("slow") and "slow" not in (config.option.markexpr or ""):
            item.add_marker(skip_slow)
