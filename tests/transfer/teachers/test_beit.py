"""BEiT and Data2VecVision: the translated tensors in a plain Transformer give the teacher's tokens and logits."""

from functools import partial

import pytest
import torch

from tests.transfer.teachers.canonical import IMAGES, Canonical, error, image_model
from tests.transfer.teachers.test_vit import older
from transmamba.transfer.teachers import translate

pytest.importorskip("transformers")
SIZES = {
    "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 40, "num_channels": 2,
    "image_size": 12, "patch_size": 4, "num_labels": 5, "layer_scale_init_value": 0.3, "vocab_size": 9,
}  # fmt: skip
build = partial(image_model, SIZES)
ABSOLUTE, EACH, SHARED = (
    {f"use_{what}": True}
    for what in ("absolute_position_embeddings", "relative_position_bias", "shared_relative_position_bias")
)
FACTS = {
    "no positions": {},
    "absolute": ABSOLUTE,
    "relative of each layer": EACH,
    "relative, shared": SHARED,
    "all positions": ABSOLUTE | EACH | SHARED,
    "class token": EACH | {"use_mean_pooling": False},
    "no LayerScale": EACH | {"layer_scale_init_value": 0.0, "use_mask_token": True},
    "other facts": SHARED | {"layer_norm_eps": 1e-2, "hidden_act": "gelu_new", "num_attention_heads": 2},
}


@pytest.mark.parametrize("facts", FACTS)
@pytest.mark.parametrize("name", ["Beit", "Data2VecVision"])
def test_the_translated_teacher_is_the_teacher(name, facts):
    teacher = build(name, "ForImageClassification", **FACTS[facts])
    translated = translate(teacher)
    with torch.no_grad():
        assert error(Canonical(translated).image(IMAGES), teacher.base_model(IMAGES).last_hidden_state) < 1e-5
        assert error(Canonical(translated).classify(IMAGES), teacher(IMAGES).logits) < 1e-5
    assert (translated.differs, translated.architecture.unknown) == ((), ())


@pytest.mark.parametrize("pooled", [True, False])
def test_the_norm_of_the_masked_head_is_not_the_models(pooled):
    teacher = build("Beit", "ForMaskedImageModeling", use_mean_pooling=pooled, **SHARED)
    translated = translate(teacher)
    with torch.no_grad():
        assert error(Canonical(translated).image(IMAGES), teacher.beit(IMAGES).last_hidden_state) < 1e-5
    assert translated.ignored["layernorm.weight"] == "head of masked training"


@pytest.mark.parametrize("name", ["Beit", "Data2VecVision"])
def test_heads_of_segmentation_are_ignored(name):
    facts = {"num_hidden_layers": 4, "out_indices": [1, 2, 3, 4], "auxiliary_channels": 8} | EACH
    teacher = build(name, "ForSemanticSegmentation", **facts)
    with torch.no_grad():
        assert error(Canonical(translate(teacher)).image(IMAGES), teacher.base_model(IMAGES).last_hidden_state) < 1e-5


def names_of_before(state):
    """Return the names as transformers before version 5 wrote them."""
    found = {}
    for name, tensor in state.items():
        name = older(name).replace("shared_position_bias", "encoder.relative_position_bias")
        if ".relative_position_bias." in name and "encoder.relative" not in name:
            name = name.replace("relative_position_bias.", "attention.attention.relative_position_bias.", 1)
        found[name] = tensor
    return found


@pytest.mark.parametrize("as_dictionary", [True, False])
def test_names_of_older_versions(as_dictionary):
    teacher = build("Beit", "ForImageClassification", **EACH | SHARED)
    state = names_of_before(teacher.state_dict())
    table = "relative_position_bias.relative_position_bias_table"
    assert {f"beit.encoder.{table}", f"beit.encoder.layer.0.attention.attention.{table}"} <= set(state)
    translated = translate(state, config=teacher.config.to_dict() if as_dictionary else teacher.config)
    with torch.no_grad():
        assert error(Canonical(translated).classify(IMAGES), teacher(IMAGES).logits) < 1e-5


def test_a_bare_state_dict_tells_heads_and_grid_by_its_table():
    translated = translate(build("Beit", **SHARED).state_dict())
    assert (translated.family, translated.architecture.heads, translated.architecture.grid) == ("beit", 3, (3, 3))
    assert set(translated.architecture.unknown) == {"eps", "activation"}


@pytest.mark.parametrize(
    "facts, message",
    [
        ({"image_size": (8, 16)} | EACH, "relative positions on a grid of 2 by 4 patches: expected a square one"),
        ({"image_size": (8, 16)} | ABSOLUTE, "a grid of 2 by 4 patches: expected a square one"),
        ({"hidden_act": "tanh"}, "activation 'tanh' has no canonical form"),
    ],
)
def test_a_fact_without_canonical_form_is_refused(facts, message):
    with pytest.raises(ValueError, match=f"beit: {message}"):
        translate(build("Beit", **facts))


def test_the_table_of_another_image_size_is_refused():
    teacher = build("Beit", **SHARED)
    with pytest.raises(ValueError, match="a table of 28 relative positions is not that of the grid"):
        translate(teacher.state_dict(), config=teacher.config.to_dict() | {"image_size": 24})


def test_rectangular_images_are_kept_where_no_table_is_stretched():
    teacher, images = build("Beit", image_size=(8, 16)), torch.randn(2, 2, 8, 16)
    with torch.no_grad():
        assert error(Canonical(translate(teacher)).image(images), teacher(images).last_hidden_state) < 1e-5
