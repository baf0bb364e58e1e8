import pytest
import torch

from transmamba.models import VideoMamba
from transmamba.nn import TubeletEmbed


def build(**options):
    return VideoMamba((8, 12), 4, dim=12, depth=2, num_classes=5, **options).eval()


def test_frames_share_the_positions_and_have_one_each():
    model = build(num_frames=3)
    with torch.no_grad():
        model.temporal_pos_embed.normal_()
    x = torch.randn(2, 3, 3, 8, 12)
    tokens, patches = model.embed(x), model.patch_embed(x)
    assert model.grid == (3, 2, 3) and tokens.shape == (2, 19, 12)
    torch.testing.assert_close(tokens[0, 0], (model.cls_token + model.pos_embed[:, :1])[0, 0])
    for frame in range(3):
        expected = patches[:, 6 * frame : 6 * frame + 6] + model.pos_embed[:, 1:] + model.temporal_pos_embed[:, [frame]]
        torch.testing.assert_close(tokens[:, 1 + 6 * frame : 7 + 6 * frame], expected)


def test_patches_may_span_frames():
    model = build(num_frames=4, tubelet=2)
    assert model.grid == (2, 2, 3) and model(torch.randn(2, 3, 4, 8, 12)).shape == (2, 5)


def test_a_new_clip_model_does_not_know_the_order_of_frames_by_position():
    assert not build(num_frames=3).temporal_pos_embed.any()
    assert build().temporal_pos_embed is None


def test_another_number_of_frames_is_refused():
    with pytest.raises(ValueError, match=r"built for a patch grid of \(3, 2, 3\), the input has \(2, 8, 12\) frames"):
        build(num_frames=3)(torch.randn(2, 3, 2, 8, 12))


def test_frames_that_do_not_fill_a_box_are_refused():
    embed = TubeletEmbed(6, tubelet=2, patch_size=4)
    with pytest.raises(
        ValueError, match=r"boxes of \(2, 4, 4\) frames, rows, columns do not tile a clip of \(3, 8, 8\)"
    ):
        embed(torch.randn(1, 3, 3, 8, 8))


def test_blocks_with_an_mlp_have_a_transformers_norms():
    model = build(num_frames=3, mlp=True)
    norms = [model.norm, *(norm for block in model.blocks for norm in (block.norm1, block.norm2))]
    assert all(isinstance(norm, torch.nn.LayerNorm) for norm in norms)
    assert build(num_frames=3).blocks[0].mlp is None
