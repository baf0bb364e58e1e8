import pytest
import torch

from transmamba.models import VisionMamba, ViT
from transmamba.transfer import magnitude_importance, propose_plan, subclone
from transmamba.transfer.plans import VIT


def vit():
    return ViT(img_size=8, patch_size=2, dim=12, depth=3, heads=3, num_classes=7)


def student():
    return VisionMamba(img_size=6, patch_size=2, dim=8, depth=2, num_classes=5)


def test_the_draft_for_vit_is_the_preset_and_works():
    proposal = propose_plan(vit(), student())
    for key, (source, axes) in proposal.plan.items():
        assert VIT[key][0].split(" | ")[0] == source
        assert axes.replace("residual . .", "residual . time .")[:8] == VIT[key][1][:8]
    report = subclone(vit(), student(), magnitude_importance, plan=proposal.plan)
    preset = subclone(vit(), student(), magnitude_importance)
    assert report.inherited == preset.inherited


def test_what_cannot_be_placed_is_shown_with_the_reason():
    proposal = propose_plan(vit(), student())
    assert "blocks.{i}.mixer.in_proj.weight" in proposal.unplaced
    assert {"cls_token", "blocks.{i}.attn.qkv.weight"} <= set(proposal.unused)
    text = str(proposal)
    assert "pos_embed " in text
    assert "unused in the teacher: cls_token" in text
    assert "blocks.{i}.mixer.in_proj.weight" in text


def test_gpt2_names_are_understood():
    teacher = {
        "wte.weight": torch.ones(53, 12),
        "h.0.ln_1.weight": torch.ones(12),
        "h.0.ln_2.weight": torch.ones(12),
        "ln_f.weight": torch.ones(12),
    }
    ours = {
        "embedding.weight": torch.ones(56, 8),
        "blocks.0.norm1.weight": torch.ones(8),
        "blocks.0.norm2.weight": torch.ones(8),
        "norm.weight": torch.ones(8),
    }
    assert propose_plan(teacher, ours).plan == {
        "embedding.weight": ("wte.weight", "vocab residual"),
        "blocks.{i}.norm1.weight": ("h.{i}.ln_1.weight", "residual"),
        "blocks.{i}.norm2.weight": ("h.{i}.ln_2.weight", "residual"),
        "norm.weight": ("ln_f.weight", "residual"),
    }


def test_the_names_of_hugging_face_are_understood():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=53, hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=20
    )
    ours = {"embedding.weight": torch.ones(56, 8), "blocks.0.mlp.fc1.weight": torch.ones(16, 8)}
    plan = propose_plan(transformers.BertModel(config), ours).plan
    assert plan["embedding.weight"] == ("embeddings.word_embeddings.weight", "vocab residual")
    assert plan["blocks.{i}.mlp.fc1.weight"] == ("encoder.layer.{i}.intermediate.dense.weight", "hidden.{i} residual")
