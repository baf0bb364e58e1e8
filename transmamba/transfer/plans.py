"""Name maps from teachers to students, as data.

A plan is a dictionary: student name pattern -> (teacher name patterns, axes). Names: `matching.match`; axes:
`axes.parse_axes` and `resizing`. Students have the names of `transmamba.models`; teachers those of timm, of Hugging
Face before and after version 5, and of mamba_ssm, with or without the prefix of a wrapping model.
"""

import re

from transmamba.transfer.axes import substitute
from transmamba.transfer.matching import Plan

Entries = dict[str, tuple[str, str]]

SSM_PARAMETERS = (
    "*mixer.in_proj.*",
    "*mixer.out_proj.*",
    "*conv1d.*",
    "*conv2d.*",
    "*x_proj.*",
    "*dt_proj.*",
    "*dt_bias",
    "*A_log",
    "*.D",
    "*move_B",
    "*mixer.norm.*",
)


def affine(student: str, teacher: str, axes: str) -> Entries:
    """The entries of a weight and a bias; the bias lies on the weight's first axis.

    Example:
        >>> affine("head", "head | classifier", "class residual")["head.bias"]
        ('head.bias | classifier.bias', 'class')
    """

    def leaf(name: str) -> str:
        return re.sub(r"[^\s|+]+", rf"\g<0>.{name}", teacher)

    return {f"{student}.weight": (leaf("weight"), axes), f"{student}.bias": (leaf("bias"), axes.split()[0])}


QKV = "head.{i}*head_dim+head.{i}*head_dim+head.{i}*head_dim"

VIT: Entries = {
    "cls_token": ("cls_token | embeddings.cls_token", "1 1 residual"),
    "dist_token": ("dist_token | embeddings.distillation_token", "1 1 residual"),
    "pos_embed": ("pos_embed | embeddings.position_embeddings", "1 token residual"),
    **affine("patch_embed.proj", "patch_embed.proj | embeddings.patch_embeddings.projection", "residual . time . ."),
    **affine(
        "blocks.{i}.norm1",
        "blocks.{i}.norm1 | layers.{i}.layernorm_before | encoder.layer.{i}.layernorm_before",
        "residual",
    ),
    **affine(
        "blocks.{i}.attn.qkv",
        "blocks.{i}.attn.qkv"
        " | layers.{i}.attention.q_proj + layers.{i}.attention.k_proj + layers.{i}.attention.v_proj"
        " | encoder.layer.{i}.attention.attention.query + encoder.layer.{i}.attention.attention.key"
        " + encoder.layer.{i}.attention.attention.value",
        f"{QKV} residual",
    ),
    **affine(
        "blocks.{i}.attn.proj",
        "blocks.{i}.attn.proj | layers.{i}.attention.o_proj | encoder.layer.{i}.attention.output.dense",
        "residual head.{i}*head_dim",
    ),
    **affine(
        "blocks.{i}.norm2",
        "blocks.{i}.norm2 | layers.{i}.layernorm_after | encoder.layer.{i}.layernorm_after",
        "residual",
    ),
    **affine(
        "blocks.{i}.mlp.fc1",
        "blocks.{i}.mlp.fc1 | layers.{i}.mlp.fc1 | encoder.layer.{i}.intermediate.dense",
        "hidden.{i} residual",
    ),
    **affine(
        "blocks.{i}.mlp.fc2",
        "blocks.{i}.mlp.fc2 | layers.{i}.mlp.fc2 | encoder.layer.{i}.output.dense",
        "residual hidden.{i}",
    ),
    **affine("norm", "norm | layernorm", "residual"),
    **affine("head", "head | classifier | cls_classifier", "class residual"),
    **affine("head_dist", "head_dist | distillation_classifier", "class residual"),
}

CLIP: Entries = {
    "cls_token": ("vision_model.embeddings.class_embedding | embeddings.class_embedding", "1 1 residual"),
    "pos_embed": (
        "vision_model.embeddings.position_embedding.weight | embeddings.position_embedding.weight",
        "1 token residual",
    ),
    **affine(
        "patch_embed.proj",
        "vision_model.embeddings.patch_embedding | embeddings.patch_embedding",
        "residual . time . .",
    ),
    **affine(
        "blocks.{i}.attn.qkv",
        " | ".join(
            " + ".join(f"{tower}encoder.layers.{{i}}.self_attn.{leaf}_proj" for leaf in "qkv")
            for tower in ("vision_model.", "")
        ),
        f"{QKV} residual",
    ),
    **{
        name: entry
        for ours, theirs, axes in (
            ("norm1", "layer_norm1", "residual"),
            ("attn.proj", "self_attn.out_proj", "residual head.{i}*head_dim"),
            ("norm2", "layer_norm2", "residual"),
            ("mlp.fc1", "mlp.fc1", "hidden.{i} residual"),
            ("mlp.fc2", "mlp.fc2", "residual hidden.{i}"),
        )
        for name, entry in affine(
            f"blocks.{{i}}.{ours}", f"vision_model.encoder.layers.{{i}}.{theirs} | encoder.layers.{{i}}.{theirs}", axes
        ).items()
    },
    **affine("norm", "vision_model.post_layernorm | post_layernorm", "residual"),
    "head.weight": ("visual_projection.weight", "class residual"),
}

CLIP_TEXT: Entries = {
    "embedding.weight": (
        "text_model.embeddings.token_embedding.weight | embeddings.token_embedding.weight",
        "vocab residual",
    ),
    "pos_embed": (
        "text_model.embeddings.position_embedding.weight | embeddings.position_embedding.weight",
        "1 sequence residual",
    ),
    **{
        name: (pattern.replace("vision_model", "text_model"), axes)
        for name, (pattern, axes) in CLIP.items()
        if name.startswith("blocks.") and ".attn." not in name
    },
    **affine("norm", "text_model.final_layer_norm | final_layer_norm", "residual"),
}

# Post-norm teacher, pre-norm student: what enters a teacher layer was normalised at the end of the layer before. The
# norm of the embeddings stays where it is, or becomes the first norm of a student that has no other place for it.
BERT: Entries = {
    "embedding.weight": ("embeddings.word_embeddings.weight", "vocab residual"),
    "pos_embed": ("embeddings.position_embeddings.weight", "1 sequence residual"),
    "type_embedding.weight": ("embeddings.token_type_embeddings.weight", ". residual"),
    **affine("embed_norm", "embeddings.LayerNorm", "residual"),
    **affine("blocks.{i}.norm1", "encoder.layer.{i-1}.output.LayerNorm", "residual"),
    **affine("blocks.{i}.norm2", "encoder.layer.{i}.attention.output.LayerNorm", "residual"),
    **affine("blocks.{i}.mlp.fc1", "encoder.layer.{i}.intermediate.dense", "hidden.{i} residual"),
    **affine("blocks.{i}.mlp.fc2", "encoder.layer.{i}.output.dense", "residual hidden.{i}"),
    **affine("norm", "encoder.layer.{last}.output.LayerNorm", "residual"),
}

BERT_BARE = BERT | affine("blocks.{i}.norm1", "encoder.layer.{i-1}.output.LayerNorm | embeddings.LayerNorm", "residual")

# fc1 holds the value above the gate: LLaMA's up_proj is the value, gate_proj goes through SiLU
LLAMA: Entries = {
    "embedding.weight": ("embed_tokens.weight", "vocab residual"),
    "blocks.{i}.norm1.weight": ("layers.{i}.input_layernorm.weight", "residual"),
    "blocks.{i}.attn.q_proj.weight": ("layers.{i}.self_attn.q_proj.weight", "head.{i}*head_dim residual"),
    "blocks.{i}.attn.k_proj.weight": ("layers.{i}.self_attn.k_proj.weight", "kv_head.{i}*head_dim residual"),
    "blocks.{i}.attn.v_proj.weight": ("layers.{i}.self_attn.v_proj.weight", "kv_head.{i}*head_dim residual"),
    "blocks.{i}.attn.o_proj.weight": ("layers.{i}.self_attn.o_proj.weight", "residual head.{i}*head_dim"),
    "blocks.{i}.norm2.weight": ("layers.{i}.post_attention_layernorm.weight", "residual"),
    "blocks.{i}.mlp.fc1.weight": (
        "layers.{i}.mlp.up_proj.weight + layers.{i}.mlp.gate_proj.weight",
        "hidden.{i}+hidden.{i} residual",
    ),
    "blocks.{i}.mlp.fc2.weight": ("layers.{i}.mlp.down_proj.weight", "residual hidden.{i}"),
    "norm.weight": ("norm.weight", "residual"),
    "head.weight": ("lm_head.weight | embed_tokens.weight", "logit residual"),
}

MAMBA_COMMON: Entries = {
    **affine("blocks.{i}.norm1", "blocks.{i}.norm1 | layers.{i}.norm", "residual"),
    **affine("blocks.{i}.norm2", "blocks.{i}.norm2 | layers.{i}.norm2", "residual"),
    **affine("norm", "norm | norm_f", "residual"),
}

OWN, BRANCH, FLAT = "blocks.{i}.mixer.", "blocks.{i}.mixer.branches.{k}.", "layers.{i}.mixer."


def selective(prefix: str, branch: str) -> Entries:
    """The entries of one selective SSM; with several, each branch has its own states and ranks."""
    rank, state = f"rank.{{i}}{branch}", f"state.{{i}}{branch}"
    return {
        prefix + "ssm.x_proj.weight": (
            f"{prefix}ssm.x_proj.weight | {FLAT}x_proj.weight",
            f"{rank}+{state}+{state} inner.{{i}}",
        ),
        prefix + "ssm.dt_proj.weight": (f"{prefix}ssm.dt_proj.weight | {FLAT}dt_proj.weight", f"inner.{{i}} {rank}"),
        prefix + "ssm.dt_bias": (f"{prefix}ssm.dt_bias | {FLAT}dt_proj.bias", "inner.{i}"),
        prefix + "ssm.A_log": (f"{prefix}ssm.A_log | {FLAT}A_log", f"inner.{{i}} {state}"),
        prefix + "ssm.D": (f"{prefix}ssm.D | {FLAT}D", "inner.{i}"),
    }


MAMBA: Entries = {
    **MAMBA_COMMON,
    "cls_token": ("cls_token", "1 1 residual"),
    "pos_embed": ("pos_embed", "1 token residual"),
    **affine("patch_embed.proj", "patch_embed.proj", "residual . time . ."),
    **affine("blocks.{i}.mlp.fc1", "blocks.{i}.mlp.fc1", "hidden.{i} residual"),
    **affine("blocks.{i}.mlp.fc2", "blocks.{i}.mlp.fc2", "residual hidden.{i}"),
    **affine("head", "head", "class residual"),
    **affine(OWN + "in_proj", f"{OWN}in_proj | {FLAT}in_proj", "inner.{i}+inner.{i} residual"),
    **affine(BRANCH + "conv1d", f"{BRANCH}conv1d | {FLAT}conv1d", "inner.{i} 1 ."),
    **selective(BRANCH, ".{k}"),
    # PlainMamba: one set for all directions, and a direction vector in B for each move
    **affine(OWN + "conv2d", OWN + "conv2d", "inner.{i} 1 . ."),
    OWN + "move_B": (OWN + "move_B", ". state.{i}"),
    **selective(OWN, ""),
    **affine(OWN + "out_proj", f"{OWN}out_proj | {FLAT}out_proj", "residual inner.{i}"),
}

INNER, SHARED = "head.{i}*head_dim", "group*state.{i}"

MAMBA2: Entries = {
    **MAMBA_COMMON,
    **affine(
        OWN + "in_proj",
        f"{OWN}in_proj | {FLAT}in_proj",
        f"{INNER}+{INNER}+{SHARED}+{SHARED}+head.{{i}} residual",
    ),
    **affine(OWN + "conv1d", f"{OWN}conv1d | {FLAT}conv1d", f"{INNER}+{SHARED}+{SHARED} 1 ."),
    OWN + "ssm.dt_bias": (f"{OWN}ssm.dt_bias | {FLAT}dt_bias", "head.{i}"),
    OWN + "ssm.A_log": (f"{OWN}ssm.A_log | {FLAT}A_log", "head.{i}"),
    OWN + "ssm.D": (f"{OWN}ssm.D | {FLAT}D", "head.{i}"),
    OWN + "norm.weight": (f"{OWN}norm.weight | {FLAT}norm.weight", INNER),
    **affine(OWN + "out_proj", f"{OWN}out_proj | {FLAT}out_proj", f"residual {INNER}"),
}

# the gated MLP and the output table of the language models, which vision models do not have
LM: Entries = {
    "embedding.weight": ("embedding.weight | embeddings.weight", "vocab residual"),
    **affine("blocks.{i}.mlp.fc1", "blocks.{i}.mlp.fc1 | layers.{i}.mlp.fc1", "hidden.{i}+hidden.{i} residual"),
    **affine("blocks.{i}.mlp.fc2", "blocks.{i}.mlp.fc2 | layers.{i}.mlp.fc2", "residual hidden.{i}"),
    "head.weight": ("lm_head.weight | head.weight | embedding.weight | embeddings.weight", "logit residual"),
}

PRESETS: dict[str, Plan] = {
    "vit": VIT,
    "clip": CLIP,
    "clip_text": CLIP_TEXT,
    "bert": BERT,
    "bert_bare": {name: entry for name, entry in BERT_BARE.items() if not name.startswith("embed_norm")},
    "llama": LLAMA,
    "mamba": MAMBA,
    "mamba_lm": MAMBA | LM,
    # one group of B and C, as in all published checkpoints; for another number, bind(MAMBA2 | LM, group=8)
    "mamba2_lm": {name: (pattern, substitute(axes, {"group": 1})) for name, (pattern, axes) in (MAMBA2 | LM).items()},
}
