import pytest
import torch
import torch.nn.functional as F

from tests.golden import golden
from transmamba.nn import GatedRMSNorm, RMSNorm, UnitRMSNorm

OPS = golden("ops_a")
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])


def check(case, norm, dtype, inputs):
    given = {name: x.requires_grad_() for name, x in OPS.part(f"{case}/in", dtype).items()}
    cotangent = given.pop("cotangent")
    y = torch.func.functional_call(norm, {"weight": given["weight"]}, inputs(given))
    OPS.check(f"{case}/out/y", y)
    for name, grad in zip(given, torch.autograd.grad((y * cotangent).sum(), list(given.values())), strict=True):
        OPS.check(f"{case}/grad/{name}", grad)


@DTYPES
def test_rms_norm_is_the_official_one(dtype):
    norm = RMSNorm(12).to(dtype)
    check("rmsnorm", norm, dtype, lambda given: (given["x"],))
    check("rmsnorm_prenorm_residual", norm, dtype, lambda given: (given["x"] + given["residual"],))


@DTYPES
@pytest.mark.parametrize(
    ("case", "options"),
    [
        ("gated_rmsnorm_gatefirst", {}),
        ("gated_rmsnorm_normfirst", {"norm_before_gate": True}),
        ("gated_rmsnorm_groups", {"groups": 2}),
    ],
)
def test_gated_norm_is_the_official_one(case, options, dtype):
    check(case, GatedRMSNorm(12, **options).to(dtype), dtype, lambda given: (given["x"], given["z"]))


def test_a_float32_stream_is_normed_before_it_is_rounded():
    norm, x = RMSNorm(7).bfloat16(), torch.randn(2, 3, 7) * 100
    y = norm(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, F.rms_norm(x, (7,), None, 1e-5).bfloat16(), rtol=0, atol=0)


def test_unit_norm_has_mean_square_one_at_any_width():
    for dim in (3, 11):
        y = UnitRMSNorm(1e-12)(torch.randn(5, dim, dtype=torch.float64))
        torch.testing.assert_close(y.square().mean(-1), torch.ones(5, dtype=torch.float64))


def test_groups_must_divide_the_width():
    with pytest.raises(ValueError, match="groups of the norm must divide its width: got 5 groups, width 12"):
        GatedRMSNorm(12, groups=5)
