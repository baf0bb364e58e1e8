"""Image towers of multimodal models, and models that differ from a plain ViT by a detail."""

import pytest
import torch

from tests.transfer.teachers.canonical import Canonical, error, perturb
from transmamba.transfer.teachers import translate

transformers = pytest.importorskip("transformers")
SIZES = {
    "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 40, "num_channels": 3,
    "image_size": 12, "patch_size": 4,
}  # fmt: skip
WORDS = {
    "hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 8, "vocab_size": 9,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
OTHERS = {"layer_norm_eps": 1e-2, "hidden_act": "gelu_new", "num_attention_heads": 2}
IMAGES = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))
# family, configuration, model
TOWERS = {
    "Git": ("clip_vision", "GitVisionConfig", "GitVisionModel"),
    "Kosmos2": ("clip_vision", "Kosmos2VisionConfig", "Kosmos2VisionModel"),
    "OwlViT": ("clip_vision", "OwlViTVisionConfig", "OwlViTVisionModel"),
    "Owlv2": ("clip_vision", "Owlv2VisionConfig", "Owlv2VisionModel"),
    "Blip": ("blip_vision", "BlipVisionConfig", "BlipVisionModel"),
    "Blip2": ("blip_vision", "Blip2VisionConfig", "Blip2VisionModel"),
    "InstructBlip": ("blip_vision", "InstructBlipVisionConfig", "InstructBlipVisionModel"),
    "InstructBlipVideo": ("blip_vision", "InstructBlipVideoVisionConfig", "InstructBlipVideoVisionModel"),
    "Janus": ("siglip_vision", "JanusVisionConfig", "JanusVisionModel"),
    "Tipsv2": ("dinov2", "Tipsv2VisionConfig", "Tipsv2VisionModel"),
    "Flava": ("vit", "FlavaImageConfig", "FlavaImageModel"),
    "Pixio": ("pixio", "PixioConfig", "PixioModel"),
    "InternVL": ("internvl_vision", "InternVLVisionConfig", "InternVLVisionModel"),
    "QianfanOCR": ("internvl_vision", "QianfanOCRVisionConfig", "QianfanOCRVisionModel"),
}
FOLDERS = {"Blip2": "blip_2", "QianfanOCR": "qianfan_ocr"}


def build(name, **facts):
    """Build a perturbed tower; facts are those that differ from SIZES."""
    _, config, model = TOWERS[name]
    module = transformers if hasattr(transformers, model) else submodule(name)
    return perturb(getattr(module, model)(getattr(submodule(name), config)(**SIZES | facts)))


def submodule(name):
    folder = FOLDERS.get(name, name.lower())
    module = __import__(f"transformers.models.{folder}", fromlist=["x"])
    found = type("Names", (), {})
    for part in (f"configuration_{folder}", f"modeling_{folder}"):
        for key, value in vars(__import__(f"{module.__name__}.{part}", fromlist=["x"])).items():
            setattr(found, key, value)
    return found


@pytest.mark.parametrize("facts", [{}, OTHERS], ids=["plain", "other facts"])
@pytest.mark.parametrize("name", TOWERS)
def test_the_translated_teacher_is_the_teacher(name, facts):
    teacher = build(name, **facts)
    translated = translate(teacher)
    with torch.no_grad():
        assert error(Canonical(translated).image(IMAGES), teacher(IMAGES).last_hidden_state) < 1e-5
    assert (translated.family, translated.differs, translated.architecture.unknown) == (TOWERS[name][0], (), ())


CHOICES = {
    "Blip2": {"qkv_bias": False},
    "Janus": {"attention_bias": False},
    "Tipsv2": {"use_swiglu_ffn": True, "num_register_tokens": 2},
    "Flava": {"qkv_bias": False},
    "Pixio": {"n_cls_tokens": 2, "qkv_bias": False},
    "InternVL": {"attention_bias": True, "use_mean_pooling": False, "use_absolute_position_embeddings": False},
    "InternVL, RMSNorm": {"norm_type": "rms_norm", "use_qk_norm": True, "use_mask_token": True},
}


@pytest.mark.parametrize("name", CHOICES)
def test_parts_that_a_configuration_chooses(name):
    teacher = build(name.split(",")[0], **CHOICES[name])
    with torch.no_grad():
        assert error(Canonical(translate(teacher)).image(IMAGES), teacher(IMAGES).last_hidden_state) < 1e-5


def test_the_pooled_outputs_of_clips_and_blips():
    for name in ("Blip", "Blip2", "OwlViT", "Kosmos2"):
        teacher = build(name)
        translated = Canonical(translate(teacher))
        with torch.no_grad():
            got = translated.norm(translated.image(IMAGES)[:, 0], "fc_norm")
            assert error(got, teacher(IMAGES).pooler_output) < 1e-5


def test_the_backbone_of_pixio_has_a_norm_of_its_own():
    config = transformers.PixioConfig(**SIZES)
    teacher = perturb(transformers.PixioBackbone(config))
    translated = translate(teacher)
    assert translated.ignored["layernorm.weight"] == "norm of the maps of a backbone"
    with torch.no_grad():
        assert error(Canonical(translated).image(IMAGES), teacher.pixio(IMAGES).last_hidden_state) < 1e-5


def test_a_tower_with_a_connector_is_the_tower():
    from transformers.models.granite_docling import modeling_granite_docling as docling

    config = docling.GraniteDoclingVisionConfig(**SIZES, deepstack_visual_indexes=[0, 1])
    teacher = perturb(docling.GraniteDoclingVisionModel(config))
    translated = translate(teacher)
    assert "leads into a language model" in translated.ignored.values()
    with torch.no_grad():
        assert error(Canonical(translated).image(IMAGES), teacher.encode(IMAGES)[0]) < 1e-5


def owl():
    return transformers.OwlViTForObjectDetection(transformers.OwlViTConfig(vision_config=SIZES, text_config=WORDS))


def blip():
    return transformers.BlipForConditionalGeneration(transformers.BlipConfig(vision_config=SIZES, text_config=WORDS))


def git():
    return transformers.GitForCausalLM(transformers.GitConfig(vision_config=SIZES, **WORDS))


def idefics():
    sizes = {key: value for key, value in SIZES.items() if key != "hidden_size"} | {"embed_dim": 24}
    facts = {"additional_vocab_size": 0, "cross_layer_interval": 1, "use_resampler": False}
    config = transformers.IdeficsConfig(vision_config=sizes, **facts, **WORDS)
    return transformers.IdeficsForVisionText2Text(config)


COMPOSITES = {
    owl: "owlvit.vision_model", blip: "vision_model", git: "git.image_encoder", idefics: "model.vision_model"
}  # fmt: skip


@pytest.mark.parametrize("model", COMPOSITES)
def test_the_tower_inside_of_a_model(model):
    teacher = perturb(model())
    with torch.no_grad():
        wanted = teacher.get_submodule(COMPOSITES[model])(IMAGES).last_hidden_state
        assert error(Canonical(translate(teacher, kind="image")).image(IMAGES), wanted) < 1e-5


@pytest.mark.parametrize("name", ["Blip", "Pixio", "Flava", "OwlViT"])
def test_a_bare_state_dict_is_known_by_its_names(name):
    translated = translate(build(name).state_dict())
    assert translated.family == TOWERS[name][0]
    assert set(translated.architecture.unknown) <= {"heads", "eps", "activation", "grid"}


@pytest.mark.parametrize(
    "name, facts, message",
    [
        ("InternVL", {"use_qk_norm": True}, "norms of queries and keys that are not those of the blocks"),
        (
            "InternVL",
            {"norm_type": "rms_norm", "use_mean_pooling": False},
            "RMSNorm in the blocks and LayerNorm behind",
        ),
        ("InternVL", {"image_size": (8, 16)}, "a grid of 2 by 4 patches: expected a square one"),
        ("Janus", {"use_qk_norm": True}, "norms of queries and keys have an eps of their own"),
        ("Pixio", {"n_cls_tokens": 1}, "one class token: expected several"),
    ],
)
def test_a_fact_without_canonical_form_is_refused(name, facts, message):
    with pytest.raises(ValueError, match=message):
        translate(build(name, **facts))
