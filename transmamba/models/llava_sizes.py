"""The sizes of the paper's experiments with LLaVA, untrained: CLIP ViT-L/14, a 3B teacher and a 0.6B student."""

from functools import partial
from typing import Any

from transmamba.models.builders import register
from transmamba.models.mamba_lm import MambaLM
from transmamba.models.patch_encoders import ClipPatches
from transmamba.models.vision_language import Query, VisionLanguageMamba
from transmamba.nn import MambaMixer

CLIP_L14: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "projection_dim": 768,
}
LLAMA_3_2: dict[str, Any] = {
    "vocab_size": 128256,
    "intermediate_size": 8192,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "tie_word_embeddings": True,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}
# a reserved special token of LLaMA 3 stands for an image in the teacher's ids
TEACHER_IMAGE_TOKEN = 128002


@register
def clip_vit_l14(image_size: int = 336) -> Any:
    """Build the vision encoder of LLaVA-1.5, a `CLIPVisionModel`: 24 layers of width 1024, patches of 14 pixels.

    Raises:
        ImportError: transformers is not installed.
    """
    from transformers import CLIPVisionConfig, CLIPVisionModel

    return CLIPVisionModel(CLIPVisionConfig(**CLIP_L14, hidden_act="quick_gelu", image_size=image_size))


@register
def trans_llava_600m(*, image_size: int = 336, query: Query = "image") -> VisionLanguageMamba:
    """Build the student: LLaMA-3.2-1B's 16 layers and vocabulary at width 1152, CrossMamba after blocks 3, 7 and 11.

    Width and hidden width of LLaMA-3.2-1B, 2048 and 8192, would make 1.5 billion; at 1152 and 4608 the language model
    with its CrossMamba blocks has the paper's 0.6 billion.

    Raises:
        ImportError: transformers is not installed.
    """
    language = MambaLM(128256, 1152, depth=16, mixer=partial(MambaMixer, d_state=16), d_intermediate=4608)
    return VisionLanguageMamba(ClipPatches(clip_vit_l14(image_size)), language, cross_after=(3, 7, 11), query=query)


@register
def llava_llama_1b(*, image_size: int = 336) -> Any:
    """Build LLaVA on LLaMA-3.2-1B, 16 layers of width 2048, from which the student's language model is cut."""
    return _llava(image_size, hidden_size=2048, num_hidden_layers=16, num_attention_heads=32, head_dim=64)


@register
def llava_llama_3b(*, image_size: int = 336) -> Any:
    """Build the teacher: LLaVA on LLaMA-3.2-3B, 28 layers of width 3072, a model of `transformers`."""
    return _llava(image_size, hidden_size=3072, num_hidden_layers=28, num_attention_heads=24, head_dim=128)


def _llava(image_size: int, **sizes: Any) -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionConfig(**CLIP_L14, hidden_act="quick_gelu", image_size=image_size)
    text = LlamaConfig(**LLAMA_3_2, **sizes)
    config = LlavaConfig(
        vision_config=vision.to_dict(),
        text_config=text.to_dict(),
        image_token_index=TEACHER_IMAGE_TOKEN,
        image_seq_length=(image_size // 14) ** 2,
        tie_word_embeddings=True,
    )
    return LlavaForConditionalGeneration(config)
