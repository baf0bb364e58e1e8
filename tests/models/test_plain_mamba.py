import torch

from transmamba.models import PlainMamba, plain_mamba_l1, plain_mamba_l3
from transmamba.nn import resize_position


def build(**options):
    return PlainMamba((12, 20), 4, dim=12, depth=3, d_state=3, num_classes=5, **options).eval()


def test_only_the_named_blocks_are_convolved():
    assert [block.local is not None for block in build(conv_layers=(0, 2)).blocks] == [True, False, True]


def test_new_models_do_not_scan_as_the_released_ones_do():
    with torch.device("meta"):
        models = [build(), plain_mamba_l1(), plain_mamba_l3()]
    assert not [block for model in models for block in model.blocks if block.mixer.released_scan]
    assert [len(model.patch_embed.convs) // 3 for model in models] == [1, 1, 2]


def test_positions_are_resized_to_the_image():
    model = build()
    x = torch.randn(2, 3, 18, 14)  # halved to 9 x 7, filled up to 10 x 8
    tokens, grid = model._embed(x)
    assert grid == (5, 4) and model.grid == (3, 5)
    added = tokens - model.patch_embed(x).flatten(2).transpose(1, 2)
    torch.testing.assert_close(added[:1], resize_position(model.pos_embed, (3, 5), (5, 4)))


def test_step_sizes_start_as_mambas_do():
    dt = torch.nn.functional.softplus(build().blocks[0].mixer.ssm.dt_bias)
    assert dt.min() >= 0.99e-3 and dt.max() <= 1.01e-1
