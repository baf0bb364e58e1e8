from functools import partial

import pytest
import torch
import torch.nn.functional as F
from transformers import ViTConfig, ViTForImageClassification

from transmamba.models import ViT, vit_base, vit_small, vit_tiny
from transmamba.nn import Attention, Mamba2Mixer, MambaMixer, TransformerBlock
from transmamba.ops import scan_order


@pytest.fixture
def vit():
    return ViT(img_size=(8, 12), patch_size=4, dim=12, depth=3, heads=3, num_classes=5).eval()


def from_hf(hf):
    """Return our (timm's) names for the weights of a Hugging Face ViT, old or new module names."""
    state = {}
    for name, value in hf.state_dict().items():
        name = name.removeprefix("vit.").replace("encoder.layer.", "layers.")
        for old, new in (
            ("embeddings.cls_token", "cls_token"), ("embeddings.position_embeddings", "pos_embed"),
            ("embeddings.patch_embeddings.projection", "patch_embed.proj"), ("layers.", "blocks."),
            ("layernorm_before", "norm1"), ("layernorm_after", "norm2"), ("layernorm", "norm"), ("classifier", "head"),
            ("attention.attention.query", "q"), ("attention.attention.key", "k"), ("attention.attention.value", "v"),
            ("attention.q_proj", "q"), ("attention.k_proj", "k"), ("attention.v_proj", "v"),
            ("attention.output.dense", "attn.proj"), ("attention.o_proj", "attn.proj"),
            ("intermediate.dense", "mlp.fc1"), (".output.dense", ".mlp.fc2"),
        ):  # fmt: skip
            name = name.replace(old, new)
        state[name] = value
    for name in [n for n in state if ".q." in n]:
        parts = [state.pop(name.replace(".q.", f".{x}.")) for x in "qkv"]
        state[name.replace(".q.", ".attn.qkv.")] = torch.cat(parts)
    return state


def test_is_the_hugging_face_vit_with_timm_names():
    config = ViTConfig(
        image_size=8, patch_size=4, hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=48,
        num_labels=5, layer_norm_eps=1e-6,
    )  # fmt: skip
    hf = ViTForImageClassification(config).eval()
    ours = ViT(img_size=8, patch_size=4, dim=12, depth=2, heads=3, num_classes=5).eval()
    ours.load_state_dict(from_hf(hf))
    x = torch.randn(2, 3, 8, 8)
    expected = hf(x, output_hidden_states=True)
    torch.testing.assert_close(ours(x), expected.logits, rtol=1e-4, atol=1e-5)
    features = ours.forward_features(x)
    # their list starts with the embedding
    for got, want in zip(features.layers, expected.hidden_states[1:], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("build", "millions"), [(vit_tiny, 5.72), (vit_small, 22.05), (vit_base, 86.57)])
def test_published_sizes(build, millions):
    with torch.device("meta"):
        count = sum(p.numel() for p in build().parameters())
    assert round(count / 1e6, 2) == millions


def test_features_are_the_stream_and_its_grid(vit):
    x = torch.randn(2, 3, 8, 12)
    features = vit.forward_features(x)
    assert features.grid == (2, 3) and features.extra == (0,)
    assert len(features.layers) == 3 and features.directions == ()
    torch.testing.assert_close(vit.norm(features.layers[-1]), features.last)
    torch.testing.assert_close(vit.blocks[2](features.layers[1]), features.layers[2])


def test_distilled_averages_its_two_heads():
    deit = ViT(img_size=8, patch_size=4, dim=12, depth=1, heads=3, num_classes=5, distilled=True).eval()
    features = deit.forward_features(torch.ones(1, 3, 8, 8))
    assert features.extra == (0, 1)
    expected = (deit.head(features.last[:, 0]) + deit.head_dist(features.last[:, 1])) / 2
    torch.testing.assert_close(deit(torch.ones(1, 3, 8, 8)), expected)


def test_intermediates_select_like_timm(vit):
    x = torch.randn(2, 3, 8, 12)
    layers = vit.forward_features(x).layers
    for indices, expected in ((None, layers), (2, layers[1:]), ([0, -1], [layers[0], layers[2]])):
        _, got = vit.forward_intermediates(x, indices)
        torch.testing.assert_close(list(got), list(expected))


def test_a_layer_that_does_not_exist_is_refused(vit):
    with pytest.raises(ValueError, match="layer 3 does not exist: expected -3 to 2"):
        vit.forward_intermediates(torch.randn(2, 3, 8, 12), [3])


def test_another_image_size_is_refused(vit):
    with pytest.raises(ValueError, match=r"built for a patch grid of \(2, 3\), the image has \(8, 8\) pixels"):
        vit(torch.randn(2, 3, 8, 8))


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="heads must divide the width: got 5 heads, width 12"):
        ViT(dim=12, heads=5, depth=1)


SIZES = {"img_size": (8, 12), "patch_size": 4, "dim": 12, "depth": 2, "heads": 3, "num_classes": 5}
X = torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(1))


def perturbed(**options):
    model = ViT(**SIZES | options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize(
    ("options", "rows", "extra"),
    [
        ({"registers": 2}, [0, None, None], 3),
        ({"registers": 2, "prefix_positions": 3}, [0, 1, 2], 3),
        ({"registers": 2, "prefix_positions": 0}, [None] * 3, 3),
        ({"distilled": True, "registers": 1}, [0, 1, None], 3),
        ({"distilled": "token", "prefix_positions": 1}, [0, None], 2),
        ({"class_token": False, "pool": "mean"}, [], 0),
        ({"position_table": False, "norm_pre": True}, None, 1),
        ({"patch_bias": False}, [0], 1),
    ],
)
def test_tokens_before_the_patches_and_their_positions(options, rows, extra):
    """`rows` are those of the position table that the tokens before the patches take; None for no row."""
    model = perturbed(**options)
    patches = F.conv2d(X, model.patch_embed.proj.weight, model.patch_embed.proj.bias, 4).flatten(2).transpose(1, 2)
    prefix = [t.expand(2, -1, -1) for t in (model.cls_token, model.dist_token, model.reg_token) if t is not None]
    tokens = torch.cat([*prefix, patches], 1)
    if rows is not None:
        placed = [torch.zeros(12) if row is None else model.pos_embed[0, row] for row in rows]
        tokens = tokens + torch.cat([torch.stack(placed), model.pos_embed[0, -6:]] if placed else [model.pos_embed[0]])
    tokens = model.norm_pre(tokens)
    features = model.forward_features(X)
    assert features.extra == tuple(range(extra))
    torch.testing.assert_close(features.layers[0], model.blocks[0](tokens))


def test_the_head_reads_the_token_or_the_mean_of_the_patches_after_their_norm():
    for pool, fc_norm in ((("token"), True), ("mean", True), ("mean", False)):
        model = perturbed(pool=pool, fc_norm=fc_norm, registers=2)
        last = model.forward_features(X).last
        pooled = last[:, 0] if pool == "token" else last[:, 3:].mean(1)
        torch.testing.assert_close(model(X), model.head(model.fc_norm(pooled)))
        assert isinstance(model.fc_norm, torch.nn.Identity) != fc_norm
    without = perturbed(num_classes=0, final_norm=False)
    features = without.forward_features(X)
    assert torch.equal(features.last, features.layers[-1]) and torch.equal(without(X), features.last[:, 0])
    assert not [name for name in without.state_dict() if name.startswith(("head", "norm."))]


def test_blocks_and_mixers_may_differ_from_layer_to_layer():
    gated = partial(TransformerBlock, hidden_dim=7, gated=True, activation="silu", norm="rms", eps=1e-3)
    model = perturbed(
        block=[gated, partial(TransformerBlock, placement="post", hidden_dim=9)],
        mixer=[partial(Attention, heads=2, qk_norm="head"), partial(Attention, heads=4, kv_heads=1)],
    )
    assert model.blocks[0].mlp.fc1.out_features == 14 and model.blocks[1].attn.kv_heads == 1
    assert model(X).shape == (2, 5) and model.blocks[0].norm1.eps == 1e-3


@pytest.mark.parametrize("orders", [("forward", "backward"), ("snake", "snake_column_reverse")])
def test_a_hybrid_scans_the_patches_with_the_class_token_at_an_end(orders):
    model = perturbed(mixer=[partial(MambaMixer, d_state=3, directions=2), partial(Attention, heads=3)], orders=orders)
    features = model.forward_features(X)
    first, second = (scan_order(name, (2, 3)).index + 1 for name in orders)
    assert features.orders[0].index.tolist() == [0, *first.tolist()]
    assert features.orders[1].index.tolist() == [*second.tolist(), 0]
    torch.testing.assert_close(model.head(features.last[:, 0]), model(X))
    model(X).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    with pytest.raises(ValueError, match="attention cannot be split by direction, got 2 scan orders"):
        model.forward_features(X, directions=True)


def test_directions_of_a_vit_of_scans_add_up():
    model = perturbed(mixer=partial(MambaMixer, d_state=3, directions=2), orders=("forward", "backward"))
    features = model.forward_features(X, directions=True)
    assert len(features.directions) == 2 and len(features.directions[0]) == 2
    x = model._embed(X)
    parts = [part[0][:, order.inverse] for part, order in zip(features.directions, features.orders, strict=True)]
    torch.testing.assert_close(sum(parts), model.blocks[0].mixer(model.blocks[0].norm1(x), features.orders))


@pytest.mark.parametrize(
    ("place", "forward", "backward"),
    [
        ("ends", [0, 1, 2, 3, 4, 5, 6, 7], [7, 6, 5, 4, 3, 2, 1, 0]),
        ("first", [0, 1, 2, 3, 4, 5, 6, 7], [1, 0, 7, 6, 5, 4, 3, 2]),
        ("middle", [2, 3, 4, 0, 1, 5, 6, 7], [7, 6, 5, 1, 0, 4, 3, 2]),
        ("last", [2, 3, 4, 5, 6, 7, 0, 1], [7, 6, 5, 4, 3, 2, 1, 0]),
    ],
)
def test_class_token_and_register_are_scanned_where_they_are_wanted(place, forward, backward):
    mixer = partial(Mamba2Mixer, d_state=3, head_dim=4, directions=2)
    model = perturbed(mixer=mixer, orders=("forward", "backward"), prefix_scan=place, registers=1)
    features = model.forward_features(X, directions=True)
    assert [order.index.tolist() for order in features.orders] == [forward, backward]
    assert all(order.index[order.inverse].tolist() == list(range(8)) for order in features.orders)
    torch.testing.assert_close(model.head(features.last[:, 0]), model(X))
    read = features.layers[0].shape[1] - 6
    assert features.extra == tuple(range(read)) and features.directions[0][0].shape == features.layers[0].shape


def test_scans_keep_the_start_that_is_theirs():
    """Attention and MLPs start as a ViT's do, biases at zero; the step sizes of a scan do not."""
    torch.manual_seed(3)
    mixers = [partial(Mamba2Mixer, d_state=3, head_dim=4, bias=True), partial(Attention, heads=3)]
    model = ViT(**SIZES, mixer=mixers)
    assert model.blocks[0].mixer.in_proj.bias.any() and not model.blocks[1].attn.qkv.bias.any()
    assert not model.blocks[0].mlp.fc1.bias.any()


def test_tokens_that_there_are_not_are_refused():
    with pytest.raises(ValueError, match="prefix_positions=3, and there are 2 tokens before the patches"):
        ViT(**SIZES, registers=1, prefix_positions=3)
    for options in ({}, {"pool": "mean", "distilled": True}):
        with pytest.raises(ValueError, match="without class token there is no distillation token"):
            ViT(**SIZES, class_token=False, **options)
    with pytest.raises(ValueError, match="unknown scan order 'zigzag'"):
        ViT(**SIZES, orders=("zigzag",))
