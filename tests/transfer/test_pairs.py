"""Whole teachers into whole students that run: video, language models, hybrids, devices."""

import pytest
import torch
from torch import nn

from transmamba.models import MambaEncoder, MambaLM, VideoMamba, VisionMamba, ViT
from transmamba.nn import Attention, Mamba2Mixer, TransformerBlock
from transmamba.nn.mamba2 import HeadSSM
from transmamba.transfer import AttentionInit, first_importance, freeze, magnitude_importance, param_groups, subclone


def hybrid(every, dim=12, depth=4):
    student = VisionMamba(img_size=8, patch_size=2, dim=dim, depth=depth, num_classes=5, d_state=3)
    for i in range(every - 1, depth, every):
        student.blocks[i] = TransformerBlock(dim, Attention(dim, heads=3), hidden_dim=4 * dim)
    return student


def vit():
    return ViT(img_size=8, patch_size=2, dim=12, depth=4, heads=3, num_classes=5).eval()


def test_a_hybrid_keeps_every_second_attention_and_starts_the_other_mixers_from_attention():
    teacher, student = vit(), hybrid(every=2)
    report = subclone(teacher, student, first_importance, ssm_from=AttentionInit(heads=3, length=16))
    x = torch.randn(2, 7, 12)
    for i in (1, 3):
        torch.testing.assert_close(student.blocks[i](x, None), teacher.blocks[i](x))
        assert f"blocks.{i}.attn.qkv.weight" in report.copied
    for i in (0, 2):
        assert "linear attention" in report.sliced[f"blocks.{i}.mixer.in_proj.weight"]
    assert student(torch.randn(2, 3, 8, 8)).isfinite().all()


def test_a_hybrid_trains_its_new_mixers_alone():
    student = hybrid(every=2)
    report = subclone(vit(), student, first_importance)
    freeze(student, report.inherited)
    (group,) = [group for group in param_groups(student, report.inherited, lr=1.0) if group["weight_decay"]]
    before = {name: p.clone() for name, p in student.named_parameters()}
    student(torch.randn(2, 3, 8, 8)).square().sum().backward()
    torch.optim.SGD(group["params"], 0.1).step()
    moved = {name for name, p in student.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    assert all(".mixer." in name for name in moved)


def test_clip_gives_its_image_tower_to_video_mamba():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 12, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 48}
    clip = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**sizes, image_size=16, patch_size=4))
    student = VideoMamba(img_size=16, patch_size=4, dim=12, depth=3, num_classes=5, num_frames=6, tubelet=3)
    report = subclone(clip, student, first_importance)
    vision = clip.state_dict()
    get = lambda name: next(tensor for key, tensor in vision.items() if key.endswith(name))  # noqa: E731
    assert torch.equal(student.pos_embed[0], get("embeddings.position_embedding.weight"))
    assert torch.equal(student.cls_token[0, 0], get("embeddings.class_embedding"))
    assert torch.equal(student.patch_embed.proj.weight[:, :, 1], get("embeddings.patch_embedding.weight"))
    assert torch.equal(student.blocks[2].norm1.weight, get("layers.2.layer_norm1.weight"))
    assert torch.equal(student.norm.weight, get("post_layernorm.weight"))
    assert "temporal_pos_embed" in report.skipped
    assert student(torch.randn(1, 3, 6, 16, 16)).isfinite().all()


def clip():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48}
    image = sizes | {"image_size": 8, "patch_size": 2}
    words = sizes | {"vocab_size": 11, "bos_token_id": 0, "eos_token_id": 1}
    config = transformers.CLIPConfig(text_config=sizes | words, vision_config=image)
    model = transformers.CLIPModel(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("_proj.bias"):  # zero in a new model
                p.normal_()
    return model


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_hybrid_of_clip_keeps_attention_with_its_biases(wrapped):
    teacher, student = clip(), hybrid(every=2, depth=2)
    start = AttentionInit(heads=3, length=16)
    report = subclone(teacher if wrapped else teacher.vision_model, student, first_importance, ssm_from=start)
    x = torch.randn(2, 7, 12)
    theirs, _ = teacher.vision_model.encoder.layers[1].self_attn(x)
    torch.testing.assert_close(student.blocks[1].attn(x), theirs)
    assert report.sliced["blocks.0.mixer.out_proj.weight"].endswith(".self_attn.q_proj: linear attention")


def test_text_and_image_students_of_one_clip_take_the_attention_of_their_tower():
    teacher, start = clip(), AttentionInit(heads=3, length=16)
    for student, tower in (
        (MambaEncoder(11, 12, depth=2, max_length=77, d_state=3), "text_model"),
        (VisionMamba(img_size=8, patch_size=2, dim=12, depth=2, d_state=3), "vision_model"),
    ):
        report = subclone(teacher, student, first_importance, ssm_from=start)
        source = f"{tower}.encoder.layers.1.self_attn.q_proj: linear attention"
        assert report.sliced["blocks.1.mixer.out_proj.weight"] == source


def llama():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=12, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=3,
        intermediate_size=128, vocab_size=11,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def test_llama_becomes_a_mamba2_with_gated_mlps():
    teacher = llama()
    mixer = lambda dim: Mamba2Mixer(dim, expand=1, ssm=HeadSSM(4, 3, d_state=3, groups=2))  # noqa: E731
    student = MambaLM(11, 12, depth=2, d_intermediate=128, mixer=mixer)
    report = subclone(teacher, student, {}, ssm_from=AttentionInit(4, 7, kv_heads=2))
    x = torch.randn(2, 7, 12)
    for block, layer in zip(student.blocks, teacher.model.layers, strict=True):
        torch.testing.assert_close(block.mlp(x), layer.mlp(x))
        assert torch.equal(block.mixer.out_proj.weight, layer.self_attn.o_proj.weight)
    left = {name for name in report.skipped if ".mixer." in name}
    assert left <= {f"blocks.{i}.mixer.norm.weight" for i in range(2)}
    assert student(torch.randint(11, (2, 7))).isfinite().all()


def test_a_hybrid_of_llama_keeps_grouped_attention():
    teacher, student = llama(), MambaLM(11, 12, depth=2, d_intermediate=128)
    sizes = {"q_proj": (12, 12), "k_proj": (12, 6), "v_proj": (12, 6), "o_proj": (12, 12)}
    student.blocks[1].attn = nn.ModuleDict({key: nn.Linear(*size, bias=False) for key, size in sizes.items()})
    del student.blocks[1].mixer
    report = subclone(teacher, student, first_importance)
    for key in sizes:
        assert torch.equal(student.blocks[1].attn[key].weight, getattr(teacher.model.layers[1].self_attn, key).weight)
        assert f"blocks.1.attn.{key}.weight" in report.copied


@pytest.mark.gpu
@pytest.mark.parametrize(("teacher_device", "student_device"), [("cpu", "cuda"), ("cuda", "cpu"), ("cuda", "cuda")])
def test_devices_may_differ_and_stay(teacher_device, student_device):
    teacher, one = vit(), VisionMamba(img_size=8, patch_size=2, dim=8, depth=3, num_classes=5, d_state=3)
    two = VisionMamba(img_size=8, patch_size=2, dim=8, depth=3, num_classes=5, d_state=3)
    two.load_state_dict(one.state_dict())
    start = AttentionInit(heads=3, length=16)
    subclone(teacher, one, magnitude_importance, ssm_from=start)
    two.to(student_device)
    subclone(teacher.to(teacher_device), two, magnitude_importance, ssm_from=start)
    for name, p in two.named_parameters():
        assert p.device.type == student_device
        torch.testing.assert_close(p.cpu(), one.get_parameter(name))
