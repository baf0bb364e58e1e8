"""VideoMamba gives the official numbers, for clips and for images."""

import pytest
import torch

from tests.models.official.cases import check_class_token_model, check_directions, every_run, load
from transmamba.models import to_official

CASES = ("videomamba_a_video", "videomamba_b_image")


@every_run(*CASES)
def test_logits_streams_and_gradients_are_the_official_ones(case, dtype, backend):
    check_class_token_model(case, dtype, backend)


@every_run(*CASES)
def test_directions_are_the_official_ones(case, dtype, backend):
    check_directions(case, dtype, backend)


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
