"""VideoMamba gives the official numbers, for clips and for images."""

import torch

from tests.models.official.cases import check_gradients, every_run, load, without_output_projection
from transmamba.ops import use_backend

CASES = ("videomamba_a_video", "videomamba_b_image")


@every_run(*CASES)
def test_logits_streams_and_gradients_are_the_official_ones(case, dtype, backend):
    data, model, x = load(case, dtype)
    with use_backend(backend):
        features = model.forward_features(x, directions=True)
        x.requires_grad_()
        logits = model(x)
        check_gradients(data, model, x, logits)
    data.check("output/logits", logits)
    data.check("output/features", features.last[:, features.extra[0]])
    for i, stream in enumerate(features.layers[:-1]):
        data.check(f"block/{i + 1}/residual", stream)
    for i in range(len(model.blocks)):
        natural = [part[i][:, order.inverse] for part, order in zip(features.directions, features.orders, strict=True)]
        data.check(f"block/{i}/hidden", sum(natural))


@every_run(*CASES)
def test_directions_are_the_official_ones(case, dtype, backend):
    data, model, _ = load(case, dtype)
    for i, block in enumerate(model.blocks):
        stream = data.tensors[f"block/{i}/residual"].to(dtype)
        with use_backend(backend), torch.no_grad():
            _, parts = without_output_projection(block.mixer).forward_directions(block.norm1(stream))
        for part, name in zip(parts, ("forward", "backward"), strict=True):
            data.check(f"dir/{i}/{name}", part)
