"""DINOv2 and DINOv3 of transformers: the translated tensors in a plain Transformer give the teacher's tokens."""

import re
from functools import partial

import pytest
import torch

from tests.transfer.teachers.canonical import IMAGES, Canonical, error, image_model, perturb
from transmamba.transfer.teachers import translate

transformers = pytest.importorskip("transformers")
SIZES = {
    "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "num_channels": 2, "image_size": 12,
    "patch_size": 4, "num_labels": 5, "layerscale_value": 0.3,
}  # fmt: skip
build = partial(image_model, SIZES)

MODELS = {
    "Dinov2": {},
    "Dinov2, other facts": {"layer_norm_eps": 1e-2, "hidden_act": "gelu_new", "qkv_bias": False, "mlp_ratio": 2},
    "Dinov2, gated": {"use_swiglu_ffn": True, "hidden_act": "relu", "use_mask_token": False},
    "Dinov2WithRegisters": {},
    "Dinov2WithRegisters, other facts": {"layer_norm_eps": 1e-2, "num_register_tokens": 2, "qkv_bias": False},
    "Dinov2WithRegisters, gated": {"use_swiglu_ffn": True},
    "DINOv3ViT": {"intermediate_size": 40},
    "DINOv3ViT, registers": {"num_register_tokens": 4, "rope_theta": 7.0, "layer_norm_eps": 1e-2},
    "DINOv3ViT, gated": {"use_gated_mlp": True, "hidden_act": "silu", "intermediate_size": 40},
    "DINOv3ViT, biases": {"key_bias": True, "query_bias": False, "value_bias": False, "mlp_bias": False},
    "DINOv3ViT, no biases": {"proj_bias": False, "hidden_act": "gelu_pytorch_tanh", "num_attention_heads": 2},
    "DINOv3ViT, rectangular": {"image_size": (8, 16), "num_register_tokens": 1},
}


@pytest.mark.parametrize("name", MODELS)
def test_the_translated_teacher_is_the_teacher(name):
    facts = MODELS[name]
    teacher = build(name.split(",")[0], **facts)
    images = IMAGES.reshape(2, 2, 8, -1)[..., :16] if "image_size" in facts else IMAGES
    translated = translate(teacher)
    with torch.no_grad():
        assert error(Canonical(translated).image(images), teacher(images).last_hidden_state) < 1e-5
    assert (translated.differs, translated.architecture.unknown) == ((), ())


def test_registers_are_counted():
    assert "reg_token" not in translate(build("DINOv3ViT"))
    assert translate(build("Dinov2WithRegisters")).shape("reg_token") == (1, 4, 24)


@pytest.mark.parametrize("name", ["Dinov2", "Dinov2WithRegisters"])
def test_the_classifier_is_ignored_because_it_reads_two_things(name):
    teacher = build(name, "ForImageClassification")
    translated = translate(teacher)
    assert translated.ignored["classifier.weight"] == "reads the class token beside the mean of the patches"
    with torch.no_grad():
        assert error(Canonical(translated).image(IMAGES), teacher.base_model(IMAGES).last_hidden_state) < 1e-5


@pytest.mark.parametrize("name", ["Dinov2", "Dinov2WithRegisters", "DINOv3ViT"])
def test_a_backbone_is_the_model(name):
    teacher = build(name, "Backbone")
    model = getattr(transformers, f"{name}Model")(teacher.config).eval()
    model.load_state_dict(teacher.state_dict())
    with torch.no_grad():
        assert error(Canonical(translate(teacher)).image(IMAGES), model(IMAGES).last_hidden_state) < 1e-5


def test_the_backbone_of_a_depth_model():
    backbone = transformers.Dinov2Config(**SIZES, out_indices=[1, 2, 3], reshape_hidden_states=False)
    sizes = {"reassemble_hidden_size": 24, "patch_size": 4, "reassemble_factors": [2, 1, 0.5], "fusion_hidden_size": 8}
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone, neck_hidden_sizes=[4, 8, 8], head_in_index=-1, head_hidden_size=4, **sizes
    )
    teacher = perturb(transformers.DepthAnythingForDepthEstimation(config))
    model = transformers.Dinov2Model(backbone).eval()
    model.load_state_dict(teacher.backbone.state_dict())
    with torch.no_grad():
        assert error(Canonical(translate(teacher)).image(IMAGES), model(IMAGES).last_hidden_state) < 1e-5


WORDS = {"q": "query", "k": "key", "v": "value"}


@pytest.mark.parametrize("as_dictionary", [True, False])
@pytest.mark.parametrize("gated", [True, False])
def test_names_of_older_versions(gated, as_dictionary):
    teacher, state = build("Dinov2WithRegisters", use_swiglu_ffn=gated), {}
    for name, tensor in teacher.state_dict().items():
        name = re.sub(r"attention\.(q|k|v)_proj", lambda hit: f"attention.attention.{WORDS[hit[1]]}", name)
        name = name.replace("attention.o_proj", "attention.output.dense").replace("down_proj", "weights_out")
        state[name] = tensor
    for name in [name for name in state if "gate_proj" in name]:
        fused = torch.cat([state.pop(name), state.pop(name.replace("gate_proj", "up_proj"))])
        state[name.replace("gate_proj", "weights_in")] = fused
    translated = translate(state, config=teacher.config.to_dict() if as_dictionary else teacher.config)
    with torch.no_grad():
        assert error(Canonical(translated).image(IMAGES), teacher(IMAGES).last_hidden_state) < 1e-5


def test_names_of_older_versions_of_dinov3():
    teacher = build("DINOv3ViT", num_register_tokens=2)
    state = {name.removeprefix("model."): tensor for name, tensor in teacher.state_dict().items()}
    assert "layer.0.norm1.weight" in state
    with torch.no_grad():
        got = Canonical(translate(state, config=teacher.config.to_dict())).image(IMAGES)
        assert error(got, teacher(IMAGES).last_hidden_state) < 1e-5


@pytest.mark.parametrize(
    "name, family, unknown",
    [
        ("Dinov2", "dinov2", {"heads", "eps", "activation"}),
        ("Dinov2WithRegisters", "dinov2", {"heads", "eps", "activation"}),
        ("DINOv3ViT", "dinov3", {"heads", "eps", "activation", "grid", "ropes"}),
    ],
)
def test_a_bare_state_dict_is_known_by_its_names(name, family, unknown):
    translated = translate(build(name).state_dict())
    assert translated.family == family and set(translated.architecture.unknown) == unknown


@pytest.mark.parametrize("name", ["Dinov2", "Dinov2WithRegisters"])
def test_a_rectangular_table_that_would_be_stretched_is_refused(name):
    with pytest.raises(ValueError, match="dinov2: a grid of 2 by 8 patches: expected a square one"):
        translate(build(name, image_size=(8, 32)))


def test_an_activation_without_canonical_form_is_refused():
    with pytest.raises(ValueError, match="dinov3: activation 'tanh' has no canonical form"):
        translate(build("DINOv3ViT", hidden_act="tanh"))
