"""The Triton kernels of the cross scan against the reference; see those of the scan for how they run."""

import pytest
import torch

from tests.ops.cross.problems import compare, problem
from transmamba.ops.cross import triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}
FEATURES = {
    "plain": {"batch": 2, "k": 2},
    "merged": {"merge": True, "k": 2},
    "shared u": {"shared": ("u",), "k": 2},
    "everything shared": {"shared": ("u", "dt", "A", "B", "C", "dt_bias"), "k": 2},
    "natural order": {"without": ("orders",)},
    "no bias, no softplus": {"without": ("dt_bias",), "softplus": False},
    "one state": {"state": 1},
    "time first": {"time_first": True, "without": ("orders",)},
    "several blocks of channels": {"dim": 67, "length": 2},
    "several chunks": {"length": 19},
    "all read one token": {"one_token": True},
    "no query": {"queries": 0},
    "one token": {"length": 1},
    "no token": {"length": 0, "queries": 0},
    "nobody": {"batch": 0},
}


def small(**options):
    p = problem(
        **{"batch": 1, "k": 1, "length": 5, "queries": 3, "dim": 3, "state": 2, "dtype": torch.float32, **options}
    )
    return type(p)(*(x.to(DEVICE) if isinstance(x, torch.Tensor) else x for x in p))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("options", FEATURES.values(), ids=FEATURES.keys())
def test_agrees_with_the_reference(options):
    compare(small(**options), triton, 3e-6, least=1.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_loses_only_what_storing_loses(dtype):
    compare(small(dtype=dtype, merge=True), triton, TOLERANCE[dtype])


@pytest.mark.parametrize("missing", ["y", "last"])
def test_either_gradient_may_be_missing(missing):
    compare(small(), triton, 3e-6, without_gradient=missing)


def test_accepts_what_it_computes():
    assert triton.unsupported_reasons(small()) == []
