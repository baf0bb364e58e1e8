"""`selective_scan` against the official reference operator of mamba_ssm."""

import pytest
import torch

from tests.golden import golden
from transmamba.ops import selective_scan

REAL = golden("selective_scan_real")
CASES = list(REAL.meta["cases"])


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("case", [case for case in CASES if case != "bf16"])
def test_outputs_and_gradients_are_the_official_ones(case, dtype, backend):
    given = REAL.part(f"{case}/in", dtype)
    weights = {name: given.pop(name) for name in list(given) if name.startswith("cotangent")}
    given = {name: x.requires_grad_() for name, x in given.items()}
    softplus = REAL.meta["cases"][case].get("delta_softplus", False)
    y, last = selective_scan(**given, delta_softplus=softplus, return_last_state=True, backend=backend)
    REAL.check(f"{case}/out/y", y)
    REAL.check(f"{case}/out/last_state", last)
    loss = (y * weights["cotangent"]).sum()
    if "cotangent_last_state" in weights:
        loss = loss + (last * weights["cotangent_last_state"]).sum()
    wanted = [name for name in given if f"{case}/grad/{name}" in REAL.tensors]
    assert len(wanted) == len(given)
    grads = torch.autograd.grad(loss, [given[name] for name in wanted], materialize_grads=True)
    for name, grad in zip(wanted, grads, strict=True):
        REAL.check(f"{case}/grad/{name}", grad)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_bfloat16_inputs_are_scanned_in_float32(backend):
    given = {name: x for name, x in REAL.part("bf16/in").items() if name != "cotangent"}
    y = selective_scan(**given, delta_softplus=True, backend=backend)
    assert y.dtype == torch.bfloat16
    expected = REAL.tensors["bf16/out/y"]
    torch.testing.assert_close(y.double(), expected.double(), **REAL.meta["tolerances"]["bfloat16_cases"])
