"""Each preset against the model that defines its names."""

from functools import partial

import pytest
import torch
from torch import nn

from transmamba.models import MambaLM, VisionMamba, ViT
from transmamba.nn import Mamba2Mixer, MambaMixer
from transmamba.transfer import (
    AttentionInit,
    bind,
    first_importance,
    magnitude_importance,
    open_safetensors,
    random_importance,
    subclone,
)
from transmamba.transfer.plans import LM, MAMBA2, PRESETS, VIT
from transmamba.transfer.presets import find_preset

transformers = pytest.importorskip("transformers")
SIZES = {"hidden_size": 12, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 20}
IMAGE = {"image_size": 8, "patch_size": 2}


def encoder(dim, hidden, depth, vocab=11):
    """The names of a bidirectional Mamba text encoder, without its mixers."""
    block = lambda: nn.ModuleDict(  # noqa: E731
        {
            "norm1": nn.LayerNorm(dim),
            "norm2": nn.LayerNorm(dim),
            "mlp": nn.ModuleDict({"fc1": nn.Linear(dim, hidden), "fc2": nn.Linear(hidden, dim)}),
        }
    )
    parts = {"embedding": nn.Embedding(vocab, dim), "blocks": nn.ModuleList(block() for _ in range(depth))}
    return nn.ModuleDict(parts | {"norm": nn.LayerNorm(dim)})


def old_names(state):
    """The names that files of ViT and DeiT on the hub keep."""
    pairs = (
        (".layers.", ".encoder.layer."),
        ("attention.q_proj", "attention.attention.query"),
        ("attention.k_proj", "attention.attention.key"),
        ("attention.v_proj", "attention.attention.value"),
        ("attention.o_proj", "attention.output.dense"),
        ("mlp.fc1", "intermediate.dense"),
        ("mlp.fc2", "output.dense"),
    )
    renamed = {}
    for name, tensor in state.items():
        for new, old in pairs:
            name = name.replace(new, old)
        renamed[name] = tensor
    return renamed


def hf_vit():
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(**SIZES, **IMAGE, num_labels=5, layer_norm_eps=1e-6)
    )


def vision_mamba(dim=12, depth=3, **options):
    return VisionMamba(img_size=8, patch_size=2, dim=dim, depth=depth, num_classes=5, **options)


def test_both_generations_of_hugging_face_names_give_one_student():
    teacher, new, old = hf_vit(), vision_mamba(8), vision_mamba(8)
    old.load_state_dict(new.state_dict())
    first = subclone(teacher, new, magnitude_importance, grow=True)
    second = subclone(old_names(teacher.state_dict()), old, magnitude_importance, grow=True)
    for name, tensor in new.state_dict().items():
        assert torch.equal(old.state_dict()[name], tensor)
    assert first.inherited == second.inherited
    assert {"pos_embed", "head.weight", "blocks.2.mlp.fc2.bias", "norm.bias"} <= first.inherited


def test_a_transformer_of_our_own_computes_what_the_hugging_face_one_does():
    teacher, ours = hf_vit().eval(), ViT(img_size=8, patch_size=2, dim=12, depth=3, heads=3, num_classes=5)
    ours.head.bias.data.zero_()
    for block in ours.blocks:  # ViT's MLP ratio is 4; the teacher's is 20 / 12
        block.mlp.fc1, block.mlp.fc2 = nn.Linear(12, 20), nn.Linear(20, 12)
    report = subclone(teacher, ours, first_importance)
    assert not report.skipped
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(ours.eval()(images), teacher(images).logits, atol=2e-5, rtol=1e-4)


def test_a_distilled_teacher_gives_its_class_head_and_patch_positions():
    config = transformers.DeiTConfig(**SIZES, **IMAGE, num_labels=5)
    teacher = transformers.DeiTForImageClassificationWithTeacher(config)
    student = vision_mamba()
    subclone(teacher, student, first_importance, grow=True)
    assert torch.equal(student.pos_embed, teacher.deit.embeddings.position_embeddings[:, 2:])
    assert torch.equal(student.head.weight, teacher.cls_classifier.weight)


def test_whole_heads_go_once_their_size_is_given():
    teacher = ViT(img_size=8, patch_size=2, dim=12, depth=2, heads=3, num_classes=5)
    student = ViT(img_size=8, patch_size=2, dim=8, depth=2, heads=2, num_classes=5)
    with pytest.raises(ValueError, match=r"the shapes do not tell .*bind\(plan, head_dim=64\)"):
        subclone(teacher, student, magnitude_importance)
    plan = {key: entry for key, entry in VIT.items() if "dist" not in key}
    report = subclone(teacher, student, magnitude_importance, plan=bind(plan, head_dim=4))
    residual, heads = list(report.kept["residual"]), report.kept["head.1"]
    rows = [part * 12 + head * 4 + channel for part in range(3) for head in heads for channel in range(4)]
    weight = teacher.blocks[1].attn.qkv.weight
    assert torch.equal(student.blocks[1].attn.qkv.weight, weight[rows][:, residual])
    assert len(heads) == 2


def test_a_hybrid_keeps_attention_where_the_student_has_it():
    teacher, student = ViT(img_size=8, patch_size=2, dim=12, depth=3, heads=3), vision_mamba()
    student.blocks[1].attn = nn.ModuleDict({"qkv": nn.Linear(12, 36), "proj": nn.Linear(12, 12)})
    del student.blocks[1].mixer
    report = subclone(teacher, student, first_importance)
    assert torch.equal(student.blocks[1].attn["qkv"].weight, teacher.blocks[1].attn.qkv.weight)
    assert "blocks.1.attn.proj.bias" in report.copied


def test_clip_gives_a_video_student_an_inflated_stem_and_all_positions():
    config = transformers.CLIPVisionConfig(**SIZES, **IMAGE)
    clip = transformers.CLIPVisionModelWithProjection(config)
    student = nn.ModuleDict(encoder(12, 20, 3).items())
    del student["embedding"]
    student["patch_embed"] = nn.ModuleDict({"proj": nn.Conv3d(3, 12, (3, 2, 2))})
    state = student.state_dict() | {"cls_token": torch.zeros(1, 1, 12), "pos_embed": torch.zeros(1, 17, 12)}
    report = subclone(clip, state, first_importance)
    vision = clip.vision_model
    stem = state["patch_embed.proj.weight"]
    assert torch.equal(stem[:, :, 1], vision.embeddings.patch_embedding.weight)
    assert stem[:, :, [0, 2]].eq(0).all()
    assert torch.equal(state["pos_embed"][0], vision.embeddings.position_embedding.weight)
    assert torch.equal(state["cls_token"][0, 0], vision.embeddings.class_embedding)
    assert torch.equal(state["norm.bias"], vision.post_layernorm.bias)
    assert report.skipped == {"patch_embed.proj.bias": report.skipped["patch_embed.proj.bias"]}


def test_bert_norms_move_to_where_a_pre_norm_student_reads():
    teacher = transformers.BertModel(transformers.BertConfig(**SIZES, vocab_size=11))
    with torch.no_grad():
        for p in teacher.parameters():
            p.add_(torch.rand_like(p))
    student = encoder(12, 20, 2)
    subclone(teacher, student, first_importance)
    layers = teacher.encoder.layer
    assert torch.equal(student["blocks"][0]["norm1"].weight, teacher.embeddings.LayerNorm.weight)
    assert torch.equal(student["blocks"][1]["norm1"].weight, layers[0].output.LayerNorm.weight)
    assert torch.equal(student["blocks"][1]["norm2"].bias, layers[1].attention.output.LayerNorm.bias)
    assert torch.equal(student["norm"].weight, layers[1].output.LayerNorm.weight)
    assert torch.equal(student["blocks"][1]["mlp"]["fc1"].weight, layers[1].intermediate.dense.weight)
    assert torch.equal(student["embedding"].weight, teacher.embeddings.word_embeddings.weight)


def llama(hidden=128, **options):
    config = transformers.LlamaConfig(
        **{**SIZES, "num_attention_heads": 4, "intermediate_size": hidden},
        num_key_value_heads=2,
        vocab_size=11,
        **options,
    )
    return transformers.LlamaForCausalLM(config)


def test_the_gated_mlp_of_llama_is_the_students():
    teacher, student = llama(), MambaLM(11, 12, depth=3, d_intermediate=128)
    report = subclone(teacher, student, first_importance)
    x = torch.randn(5, 12)
    for block, layer in zip(student.blocks, teacher.model.layers, strict=True):
        torch.testing.assert_close(block.mlp(x), layer.mlp(x))
        torch.testing.assert_close(block.norm2(x), layer.post_attention_layernorm(x), atol=1e-4, rtol=1e-4)
    assert torch.equal(student.embedding.weight[:11], teacher.model.embed_tokens.weight)
    assert report.skipped["head.weight"] == "tied to embedding.weight, which is written"


def test_value_and_gate_of_a_gated_mlp_lose_the_same_neurons():
    teacher, student = llama(256), MambaLM(11, 12, depth=3, d_intermediate=128, tied=False)
    report = subclone(teacher, student, random_importance(1))
    kept, mlp = list(report.kept["hidden.2"]), teacher.model.layers[2].mlp
    value, gate = student.blocks[2].mlp.fc1.weight.chunk(2)
    assert torch.equal(value, mlp.up_proj.weight[kept])
    assert torch.equal(gate, mlp.gate_proj.weight[kept])
    assert torch.equal(student.blocks[2].mlp.fc2.weight, mlp.down_proj.weight[:, kept])
    assert torch.equal(student.head.weight[:11], teacher.lm_head.weight)


def test_a_tied_file_without_an_output_table_fills_an_untied_head():
    state = {name: tensor for name, tensor in llama().state_dict().items() if name != "lm_head.weight"}
    student = MambaLM(11, 12, depth=3, tied=False)
    subclone(state, student, first_importance)
    assert torch.equal(student.head.weight[:11], state["model.embed_tokens.weight"])


@pytest.mark.parametrize("mixer", [partial(MambaMixer, d_state=5), partial(Mamba2Mixer, d_state=5, head_dim=4)])
def test_a_mamba_of_equal_size_is_copied_and_of_smaller_size_is_cut(mixer):
    teacher = MambaLM(11, 12, depth=3, mixer=mixer, d_intermediate=128)
    twin = MambaLM(11, 12, depth=3, mixer=mixer, d_intermediate=128)
    report = subclone(teacher, twin, magnitude_importance)
    tokens = torch.randint(11, (2, 7))
    assert report.fraction == 1.0
    assert torch.equal(twin(tokens), teacher(tokens))
    small = MambaLM(11, 8, depth=2, mixer=mixer, d_intermediate=128)
    report = subclone(teacher, small, magnitude_importance)
    assert report.fraction == 1.0
    assert small(tokens).isfinite().all()


def test_channels_of_a_mamba_are_cut_alike_in_every_tensor():
    """A Mamba whose dead channels go keeps its function."""
    teacher = MambaMixer(7, 3, expand=2, dt_rank=2)
    student = MambaMixer(7, 3, expand=1, dt_rank=2)
    alive = torch.tensor([0, 2, 5, 6, 9, 11, 12])
    dead = [channel for channel in range(14) if channel not in alive]
    branch = teacher.branches[0]
    with torch.no_grad():
        teacher.in_proj.weight.view(2, 14, 7)[:, dead] = 0
        teacher.out_proj.weight[:, dead] = 0
        branch.ssm.x_proj.weight[:, dead] = 0
        branch.conv1d.weight[dead] = 0
        branch.conv1d.bias[dead] = 0
    plan = {key.removeprefix("blocks.{i}.mixer."): entry for key, entry in PRESETS["mamba"].items() if "mixer" in key}
    plan = {
        key.replace("{k}", "0"): (
            entry[0].split(" | ")[0].removeprefix("blocks.{i}.mixer.").replace("{k}", "0"),
            entry[1].replace(".{i}", "").replace(".{k}", ""),
        )
        for key, entry in plan.items()
        if "proj.bias" not in key
    }
    subclone(teacher, student, magnitude_importance, plan=plan)
    x = torch.randn(2, 11, 7)
    torch.testing.assert_close(student(x), teacher(x))


def test_hugging_face_mambas_compute_the_same_after_subcloning():
    config = transformers.MambaConfig(vocab_size=16, hidden_size=8, num_hidden_layers=2, state_size=4)
    teacher, student = (
        transformers.MambaForCausalLM(config).eval(),
        MambaLM(16, 8, depth=2, mixer=partial(MambaMixer, d_state=4)),
    )
    report = subclone(teacher, student, first_importance)
    tokens = torch.randint(16, (2, 7))
    assert report.fraction == 1.0
    torch.testing.assert_close(student(tokens), teacher(tokens).logits, atol=1e-5, rtol=1e-4)


def test_ssm_parameters_come_from_another_mamba():
    transformer, mamba = llama(), MambaLM(11, 12, depth=4, mixer=partial(MambaMixer, d_state=5))
    student = MambaLM(11, 12, depth=3, mixer=partial(MambaMixer, d_state=5), d_intermediate=128)
    report = subclone(transformer, student, {}, ssm_from=mamba)
    padding = 5 * 12  # rows 11 to 15 of the vocabulary
    assert report.fraction == 1 - padding / sum(p.numel() for p in student.parameters())
    x = torch.randn(2, 7, 12)
    torch.testing.assert_close(student.blocks[2].mixer(x), mamba.blocks[2].mixer(x), rtol=0, atol=0)
    assert torch.equal(student.blocks[2].norm1.weight, transformer.model.layers[2].input_layernorm.weight)


def test_one_direction_of_a_mamba_fills_both_of_a_vision_student():
    mamba = MambaLM(11, 12, depth=3, mixer=partial(MambaMixer, d_state=5))
    teacher, student = ViT(img_size=8, patch_size=2, dim=12, depth=3, heads=3), vision_mamba(d_state=5)
    one_way = {
        name.replace(".branches.0.ssm.", ".").replace(".branches.0.", "."): tensor
        for name, tensor in mamba.state_dict().items()
    }
    one_way = {
        name.replace("blocks.", "backbone.layers.").replace("dt_bias", "dt_proj.bias"): tensor
        for name, tensor in one_way.items()
    }
    subclone(teacher, student, first_importance, ssm_from=one_way)
    for branch in student.blocks[1].mixer.branches:
        assert torch.equal(branch.ssm.A_log, mamba.blocks[1].mixer.branches[0].ssm.A_log)
        assert torch.equal(branch.ssm.dt_bias, mamba.blocks[1].mixer.branches[0].ssm.dt_bias)


def test_a_transformer_is_no_source_of_ssm_parameters():
    with pytest.raises(ValueError, match="no preset of .* knows these names"):
        subclone(llama(), MambaLM(11, 12, depth=3), {}, ssm_from=llama())


def test_mamba2_heads_are_the_heads_of_attention():
    from transmamba.nn.mamba2 import HeadSSM

    teacher = llama(head_dim=3)
    mixer = lambda dim: Mamba2Mixer(dim, expand=1, ssm=HeadSSM(4, 3, d_state=3, groups=4))  # noqa: E731
    student = MambaLM(11, 12, depth=3, mixer=mixer)
    subclone(teacher, student, {}, ssm_from=AttentionInit(4, 7, kv_heads=2, decay=1e-4))
    attention, mamba = teacher.model.layers[1].self_attn, student.blocks[1].mixer
    h = torch.randn(2, 7, 12)
    heads = lambda z, repeat: nn.functional.silu(z).unflatten(-1, (-1, 3)).repeat_interleave(repeat, 2).transpose(1, 2)  # noqa: E731
    q, k, v = (heads(attention.q_proj(h), 1), heads(attention.k_proj(h), 2), heads(attention.v_proj(h), 2))
    expected = ((q @ k.mT).tril() @ v / 7).transpose(1, 2).flatten(2)
    z, xBC, dt = mamba.in_proj(h).split([12, 36, 4], -1)
    xBC = nn.functional.silu(mamba.conv1d(nn.functional.pad(xBC.mT, (3, 0))).mT)
    torch.testing.assert_close(mamba.ssm(xBC, dt)[0], expected, atol=1e-5, rtol=1e-3)
    assert torch.equal(mamba.out_proj.weight, attention.o_proj.weight)


def test_mamba2_heads_must_be_those_of_the_teacher():
    message = (
        r"mismatched heads: the Mamba-2 mixer has 6 heads in 24 channels and 5 rows of B.*HeadSSM\(4, 3, d_state=3"
    )
    student = MambaLM(11, 12, depth=3, mixer=partial(Mamba2Mixer, d_state=5, head_dim=4))
    with pytest.raises(ValueError, match=message):
        subclone(llama(head_dim=3), student, {}, ssm_from=AttentionInit(4, 7, kv_heads=2))


def test_groups_of_mamba2_are_named_by_binding():
    from transmamba.nn.mamba2 import HeadSSM

    def lm(heads, states):
        mixer = lambda dim: Mamba2Mixer(dim, expand=1, ssm=HeadSSM(heads, 3, d_state=states, groups=2))  # noqa: E731
        return MambaLM(11, 3 * heads, depth=2, mixer=mixer)

    teacher, student = lm(4, 5), lm(2, 3)
    present = teacher.state_dict()
    plan = {key: entry for key, entry in bind(MAMBA2 | LM, group=2).items() if "bias" not in key or "dt_" in key}
    plan = {key: entry for key, entry in plan.items() if "mlp" not in key and "norm2" not in key}
    report = subclone(teacher, student, magnitude_importance, plan=plan)
    kept = torch.tensor(report.kept["state.1"])
    rows = torch.cat([torch.arange(24)[24:], 24 + kept, 24 + 5 + kept])
    residual, ours = list(report.kept["residual"]), student.blocks[1].mixer.in_proj.weight
    assert torch.equal(ours[12:18], present["blocks.1.mixer.in_proj.weight"][rows][:, residual])


def test_the_preset_is_found_by_names():
    named = {id(plan): name for name, plan in PRESETS.items()}

    def preset(student, teacher):
        return named[id(find_preset(student.state_dict(), teacher.state_dict(), "early"))]

    lm, lm2 = MambaLM(11, 12, depth=2), MambaLM(11, 16, depth=2, mixer=partial(Mamba2Mixer, head_dim=4))
    assert preset(vision_mamba(), hf_vit()) == "vit"
    assert preset(lm, llama()) == "llama"
    assert preset(lm, lm) == "mamba_lm"
    assert preset(lm2, lm2) == "mamba2_lm"
    assert preset(vision_mamba(), vision_mamba()) == "mamba"


def test_names_that_fit_twice_are_refused():
    state = {f"{side}.blocks.0.norm1.weight": torch.ones(3) for side in ("left", "right")}
    plan = {"blocks.{i}.norm1.weight": ("blocks.{i}.norm1.weight", "residual")}
    with pytest.raises(ValueError, match=r"could be left\.blocks\.0\.norm1\.weight or right\.blocks"):
        subclone(state, {"blocks.0.norm1.weight": torch.ones(3)}, {}, plan=plan)


def test_a_file_serves_like_the_module_it_holds(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    teacher, one, two = llama(), MambaLM(11, 8, depth=2), MambaLM(11, 8, depth=2)
    two.load_state_dict(one.state_dict())
    names = list(teacher.state_dict())
    for half, part in enumerate((names[::2], names[1::2])):
        tensors = {name: teacher.state_dict()[name].clone() for name in part}
        safetensors.save_file(tensors, tmp_path / f"model-{half}.safetensors")
    first = subclone(teacher, one, magnitude_importance)
    second = subclone(open_safetensors(tmp_path), two, magnitude_importance)
    assert first == second
    for name, tensor in one.state_dict().items():
        assert torch.equal(two.state_dict()[name], tensor)
