"""Image teachers as our own ViT: the tokens and logits of the teacher, for the families and options of their tests."""

import pytest
import torch

from tests.transfer.teachers import test_beit, test_clip_vision, test_image_towers, test_timm, test_vit
from tests.transfer.teachers.canonical import error
from transmamba.models import from_transformer

IMAGES = test_vit.IMAGES
WIDE = IMAGES.reshape(2, 2, 8, -1)[..., :16]


def variants():
    """Name -> how to build the teacher, and its images."""
    for name, facts in test_beit.FACTS.items():
        yield f"BEiT, {name}", (lambda facts=facts: test_beit.build("Beit", **facts), IMAGES)
    for name in test_image_towers.TOWERS:
        yield name, (lambda name=name: test_image_towers.build(name), test_image_towers.IMAGES)
    for name in (*test_clip_vision.CLIPS, "Siglip"):
        yield f"{name}, tower", (lambda name=name: test_clip_vision.build(name), IMAGES)


TEACHERS = dict(variants())


@pytest.mark.parametrize("name", TEACHERS)
def test_tokens_are_those_of_transformers(name):
    build, images = TEACHERS[name]
    teacher = build()
    with torch.no_grad():
        assert error(from_transformer(teacher).forward_features(images).last, teacher(images).last_hidden_state) < 1e-5


@pytest.mark.parametrize("name", test_timm.MODELS)
def test_tokens_and_logits_are_those_of_timm(name):
    teacher, images = test_timm.build(name), WIDE if "size" in test_timm.MODELS[name] else IMAGES
    ours = from_transformer(teacher)
    with torch.no_grad():
        assert error(ours.forward_features(images).last, teacher.forward_features(images)) < 1e-5
        assert error(ours(images), teacher(images)) < 1e-5


CLASSIFIERS = {
    "ViT": lambda: test_vit.build("ViT", "ForImageClassification"),
    "DeiT": lambda: test_vit.build("DeiT", "ForImageClassification"),
    "DeiT, two heads": lambda: test_vit.build("DeiT", "ForImageClassificationWithTeacher"),
    "I-JEPA": lambda: test_vit.build("IJepa", "ForImageClassification"),
    "BEiT": lambda: test_beit.build("Beit", "ForImageClassification", **test_beit.EACH),
    "BEiT, class token": lambda: test_beit.build("Beit", "ForImageClassification", use_mean_pooling=False),
    "CLIP": lambda: test_clip_vision.compose("CLIP", "ForImageClassification", num_labels=5),
    "SigLIP": lambda: test_clip_vision.compose("Siglip", "ForImageClassification", num_labels=5),
}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_logits_are_those_of_transformers(name):
    teacher = CLASSIFIERS[name]()
    with torch.no_grad():
        assert error(from_transformer(teacher)(IMAGES), teacher(IMAGES).logits) < 1e-5


def test_the_projection_of_a_clip_is_its_head():
    teacher = test_clip_vision.build("CLIP", "VisionModelWithProjection", projection_dim=7)
    with torch.no_grad():
        assert error(from_transformer(teacher)(IMAGES), teacher(IMAGES).image_embeds) < 1e-5
