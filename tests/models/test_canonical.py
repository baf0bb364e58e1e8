"""A teacher as one of our own models: the same output, copied weights, or a refusal that names the part."""

from dataclasses import replace

import pytest
import torch

from tests.transfer.teachers import encoders, test_bert, test_dino, test_rotary_encoders, test_vit
from tests.transfer.teachers.canonical import error, perturb
from transmamba.models import MambaLM, TransformerEncoder, ViT, from_transformer
from transmamba.transfer.teachers import Architecture, Canonical, Family, src, translate

transformers = pytest.importorskip("transformers")
SIZES = {
    "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 40, "vocab_size": 61, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
IDS = torch.arange(1, 23).view(2, 11)


def llama(**facts):
    return perturb(transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES | facts)))


@pytest.mark.parametrize("tied", [False, True])
def test_a_language_model_has_the_logits_and_the_text_of_its_teacher(tied):
    teacher = llama(tie_word_embeddings=tied, attention_bias=True, mlp_bias=True)
    ours = from_transformer(teacher)
    assert type(ours) is MambaLM and not ours.training and ours.tied == tied
    with torch.no_grad():
        assert error(ours(IDS), teacher(IDS).logits) < 1e-5
        wanted = teacher.generate(IDS[:, :4], max_new_tokens=20, do_sample=False, eos_token_id=None)
    assert torch.equal(ours.generate(IDS[:, :4], 20), wanted)


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module in (test_vit, test_dino) for name in module.MODELS]
)
def test_an_image_model_has_the_tokens_of_its_teacher(module, name):
    facts = module.MODELS[name]
    teacher = module.build(name.split(",")[0], **facts)
    images = module.IMAGES.reshape(2, 2, 8, -1)[..., :16] if "image_size" in facts else module.IMAGES
    ours = from_transformer(teacher)
    with torch.no_grad():
        assert error(ours.forward_features(images).last, teacher(images).last_hidden_state) < 1e-5


@pytest.mark.parametrize("name, kind", [("ViT", ""), ("DeiT", ""), ("DeiT", "WithTeacher"), ("IJepa", "")])
def test_a_classifier_has_the_logits_of_its_teacher(name, kind):
    teacher = test_vit.build(name, f"ForImageClassification{kind}")
    with torch.no_grad():
        assert error(from_transformer(teacher)(test_vit.IMAGES), teacher(test_vit.IMAGES).logits) < 1e-5


ENCODERS = {
    **{name: (build, True) for name, build in test_bert.EXACT.items()},
    **{
        name: (lambda case=case: test_rotary_encoders.build(case[0], **case[1]), typed)
        for cases, typed in ((test_rotary_encoders.TYPED, True), (test_rotary_encoders.PLAIN, False))
        for name, case in cases.items()
    },
}


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("padding", ["none", "right", "left"])
def test_a_text_encoder_has_the_stream_of_its_teacher(name, padding):
    build, typed = ENCODERS[name]
    teacher = perturb(build())
    mask = {"none": torch.ones_like(encoders.RIGHT), "right": encoders.RIGHT, "left": encoders.LEFT}[padding]
    pad = teacher.config.pad_token_id
    ids, types = encoders.IDS.masked_fill(~mask, encoders.PAD if pad is None else pad), test_bert.TYPES
    given = {"token_type_ids": types} if typed else {}
    ours = from_transformer(teacher)
    with torch.no_grad():
        wanted = teacher(ids, attention_mask=mask.long(), **given).last_hidden_state
        got = ours.forward_features(ids, mask=mask, type_ids=types if typed else None).last
    assert error(got[mask], wanted[mask]) < 1e-5


def test_weights_are_copies_of_the_dtype_of_the_teacher():
    teacher = llama(tie_word_embeddings=True).bfloat16()
    ours = from_transformer(teacher)
    assert {p.dtype for p in ours.parameters()} == {torch.bfloat16}
    assert all(p.requires_grad and p.is_contiguous() for p in ours.parameters())
    before = teacher.model.norm.weight.clone()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.zero_()
    assert torch.equal(teacher.model.norm.weight, before) and teacher.model.embed_tokens.weight.any()
    dino = test_dino.build("Dinov2").double()  # folding keeps the dtype as well
    assert {p.dtype for p in from_transformer(dino).parameters()} == {torch.float64}


def test_a_translated_teacher_and_a_state_dict_with_its_config_are_the_same():
    teacher = llama()
    wanted = from_transformer(teacher)(IDS)
    assert torch.equal(from_transformer(translate(teacher))(IDS), wanted)
    assert torch.equal(from_transformer(teacher.state_dict(), "llama", config=teacher.config)(IDS), wanted)


def test_facts_that_names_do_not_tell_are_asked_for():
    with pytest.raises(ValueError, match=r"llama: the checkpoint does not state heads.*: give its config=\.\.\."):
        from_transformer(llama().state_dict(), "llama")


def family(changes=None, terms=None):
    """Return LLaMA with other facts, and with further canonical tensors that are copies of its norm."""

    def read(checkpoint):
        names = {
            "embedding.weight": "embed_tokens.weight", "norm.weight": "norm.weight", "head.weight": "lm_head.weight",
            "blocks.{i}.norm1.weight": "layers.{i}.input_layernorm.weight",
            "blocks.{i}.norm2.weight": "layers.{i}.post_attention_layernorm.weight",
            "blocks.{i}.attn.out.weight": "layers.{i}.self_attn.o_proj.weight",
        }  # fmt: skip
        names |= {f"blocks.{{i}}.attn.{x}.weight": f"layers.{{i}}.self_attn.{x}_proj.weight" for x in "qkv"}
        names |= {f"blocks.{{i}}.mlp.{x}.weight": f"layers.{{i}}.mlp.{x}_proj.weight" for x in ("up", "gate", "down")}
        names |= terms or {}
        facts = Architecture("decoder", 24, 3, 4, 2, norm="rms", activation="silu", causal=True)
        return Canonical({name: src(stored) for name, stored in names.items()}, replace(facts, **changes or {}))

    return Family("mine", "mine", (), "layers.0.input_layernorm.weight", read)


@pytest.mark.parametrize(
    ("changes", "terms", "message"),
    [
        ({}, {"norm_pre.weight": "norm.weight"}, "mine: MambaLM has no place for norm_pre.weight"),
        ({}, {"blocks.{i}.attn.gate.weight": "norm.weight"}, "no place for blocks.0.attn.gate.weight, blocks.1"),
        ({}, {"blocks.{i}.attn.k_norm.weight": "norm.weight"}, "no place for blocks.0.attn.k_norm.weight"),
        ({}, {"blocks.{i}.attn.q_norm.weight": "norm.weight"}, "the teacher lacks blocks.0.attn.k_norm.weight"),
        ({}, {"blocks.{i}.mlp.up.bias": "norm.weight"}, "tensors do not fit together"),
        ({"causal": False}, {}, "a language model attends to earlier tokens only, this one to all"),
        ({"unknown": ("eps",)}, {}, "the checkpoint does not state eps"),
        ({"heads": None}, {}, "the checkpoint does not state the heads"),
        ({"kind": "image"}, {}, "the checkpoint does not state the grid of patches"),
        ({"kind": "image", "grid": (2, 2)}, {}, "the teacher lacks patch_embed.weight"),
        ({"kind": "ssm"}, {}, "a teacher of kind 'ssm' is not a Transformer: from_official and from_hf load"),
        ({"ropes": ({"rope_theta": 9.0, "rope_type": "su"},) * 3}, {}, "rope_type must be one of default, linear"),
    ],
)
def test_a_part_that_ours_lacks_is_named(changes, terms, message):
    with pytest.raises(ValueError, match=message):
        from_transformer(translate(llama(), family(changes, terms)))


def test_what_is_not_recognised_is_refused_as_by_translate():
    with pytest.raises(ValueError, match="no family knows these tensors"):
        from_transformer(torch.nn.Linear(3, 3))


@pytest.mark.parametrize(
    "build",
    [
        lambda: llama(tie_word_embeddings=True),
        lambda: test_dino.build("DINOv3ViT", num_register_tokens=2, intermediate_size=40),
        lambda: perturb(test_bert.build("Roberta")),
        lambda: perturb(test_rotary_encoders.build("ModernBert", num_hidden_layers=4, local_attention=4)),
    ],
)
def test_the_model_comes_back_from_its_folder(build, tmp_path):
    ours = from_transformer(build())
    ours.save_pretrained(tmp_path)
    again = type(ours).from_pretrained(tmp_path)
    x = test_dino.IMAGES if isinstance(ours, ViT) else IDS
    assert torch.equal(again(x), ours(x)) and again.build_config == ours.build_config


def test_kinds_of_models():
    assert type(from_transformer(test_vit.build("ViT"))) is ViT
    assert type(from_transformer(perturb(test_bert.build("Bert")))) is TransformerEncoder
