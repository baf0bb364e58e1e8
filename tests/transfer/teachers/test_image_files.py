"""Files that save_pretrained writes: names and fused matrices of older versions, and a config.json without defaults."""

import pytest
import torch

from tests.transfer.teachers import test_beit, test_clip_vision, test_dino, test_image_towers, test_vit
from tests.transfer.teachers.canonical import Canonical, error
from transmamba.transfer import open_safetensors
from transmamba.transfer.teachers import translate

TEACHERS = {
    "ViT": lambda: test_vit.build("ViT"),
    "DeiT": lambda: test_vit.build("DeiT"),
    "ViT-MSN": lambda: test_vit.build("ViTMSN"),
    "DINOv2, gated": lambda: test_dino.build("Dinov2", use_swiglu_ffn=True),
    "DINOv2 with registers": lambda: test_dino.build("Dinov2WithRegisters"),
    "DINOv3": lambda: test_dino.build("DINOv3ViT", num_register_tokens=2),
    "BEiT": lambda: test_beit.build("Beit", **test_beit.EACH | test_beit.SHARED),
    "Data2VecVision": lambda: test_beit.build("Data2VecVision", **test_beit.EACH),
    "CLIP": lambda: test_clip_vision.compose("CLIP"),
    "SigLIP": lambda: test_clip_vision.compose("Siglip"),
    "Pixio": lambda: test_image_towers.build("Pixio"),
    "BLIP": lambda: test_image_towers.build("Blip"),
    "InternVL": lambda: test_image_towers.build("InternVL"),
}


OWN = {
    **dict.fromkeys(("ViT", "DeiT", "IJepa", "ViTMSN"), test_vit),
    **dict.fromkeys(("Dinov2", "Dinov2WithRegisters", "DINOv3ViT"), test_dino),
    **dict.fromkeys(("Beit", "Data2VecVision"), test_beit),
}


@pytest.mark.parametrize("name", [*OWN, *test_image_towers.TOWERS])
def test_facts_that_a_file_leaves_out_are_those_of_the_configuration_class(name):
    tests = OWN.get(name, test_image_towers)
    heads = tests.build(name).config.__class__().num_attention_heads
    teacher = tests.build(name, hidden_size=4 * heads, num_attention_heads=heads)
    default, values = type(teacher.config)().to_dict(), teacher.config.to_dict()
    left_out = [key for key in ("layer_norm_eps", "hidden_act", "num_attention_heads") if values[key] == default[key]]
    config = {key: value for key, value in values.items() if key not in left_out}
    wanted, got = translate(teacher), translate(teacher.state_dict(), config=config)
    assert len(left_out) > 1 and got.architecture == wanted.architecture and not got.architecture.unknown


@pytest.mark.parametrize("name", TEACHERS)
def test_files_hold_the_teacher(name, tmp_path):
    teacher = TEACHERS[name]()
    teacher.save_pretrained(tmp_path)
    translated = translate(open_safetensors(tmp_path), kind="image")
    tower = getattr(teacher, "vision_model", teacher)
    images = test_image_towers.IMAGES if name in ("Pixio", "BLIP", "InternVL") else test_vit.IMAGES
    with torch.no_grad():
        assert error(Canonical(translated).image(images), tower(images).last_hidden_state) < 1e-5
    assert translated.architecture.unknown == ()
    # shapes come from the headers, through the same steps as the tensors
    assert all(translated.shape(one) == tuple(translated[one].shape) for one in translated)
