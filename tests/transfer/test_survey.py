"""The teachers that once were inherited wrongly without a word: each gives its function, or is refused by its reason.

The student has the teacher's width, so its MLPs must compute the same, up to the differences that the report lists.
"""

from copy import deepcopy
from dataclasses import replace
from functools import partial

import pytest
import torch

from tests.transfer.teachers.canonical import Reference, error, perturb
from transmamba.models import MambaEncoder, MambaLM, VisionMamba, from_transformer
from transmamba.nn import Attention, MambaMixer
from transmamba.transfer import first_importance, subclone, translate

transformers = pytest.importorskip("transformers")
WIDTH, HIDDEN, DEPTH = 24, 128, 3
SIZES = {
    "hidden_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": HIDDEN,
    "vocab_size": 61,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
IMAGE = {
    "hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": 4, "intermediate_size": HIDDEN,
    "image_size": 8, "patch_size": 2, "num_channels": 3,
}  # fmt: skip


def model(kind, sizes, auto="AutoModel", **facts):
    config = transformers.AutoConfig.for_model(kind, **{**sizes, **facts})
    return perturb(getattr(transformers, auto).from_config(config), scale=0.3)


def vision():
    return VisionMamba(img_size=8, patch_size=2, dim=WIDTH, depth=DEPTH, num_classes=2, d_state=3)


def encoder():
    return MambaEncoder(61, WIDTH, depth=DEPTH, max_length=40, types=2, d_state=2)


def language(**options):
    return MambaLM(61, WIDTH, depth=DEPTH, d_intermediate=HIDDEN, vocab_multiple=1, **{"tied": False, **options})


def mlp_error(teacher, student, report):
    """Compute the largest relative error of the student's MLPs after their norms, each with its activation and eps."""
    translated = translate(teacher, kind="image" if isinstance(student, VisionMamba) else None)
    plain = Reference(translated)
    x = torch.randn(2, 7, WIDTH, generator=torch.Generator().manual_seed(0))
    worst = 0.0
    for layer, block in enumerate(student.blocks):
        source = report.layers[layer]
        plain.facts = replace(translated.architecture, activation=block.mlp.activation, eps=block.norm2.eps)
        norm = "norm1" if translated.architecture.placement == "post" else "norm2"
        wanted = plain.mlp(plain.norm(x, f"blocks.{source}.{norm}"), f"blocks.{source}.mlp.")
        worst = max(worst, error(block.mlp(block.norm2(x)), wanted))
    return worst


ACTIVATION = "activation: the teacher's MLPs have"
EXACT = {
    # teacher, student, and the differences that the report lists beside the eps of norms
    "ViT": (lambda: model("vit", IMAGE), vision, ()),
    "DeiT": (lambda: model("deit", IMAGE), vision, ()),
    "I-JEPA": (lambda: model("ijepa", IMAGE), vision, ()),
    "ViT-MSN": (lambda: model("vit_msn", IMAGE), vision, ()),
    "DINOv2, LayerScale": (lambda: model("dinov2", IMAGE, mlp_ratio=4), vision, ()),
    "DINOv3": (lambda: model("dinov3_vit", IMAGE), vision, ()),
    "BEiT, lambda": (lambda: model("beit", IMAGE, layer_scale_init_value=0.1), vision, ("pooling:",)),
    "Data2VecVision": (lambda: model("data2vec-vision", IMAGE, layer_scale_init_value=0.1), vision, ()),
    "CLIP's image tower": (lambda: model("clip_vision_model", IMAGE), vision, (ACTIVATION,)),
    "SigLIP's image tower": (lambda: model("siglip_vision_model", IMAGE), vision, (ACTIVATION,)),
    "BERT": (lambda: model("bert", SIZES), encoder, ("placement:",)),
    "RoBERTa, positions from row 2": (lambda: model("roberta", SIZES), encoder, ("placement:",)),
    "LLaMA": (lambda: model("llama", SIZES, "AutoModelForCausalLM"), language, ()),
    "Mistral": (lambda: model("mistral", SIZES, "AutoModelForCausalLM", head_dim=6), language, ()),
    "Qwen2": (lambda: model("qwen2", SIZES, "AutoModelForCausalLM"), language, ()),
    "Qwen3": (lambda: model("qwen3", SIZES, "AutoModelForCausalLM", head_dim=6), language, ()),
    "Phi-3, fused": (lambda: model("phi3", SIZES, "AutoModelForCausalLM"), language, ()),
    "Granite, multipliers": (
        lambda: model("granite", SIZES, "AutoModelForCausalLM", residual_multiplier=0.3, embedding_multiplier=5.0),
        language,
        (),
    ),
    "Gemma, gain minus one": (
        lambda: model("gemma", SIZES, "AutoModelForCausalLM", head_dim=6),
        language,
        (ACTIVATION,),
    ),
}


@pytest.mark.parametrize("name", EXACT)
def test_a_student_of_equal_width_has_the_teachers_mlps(name):
    build, student, differs = EXACT[name]
    teacher, student = build(), student()
    if not isinstance(student, MambaLM):  # whose MLPs have the teacher's width already
        widen(student, translate(teacher))
    report = subclone(teacher, student, first_importance)
    with torch.no_grad():
        assert mlp_error(teacher, student, report) < 1e-5
    facts = [line for line in report.differs if not line.startswith("eps:")]
    assert len(facts) == len(differs) and all(map(str.startswith, facts, differs)), facts


REFUSED = {
    "LLaMA with biases in its MLPs": (
        lambda: model("llama", SIZES, "AutoModelForCausalLM", mlp_bias=True),
        language,
        "no bias here.*would be lost",
    ),
    "GPT-NeoX, LayerNorm for RMSNorm": (
        lambda: model("gpt_neox", SIZES, "AutoModelForCausalLM"),
        language,
        "MLP is plain, the student's gated",
    ),
    "OPT": (lambda: model("opt", SIZES, "AutoModelForCausalLM", ffn_dim=HIDDEN), language, "MLP is plain|LayerNorm"),
    "GPT-2": (
        lambda: model(
            "gpt2", {"n_embd": WIDTH, "n_layer": DEPTH, "n_head": 4, "vocab_size": 61}, "AutoModelForCausalLM"
        ),
        language,
        "MLP is plain|LayerNorm",
    ),
    "Gemma 2, sandwich norms": (
        lambda: model("gemma2", SIZES, "AutoModelForCausalLM", head_dim=6),
        language,
        "placement 'sandwich'",
    ),
    "OLMo 2, norms of outputs": (lambda: model("olmo2", SIZES, "AutoModelForCausalLM"), language, "placement 'output'"),
    "Mixtral, experts": (
        lambda: model("mixtral", SIZES, "AutoModelForCausalLM", num_local_experts=2),
        language,
        "'mixtral' is refused",
    ),
    "Swin": (
        lambda: model("swin", {"image_size": 8, "patch_size": 2, "embed_dim": 8, "depths": [1], "num_heads": [2]}),
        vision,
        "'swin' is refused",
    ),
    "DINOv2 giant, gated": (
        lambda: model("dinov2", IMAGE, use_swiglu_ffn=True),
        vision,
        "MLP is gated, the student's plain",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_another_function_is_refused(name):
    build, student, reason = REFUSED[name]
    student = student()
    before = {key: tensor.clone() for key, tensor in student.state_dict().items()}
    with pytest.raises(ValueError, match=reason):
        subclone(build(), student, first_importance)
    assert all(torch.equal(tensor, before[key]) for key, tensor in student.state_dict().items())


def widen(student, teacher):
    """Give the student MLPs of the teacher's hidden width."""
    hidden = teacher.shape("blocks.0.mlp.up.weight")[0]
    for block in student.blocks:
        block.mlp.fc1, block.mlp.fc2 = torch.nn.Linear(WIDTH, hidden), torch.nn.Linear(hidden, WIDTH)


def test_a_teacher_of_another_kind_gives_its_blocks_and_the_report_says_so():
    teacher, student = model("bert", SIZES), vision()
    widen(student, translate(teacher))
    report = subclone(teacher, student, first_importance)
    line = "kind: the teacher reads text, the student images: stems and heads have nothing in common"
    assert line in report.differs
    assert {"patch_embed.proj.weight", "pos_embed"} <= set(report.skipped)


def test_a_student_built_like_the_teacher_takes_sandwich_and_output_norms():
    for kind, placement in (("gemma2", "sandwich"), ("olmo2", "output")):
        teacher = model(kind, SIZES, "AutoModelForCausalLM", **({"head_dim": 6} if kind == "gemma2" else {}))
        student = from_transformer(teacher)
        blank = perturb(deepcopy(student), scale=1.0)
        report = subclone(teacher, blank, first_importance)
        ids = torch.arange(1, 12)[None]
        assert blank.blocks[0].placement == placement
        with torch.no_grad():
            torch.testing.assert_close(blank(ids), student(ids))
        assert report.unused == () and report.differs == ()


def test_a_tied_student_of_an_untied_or_scaled_teacher_says_what_it_loses():
    line = "tied: head.weight is embedding.weight in the student, another table in the teacher"
    for kind, facts in (("llama", {}), ("gemma", {"head_dim": 6})):
        report = subclone(model(kind, SIZES, "AutoModelForCausalLM", **facts), language(tied=True), first_importance)
        assert line in report.differs
    same = model("llama", SIZES, "AutoModelForCausalLM", tie_word_embeddings=True)
    assert line not in subclone(same, language(tied=True), first_importance).differs


def test_attention_with_other_facts_is_refused_and_with_the_same_is_copied():
    teacher = model("llama", SIZES, "AutoModelForCausalLM")
    facts = {"heads": 4, "causal": True, "qkv_bias": False, "out_bias": False, "head_dim": 6}
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    options = {
        "the same": facts | {"rope": rope},
        "rotary positions": facts,
        "the window": facts | {"rope": rope, "window": 3},
        "the scale of scores": facts | {"rope": rope, "scale": 1.0},
        "the causal mask": facts | {"rope": rope, "causal": False},
        "query and key norms": facts | {"rope": rope, "qk_norm": "head", "norm": "rms"},
    }
    for name, arguments in options.items():
        student = language(norm_eps=1e-6, mixer=[MambaMixer, partial(Attention, **arguments), MambaMixer])
        report = subclone(teacher, student, first_importance)
        if name == "the same":
            x = torch.randn(1, 7, WIDTH)
            with torch.no_grad():
                wanted = from_transformer(teacher).blocks[1](x)
                torch.testing.assert_close(student.blocks[1](x), wanted, atol=1e-5, rtol=1e-4)
        else:
            reason = f"the student's attention differs from the teacher's in {name}"
            assert [report.skipped[key] for key in report.skipped if key.endswith("qkv.weight")] == [reason]


def test_a_plan_says_what_of_the_teacher_it_leaves_unused():
    teacher, student = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2, bias=False)
    report = subclone(teacher, student, first_importance, plan={"weight": ("weight", "class input")})
    assert report.unused == ("bias",) and report.family is None


def test_less_than_half_of_the_blocks_is_taken_only_when_asked_for():
    sizes = {"n_embd": WIDTH, "n_layer": DEPTH, "n_head": 4, "vocab_size": 61}
    sizes = {"n_embd": WIDTH, "n_layer": DEPTH, "n_head": 4, "vocab_size": 61}
    teacher, student = model("gpt2", sizes, "AutoModelForCausalLM"), language()
    with pytest.raises(ValueError, match=r"only 25% of the tensors .* \(gpt2\).* give partial=True"):
        subclone(teacher, student, first_importance)
    report = subclone(teacher, student, first_importance, partial=True)
    assert "embedding.weight" in report.copied
    assert "blocks.0.mlp.fc2.weight" in report.skipped


@pytest.mark.filterwarnings("ignore")  # torch asks for another package
def test_a_quantised_student_or_teacher_is_refused_in_words():
    packed = torch.ao.quantization.quantize_dynamic(torch.nn.Sequential(torch.nn.Linear(3, 2)), dtype=torch.qint8)
    plan = {"0.weight": ("0.weight", "class input")}
    for teacher, student in (
        (torch.nn.Sequential(torch.nn.Linear(3, 2)), packed),
        (packed, {"0.weight": torch.zeros(2, 3)}),
    ):
        with pytest.raises(TypeError, match="quantised layers pack their weights"):
            subclone(teacher, student, first_importance, plan=plan)
