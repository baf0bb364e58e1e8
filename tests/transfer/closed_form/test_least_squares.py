import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from transmamba.distill import ends_process
from transmamba.models import MambaLM, ViT, replace_mixers, vmamba_v2
from transmamba.nn import Attention, MambaMixer
from transmamba.transfer import LeastSquares, fit_layers, fit_stages


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def data(tokens=50, features=6, targets=3):
    z = torch.randn(tokens, features, dtype=torch.float64)
    y = z @ torch.randn(features, targets, dtype=torch.float64) + torch.randn(tokens, targets, dtype=torch.float64)
    return z, y + 2


def fitted(*batches, bias=False, **options):
    fit = LeastSquares(batches[0][0].shape[-1], batches[0][1].shape[-1], bias=bias, **options)
    for z, y, *more in batches:
        fit.update(z, y, **(more[0] if more else {}))
    return fit


@pytest.mark.parametrize("bias", [False, True])
def test_without_ridge_it_is_least_squares(bias):
    z, y = data()
    got = fitted((z, y), bias=bias).solve(0.0)
    wanted = torch.linalg.lstsq(torch.cat([z, torch.ones(50, 1)], 1) if bias else z, y).solution.T
    torch.testing.assert_close(got.weight, wanted[:, :6])
    if bias:
        torch.testing.assert_close(got.bias, wanted[:, 6])


@pytest.mark.parametrize("bias", [False, True])
def test_the_gradient_of_the_penalised_error_vanishes(bias):
    z, y = data()
    w = torch.rand(50, dtype=torch.float64)
    weight, b = fitted((z, y, {"weights": w}), bias=bias).solve(0.3)
    weight.requires_grad_()
    mean = (w @ z) / w.sum() if bias else 0.0
    g = (w[:, None] * (z - mean) ** 2).sum(0).mean()
    # the best bias for a weight follows from the means
    offset = ((w @ y) - weight @ (w @ z)) / w.sum() if bias else 0.0
    loss = (w[:, None] * (y - z @ weight.T - offset) ** 2).sum() + 0.3 * g * weight.square().sum()
    assert torch.autograd.grad(loss, weight)[0].abs().max() < 1e-10 * loss
    if bias:
        torch.testing.assert_close(b, offset.detach())


@pytest.mark.parametrize("bias", [False, True])
def test_r2_is_that_of_the_errors(bias):
    z, y = data()
    fit = fitted((z, y), bias=bias)
    weight, b = fit.solve(0.1)
    errors = y - z @ weight.T - (b if bias else 0)
    assert fit.r2(weight, b) == pytest.approx(1 - float(errors.square().sum() / (y - y.mean(0)).square().sum()))
    other_z, other_y = data(20)
    held_out = fitted((other_z, other_y), bias=bias)
    errors = other_y - other_z @ weight.T - (b if bias else 0)
    spread = (other_y - other_y.mean(0)).square().sum()
    assert held_out.r2(weight, b) == pytest.approx(1 - float(errors.square().sum() / spread))


def test_batches_add_up_and_padding_may_hold_anything():
    z, y = data(60)
    whole = fitted((z, y), bias=True)
    padded_z, padded_y = (torch.full((4, 20, x.shape[1]), torch.nan, dtype=x.dtype) for x in (z, y))
    mask = torch.arange(20).expand(4, 20) < 15
    padded_z[mask], padded_y[mask] = z, y
    parts = fitted(*((padded_z[i], padded_y[i], {"mask": mask[i]}) for i in range(4)), bias=True)
    assert parts.tokens == whole.tokens == 60
    for one, other in zip(parts.solve(), whole.solve(), strict=True):
        torch.testing.assert_close(one, other)


def test_a_weight_of_two_is_a_token_twice():
    z, y = data(20)
    twice = fitted((torch.cat([z, z[:5]]), torch.cat([y, y[:5]])), bias=True).solve()
    weights = torch.ones(20, dtype=torch.float64)
    weights[:5] = 2
    weighted = fitted((z, y, {"weights": weights}), bias=True).solve()
    for one, other in zip(twice, weighted, strict=True):
        torch.testing.assert_close(one, other)


def test_memory_does_not_grow_and_half_precision_is_summed_exactly():
    fit = LeastSquares(4, 2)
    for _ in range(3):
        fit.update(torch.randn(7, 100, 4).bfloat16(), torch.randn(7, 100, 2).bfloat16())
    assert fit.tokens == 2100
    assert sum(t.numel() for t in vars(fit).values() if isinstance(t, torch.Tensor)) == 4 * 6 + 6 + 3
    single = LeastSquares(4, 2, products=torch.float32)
    z, y = (x.float() for x in data(1000, 4, 2))
    single.update(z, y)
    torch.testing.assert_close(single.solve().weight, fitted((z, y)).solve().weight, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("products", [torch.float32, torch.float64])
def test_autocast_does_not_round_the_products(products):
    z, y = (x.float() for x in data(1000, 4, 2))
    plain, cast = (LeastSquares(4, 2, products=products) for _ in range(2))
    plain.update(z, y)
    with torch.autocast("cpu", torch.bfloat16):
        cast.update(z, y)
    torch.testing.assert_close(cast.solve(0.0).weight, plain.solve(0.0).weight, rtol=0, atol=0)


def test_clear_errors():
    z, y = data(5)
    fit = fitted((z, y))
    with pytest.raises(ValueError, match="5 tokens for 6 unknowns: fewer than 6 would be learnt by heart"):
        fit.solve()
    assert fit.solve(min_tokens=1).weight.shape == (3, 6)
    z, y = data()
    z[:, 3] = z[:, 2]
    with pytest.raises(ValueError, match="6 features are linearly dependent: give a larger ridge than 0.0"):
        fitted((z, y)).solve(0.0)
    fitted((z, y)).solve(1e-3)
    z[0, 0] = torch.inf
    with pytest.raises(ValueError, match="NaN or infinity: mask the padding"):
        fitted((z, y)).solve()
    with pytest.raises(ValueError, match="NaN or infinity: mask the padding"):
        fitted((torch.ones(50, 6), torch.full((50, 3), torch.inf))).solve()
    with pytest.raises(ValueError, match="expected 6 features and 3 targets per token, got 6 and 2"):
        fit.update(z, y[:, :2])
    with pytest.raises(ValueError, match="weights must not be negative"):
        fit.update(z, y, weights=-torch.ones(50))
    with pytest.raises(ValueError, match="ridge must not be negative, got -1"):
        fit.solve(-1.0)
    with pytest.raises(ValueError, match="products must be torch.float32 or torch.float64, got torch.bfloat16"):
        LeastSquares(2, 1, products=torch.bfloat16)
    with pytest.raises(ValueError, match="0 tokens"):
        LeastSquares(2, 1).solve(min_tokens=0)


@ends_process
def _reduced(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(0)
    z, y = data()
    part = slice(0, 20) if rank == 0 else slice(20, None)
    fit = fitted((z[part], y[part]), bias=True)
    fit.all_reduce()
    assert fit.tokens == 50
    for one, other in zip(fit.solve(), fitted((z, y), bias=True).solve(), strict=True):
        torch.testing.assert_close(one, other)
    _same_student(rank)
    _same_pyramid(rank)


def _same_student(rank):
    """Check that two processes find the fit of one with all batches, and the same measures."""
    teacher = MambaLM(11, 8, depth=2, mixer=partial(Attention, heads=2, causal=True)).eval()
    students = [replace_mixers(teacher, {1: MambaMixer}) for _ in range(2)]
    students[1].load_state_dict(students[0].state_dict())
    batches = list(torch.randint(11, (4, 4, 12)).unbind())
    options = {"layers": [1], "progress": False, "products": torch.float64}
    whole = fit_layers(teacher, students[0], batches, **options)
    parts = fit_layers(teacher, students[1], batches[rank::2], process_group=dist.group.WORLD, **options)
    torch.testing.assert_close(_numbers(parts), _numbers(whole))
    torch.testing.assert_close(*(student.blocks[1].mixer.out_proj.weight for student in students))


def _same_pyramid(rank):
    """Check the same of a student in stages, whose downsampling ends in a norm."""
    teacher = ViT(32, 8, dim=12, depth=2, heads=2, num_classes=3).eval()
    students = [vmamba_v2((4, 8), (1, 1), num_classes=3) for _ in range(2)]
    students[1].load_state_dict(students[0].state_dict())
    batches = list(torch.randn(4, 4, 3, 32, 32).unbind())
    options = {"projections": [torch.eye(4, 12), torch.eye(8, 12)], "progress": False, "products": torch.float64}
    whole = fit_stages(teacher, students[0], batches, **options)
    parts = fit_stages(teacher, students[1], batches[rank::2], process_group=dist.group.WORLD, **options)
    torch.testing.assert_close(parts.inputs, whole.inputs)
    torch.testing.assert_close(_numbers(parts), _numbers(whole), rtol=1e-4, atol=1e-5)
    for one, other in zip(*(student.parameters() for student in students), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def _numbers(report):
    return torch.tensor([0.0 if value is None else value for row in report.rows for value in row])


def test_the_sums_of_all_processes(tmp_path):
    # the processes that torch spawns find their function by the path of a script
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    subprocess.run([sys.executable, __file__, str(tmp_path)], check=True, timeout=120, env=environment)


if __name__ == "__main__":
    mp.spawn(_reduced, args=(sys.argv[1],), nprocs=2)
