import torch

from transmamba.models import Vim, vim_small


def build(img_size=(12, 20), **options):
    return Vim(img_size, 4, dim=12, depth=2, d_state=3, num_classes=5, **options)


def test_the_class_token_stands_in_the_middle():
    model = build().eval()
    x = torch.randn(2, 3, 12, 20)
    tokens = model._embed(x)
    patches = model.patch_embed(x)
    assert model.cls_position == 7
    torch.testing.assert_close(tokens[0, 7], model.cls_token[0, 0] + model.pos_embed[0, 7])
    torch.testing.assert_close(tokens[:, :7], patches[:, :7] + model.pos_embed[:, :7])
    torch.testing.assert_close(tokens[:, 8:], patches[:, 7:] + model.pos_embed[:, 8:])


def test_directions_are_averaged():
    model = build().eval()
    mixer, x = model.blocks[0].mixer, torch.randn(2, 5, 12)
    averaged, parts = mixer.forward_directions(x)
    mixer.average = False
    torch.testing.assert_close(2 * averaged, mixer(x))
    torch.testing.assert_close(2 * parts, mixer.forward_directions(x)[1])


def test_the_stream_is_float32_only_if_wanted():
    x = torch.randn(2, 3, 12, 20, dtype=torch.bfloat16)
    for keep, dtype in ((True, torch.float32), (False, torch.bfloat16)):
        assert build(float32_residual=keep).bfloat16().forward_features(x).layers[-1].dtype == dtype


def test_patches_may_overlap():
    model = build(stride=2).eval()
    assert model.grid == (5, 9) and model(torch.randn(2, 3, 12, 20)).shape == (2, 5)


def test_depth_drops_more_often():
    with torch.device("meta"):
        rates = [block.drop_path.rate for block in vim_small().blocks]
    assert rates[0] == 0.0 and rates[-1] == 0.05 and rates == sorted(rates)


def test_a_block_that_is_dropped_leaves_the_stream():
    model = build(drop_path=0.9).train()
    streams = model.forward_features(torch.randn(64, 3, 12, 20)).layers
    left = (streams[1] == streams[0]).flatten(1).all(1).float().mean()
    assert 0.7 < left < 1.0
