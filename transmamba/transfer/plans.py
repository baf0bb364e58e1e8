"""Name maps from teachers to students, as data.

A plan is a dictionary: student name pattern -> (teacher name patterns, axes). Names: `matching.match`; axes:
`axes.parse_axes` and `resizing`. Students have the names of `transmamba.models`; teachers those of timm, of Hugging
Face before and after version 5, and of mamba_ssm.
"""

from collections.abc import Iterable, Mapping

from transmamba.transfer.axes import substitute
from transmamba.transfer.layer_maps import LayerMap
from transmamba.transfer.matching import Plan, match

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
    "*mixer.norm.*",
)

VIT: dict[str, tuple[str, str]] = {
    "cls_token": ("cls_token | embeddings.cls_token", "1 1 residual"),
    "dist_token": ("dist_token | embeddings.distillation_token", "1 1 residual"),
    "pos_embed": ("pos_embed | embeddings.position_embeddings", "1 token residual"),
    "patch_embed.proj.weight": (
        "patch_embed.proj.weight | embeddings.patch_embeddings.projection.weight",
        "residual . . .",
    ),
    "patch_embed.proj.bias": ("patch_embed.proj.bias | embeddings.patch_embeddings.projection.bias", "residual"),
    "blocks.{i}.norm1.weight": (
        "blocks.{i}.norm1.weight | layers.{i}.layernorm_before.weight | encoder.layer.{i}.layernorm_before.weight",
        "residual",
    ),
    "blocks.{i}.norm1.bias": (
        "blocks.{i}.norm1.bias | layers.{i}.layernorm_before.bias | encoder.layer.{i}.layernorm_before.bias",
        "residual",
    ),
    "blocks.{i}.norm2.weight": (
        "blocks.{i}.norm2.weight | layers.{i}.layernorm_after.weight | encoder.layer.{i}.layernorm_after.weight",
        "residual",
    ),
    "blocks.{i}.norm2.bias": (
        "blocks.{i}.norm2.bias | layers.{i}.layernorm_after.bias | encoder.layer.{i}.layernorm_after.bias",
        "residual",
    ),
    "blocks.{i}.mlp.fc1.weight": (
        "blocks.{i}.mlp.fc1.weight | layers.{i}.mlp.fc1.weight | encoder.layer.{i}.intermediate.dense.weight",
        "hidden.{i} residual",
    ),
    "blocks.{i}.mlp.fc1.bias": (
        "blocks.{i}.mlp.fc1.bias | layers.{i}.mlp.fc1.bias | encoder.layer.{i}.intermediate.dense.bias",
        "hidden.{i}",
    ),
    "blocks.{i}.mlp.fc2.weight": (
        "blocks.{i}.mlp.fc2.weight | layers.{i}.mlp.fc2.weight | encoder.layer.{i}.output.dense.weight",
        "residual hidden.{i}",
    ),
    "blocks.{i}.mlp.fc2.bias": (
        "blocks.{i}.mlp.fc2.bias | layers.{i}.mlp.fc2.bias | encoder.layer.{i}.output.dense.bias",
        "residual",
    ),
    "blocks.{i}.attn.qkv.weight": (
        "blocks.{i}.attn.qkv.weight"
        " | layers.{i}.attention.q_proj.weight + layers.{i}.attention.k_proj.weight"
        " + layers.{i}.attention.v_proj.weight"
        " | encoder.layer.{i}.attention.attention.query.weight + encoder.layer.{i}.attention.attention.key.weight"
        " + encoder.layer.{i}.attention.attention.value.weight",
        "head.{i}*head_dim+head.{i}*head_dim+head.{i}*head_dim residual",
    ),
    "blocks.{i}.attn.qkv.bias": (
        "blocks.{i}.attn.qkv.bias"
        " | layers.{i}.attention.q_proj.bias + layers.{i}.attention.k_proj.bias + layers.{i}.attention.v_proj.bias"
        " | encoder.layer.{i}.attention.attention.query.bias + encoder.layer.{i}.attention.attention.key.bias"
        " + encoder.layer.{i}.attention.attention.value.bias",
        "head.{i}*head_dim+head.{i}*head_dim+head.{i}*head_dim",
    ),
    "blocks.{i}.attn.proj.weight": (
        "blocks.{i}.attn.proj.weight | layers.{i}.attention.o_proj.weight"
        " | encoder.layer.{i}.attention.output.dense.weight",
        "residual head.{i}*head_dim",
    ),
    "blocks.{i}.attn.proj.bias": (
        "blocks.{i}.attn.proj.bias | layers.{i}.attention.o_proj.bias | encoder.layer.{i}.attention.output.dense.bias",
        "residual",
    ),
    "norm.weight": ("norm.weight | layernorm.weight", "residual"),
    "norm.bias": ("norm.bias | layernorm.bias", "residual"),
    "head.weight": ("head.weight | classifier.weight | cls_classifier.weight", "class residual"),
    "head.bias": ("head.bias | classifier.bias | cls_classifier.bias", "class"),
    "head_dist.weight": ("head_dist.weight | distillation_classifier.weight", "class residual"),
    "head_dist.bias": ("head_dist.bias | distillation_classifier.bias", "class"),
}

PRESETS: dict[str, Plan] = {"vit": VIT}


def bind(plan: Plan, **sizes: int) -> dict[str, tuple[str, str]]:
    """`plan` with axis names replaced by numbers, for what shapes do not tell.

    Example:
        >>> bind({"attn.proj.weight": ("attn.proj.weight", "residual head*head_dim")}, head_dim=64)
        {'attn.proj.weight': ('attn.proj.weight', 'residual head*64')}
    """
    return {name: (pattern, substitute(axes, sizes)) for name, (pattern, axes) in plan.items()}


def find_preset(student: Iterable[str], teacher: Iterable[str], layer_map: LayerMap) -> tuple[str, Plan]:
    """The preset that initialises most tensors of the student.

    Raises:
        ValueError: none finds a layer of the teacher.
    """
    student, teacher = list(student), list(teacher)
    best, most = None, 0
    for name, plan in PRESETS.items():
        found = match(plan, student, teacher, layer_map)
        count = len({copy.student for copy in found.copies})
        if found.layers and count > most:
            best, most = name, count
    if best is None:
        raise ValueError(
            f"no preset of {', '.join(PRESETS)} knows these names: the teacher has {_few(teacher)}; the student has"
            f" {_few(student)}. Give plan={{student name: (teacher name, axes)}}; propose_plan(teacher, student)"
            " drafts one"
        )
    return best, PRESETS[best]


def _few(names: Mapping[str, object] | list[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:4]) + (f", ... ({len(listed)} tensors)" if len(listed) > 4 else "")
