from functools import partial

import pytest
import torch
from torch import nn

from transmamba.models import SNAKES, Backbone, VisionMamba
from transmamba.nn import MambaMixer
from transmamba.testing import check_backbone

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


class Mean(nn.Module):
    """A mixer of one's own: every token gets the mean, half of it from each direction."""

    def __init__(self, dim, share=0.5):
        super().__init__()
        self.share, self.out_proj = share, nn.Linear(dim, dim, bias=False)

    def forward_directions(self, x, orders, mask=None):
        part = self.share * self.out_proj(x.mean(1, keepdim=True).expand_as(x))
        return 2 * part, torch.stack([part, part])

    def forward(self, x, orders, mask=None):
        return self.forward_directions(x, orders)[0]


def test_a_mixer_of_ones_own_takes_the_place_of_mamba(x):
    model = VisionMamba(img_size=(8, 12), patch_size=4, dim=12, depth=2, num_classes=5, mixer=Mean, mlp_ratio=1.5)
    assert [type(block.mixer) for block in model.blocks] == [Mean, Mean]
    assert model.blocks[0].mlp.fc1.weight.shape == (18, 12)
    features = model.forward_features(x, directions=True)
    first = model.blocks[0]
    mixed = first.mixer.out_proj(first.norm1(model.patch_embed(x) + model.pos_embed).mean(1))
    torch.testing.assert_close(features.directions[1][0], 0.5 * mixed[:, None].expand(-1, 6, -1))
    check_backbone(model, x, skip=["compiles_in_one_graph", "exports_for_batches_of_any_size"])


def test_each_block_may_have_a_mixer_of_its_own(x):
    mixers = [partial(MambaMixer, directions=2), partial(Mean, share=1.0)]
    model = VisionMamba(img_size=(8, 12), patch_size=4, dim=12, depth=2, num_classes=5, mixer=mixers)
    assert [type(block.mixer) for block in model.blocks] == [MambaMixer, Mean]
    with pytest.raises(ValueError, match="mixer has 2 entries for 3 layers: give one builder, or one per layer"):
        VisionMamba(img_size=8, patch_size=4, dim=12, depth=3, mixer=mixers)


def test_states_of_a_mixer_that_is_not_there_are_refused():
    with pytest.raises(ValueError, match="d_state=3 is for the default mixer: give it to the builder of yours instead"):
        build(mixer=Mean)


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
