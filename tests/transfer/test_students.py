"""Each preset against the model that defines its names."""

from functools import partial

import pytest
import torch
from torch import nn

from transmamba.models import MambaEncoder, MambaLM, PlainMamba, VideoMamba, Vim, VisionMamba, ViT
from transmamba.models.vmamba import vmamba_v2
from transmamba.nn import Mamba2Mixer
from transmamba.transfer import (
    AttentionInit,
    first_importance,
    magnitude_importance,
    open_safetensors,
    plan_for,
    random_importance,
    subclone,
    translate,
)

transformers = pytest.importorskip("transformers")
SIZES = {"hidden_size": 12, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 20}
IMAGE = {"image_size": 8, "patch_size": 2}


def encoder(dim, hidden, depth, vocab=11):
    """Return the names of a bidirectional Mamba text encoder, without its mixers."""
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
    """Return the names that files of ViT and DeiT on the hub keep."""
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


def test_whole_heads_go_where_the_teacher_says_how_many_it_has():
    teacher = ViT(img_size=8, patch_size=2, dim=12, depth=2, heads=3, num_classes=5)
    student = ViT(img_size=8, patch_size=2, dim=8, depth=2, heads=2, num_classes=5)
    report = subclone(teacher, student, magnitude_importance)
    residual, heads = list(report.kept["residual"]), report.kept["head.1"]
    rows = [part * 12 + head * 4 + channel for part in range(3) for head in heads for channel in range(4)]
    weight = teacher.blocks[1].attn.qkv.weight
    assert torch.equal(student.blocks[1].attn.qkv.weight, weight[rows][:, residual])
    assert len(heads) == 2
    with pytest.raises(ValueError, match=r"the shapes do not show .*bind\(plan, head_dim=64\)"):
        subclone(teacher.state_dict(), student, magnitude_importance)
    known = translate(teacher.state_dict(), config={"num_heads": 3})
    assert subclone(known, student, magnitude_importance).kept == report.kept


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
    # CLIP's patches have no bias, so the student's becomes zero
    assert not report.skipped
    assert report.sliced["patch_embed.proj.bias"] == "zero: (12,) -> (12,), the teacher has no bias here"
    assert state["patch_embed.proj.bias"].eq(0).all()


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
    subclone(state, student, first_importance, family="llama")
    assert torch.equal(student.head.weight[:11], state["model.embed_tokens.weight"])


def test_the_family_is_found_by_configuration_attributes_or_names():
    def family(student, teacher):
        return subclone(teacher, student, first_importance, grow=True).family

    lm, lm2 = MambaLM(11, 12, depth=2), MambaLM(11, 16, depth=2, mixer=partial(Mamba2Mixer, head_dim=4))
    assert family(vision_mamba(), hf_vit()) == "vit"
    assert family(vision_mamba(), ViT(img_size=8, patch_size=2, dim=12, depth=3, heads=3)) == "transmamba_transformer"
    assert family(MambaLM(11, 12, depth=2), llama()) == "llama"
    assert family(lm, lm) == family(lm2, lm2) == family(vision_mamba(), vision_mamba()) == "transmamba"


def test_names_of_two_families_ask_for_one():
    with pytest.raises(ValueError, match=r"are those of .*'llama', .*: say which, family=\.\.\., or give its config"):
        subclone(llama().state_dict(), MambaLM(11, 12, depth=2), first_importance)


def test_a_plan_is_there_to_be_changed():
    teacher, student = vit_teacher(), vision_mamba()
    plan = plan_for(teacher, student)
    assert plan["blocks.{i}.mlp.fc2.bias"] == ("blocks.{i}.mlp.down.bias", "residual")
    del plan["head.weight"], plan["head.bias"]
    report = subclone(translate(teacher), student, first_importance, plan=plan)
    assert report.skipped["head.weight"] == "the plan has no entry for it"
    assert {"head.weight", "head.bias"} <= set(report.unused)


def vit_teacher():
    return ViT(img_size=8, patch_size=2, dim=12, depth=3, heads=3, num_classes=5)


def test_a_file_serves_like_the_module_it_holds(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    teacher, one, two = llama(), MambaLM(11, 8, depth=2), MambaLM(11, 8, depth=2)
    two.load_state_dict(one.state_dict())
    names = list(teacher.state_dict())
    for half, part in enumerate((names[::2], names[1::2])):
        tensors = {name: teacher.state_dict()[name].clone() for name in part}
        safetensors.save_file(tensors, tmp_path / f"model-{half}.safetensors")
    (tmp_path / "config.json").write_text(teacher.config.to_json_string())
    first = subclone(teacher, one, magnitude_importance)
    second = subclone(open_safetensors(tmp_path), two, magnitude_importance)
    assert first == second
    for name, tensor in one.state_dict().items():
        assert torch.equal(two.state_dict()[name], tensor)


# our backbones, each with the tensors that fit it


def teacher_for(depth=3):
    teacher = ViT(img_size=16, patch_size=4, dim=12, depth=depth, heads=3, num_classes=5)
    with torch.no_grad():
        for p in teacher.parameters():
            p.add_(torch.rand_like(p))
    return teacher


def test_vim_has_the_class_row_in_the_middle():
    teacher, student = teacher_for(), Vim(img_size=16, patch_size=4, dim=12, depth=3, num_classes=5)
    report = subclone(teacher, student, first_importance)
    table = student.pos_embed[0]
    assert torch.equal(table[student.cls_position], teacher.pos_embed[0, 0])
    assert torch.equal(table[torch.arange(17) != student.cls_position], teacher.pos_embed[0, 1:])
    assert {"cls_token", "norm.weight", "head.weight", "patch_embed.proj.weight"} <= set(report.copied)
    twin = Vim(img_size=32, patch_size=4, dim=12, depth=3, num_classes=5)
    subclone(student, twin, first_importance)
    assert torch.equal(twin.pos_embed[0, twin.cls_position], teacher.pos_embed[0, 0])


def test_video_mamba_has_the_class_row_in_front_and_an_inflated_stem():
    teacher = teacher_for()
    student = VideoMamba(img_size=16, patch_size=4, dim=12, depth=3, num_classes=5, num_frames=3)
    report = subclone(teacher, student, first_importance)
    assert torch.equal(student.pos_embed, teacher.pos_embed)
    assert "temporal_pos_embed" in report.skipped
    kernel = student.patch_embed.proj.weight
    assert torch.equal(kernel[:, :, kernel.shape[2] // 2], teacher.patch_embed.proj.weight)


def test_plain_mamba_takes_positions_norms_and_head_but_no_stem():
    teacher, student = teacher_for(), PlainMamba(img_size=64, patch_size=16, dim=12, depth=3, num_classes=5)
    report = subclone(teacher, student, first_importance)
    assert torch.equal(student.pos_embed, teacher.pos_embed[:, 1:])
    assert {"blocks.1.norm1.bias", "norm.bias", "head.bias"} <= set(report.copied)
    assert report.skipped["patch_embed.projection.weight"] == "the plan has no entry for it"
    twin = PlainMamba(img_size=64, patch_size=16, dim=12, depth=3, num_classes=5)
    again = subclone(student, twin, first_importance, exclude=["patch_embed.*"])
    assert {name for name in again.skipped if not name.startswith("patch_embed")} <= {
        name for name in student.state_dict() if ".local." in name
    }


def test_a_pyramid_has_one_stream_per_stage_and_heeds_the_layer_map():
    teacher, student = teacher_for(4), vmamba_v2((6, 12), (1, 2), num_classes=5)
    mlps = {name: p.shape for name, p in student.named_parameters() if "mlp.fc1.weight" in name}
    assert len(mlps) == 3
    report = subclone(hf_names(teacher), student, magnitude_importance, layer_map="uniform")
    assert sorted(report.kept) == ["hidden.0.0", "residual.0"]
    assert torch.equal(student.stages[1].blocks[1].mlp.fc1.weight, teacher.blocks[3].mlp.fc1.weight)
    assert torch.equal(
        student.stages[0].blocks[0].norm2.weight, teacher.blocks[0].norm2.weight[list(report.kept["residual.0"])]
    )
    default = subclone(teacher, student, magnitude_importance)
    assert default.copied["stages.1.blocks.1.mlp.fc1.weight"] == "blocks.3.mlp.fc1.weight"
    early = subclone(teacher, student, magnitude_importance, layer_map="early")
    assert early.copied["stages.1.blocks.1.mlp.fc1.weight"] == "blocks.2.mlp.fc1.weight"
    short = subclone(teacher_for(2), student, magnitude_importance, layer_map="early")
    assert short.skipped["stages.1.blocks.1.mlp.fc1.weight"] == "the plan has no entry for it"


def hf_names(teacher):
    """Return the same tensors behind a prefix."""
    return {f"backbone.{name}": tensor for name, tensor in teacher.state_dict().items()}


def test_bert_fills_the_mamba_encoder_outside_its_mixers():
    config = transformers.BertConfig(**{**SIZES, "intermediate_size": 48}, vocab_size=11)
    teacher = transformers.BertModel(config).eval()
    with torch.no_grad():
        for p in teacher.parameters():
            p.add_(torch.rand_like(p))
    student = MambaEncoder(11, 12, depth=3, max_length=7, types=2, d_state=2)
    report = subclone(teacher, student, first_importance, ssm_from=AttentionInit(3, 7))
    # a student that norms its embeddings reads them as they are in its first block
    assert set(report.skipped) == {"blocks.0.norm1.weight", "blocks.0.norm1.bias"}
    ids = torch.randint(11, (2, 7))
    torch.testing.assert_close(student._embed(ids, None), teacher.embeddings(ids))
    x = torch.randn(5, 12)
    layer = teacher.encoder.layer[1]
    torch.testing.assert_close(student.blocks[1].mlp(x), layer.output.dense(layer.intermediate(x)))


@pytest.mark.parametrize("wrapped", [True, False])
def test_clip_text_gives_a_text_encoder_its_tables_norms_and_mlps(wrapped):
    tokens = {"vocab_size": 11, "max_position_embeddings": 7, "bos_token_id": 9, "eos_token_id": 10}
    clip = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**SIZES, **tokens))
    student = MambaEncoder(11, 12, depth=2, max_length=7, mlp_ratio=20 / 12)
    subclone(clip if wrapped else clip.text_model, student, first_importance)
    layers = clip.text_model.encoder.layers
    assert torch.equal(student.embedding.weight, clip.text_model.embeddings.token_embedding.weight)
    assert torch.equal(student.pos_embed[0], clip.text_model.embeddings.position_embedding.weight)
    assert torch.equal(student.blocks[1].mlp.fc1.weight, layers[1].mlp.fc1.weight)
    assert torch.equal(student.blocks[1].norm2.bias, layers[1].layer_norm2.bias)
    assert torch.equal(student.norm.weight, clip.text_model.final_layer_norm.weight)


def test_clip_gives_a_video_mamba_with_mlps_all_but_its_mixers():
    clip = transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(**{**SIZES, "intermediate_size": 48}, **IMAGE)
    )
    student = VideoMamba(8, 2, num_frames=3, dim=12, depth=3, num_classes=0, mlp=True)
    report = subclone(clip, student, first_importance)
    left = {name for name in report.skipped if "mixer" not in name}
    assert left == {"temporal_pos_embed"}
    assert torch.equal(student.norm.weight, clip.vision_model.post_layernorm.weight)
