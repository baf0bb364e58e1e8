import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification

from transmamba.models import ViT, vit_base, vit_small, vit_tiny


@pytest.fixture
def vit():
    return ViT(img_size=(8, 12), patch_size=4, dim=12, depth=3, heads=3, num_classes=5).eval()


def from_hf(hf):
    """Our (timm's) names for the weights of a Hugging Face ViT, old or new module names."""
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
