"""Mamba and Mamba-2, whose canonical form is that of our own models."""

import re

from transmamba.transfer.teachers.architecture import Architecture
from transmamba.transfer.teachers.checkpoint import Checkpoint
from transmamba.transfer.teachers.family import Canonical, Family
from transmamba.transfer.teachers.terms import Terms, src

# mamba_ssm's and transformers' names -> ours, in order; {b} is empty in Mamba-2, which has no branches
NAMES = (
    (r"layers\.(\d+)\.norm\.", r"blocks.\1.norm1."),
    (r"layers\.(\d+)\.mixer\.(in_proj|out_proj|norm)\.", r"blocks.\1.mixer.\2."),
    (r"layers\.(\d+)\.mixer\.conv1d\.", r"blocks.\1.mixer.{b}conv1d."),
    (r"layers\.(\d+)\.mixer\.dt_proj\.bias", r"blocks.\1.mixer.{b}ssm.dt_bias"),
    (r"layers\.(\d+)\.mixer\.(x_proj|dt_proj|A_log|D|dt_bias)", r"blocks.\1.mixer.{b}ssm.\2"),
    (r"layers\.(\d+)\.(norm2|mlp\.fc[12])\.", r"blocks.\1.\2."),
    (r"norm_f\.", "norm."),
    (r"embeddings?\.", "embedding."),
    (r"lm_head\.", "head."),
)


def read_mamba(checkpoint: Checkpoint) -> Canonical:
    """Read Mamba: tensors keep their numbers; transformers and mamba_ssm name the same ones."""
    branch = "branches.0." if "layers.0.mixer.x_proj.weight" in checkpoint else ""
    terms: Terms = {}
    for name in checkpoint.stored:
        for pattern, replacement in NAMES:
            if re.match(pattern, name):
                terms[re.sub(f"^{pattern}", replacement.replace("{b}", branch), name)] = src(name)
                break
    if "head.weight" not in terms and "embedding.weight" in terms:
        terms["head.weight"] = terms["embedding.weight"]
    groups = checkpoint.config("n_groups", "ngroups")
    depth = checkpoint.depth("layers.{i}.mixer.A_log")
    facts = Architecture("ssm", _width(checkpoint, "layers.0.norm.weight"), depth, kv_heads=groups)
    # FalconMamba's norms of step sizes, B and C have no parameters, so its names are those of Mamba
    doubt = "taken for a Mamba; a FalconMamba, which has the same names, also normalises step sizes, B and C"
    return Canonical(terms, facts, differs=() if checkpoint.config.known else (doubt,))


def read_own(checkpoint: Checkpoint) -> Canonical:
    """Read our own backbones unchanged: their names are canonical."""
    terms = {name: src(name) for name in checkpoint.stored}
    depth = max(int(hit[1]) for name in terms if (hit := re.match(r"blocks\.(\d+)\.", name))) + 1
    facts = Architecture(
        "ssm",
        _width(checkpoint, "blocks.0.norm1.weight"),
        depth,
        kv_heads=checkpoint.config("groups"),
        # VideoMamba's class token stands in front, Vim's in the middle, under the same names but for frames
        class_position=checkpoint.config(
            "class_position", default="front" if "temporal_pos_embed" in checkpoint else None
        ),
    )
    return Canonical(terms, facts)


def _width(checkpoint: Checkpoint, norm: str) -> int:
    return checkpoint.shape(norm)[0] if norm in checkpoint else 0


FAMILIES = (
    Family(
        "mamba", "Mamba, Mamba-2 (mamba_ssm, transformers)", ("mamba", "mamba2"), "layers.0.mixer.A_log", read_mamba
    ),
    Family(
        "transmamba", "state-space models of this library", ("transmamba",), "blocks.0.mixer.out_proj.weight", read_own
    ),
)
REFUSED = {
    "falcon_mamba": "it normalises step sizes, B and C, for which our mixers have no place",
    "jamba": "it mixes attention, Mamba and experts",
    "zamba": "its attention is shared by several layers",
    "zamba2": "its attention is shared by several layers",
    "bamba": "it mixes attention and Mamba-2",
}
