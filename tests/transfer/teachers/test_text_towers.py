"""Text encoders of image and text models, alone and as a part of the whole model."""

import importlib

import pytest

from tests.transfer.teachers.encoders import IDS, SIZES, worst_error
from transmamba.transfer.teachers import translate

transformers = pytest.importorskip("transformers")
TYPES = (IDS > 20).long()
# end-of-text token 2 is among the ids, which OWL-ViT's pooling looks for
TEXT = SIZES | {"projection_dim": 5}


def tower(module, name, **options):
    """Return a text encoder by the name of its class."""
    models = importlib.import_module(f"transformers.models.{module}.modeling_{module}")
    model = getattr(models, name)
    return model(model.config_class(**(TEXT | options)))


EXACT = {
    "clip": lambda: tower("clip", "CLIPTextModel"),
    "clip gelu": lambda: tower("clip", "CLIPTextModel", hidden_act="gelu"),
    "metaclip 2": lambda: tower("metaclip_2", "MetaClip2TextModel"),
    "clipseg": lambda: tower("clipseg", "CLIPSegTextModel"),
    "owlvit": lambda: tower("owlvit", "OwlViTTextModel"),
    "owlv2": lambda: tower("owlv2", "Owlv2TextModel"),
    "groupvit": lambda: tower("groupvit", "GroupViTTextModel"),
    "xclip": lambda: tower("x_clip", "XCLIPTextModel"),
    "siglip": lambda: tower("siglip", "SiglipTextModel"),
    "siglip 2": lambda: tower("siglip2", "Siglip2TextModel", projection_size=7),
}
WITH_TYPES = {
    "flava": lambda: tower("flava", "FlavaTextModel"),
    "flava without biases": lambda: tower("flava", "FlavaTextModel", qkv_bias=False),
    "align": lambda: tower("align", "AlignTextModel"),
    "chinese clip": lambda: tower("chinese_clip", "ChineseCLIPTextModel"),
    "clap": lambda: tower("clap", "ClapTextModel", type_vocab_size=2),
    "bridgetower": lambda: tower("bridgetower", "BridgeTowerTextModel", type_vocab_size=2),
}


@pytest.mark.parametrize("name", EXACT)
def test_the_translated_encoder_is_the_teacher(name):
    assert worst_error(EXACT[name]()) < 1e-5


@pytest.mark.parametrize("name", WITH_TYPES)
def test_the_translated_encoder_with_token_types_is_the_teacher(name):
    assert worst_error(WITH_TYPES[name](), TYPES) < 1e-5


def test_projections_are_ignored_by_name():
    for module, name in (("clip", "CLIPTextModelWithProjection"), ("clap", "ClapTextModelWithProjection")):
        teacher = tower(module, name)
        assert worst_error(teacher, base=teacher.text_model, short=True) < 1e-5
        assert any("text_projection" in ignored for ignored in translate(teacher).ignored)


VISION = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 9, "image_size": 8,
          "patch_size": 4}  # fmt: skip
COMPOSITES = {
    "CLIP": "clip_text", "Siglip": "siglip_text", "Siglip2": "siglip_text", "MetaClip2": "clip_text",
    "ChineseCLIP": "bert", "OwlViT": "clip_text", "Owlv2": "clip_text", "CLIPSeg": "clip_text",
    "XCLIP": "clip_text", "GroupViT": "clip_text", "Clap": "roberta",
}  # fmt: skip


@pytest.mark.parametrize("name", COMPOSITES)
def test_the_text_part_of_a_whole_model(name):
    config = getattr(transformers, f"{name}Config")
    if name == "Clap":
        parts = {
            "audio_config": {"patch_embeds_hidden_size": 8, "depths": [1], "num_attention_heads": [2], "hidden_size": 8}
        }
    elif name == "GroupViT":
        vision = VISION | {"depths": [1, 1, 1], "num_group_tokens": [4, 2, 0], "num_output_groups": [4, 2, 0]}
        parts = {"vision_config": vision}
    else:
        parts = {"vision_config": VISION | {"num_patches": 4}}
    teacher = getattr(transformers, f"{name}Model")(config(text_config=TEXT, **parts))
    assert worst_error(teacher, base=teacher.text_model, short=True, family=COMPOSITES[name]) < 1e-5
    assert translate(teacher, kind="encoder").family == COMPOSITES[name]


def test_names_tell_siglip_from_clip():
    assert translate(EXACT["siglip"]().state_dict()).family == "siglip_text"
    clip = translate(EXACT["clip"]().state_dict())
    assert clip.family == "clip_text" and set(clip.architecture.unknown) == {"heads", "eps", "activation"}


def test_names_of_version_4_have_a_prefix():
    teacher = EXACT["clip"]()
    older = {f"text_model.{name}": tensor for name, tensor in teacher.state_dict().items()}
    for config in (teacher.config, teacher.config.to_dict()):
        assert set(translate(older, config=config)) == set(translate(teacher))
