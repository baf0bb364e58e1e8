"""Plain ViTs of transformers: the translated tensors in a plain Transformer give the teacher's tokens and logits."""

import re
from functools import partial

import pytest
import torch

from tests.transfer.teachers.canonical import IMAGES, Canonical, error, image_model, perturb
from transmamba.transfer.teachers import translate

transformers = pytest.importorskip("transformers")
SIZES = {
    "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 40, "num_channels": 2,
    "image_size": 12, "patch_size": 4, "num_labels": 5,
}  # fmt: skip
build = partial(image_model, SIZES)

MODELS = {
    "ViT": {},
    "ViT, other facts": {"layer_norm_eps": 1e-2, "hidden_act": "gelu_new", "qkv_bias": False, "num_attention_heads": 2},
    "ViT, rectangular": {"image_size": (8, 16)},
    "ViT, narrow heads": {"head_dim": 6},
    "ViT, pooler": {"pooler_output_size": 7, "pooler_act": "relu"},
    "DeiT": {},
    "DeiT, other facts": {"layer_norm_eps": 1e-2, "hidden_act": "relu", "qkv_bias": False},
    "IJepa": {},
    "IJepa, other facts": {"layer_norm_eps": 1e-2, "hidden_act": "silu", "qkv_bias": False},
    "ViTMSN": {},
    "ViTMSN, other facts": {"layer_norm_eps": 1e-2, "hidden_act": "quick_gelu", "qkv_bias": False},
}


@pytest.mark.parametrize("name", MODELS)
def test_the_translated_teacher_is_the_teacher(name):
    facts = MODELS[name]
    teacher = build(name.split(",")[0], **facts)
    images = IMAGES.reshape(2, 2, 8, -1)[..., :16] if "image_size" in facts else IMAGES
    with torch.no_grad():
        translated = translate(teacher)
        assert error(Canonical(translated).image(images), teacher(images).last_hidden_state) < 1e-5
    assert (translated.family, translated.differs, translated.architecture.unknown) == ("vit", (), ())


def test_mae_is_its_encoder_with_every_patch_in_order():
    for kind in ("Model", "ForPreTraining"):
        teacher = build("ViTMAE", kind, mask_ratio=0.0, decoder_hidden_size=12, decoder_num_attention_heads=3)
        encoder = teacher.base_model
        noise = torch.arange(9.0).expand(2, -1)
        with torch.no_grad():
            wanted = encoder(IMAGES, noise=noise).last_hidden_state
            assert error(Canonical(translate(teacher)).image(IMAGES), wanted) < 1e-5


@pytest.mark.parametrize(
    "name, kind",
    [
        ("ViT", "ForImageClassification"),
        ("DeiT", "ForImageClassification"),
        ("DeiT", "ForImageClassificationWithTeacher"),
        ("IJepa", "ForImageClassification"),
        ("ViTMSN", "ForImageClassification"),
    ],
)
def test_the_logits_of_a_classifier(name, kind):
    teacher = build(name, kind)
    with torch.no_grad():
        assert error(Canonical(translate(teacher)).classify(IMAGES), teacher(IMAGES).logits) < 1e-5


@pytest.mark.parametrize("name", ["ViT", "DeiT"])
def test_a_model_of_masked_training_is_its_encoder(name):
    teacher = build(name, "ForMaskedImageModeling", encoder_stride=4)
    translated = translate(teacher)
    with torch.no_grad():
        assert error(Canonical(translated).image(IMAGES), teacher.base_model(IMAGES).last_hidden_state) < 1e-5
    assert {"decoder.0.weight", f"{name.lower()}.embeddings.mask_token"} <= set(translated.ignored)


def test_the_encoder_of_a_pair_of_encoder_and_decoder():
    vit, gpt2 = transformers.ViTConfig(**SIZES), transformers.GPT2Config(n_embd=12, n_layer=1, n_head=3, vocab_size=9)
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(vit, gpt2)
    teacher = perturb(transformers.VisionEncoderDecoderModel(config))
    with torch.no_grad():
        got = Canonical(translate(teacher, "vit")).image(IMAGES)
        assert error(got, teacher.encoder(IMAGES).last_hidden_state) < 1e-5


def older(name):
    """Return a name as transformers before version 5 wrote it."""
    name = re.sub(r"attention\.(q|k|v)_proj", lambda hit: f"attention.attention.{WORDS[hit[1]]}", name)
    name = name.replace("attention.o_proj", "attention.output.dense").replace("layers.", "encoder.layer.")
    return name.replace("mlp.fc1", "intermediate.dense").replace("mlp.fc2", "output.dense")


WORDS = {"q": "query", "k": "key", "v": "value"}


@pytest.mark.parametrize("as_dictionary", [True, False])
def test_names_of_older_versions(as_dictionary):
    teacher = build("ViT", "ForImageClassification")
    state = {older(name): tensor for name, tensor in teacher.state_dict().items()}
    assert "vit.encoder.layer.0.attention.attention.query.weight" in state
    translated = translate(state, config=teacher.config.to_dict() if as_dictionary else teacher.config)
    with torch.no_grad():
        assert error(Canonical(translated).classify(IMAGES), teacher(IMAGES).logits) < 1e-5


@pytest.mark.parametrize("name, kind", [("ViT", "Model"), ("ViT", "ForImageClassification"), ("ViTMSN", "Model")])
def test_a_bare_state_dict_is_known_by_its_names(name, kind):
    translated = translate(build(name, kind).state_dict())
    assert translated.family == "vit" and set(translated.architecture.unknown) == {"heads", "eps", "activation"}
    assert translated.architecture.grid == (3, 3)


@pytest.mark.parametrize(
    "facts, message",
    [
        ({"hidden_act": "tanh"}, "activation 'tanh' has no canonical form"),
        ({"patch_size": (4, 2)}, "patches of 4 by 2 pixels have no canonical form"),
    ],
)
def test_a_fact_without_canonical_form_is_refused(facts, message):
    with pytest.raises(ValueError, match=f"vit: {message}"):
        translate(build("ViT", **facts))


def test_the_configuration_of_another_checkpoint_is_refused():
    teacher = build("ViT")
    with pytest.raises(ValueError, match="24 by 24 pixels has 36 patches of 4, but the position table 10 rows"):
        translate(teacher.state_dict(), config=teacher.config.to_dict() | {"image_size": 24})
    with pytest.raises(ValueError, match="not those of 5 heads"):
        translate(teacher.state_dict(), config=teacher.config.to_dict() | {"num_attention_heads": 5})
