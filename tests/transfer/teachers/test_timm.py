"""timm's Vision Transformers: translated as modules and by names, and refused where names do not tell the function."""

import pytest
import torch
from torch import nn

from tests.transfer.teachers.canonical import Canonical, error, perturb
from tests.transfer.teachers.timm_like import QuickGELU, ResPostBlock, RmsNorm, VisionTransformer
from transmamba.models import ViT
from transmamba.transfer.teachers import translate

IMAGES = torch.randn(2, 2, 12, 12, generator=torch.Generator().manual_seed(1))
DINOV3 = {"rope": 100.0, "absolute": False, "registers": 4, "bias": None, "scaled": "gamma", "eps": 1e-5}
BEIT = {"absolute": False, "bias": "own", "scaled": "gamma"}
MODELS = {
    "ViT": {},
    "ViT, mean": {"global_pool": "avg"},
    "ViT, mean of normed": {"global_pool": "avg", "fc_norm": False},
    "ViT, no class token": {"class_token": False, "global_pool": "avg"},
    "ViT, no biases": {"bias": None},
    "ViT, norms of queries and keys": {"qk_norm": True},
    "ViT, wide heads": {"head_dim": 12, "heads": 4},
    "ViT, eps": {"eps": 1e-2, "qk_norm": True},
    "ViT, RMSNorm": {"norm": RmsNorm, "eps": 1e-2, "qk_norm": True},
    "ViT, ReLU": {"act": nn.ReLU},
    "ViT, tanh": {"act": lambda: nn.GELU(approximate="tanh")},
    "ViT, rectangular": {"size": (8, 16)},
    "ViT, no positions": {"absolute": False},
    "DeiT": {"distilled": True},
    "DeiT-III": {"no_embed_class": True, "scaled": "ls"},
    "DINOv2": {"scaled": "ls", "mask_token": True},
    "DINOv2, registers": {"scaled": "ls", "registers": 3, "no_embed_class": True},
    "DINOv2, positions of registers": {"scaled": "ls", "registers": 2},
    "DINOv2 giant": {"scaled": "ls", "mlp": "fused", "act": nn.SiLU},
    "gate in the second half": {"mlp": "fused, gate last", "act": nn.SiLU},
    "CLIP": {"pre_norm": True, "eps": 1e-5},
    "CLIP, QuickGELU": {"pre_norm": True, "eps": 1e-5, "act": QuickGELU},
    "BEiT": BEIT | {"relative": "each", "global_pool": "avg"},
    "BEiT, shared": BEIT | {"relative": "shared"},
    "BEiT, both and absolute": BEIT | {"relative": "both", "absolute": True},
    "BEiT, rectangular": BEIT | {"relative": "each", "size": (8, 16)},
    "EVA": {"bias": "own", "global_pool": "avg"},
    "EVA, apart": {"apart": True, "mlp": "apart", "act": nn.SiLU},
    "DINOv3": DINOV3,
    "DINOv3, other facts": DINOV3 | {"rope": 7.0, "bias": "own", "mlp": "apart", "act": nn.SiLU, "size": (8, 16)},
    "DINOv3, no registers": DINOV3 | {"registers": 0, "global_pool": "avg", "fc_norm": False},
}


def build(name=None, **facts):
    return perturb(VisionTransformer(**MODELS[name] if name else facts))


@pytest.mark.parametrize("name", MODELS)
def test_the_translated_module_is_the_module(name):
    teacher = build(name)
    images = IMAGES.reshape(2, 2, 8, -1)[..., :16] if "size" in MODELS[name] else IMAGES
    translated = translate(teacher)
    with torch.no_grad():
        assert error(Canonical(translated).image(images), teacher.forward_features(images)) < 1e-5
        assert error(Canonical(translated).classify(images), teacher(images)) < 1e-5
    assert (translated.family, translated.differs, translated.architecture.unknown) == ("timm_vit", (), ())
    assert translated.architecture.scale is None


def test_our_own_vit():
    teacher = perturb(
        ViT(img_size=12, patch_size=4, in_chans=2, num_classes=5, dim=24, depth=3, heads=3, distilled=True)
    )
    with torch.no_grad():
        assert error(Canonical(translate(teacher)).classify(IMAGES), teacher(IMAGES)) < 1e-5


# facts that a bare state dict lacks beside the heads, whose number is given
BARE = {
    "ViT": {"pool"},
    "ViT, mean": set(),
    "ViT, no class token": set(),
    "ViT, norms of queries and keys": {"pool"},
    "DeiT": {"pool"},
    "DeiT-III": {"pool"},
    "DINOv2": {"pool"},
    "DINOv2, registers": {"pool"},
    "DINOv2 giant": {"pool", "activation"},
    "CLIP": {"pool", "activation", "eps"},
    "BEiT": set(),
    "BEiT, shared": {"pool"},
}


@pytest.mark.parametrize("name", BARE)
def test_a_bare_state_dict_and_the_number_of_heads(name):
    teacher = build(name)
    translated = translate(teacher.state_dict(), config={"num_heads": 3})
    assert set(translated.architecture.unknown) == BARE[name]
    with torch.no_grad():
        assert error(Canonical(translated).image(IMAGES), teacher.forward_features(IMAGES)) < 1e-5
        assert error(Canonical(translated).classify(IMAGES), teacher(IMAGES)) < 1e-5


def test_heads_are_unknown_without_a_configuration_and_known_from_a_table():
    assert "heads" in translate(build("ViT").state_dict()).architecture.unknown
    beit = translate(build("BEiT").state_dict()).architecture
    assert (beit.heads, beit.grid, beit.unknown) == (3, (3, 3), ())


def test_dinov3_by_names_needs_its_rotary_positions():
    teacher = build("DINOv3")
    rope = {"rope_type": "axial", "rope_theta": 100.0}
    with pytest.raises(ValueError, match="no position table: rotary positions have no tensors"):
        translate(teacher.state_dict(), config={"num_heads": 3})
    translated = translate(teacher.state_dict(), config={"num_heads": 3, "rope": rope, "grid": [3, 3]})
    assert set(translated.architecture.unknown) == {"eps", "pool"}
    with torch.no_grad():
        assert error(Canonical(translated).image(IMAGES), teacher.forward_features(IMAGES)) < 1e-5


def test_rms_norms_by_names_need_a_fact():
    teacher = build("ViT, RMSNorm")
    with pytest.raises(ValueError, match="norms without a bias: give config={'norm': 'rms'}"):
        translate(teacher.state_dict(), config={"num_heads": 3})
    translated = translate(teacher.state_dict(), config={"num_heads": 3, "norm": "rms", "eps": 1e-2})
    with torch.no_grad():
        assert error(Canonical(translated).image(IMAGES), teacher.forward_features(IMAGES)) < 1e-5


def test_names_of_the_authors_of_dinov2():
    teacher, state = build(scaled="ls", registers=4, no_embed_class=True, mlp="fused", act=nn.SiLU), {}
    for name, tensor in teacher.state_dict().items():
        name = name.replace("reg_token", "register_tokens").replace("blocks.", "blocks.0.")
        state[name.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3")] = tensor
    # their table has a row for the class token, which timm adds to the token
    position = torch.randn(1, 1, 24)
    state["pos_embed"] = torch.cat([position, state["pos_embed"]], 1)
    state["cls_token"] = state["cls_token"] - position
    with torch.no_grad():
        got = Canonical(translate(state, config={"num_heads": 3})).image(IMAGES)
        assert error(got, teacher.forward_features(IMAGES)) < 1e-5


def test_a_head_behind_attention_pooling_is_ignored():
    teacher = build(class_token=False, global_pool="map", attention_pool=True)
    for translated in (translate(teacher), translate(teacher.state_dict(), config={"num_heads": 3})):
        assert translated.ignored["attn_pool.latent"] == "attention pooling"
        assert translated.ignored["head.weight"] == "behind a pooling that no canonical model has"
        assert (translated.architecture.pool, "head.weight" in translated) == (None, False)
        with torch.no_grad():
            assert error(Canonical(translated).image(IMAGES), teacher.forward_features(IMAGES)) < 1e-5


def windowed(teacher):
    teacher.blocks[1].window_size = 7


def several_eps(teacher):
    teacher.norm.eps = 1e-3


def overlapping(teacher):
    teacher.patch_embed.proj.stride = (2, 2)


def other_norm(teacher):
    teacher.norm = nn.GroupNorm(1, 24)


def other_rope(teacher):
    teacher.rope.normalize_coords = "max"


def interleaved(teacher):
    teacher.blocks[0].attn.rotate_half = False


def mish(teacher):
    teacher.blocks[0].mlp.act = nn.Mish()


@pytest.mark.parametrize(
    "facts, change, message",
    [
        ({"block": ResPostBlock}, None, r"blocks of class ResPostBlock compute x \+ norm\(f\(x\)\)"),
        ({}, windowed, "blocks attend within windows"),
        ({}, several_eps, "its norms have several eps"),
        ({}, overlapping, r"patches of \(4, 4\) pixels are cut every \(2, 2\) pixels"),
        ({}, other_norm, "norms of class GroupNorm"),
        (DINOV3, other_rope, "rotary positions of class RotaryEmbeddingDinoV3 have no canonical form"),
        (DINOV3, interleaved, "rotary positions of class RotaryEmbeddingDinoV3 have no canonical form"),
        ({}, mish, "activation 'Mish' has no canonical form"),
    ],
)
def test_what_a_module_has_and_its_names_do_not_show_is_refused(facts, change, message):
    teacher = build(**facts)
    if change is not None:
        change(teacher)
    with pytest.raises(ValueError, match=f"timm_vit: {message}"):
        translate(teacher)


@pytest.mark.parametrize(
    "facts, message",
    [
        ({"bias": "own", "mlp": "fused"}, "EVA and EVA-02 have these names"),
        ({"scaled": "gamma", "pre_norm": True}, "a Perception Encoder with rotary positions has these names"),
        ({"pre_norm": True, "attention_pool": True}, "a Perception Encoder with rotary positions has these names"),
        ({"bias": None, "class_token": False, "global_pool": "avg"}, "a ViT with norms behind the branches"),
    ],
)
def test_names_that_several_functions_share_are_refused(facts, message):
    with pytest.raises(ValueError, match=message):
        translate(build(**facts).state_dict(), config={"num_heads": 3})


@pytest.mark.parametrize("extra", ["blocks.0.mlp.norm.weight", "blocks.0.attn.norm.weight", "patch_embed.norm.weight"])
def test_further_norms_are_left_over(extra):
    with pytest.raises(ValueError, match=f"1 tensors of the teacher have no place: {extra}"):
        translate(build().state_dict() | {extra: torch.ones(24)})


def test_a_table_of_another_grid_is_refused():
    state = build("BEiT").state_dict()
    with pytest.raises(ValueError, match="a table of 28 relative positions is not that of 4 by 4 patches"):
        translate(state, config={"num_heads": 3, "grid": [4, 4]})
    with pytest.raises(ValueError, match="a position table of 10 rows is not that of 4 by 4 patches"):
        translate(build().state_dict(), config={"num_heads": 3, "grid": [4, 4]})
