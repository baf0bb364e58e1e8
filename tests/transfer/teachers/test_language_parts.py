"""Language models inside of larger models, base models and models with other heads; which types are known."""

import pytest
import torch

from tests.transfer.teachers.canonical import Canonical, error, perturb
from tests.transfer.teachers.decoders import IDS, SIZES, build, without
from tests.transfer.teachers.versions import complete, need
from transmamba.transfer.teachers import families, refused, translate, unsupported

transformers = pytest.importorskip("transformers")

VISION = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20, "image_size": 8,
    "patch_size": 4,
}  # fmt: skip
CLIP = {"model_type": "clip_vision_model", "projection_dim": 8, **VISION}
SIGLIP = {"model_type": "siglip_vision_model", **VISION}
OPT = {**without("head_dim", "num_key_value_heads", "intermediate_size"), "ffn_dim": 40}
QFORMER = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 20,
    "encoder_hidden_size": 16, "vocab_size": 61,
}  # fmt: skip

COMPOSITES = {
    "llava": ("llava", {"vision_config": CLIP, "text_config": {"model_type": "llama", **SIZES}}),
    "llava tied": (
        "llava",
        {
            "vision_config": CLIP, "tie_word_embeddings": True,
            "text_config": {"model_type": "qwen2", **without("head_dim")},
        },
    ),
    "mistral3": (
        "mistral3",
        {"vision_config": {"model_type": "pixtral", **VISION}, "text_config": {"model_type": "mistral", **SIZES}},
    ),
    "gemma3": (
        "gemma3",
        {
            "vision_config": SIGLIP, "mm_tokens_per_image": 4,
            "text_config": {"model_type": "gemma3_text", "sliding_window": 3, "sliding_window_pattern": 2, **SIZES},
        },
    ),
    "blip-2": (
        "blip-2",
        {"vision_config": VISION, "qformer_config": QFORMER, "text_config": {"model_type": "opt", **OPT}},
    ),
    "fuyu": ("fuyu", {"text_config": {"model_type": "persimmon", **without("head_dim"), "hidden_size": 32}}),
}  # fmt: skip


@pytest.mark.parametrize("name", COMPOSITES)
def test_the_language_part_is_translated(name):
    kind, facts = COMPOSITES[name]
    made = transformers.AutoConfig.for_model(kind, image_token_id=60, image_token_index=60, **facts)
    teacher = perturb(transformers.AutoModelForImageTextToText.from_config(made, attn_implementation="eager"))
    translated = translate(teacher, kind="decoder")
    with torch.no_grad():
        wanted = teacher(input_ids=IDS).logits if kind != "blip-2" else teacher.language_model(IDS).logits
        assert error(Canonical(translated).logits(IDS), wanted) < 1e-5
    assert any("another part of the model" in reason for reason in translated.ignored.values()) or kind == "fuyu"


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2", "gpt_neox", "opt", "cohere"])
def test_a_base_model_is_the_same_without_an_untied_head(kind):
    sizes = OPT if kind == "opt" else SIZES
    teacher = build(kind, sizes, auto="AutoModel", tie_word_embeddings=False)
    translated = translate(teacher)
    with torch.no_grad():
        assert error(Canonical(translated).text(IDS), teacher(IDS).last_hidden_state) < 1e-5
    assert "head.weight" not in translated
    assert "head.weight" in translate(build(kind, sizes, auto="AutoModel", tie_word_embeddings=True))


TASKS = ("SequenceClassification", "TokenClassification", "QuestionAnswering")


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma", "mistral", "gpt2", "gpt_neox", "gpt_neo", "opt", "phi"])
def test_heads_of_other_tasks_are_ignored_by_name(kind, task):
    auto = getattr(transformers, f"AutoModelFor{task}")
    sizes = {"gpt2": {"n_embd": 24, "n_layer": 4, "n_head": 4}, "gpt_neo": GPT_NEO}.get(kind, without("head_dim"))
    made = transformers.AutoConfig.for_model(kind, **sizes)
    if type(made) not in auto._model_mapping:
        pytest.skip(f"transformers has no {kind} for {task}")
    translated = translate(perturb(auto.from_config(made)))
    heads = {name for name, reason in translated.ignored.items() if reason == "head of another task"}
    assert heads and all(name.split(".")[0] in ("score", "classifier", "qa_outputs") for name in heads)
    assert ("head.weight" in translated) == translated.architecture.tied


GPT_NEO = {"hidden_size": 24, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}


def test_the_tensors_of_llama_alone_are_those_of_many_families():
    with pytest.raises(ValueError, match="'gemma'.*'llama'.*say which, family=..., or give its config"):
        translate(build("llama").state_dict())


def test_a_family_without_its_configuration_says_what_it_does_not_know():
    translated = translate(build("llama").state_dict(), family="llama")
    assert set(translated.architecture.unknown) == {"heads", "eps", "activation", "ropes"}


def test_another_number_of_layers_than_the_configuration_says_is_an_error():
    teacher = build("llama")
    with pytest.raises(ValueError, match="the configuration gives 3 layers, the checkpoint has 4"):
        translate(teacher.state_dict(), config={**teacher.config.to_dict(), "num_hidden_layers": 3})


def test_heads_that_rotate_in_part_are_an_error_where_the_model_rotates_them_whole():
    teacher = build("llama")
    config = {**teacher.config.to_dict(), "rope_parameters": {"partial_rotary_factor": 0.5, "rope_theta": 10.0}}
    with pytest.raises(ValueError, match=r"partial_rotary_factor is 0.5, and models of this type rotate whole heads"):
        translate(teacher.state_dict(), config=config)


def test_layers_of_another_kind_are_an_error():
    teacher = build("ministral")
    config = {**teacher.config.to_dict(), "layer_types": ["chunked_attention"] * 4}
    with pytest.raises(ValueError, match="layers of type chunked_attention have no canonical form"):
        translate(teacher.state_dict(), config=config)
    with pytest.raises(ValueError, match="layer_types names 2 layers, the checkpoint has 4"):
        translate(teacher.state_dict(), config={**config, "layer_types": ["full_attention"] * 2})


def test_a_refused_type_says_what_stands_in_the_way():
    with pytest.raises(ValueError, match="'mixtral' is refused: its MLPs are experts behind a router"):
        translate({"model.embed_tokens.weight": torch.ones(2, 2)}, config={"model_type": "mixtral"})
    part = {"model_type": "kimi_k25", "text_config": {"model_type": "deepseek_v3"}}
    with pytest.raises(ValueError, match="'kimi_k25' is refused: its part 'deepseek_v3' is refused: its keys and"):
        translate({"model.embed_tokens.weight": torch.ones(2, 2)}, config=part)


DECODERS = [
    pytest.param(family, id=name)
    for name, family in families().items()
    if family.read.__module__.rpartition(".")[2] in ("llama", "gemma", "layer_norm", "gpt", "opt")
]


@pytest.mark.parametrize("family", DECODERS)
def test_defaults_are_those_of_the_configuration_class(family):
    """Text parts of composite models hold differences from the class alone: LLaVA's has no entry for heads."""
    (kind,) = family.model_types
    need(kind)
    default = transformers.AutoConfig.for_model(kind).to_dict()
    rope = default.get("rope_parameters") or {}
    default = {**rope.get("full_attention", rope), **default}
    (heads,) = {default[key] for key in ("num_attention_heads", "n_head", "num_heads") if default.get(key)} or {16}
    assert family.defaults["num_attention_heads"] == heads
    # Qwen's class sets the window aside while it is not used, and it would be 4096
    known = {key: value for key, value in family.defaults.items() if key in default and not kind.startswith("qwen")}
    assert {key: default[key] for key in known} == known


def test_a_sparse_text_part_of_a_composite_model():
    text = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 40, "vocab_size": 61}
    made = transformers.LlavaConfig(vision_config=CLIP, text_config=text, image_token_index=60)
    teacher = perturb(transformers.LlavaForConditionalGeneration(made))
    config = {"model_type": "llava", "text_config": {"model_type": "llama", "vocab_size": 61}}
    translated = translate(teacher.state_dict(), config=config)
    assert (translated.family, translated.architecture.heads, translated.architecture.head_dim) == ("llama", 32, 2)


def test_no_type_is_both_known_and_refused():
    assert not set(unsupported.REFUSED) & {kind for family in families().values() for kind in family.model_types}


@complete
def test_every_causal_language_model_of_transformers_is_known_or_refused():
    mapping = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    known = {kind for family in families().values() for kind in family.model_types} | set(refused())
    unknown = []
    for kind in mapping:
        try:
            config = transformers.AutoConfig.for_model(kind).to_dict()
        except Exception:  # a class that has no default configuration: its own type decides
            config = {"model_type": kind}
        parts = {part.get("model_type") for part in config.values() if isinstance(part, dict)}
        if not known & {kind, config["model_type"], *parts}:
            unknown.append(kind)
    # families of encoders, some of which generate as well
    assert set(unknown) <= {"whisper", "big_bird", "megatron-bert", "rembert", "roc_bert", "xmod", "git", "roformer"}
