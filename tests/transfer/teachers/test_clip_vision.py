"""Image towers of CLIP and SigLIP: the translated tensors in a plain Transformer give the teacher's tokens."""

import pytest
import torch

from tests.transfer.teachers.canonical import Canonical, error, perturb
from transmamba.transfer.teachers import translate

transformers = pytest.importorskip("transformers")
SIZES = {
    "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 40, "num_channels": 2,
    "image_size": 12, "patch_size": 4,
}  # fmt: skip
WORDS = {
    "hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 8, "vocab_size": 9,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
OTHERS = {"layer_norm_eps": 1e-2, "hidden_act": "gelu", "num_attention_heads": 2}
IMAGES = torch.randn(2, 2, 12, 12, generator=torch.Generator().manual_seed(1))
CLIPS = ("CLIP", "AltCLIP", "ChineseCLIP", "CLIPSeg", "MetaClip2")


def build(name, kind="VisionModel", **facts):
    """Build a perturbed tower; facts are those that differ from SIZES."""
    config = getattr(transformers, f"{name}VisionConfig")(**SIZES | facts)
    return perturb(getattr(transformers, f"{name}{kind}")(config))


def compose(name, kind="Model", vision=None, **facts):
    """Return a perturbed model with a text tower beside."""
    configs = {"vision_config": SIZES | (vision or {}), "text_config": WORDS}
    config = getattr(transformers, f"{name}Config")(**configs, **facts)
    return perturb(getattr(transformers, f"{name}{kind}")(config))


def patches(images):
    """Return SigLIP 2's input: every patch pixel by pixel, its channels innermost."""
    rows, columns = (side // 4 for side in images.shape[2:])
    cut = images.unflatten(3, (columns, 4)).unflatten(2, (rows, 4)).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
    return {
        "pixel_values": cut.flatten(2),
        "pixel_attention_mask": torch.ones(2, rows * columns, dtype=torch.long),
        "spatial_shapes": torch.tensor([[rows, columns]] * 2),
    }


@pytest.mark.parametrize("facts", [{}, OTHERS], ids=["plain", "other facts"])
@pytest.mark.parametrize("name", [*CLIPS, "Siglip"])
def test_the_translated_teacher_is_the_teacher(name, facts):
    teacher = build(name, **facts)
    translated = translate(teacher)
    with torch.no_grad():
        assert error(Canonical(translated).image(IMAGES), teacher(IMAGES).last_hidden_state) < 1e-5
    assert (translated.differs, translated.architecture.unknown) == ((), ())


@pytest.mark.parametrize("facts", [{}, OTHERS, {"vision_use_head": False}], ids=["plain", "other facts", "no head"])
def test_siglip_2_embeds_patches_by_a_convolution(facts):
    sizes = {key: value for key, value in SIZES.items() if key != "image_size"}
    config = transformers.Siglip2VisionConfig(**sizes | {"num_patches": 9} | facts)
    teacher = perturb(transformers.Siglip2VisionModel(config))
    translated = translate(teacher)
    with torch.no_grad():
        assert error(Canonical(translated).image(IMAGES), teacher(**patches(IMAGES)).last_hidden_state) < 1e-5
    assert translated.architecture.grid == (3, 3)


def test_clips_pooled_output_is_normed_and_projected():
    teacher = build("CLIP", "VisionModelWithProjection", projection_dim=7)
    with torch.no_grad():
        assert error(Canonical(translate(teacher)).classify(IMAGES), teacher(IMAGES).image_embeds) < 1e-5


@pytest.mark.parametrize("name", ["CLIP", "Siglip", "MetaClip2"])
def test_a_classifier_reads_the_mean_of_the_patches(name):
    teacher = compose(name, "ForImageClassification", num_labels=5)
    translated = translate(teacher)
    with torch.no_grad():
        assert error(Canonical(translated).classify(IMAGES), teacher(IMAGES).logits) < 1e-5
    if name != "Siglip":
        assert "does not read" in translated.ignored["vision_model.post_layernorm.weight"]


@pytest.mark.parametrize("name", [*CLIPS, "Siglip"])
def test_the_tower_of_a_pair_is_chosen_by_family_or_kind(name):
    teacher = compose(name)
    family = "siglip_vision" if name == "Siglip" else "clip_vision"
    with torch.no_grad():
        wanted = teacher.vision_model(IMAGES).last_hidden_state
        for chosen in (translate(teacher, family), translate(teacher, kind="image")):
            assert error(Canonical(chosen).image(IMAGES), wanted) < 1e-5


@pytest.mark.parametrize("as_dictionary", [True, False])
@pytest.mark.parametrize("name", ["CLIP", "Siglip"])
def test_names_of_older_versions(name, as_dictionary):
    teacher = build(name)
    state = {f"vision_model.{key}": tensor for key, tensor in teacher.state_dict().items()}
    state["vision_model.embeddings.position_ids"] = torch.arange(10)[None]
    translated = translate(state, config=teacher.config.to_dict() if as_dictionary else teacher.config)
    with torch.no_grad():
        assert error(Canonical(translated).image(IMAGES), teacher(IMAGES).last_hidden_state) < 1e-5


@pytest.mark.parametrize("tower", ["CLIP", "Siglip"])
def test_the_tower_of_a_multimodal_model(tower):
    vision = getattr(transformers, f"{tower}VisionConfig")(**SIZES)
    text = transformers.LlamaConfig(**WORDS | {"num_key_value_heads": 3})
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=3)
    teacher = perturb(transformers.LlavaForConditionalGeneration(config))
    with torch.no_grad():
        wanted = teacher.model.vision_tower(IMAGES).last_hidden_state
        assert error(Canonical(translate(teacher, kind="image")).image(IMAGES), wanted) < 1e-5
    with pytest.raises(ValueError, match=f"choose one by family=.*{tower.lower()}_vision"):
        translate(teacher)


@pytest.mark.parametrize("name, family", [("CLIP", "clip_vision"), ("Siglip", "siglip_vision")])
def test_a_bare_state_dict_is_known_by_its_names(name, family):
    translated = translate(build(name).state_dict())
    assert translated.family == family and set(translated.architecture.unknown) == {"heads", "eps", "activation"}


def test_defaults_of_a_configuration_that_holds_its_type_alone():
    sizes = {"hidden_size": 24, "num_attention_heads": 12, "image_size": 32, "patch_size": 16, "num_hidden_layers": 2}
    teacher = build("Siglip", **sizes | {"intermediate_size": 40, "num_channels": 2})
    images = torch.randn(2, 2, 32, 32)
    translated = translate(teacher.state_dict(), config={"model_type": "siglip_vision_model"})
    with torch.no_grad():
        assert error(Canonical(translated).image(images), teacher(images).last_hidden_state) < 1e-5


@pytest.mark.parametrize("name, family", [("CLIP", "clip_vision"), ("Siglip", "siglip_vision")])
def test_an_activation_without_canonical_form_is_refused(name, family):
    with pytest.raises(ValueError, match=f"{family}: activation 'tanh' has no canonical form"):
        translate(build(name, hidden_act="tanh"))


def test_patches_that_cannot_be_square_are_refused():
    teacher = build("Siglip")
    state = teacher.state_dict() | {"embeddings.patch_embedding.weight": torch.zeros(24, 30)}
    with pytest.raises(ValueError, match="30 values do not make a square patch of 3 channels"):
        translate(state, "siglip_vision")
