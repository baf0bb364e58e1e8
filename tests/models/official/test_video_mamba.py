"""VideoMamba gives the official numbers, for clips and for images."""

import pytest
import torch

from tests.models.official.cases import check_gradients, every_run, load, without_output_projection
from transmamba.models import to_official
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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_video_side_of_the_video_text_models_is_the_official_one(dtype):
    data, model, x = load("videomamba_c_retrieval_optional", dtype)
    visible = data.tensors["input/mask"] == 0
    with torch.no_grad():
        whole, part, image = model(x), model(x, visible), model(x[:, :, 0])
    data.check("output/x_vis", whole.patches)
    data.check("output/x_pool", whole.pooled)
    data.check("output/x_pool_temporal", model(x, per_frame=True).pooled)
    data.check("output/masked_x_vis", part.patches)
    data.check("output/masked_x_pool", part.pooled)
    data.check("output/masked_x_clip", part.aligned[None])
    data.check("output/image_x_pool", image.pooled)
    written, given = to_official(model), data.part("param", dtype)
    assert written.keys() == given.keys() and all(torch.equal(written[name], given[name]) for name in given)
