"""Teachers find their family, and every tensor of theirs is used or ignored by name."""

import re

import pytest
import torch
from torch import nn

from tests.transfer.teachers.canonical import perturb
from transmamba.models import MambaLM, VisionMamba, ViT
from transmamba.transfer import open_safetensors, subclone, translate
from transmamba.transfer.teachers import Architecture, Canonical, Family, affine, families, refused, src

transformers = pytest.importorskip("transformers")
SIZES = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 40, "vocab_size": 61, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def llama(**facts):
    return perturb(transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, **facts)))


def equal(one, two):
    return set(one) == set(two) and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")
def test_wrappers_of_a_module_change_nothing():
    teacher = llama()
    plain = translate(teacher)
    assert equal(translate(torch.compile(teacher)), plain)
    assert equal(translate(nn.DataParallel(teacher)), plain)
    assert translate(plain) is plain


def test_a_state_dict_with_its_configuration_is_the_module():
    teacher = llama()
    for config in (teacher.config, teacher.config.to_dict()):
        translated = translate(teacher.state_dict(), config=config)
        assert equal(translated, translate(teacher)) and translated.architecture == translate(teacher).architecture


def test_files_are_recognised_by_their_configuration_and_read_one_tensor_at_a_time(tmp_path, monkeypatch):
    teacher = llama()
    teacher.save_pretrained(tmp_path)
    files = open_safetensors(tmp_path)
    reads, original = [], type(files).__getitem__
    monkeypatch.setattr(type(files), "__getitem__", lambda self, name: reads.append(name) or original(self, name))
    translated = translate(files)
    assert len(reads) <= 3 and translated.family == "llama"  # the check at the border looks at one item
    reads.clear()
    assert translated.shape("blocks.1.mlp.gate.weight") == (40, 24) and reads == []
    assert torch.equal(translated["blocks.1.mlp.gate.weight"], teacher.model.layers[1].mlp.gate_proj.weight)
    assert reads == ["model.layers.1.mlp.gate_proj.weight"]
    assert equal(translated, translate(teacher))


def test_a_bare_state_dict_hides_facts_and_says_so():
    vit = ViT(img_size=8, patch_size=2, dim=12, depth=2, heads=3, num_classes=5)
    assert "heads" in translate(vit.state_dict()).architecture.unknown
    known = translate(vit.state_dict(), config={"num_heads": 3})
    assert (known.architecture.heads, known.architecture.head_dim) == (3, 4)
    assert "heads" not in known.architecture.unknown
    bare = translate(llama().state_dict(), family="llama").architecture
    assert {"heads", "eps", "ropes"} <= set(bare.unknown) and bare.heads is None


def test_a_configuration_of_another_checkpoint_is_refused():
    vit = ViT(img_size=8, patch_size=2, dim=12, depth=2, heads=3, num_classes=5)
    with pytest.raises(ValueError, match=r"12 query and 12 key rows are not those of 5 heads"):
        translate(vit.state_dict(), config={"num_heads": 5})


def test_leftovers_are_listed():
    state = llama().state_dict() | {"model.layers.0.self_attn.sink": torch.ones(4)}
    message = r"1 tensors? of the teacher ha\w+ no place: model\.layers\.0\.self_attn\.sink"
    with pytest.raises(ValueError, match=message):
        translate(state, family="llama")


def test_missing_tensors_are_listed():
    state = llama().state_dict()
    del state["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(ValueError, match=r"the teacher lacks layers\.1\.mlp\.up_proj\.weight"):
        translate(state, family="llama")


@pytest.mark.parametrize(
    ("spoil", "hint"),
    [
        (
            lambda layer: setattr(layer, "lora_A", nn.Linear(24, 2)),
            "an adapter that is not merged: call merge",
        ),
        (lambda layer: layer.register_buffer("SCB", torch.ones(24)), "quantised layers: load the teacher without"),
        (lambda layer: nn.utils.parametrizations.weight_norm(layer), "parametrised weights: remove them first"),
    ],
    ids=["adapter", "int8", "parametrisation"],
)
def test_what_stands_in_the_way_is_named(spoil, hint):
    teacher = llama()
    spoil(teacher.model.layers[0].self_attn.q_proj)
    with pytest.raises(ValueError, match=hint):
        translate(teacher)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_an_adapter_is_refused_until_it_is_merged():
    peft = pytest.importorskip("peft")
    teacher = llama()
    before = translate(teacher)["blocks.0.attn.q.weight"].clone()
    wrapped = peft.get_peft_model(teacher, peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    with pytest.raises(ValueError, match="an adapter that is not merged"):
        translate(wrapped)
    assert not torch.equal(translate(wrapped.merge_and_unload())["blocks.0.attn.q.weight"], before)


def test_integers_in_place_of_weights_are_refused():
    state = llama().state_dict()
    state["model.layers.0.mlp.up_proj.weight"] = state["model.layers.0.mlp.up_proj.weight"].to(torch.int8)
    student = MambaLM(61, 24, depth=2, d_intermediate=128, vocab_multiple=1)
    with pytest.raises(TypeError, match=r"layers\.0\.mlp\.up_proj\.weight is quantised \(torch\.int8\)"):
        subclone(translate(state, "llama"), student, {})


def test_unknown_words_are_refused():
    with pytest.raises(ValueError, match=r"unknown family 'lama': expected one of .*llama"):
        translate(llama(), "lama")
    with pytest.raises(ValueError, match="no family knows teachers of type 'swiftformer9'"):
        translate(llama().state_dict(), config={"model_type": "swiftformer9"})
    with pytest.raises(TypeError, match="config is a int: expected the dictionary"):
        translate(llama().state_dict(), config=3)


def test_a_family_that_the_configuration_contradicts_is_refused():
    gemma = perturb(transformers.GemmaForCausalLM(transformers.GemmaConfig(**SIZES, head_dim=6)))
    with pytest.raises(ValueError, match="config is of type 'gemma', family 'gemma', not 'llama'"):
        translate(gemma, "llama")


def test_a_part_of_another_kind_is_not_given_in_its_place():
    clip = transformers.CLIPVisionModel(
        transformers.CLIPVisionConfig(
            hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=40, image_size=8, patch_size=2
        )
    )
    assert translate(clip, kind="image").family == "clip_vision"
    with pytest.raises(ValueError, match="no part of kind 'decoder' .*: clip_vision is of kind 'image'"):
        translate(clip, kind="decoder")


def test_a_part_that_cannot_be_read_does_not_stand_in_the_way_of_another():
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 40}
    parts = {"text_config": sizes, "vision_config": sizes | {"image_size": 8, "patch_size": 2}}
    clip = transformers.CLIPModel(transformers.CLIPConfig(**parts))
    config = clip.config.to_dict()
    config["text_config"]["hidden_act"] = "unheard of"
    assert translate(clip.state_dict(), config=config, kind="image").family == "clip_vision"


def test_every_type_is_covered_once_or_refused():
    kinds = [kind for family in families().values() for kind in family.model_types]
    assert not set(kinds) & set(refused())
    assert all(reason and reason[0].islower() and not reason.endswith(".") for reason in refused().values())


def test_a_family_of_ones_own_needs_no_library():
    def read(checkpoint):
        block = "blocks.{i}."
        terms = {"embedding.weight": src("words.weight") * 2}
        for norm in ("norm1", "norm2"):
            terms[f"{block}{norm}.weight"] = src(f"{{i}}.{norm}") + 1
        for index, part in enumerate(("q", "k", "v")):
            terms |= affine(f"{block}attn.{part}", "{i}.fused", lambda term, index=index: term.part(index, 3))
        terms |= affine(block + "attn.out", "{i}.out") | affine(block + "mlp.up", "{i}.up")
        terms |= affine(block + "mlp.down", "{i}.down", lambda term: term.scale_rows("{i}.gamma"))
        facts = Architecture("encoder", 4, checkpoint.depth("{i}.norm1"), heads=2, norm="rms")
        return Canonical(terms, facts, {"mask": "a buffer"})

    state = {"net.words.weight": torch.randn(7, 4), "net.mask": torch.ones(3)}
    for layer in range(2):
        shapes = {"norm1": (4,), "norm2": (4,), "fused.weight": (12, 4), "out.weight": (4, 4), "up.weight": (5, 4)}
        shapes |= {"down.weight": (4, 5), "gamma": (4,)}
        state |= {f"net.{layer}.{name}": torch.randn(shape) for name, shape in shapes.items()}
    translated = translate(state, Family("own", "Own", (), "words.weight", read))
    assert torch.equal(translated["blocks.1.norm2.weight"], state["net.1.norm2"] + 1)
    assert torch.equal(translated["blocks.0.attn.k.weight"], state["net.0.fused.weight"][4:8])
    gamma = state["net.1.gamma"][:, None]
    assert torch.equal(translated["blocks.1.mlp.down.weight"], state["net.1.down.weight"] * gamma)
    assert translated.ignored == {"net.mask": "a buffer"}
    assert (translated.architecture.head_dim, translated.family) == (2, "own")
    # facts that a family leaves out are those of a plain encoder
    facts = translated.architecture
    assert (facts.eps, facts.placement, facts.parallel, facts.activation, facts.causal, facts.tied) == (
        1e-6, "pre", False, "gelu", False, False,
    )  # fmt: skip


def test_a_mamba_is_its_own_canonical_form():
    for model in (MambaLM(11, 8, depth=2), VisionMamba(img_size=8, patch_size=4, dim=8, depth=2)):
        translated = translate(model)
        assert translated.architecture.kind == "ssm" and set(translated) == set(model.state_dict())


def test_importance_is_of_the_folded_weight():
    from transmamba.transfer import magnitude_importance

    config = transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=2
    )
    teacher = perturb(transformers.Dinov2Model(config))
    translated, name = translate(teacher), "blocks.0.mlp.down.weight"
    layer = teacher.encoder.layer[0]
    gamma, weight = layer.layer_scale2.lambda1, layer.mlp.fc2.weight
    torch.testing.assert_close(translated.score(name, magnitude_importance), (weight * gamma[:, None]).abs())
    given = torch.rand(weight.shape)
    stored = "encoder.layer.0.mlp.fc2.weight"
    assert torch.equal(translated.score(name, {stored: given}), given)
    assert translated.score(name, {}) is None
    with pytest.raises(ValueError, match=rf"importance of {re.escape(stored)} has shape \(3,\)"):
        translated.score(name, {stored: torch.ones(3)})


def test_names_that_others_share_are_told_by_shapes_and_biases():
    sizes = {"n_embd": 24, "n_layer": 1, "n_head": 4, "vocab_size": 61}
    for kind, facts in (("gpt_bigcode", {"multi_query": False}), ("imagegpt", {})):
        other = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(kind, **sizes, **facts))
        with pytest.raises(ValueError, match="are not those of a GPT-2"):
            translate(other.state_dict(), "gpt2")
    mamba = transformers.MambaModel(transformers.MambaConfig(vocab_size=16, hidden_size=8, num_hidden_layers=1))
    with pytest.raises(ValueError, match=r"1 tensors of the teacher have no place: layers\.0\.mixer\.q_proj\.weight"):
        translate(mamba.state_dict() | {"layers.0.mixer.q_proj.weight": torch.ones(2)}, "mamba")
    assert translate(mamba).differs == ()
    assert "FalconMamba" in translate(mamba.state_dict(), "mamba").differs[0]
