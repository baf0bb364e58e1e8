import pytest
import torch

from transmamba.models import SNAKES, Backbone, VisionMamba

ORDERS = [("forward",), ("forward", "backward"), SNAKES]


def build(**options):
    return VisionMamba(img_size=(8, 12), patch_size=4, dim=12, depth=2, num_classes=5, d_state=3, **options).eval()


@pytest.fixture
def x():
    return torch.randn(2, 3, 8, 12)


@pytest.mark.parametrize("orders", ORDERS)
def test_directions_add_up_to_the_mixer_output(x, orders):
    model = build(orders=orders)
    features = model.forward_features(x, directions=True)
    assert len(features.directions) == len(features.orders) == len(orders)
    stream = model.patch_embed(x) + model.pos_embed
    for i, block in enumerate(model.blocks):
        natural = [part[i][:, order.inverse] for part, order in zip(features.directions, features.orders, strict=True)]
        torch.testing.assert_close(sum(natural), block.mixer(block.norm1(stream), features.orders))
        stream = features.layers[i]


def test_features_are_the_stream_after_each_block(x):
    model = build()
    features = model.forward_features(x)
    assert features.grid == (2, 3) and features.extra == () and features.directions == ()
    torch.testing.assert_close(model.blocks[1](features.layers[0]), features.layers[1])
    torch.testing.assert_close(model.norm(features.layers[1]), features.last)
    torch.testing.assert_close(model.head(features.last.mean(1)), model(x))
    torch.testing.assert_close(model.forward_features(x, directions=True).last, features.last)


def test_is_a_backbone():
    assert isinstance(build(), Backbone)


def test_without_mlp_only_the_mamba_blocks_remain(x):
    assert not [name for name in build(mlp=False).state_dict() if "mlp" in name or "norm2" in name]
    assert build(mlp=False)(x).shape == (2, 5)


def test_token_numbers_serve_as_an_order(x):
    named, numbered = build(orders=["snake"]), build(orders=[(0, 1, 2, 5, 4, 3)])
    numbered.load_state_dict(named.state_dict())
    torch.testing.assert_close(named(x), numbered(x))


def test_parameters_of_the_optimiser_groups_exist():
    names = dict(build().named_parameters())
    spared = build().no_weight_decay()
    assert spared <= set(names)
    assert {"pos_embed", "blocks.0.mixer.branches.1.ssm.A_log", "blocks.1.mixer.branches.0.ssm.dt_bias"} <= spared


@pytest.mark.parametrize("orders", ORDERS)
def test_gradients_reach_every_parameter(x, orders):
    model = build(orders=orders)
    model(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_compiles_in_one_graph(x):
    model = build(orders=SNAKES)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), model(x))


def test_wrong_orders_are_refused_at_construction():
    with pytest.raises(ValueError, match="unknown scan order 'spiral'"):
        build(orders=("spiral",))
    with pytest.raises(ValueError, match="specs is empty"):
        build(orders=())


def test_another_image_size_is_refused():
    with pytest.raises(ValueError, match=r"built for a patch grid of \(2, 3\), the image has \(8, 8\) pixels"):
        build()(torch.randn(2, 3, 8, 8))


def test_wrong_channels_come_with_their_shape():
    with pytest.raises(ValueError, match="image has 1 channels, the module was built for 3"):
        build()(torch.randn(2, 1, 8, 12))
