"""Pairs of teachers and students whose inheritance was right from the start, and a digest of each student after it."""

import hashlib
import json
import zlib
from functools import partial
from pathlib import Path

import torch

from transmamba.models import MambaEncoder, MambaLM, PlainMamba, VideoMamba, Vim, VisionMamba, ViT
from transmamba.models.vmamba import vmamba_v2
from transmamba.nn import Mamba2Mixer
from transmamba.nn.mamba2 import HeadSSM
from transmamba.transfer import AttentionInit, first_importance, magnitude_importance, random_importance, subclone

RECORD = Path(__file__).with_name("frozen.json")
SIZES = {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 48}
IMAGE = {"image_size": 8, "patch_size": 2}


def filled(module):
    """Return uniform numbers by name, the same on every machine."""
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) - 0.5)
    return module.eval()


def hugging_face(kind, **options):
    import transformers

    config = getattr(transformers, f"{kind[0]}Config")(**{**SIZES, **options})
    return filled(getattr(transformers, kind[1])(config))


def vit(**options):
    return filled(ViT(img_size=8, patch_size=2, dim=24, depth=4, heads=3, num_classes=5, **options))


def vision(**options):
    return filled(VisionMamba(img_size=8, patch_size=2, depth=3, num_classes=5, d_state=3, **{"dim": 12, **options}))


def llama(**options):
    return hugging_face(
        ("Llama", "LlamaForCausalLM"),
        **{"num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 128, "vocab_size": 11, **options},
    )


def language(dim=12, **options):
    return filled(MambaLM(11, dim, depth=3, d_intermediate=128, **options))


def bert():
    return hugging_face(("Bert", "BertModel"), vocab_size=11, intermediate_size=96)


def mamba2(dim):
    return Mamba2Mixer(dim, expand=1, ssm=HeadSSM(3, 8, d_state=8, groups=1))


BY_AXIS = {"residual": torch.arange(24.0), **{f"hidden.{i}": torch.arange(96.0) for i in range(3)}}
HF_VIT, HF_DEIT = ("ViT", "ViTForImageClassification"), ("DeiT", "DeiTForImageClassificationWithTeacher")
PAIRS = {
    "vit magnitude": (vit, vision, magnitude_importance, {}),
    "vit random": (vit, vision, random_importance(3), {"layer_map": "uniform"}),
    "vit first": (vit, vision, first_importance, {"layer_map": "drop_middle", "rescale": "sqrt"}),
    "vit by axis": (vit, vision, BY_AXIS, {}),
    "vit state dict": (lambda: vit().state_dict(), vision, magnitude_importance, {"layer_map": [3, 1, 0]}),
    "vit equal": (vit, partial(vision, dim=24), magnitude_importance, {}),
    "distilled vit": (partial(vit, distilled=True), vision, magnitude_importance, {}),
    "vit to vim": (vit, lambda: filled(Vim(8, 2, dim=12, depth=3, num_classes=5)), magnitude_importance, {}),
    "vit to plain": (vit, lambda: filled(PlainMamba(8, 2, dim=12, depth=3, num_classes=5)), magnitude_importance, {}),
    "vit to vmamba": (
        vit,
        lambda: filled(vmamba_v2((6, 12), (1, 2), num_classes=5)),
        magnitude_importance,
        {"layer_map": "uniform"},
    ),
    "vit to video": (
        vit,
        lambda: filled(VideoMamba(8, 2, num_frames=2, dim=12, depth=3, num_classes=5)),
        magnitude_importance,
        {},
    ),
    "hf vit": (
        partial(hugging_face, HF_VIT, **IMAGE, num_labels=5),
        partial(vision, dim=12),
        magnitude_importance,
        {"grow": True},
    ),
    "hf deit": (
        partial(hugging_face, HF_DEIT, **IMAGE, num_labels=5),
        vision,
        magnitude_importance,
        {"grow": True},
    ),
    "bert": (
        bert,
        lambda: filled(MambaEncoder(11, 12, depth=3, max_length=7, types=2, d_state=2)),
        magnitude_importance,
        {},
    ),
    "llama": (llama, language, magnitude_importance, {}),
    "llama random": (llama, language, random_importance(1), {"layer_map": "uniform"}),
    "llama tied": (partial(llama, tie_word_embeddings=True), language, magnitude_importance, {}),
    "llama attention": (
        llama,
        partial(language, 24, mixer=mamba2),
        magnitude_importance,
        {"ssm_from": AttentionInit(3, 7, kv_heads=1)},
    ),
    "mamba": (
        lambda: filled(MambaLM(11, 24, depth=4)),
        lambda: filled(MambaLM(11, 12, depth=3)),
        magnitude_importance,
        {},
    ),
    "mamba2": (
        lambda: filled(MambaLM(11, 24, depth=4, mixer=mamba2)),
        lambda: filled(MambaLM(11, 24, depth=3, mixer=mamba2)),
        magnitude_importance,
        {},
    ),
    "vision mamba": (partial(vision, dim=24), vision, magnitude_importance, {}),
    "ssm from a mamba": (
        vit,
        vision,
        magnitude_importance,
        {"ssm_from": filled(VisionMamba(8, 2, dim=24, depth=4, d_state=5))},
    ),
}


def digest(name):
    """Inherit, and hash the student."""
    teacher, student, importance, options = PAIRS[name]
    student = student()
    subclone(teacher(), student, importance, **options)
    digest = hashlib.sha256()
    for key, tensor in sorted(student.state_dict().items()):
        digest.update(key.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    RECORD.write_text(json.dumps({name: digest(name) for name in PAIRS}, indent=1) + "\n")
