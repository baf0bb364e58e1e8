"""On a GPU: nothing in a training step waits for the device, and values are those of the CPU."""

import copy

import pytest
import torch

from transmamba.distill import AdaptiveLayerDistill, LayerCalibrators, MultiDirectionalDistill

# cuBLAS warns that it may not be deterministic, which nothing here asks of it
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore::UserWarning")]

NAMES = ("forward", "backward", "column", "snake")


def features(device):
    torch.manual_seed(0)
    student = {name: [torch.randn(2, 6, 3).to(device).requires_grad_() for _ in range(3)] for name in NAMES}
    return student, torch.randn(2, 6, 5).to(device), torch.ones(2, 6, dtype=torch.bool, device=device)


def distil(calibrators, loss, student, teacher, mask):
    calibrated = {name: calibrators(layers) for name, layers in student.items()}
    return loss(calibrated, teacher, mask, grid=(2, 3), return_details=True)


@pytest.mark.parametrize("weighting", ["ratio", "neg_cos", "uniform", "linear"])
def test_step_waits_for_nothing(weighting):
    student, teacher, mask = features("cuda")
    calibrators = LayerCalibrators([3] * 3, 5, device="cuda")
    loss = MultiDirectionalDistill(AdaptiveLayerDistill(weighting=weighting))
    distil(calibrators, loss, student, teacher, mask)
    torch.cuda.set_sync_debug_mode("error")
    try:
        value, _ = distil(calibrators, loss, student, teacher, mask)
        value.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_values_are_those_of_the_cpu():
    calibrators = LayerCalibrators([3] * 3, 5)
    loss = MultiDirectionalDistill()
    expected, _ = distil(calibrators, loss, *features("cpu"))
    got, _ = distil(copy.deepcopy(calibrators).cuda(), loss, *features("cuda"))
    torch.testing.assert_close(got.cpu(), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_is_finite(dtype):
    student, teacher, mask = features("cuda")
    with torch.autocast("cuda", dtype):
        value, _ = distil(
            LayerCalibrators([3] * 3, 5, device="cuda"), MultiDirectionalDistill(), student, teacher, mask
        )
    value.backward()
    assert value.isfinite()
    assert all(layer.grad.isfinite().all() for layers in student.values() for layer in layers)
