"""Shared parts of the tests of decoder families: tiny models of a type, and the proof on each."""

import pytest
import torch

from tests.transfer.teachers.canonical import Canonical, error, perturb
from tests.transfer.teachers.versions import need
from transmamba.transfer.teachers import translate

SIZES = {
    "hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "intermediate_size": 40, "vocab_size": 61, "max_position_embeddings": 40, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
IDS = torch.arange(1, 23).view(2, 11)


def without(*names):
    """Drop the sizes that a configuration class has other names for, or derives."""
    return {name: size for name, size in SIZES.items() if name not in names}


def config(kind, sizes=SIZES, **facts):
    transformers = pytest.importorskip("transformers")
    need(kind)
    return transformers.AutoConfig.for_model(kind, **{**sizes, **facts})


def build(kind, sizes=SIZES, auto="AutoModelForCausalLM", **facts):
    """Build a tiny random model, every parameter perturbed. Softcaps count in the plain attention alone."""
    transformers = pytest.importorskip("transformers")
    made = getattr(transformers, auto).from_config(config(kind, sizes, **facts), attn_implementation="eager")
    return perturb(made)


def prove(teacher, translated=None):
    """Check that the translated tensors in a plain Transformer give the teacher's logits."""
    translated = translate(teacher) if translated is None else translated
    with torch.no_grad():
        assert error(Canonical(translated).logits(IDS), teacher(IDS).logits) < 1e-5
    assert translated.differs == ()
    assert translated.architecture.kind == "decoder"
    assert translated.architecture.unknown == ()


def older_config(teacher, facts):
    """Write the configuration sparsely, as before transformers 5: rotary facts apart, derived facts left out.

    Keys that hold the default of the configuration class are left out as well: families have to know the defaults.
    """
    values, default = teacher.config.to_dict() | facts, type(teacher.config)().to_dict()
    for derived in {"layer_types", "no_rope_layers", "attention_layers"} - set(facts):
        values.pop(derived, None)
    rope = teacher.config.to_dict().get("rope_parameters") or {}
    values.pop("rope_parameters", None)
    kinds = {"full_attention", "sliding_attention"} & set(rope)
    if kinds:
        values["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    said = {key: value for key, value in values.items() if key in SIZES or value != default.get(key, "none")}
    plain = default.get("rope_parameters") or {}
    plain = plain.get("full_attention", plain)
    for key in ("rope_theta", "partial_rotary_factor"):
        if key in rope and rope[key] != plain.get(key):
            said[key] = rope[key]
    scaling = {key: value for key, value in rope.items() if key not in ("rope_theta", "partial_rotary_factor")}
    if scaling.get("rope_type", "default") != "default":
        said["rope_scaling"] = {"type": scaling.pop("rope_type"), **scaling}
    return {**said, "model_type": values["model_type"]}


def prove_older_config(teacher, facts):
    """Check that the same facts follow from a state dict and a sparse, older config.json."""
    weights = teacher.state_dict()
    older, today = translate(weights, config=older_config(teacher, facts)), translate(teacher)
    assert older.architecture == today.architecture
    assert all(torch.equal(older[name], today[name]) for name in today)
    assert set(older) == set(today)


def refuse(kind, message, sizes=SIZES, **facts):
    """Check that a teacher of this configuration is refused, and that the message names the part."""
    teacher = build(kind, sizes, **facts)
    with pytest.raises(ValueError, match=message):
        translate(teacher)
