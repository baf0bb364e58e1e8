import pytest
import torch
from torch import nn

from transmamba.models import BackbonePatches, ClipPatches, ViT
from transmamba.models.patch_encoders import Projector

transformers = pytest.importorskip("transformers")


@pytest.fixture
def clip():
    config = transformers.CLIPVisionConfig(
        hidden_size=8, intermediate_size=12, num_hidden_layers=3, num_attention_heads=2, image_size=8, patch_size=4
    )
    return transformers.CLIPVisionModel(config).eval()


def test_clip_gives_its_patches_as_llava_takes_them(clip):
    images = torch.randn(2, 3, 8, 8)
    tokens, grid = ClipPatches(clip)(images)
    expected = clip(images, output_hidden_states=True).hidden_states[-2][:, 1:]
    assert torch.equal(tokens, expected) and grid == (2, 2)
    with pytest.raises(ValueError, match="hidden state 4 does not exist: expected -4 to 3"):
        ClipPatches(clip, layer=4)


def test_clip_needs_an_image(clip):
    with pytest.raises(ValueError, match=r"images have shape \(0, 3, 8, 8\): there is nothing for CLIP to see"):
        ClipPatches(clip)(torch.zeros(0, 3, 8, 8))


def test_another_model_is_no_clip():
    with pytest.raises(TypeError, match="expected a CLIPVisionModel of transformers, got a Identity without config"):
        ClipPatches(nn.Identity())


def test_a_backbone_gives_patches_without_its_class_tokens():
    vit, images = ViT(8, 4, dim=12, depth=2, heads=3).eval(), torch.randn(2, 3, 8, 8)
    features = vit.forward_features(images)
    assert torch.equal(BackbonePatches(vit, 12)(images)[0], features.last[:, 1:])
    assert torch.equal(BackbonePatches(vit, 12, layer=0)(images)[0], features.layers[0][:, 1:])


def test_another_model_is_no_backbone():
    with pytest.raises(TypeError, match="(?s)backbone.*Identity"):
        BackbonePatches(nn.Identity(), 12)


def test_the_projector_has_llavas_names():
    assert set(Projector(3, 5).state_dict()) == {f"linear_{n}.{leaf}" for n in (1, 2) for leaf in ("weight", "bias")}
