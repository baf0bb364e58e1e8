"""The parts together, on the library's own models."""

import torch

from transmamba.distill import (
    BidirectionalDistill,
    LayerCalibrators,
    MixingMatrixDistill,
    MultiDirectionalDistill,
    TransMambaLoss,
    align_tokens,
    sample_tokens,
    tap,
)
from transmamba.models.vision_mamba import SNAKES, VisionMamba
from transmamba.models.vit import ViT
from transmamba.ops import mixing_matrix, scan_orders

SIZE = {"img_size": 12, "patch_size": 4, "num_classes": 5}


def models(orders):
    student = VisionMamba(dim=6, depth=2, orders=orders, d_state=3, **SIZE)
    teacher = ViT(dim=10, depth=3, heads=2, distilled=True, **SIZE).eval().requires_grad_(False)
    return student, teacher, torch.randn(3, 3, 12, 12)


def teacher_feature(teacher, images):
    with tap(teacher, "blocks.*", frozen=True) as features:
        teacher(images)
    return align_tokens(torch.empty(3, 9, 1), features.layers[-1], teacher_prefix=2)[1]


def test_tap_hears_what_forward_features_returns():
    student, _, images = models(("forward", "backward"))
    with tap(student, "blocks.*") as features:
        student(images)
    for ours, theirs in zip(features.layers, student.forward_features(images).layers, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_few_steps_bring_both_directions_closer():
    student, teacher, images = models(("forward", "backward"))
    target = teacher_feature(teacher, images)
    calibrators = LayerCalibrators([6, 6], 10)
    distill, total = BidirectionalDistill(), TransMambaLoss.v1(alpha=0.1)
    optimizer = torch.optim.Adam([*student.parameters(), *calibrators.parameters()], lr=1e-2)
    losses = []
    for _ in range(12):
        features = student.forward_features(images, directions=True)
        forward, backward = (calibrators(layers) for layers in features.directions)
        task = torch.nn.functional.cross_entropy(student.forward_head(features), torch.tensor([0, 1, 2]))
        loss = distill(forward, backward, target)
        optimizer.zero_grad()
        total(task, loss).backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    assert not any(name.startswith("calibrators") for name in student.state_dict())


def test_every_parameter_of_the_blocks_learns_from_four_directions():
    student, teacher, images = models(SNAKES)
    features = student.forward_features(images, directions=True)
    named = dict(zip(SNAKES, features.directions, strict=True))
    calibrators = LayerCalibrators([6, 6], 10)
    loss = MultiDirectionalDistill()(
        {name: calibrators(layers) for name, layers in named.items()}, teacher_feature(teacher, images), grid=(3, 3)
    )
    loss.backward()
    silent = {name for name, p in student.blocks[0].named_parameters() if p.grad is None or not p.grad.any()}
    assert not silent


def test_sampled_directions_equal_the_directions_of_the_sample():
    student, teacher, images = models(SNAKES)
    target = teacher_feature(teacher, images)
    features = student.forward_features(images, directions=True)
    sample = sample_tokens(9, 9)
    project = torch.randn(6, 10)
    every, some = {}, {}
    for name, layers, order in zip(SNAKES, features.directions, features.orders, strict=True):
        every[name] = [layer @ project for layer in layers]
        some[name] = [sample.take(layer, order) @ project for layer in layers]
    torch.testing.assert_close(
        MultiDirectionalDistill(order="raster")(some, sample.take(target)),
        MultiDirectionalDistill()(every, target, grid=(3, 3)),
    )


def test_matrices_of_a_mixer_give_its_output_and_can_be_distilled():
    student, _, images = models(("forward", "backward"))
    mixer = student.blocks[0].mixer
    with tap(student, ["blocks.0.mixer", "blocks.0.mixer.in_proj"]) as outputs:
        with tap(student, "blocks.0.mixer.**.x_proj", point="input") as scanned:
            student(images)
    matrices = []
    for branch, u, order in zip(mixer.branches, scanned.layers, scan_orders(student.order_specs, (3, 3)), strict=True):
        dt, A, B, C, D, dt_bias = branch.ssm.scan_parameters(u)
        inputs = (dt[:, None], A[None], B[:, None], C[:, None], D[None])
        matrices.append(mixing_matrix(*inputs, dt_bias=dt_bias[None], softplus=True, orders=[order])[:, 0])
    y = sum(torch.einsum("bdts,bsd->btd", m, u) for m, u in zip(matrices, scanned.layers, strict=True))
    gate = torch.nn.functional.silu(outputs["blocks.0.mixer.in_proj"].chunk(2, -1)[1])
    torch.testing.assert_close(mixer.out_proj(y * gate), outputs["blocks.0.mixer"], atol=1e-6, rtol=1e-4)
    attention = torch.randn(3, 12, 9, 9).softmax(-1)
    MixingMatrixDistill()([sum(matrices)], [attention]).backward()
    assert all(branch.ssm.A_log.grad.any() for branch in mixer.branches)
