"""Tables: which canonical tensor each tensor of our backbones inherits, and on which axes.

A table is a plan (`plan.match`) whose teacher names are canonical: those of `Architecture`, or for state-space models
our own.
"""

from transmamba.transfer.plan import Entries, affine
from transmamba.transfer.teachers import Architecture

SSM_PARAMETERS = (
    "*mixer.in_proj.*",
    "*mixer.out_proj.*",
    "*conv1d.*",
    "*conv2d.*",
    "*x_proj.*",
    "*ssm.x_proj",
    "*dt_proj.*",
    "*ssm.dt_proj",
    "*dt_bias",
    "*A_log",
    "*.D",
    "*direction_B",
    "*mixer.norm.*",
)


GATED = "hidden.{i}+hidden.{i} residual"
OWN, BRANCH = "blocks.{i}.mixer.", "blocks.{i}.mixer.branches."


def transformer_table(facts: Architecture, gated: bool, full_norms: bool = False) -> Entries:
    """Map our backbones' names to canonical names, for any Transformer.

    Args:
        facts: the teacher's.
        gated: the teacher's MLPs are gated; fc1 then holds the value above the gate.
        full_norms: query and key norms have an entry for every channel of every head.
    """
    image = facts.kind == "image"
    groups = (facts.heads or 1) // (facts.kv_heads or facts.heads or 1)
    head_dim = str(facts.head_dim or "head_dim")
    keys = f"head.{{i}}*{head_dim}" if groups == 1 else f"kv_head.{{i}}*{head_dim}"
    queries = keys if groups == 1 else f"kv_head.{{i}}*{groups}*{head_dim}"
    entries: Entries = {
        "cls_token": ("cls_token", "1 1 residual"),
        "dist_token": ("dist_token", "1 1 residual"),
        "reg_token": ("reg_token", "1 . residual"),
        "pos_embed": ("pos_embed", f"1 {'token' if image else 'sequence'} residual"),
        **affine("patch_embed.proj", "patch_embed", "residual . time . ."),
        "embedding.weight": ("embedding.weight", "vocab residual"),
        "type_embedding.weight": ("type_embedding.weight", ". residual"),
        **affine("norm", "norm", "residual"),
        **affine("head", "head", "class residual"),
        **affine("head_dist", "head_dist", "class residual"),
    }
    for norm in ("norm_pre", "embed_norm", "fc_norm"):
        entries |= affine(norm, norm, "residual")
    for norm in ("norm1", "norm2", "post_norm1", "post_norm2"):
        entries |= affine(f"blocks.{{i}}.{norm}", f"blocks.{{i}}.{norm}", "residual")
    whole = " + ".join(f"blocks.{{i}}.attn.{letter}" for letter in "qkv")
    for mixer in ("attn", "mixer"):
        ours, theirs = f"blocks.{{i}}.{mixer}.", "blocks.{i}.attn."
        entries |= affine(ours + "qkv", whole, f"{queries}+{keys}+{keys} residual")
        entries |= affine(ours + "proj", theirs + "out", f"residual {queries}")
        for letter, axis in (("q", queries), ("k", keys), ("v", keys)):
            entries |= affine(f"{ours}{letter}_proj", theirs + letter, f"{axis} residual")
        entries |= affine(ours + "o_proj", theirs + "out", f"residual {queries}")
        for letter, axis in (("q", queries), ("k", keys)):
            norm = f"{letter}_norm"
            entries |= affine(ours + norm, theirs + norm, axis if full_norms else ".")
        entries[ours + "relative_bias"] = (theirs + "relative_bias", ". head.{i}")
    if gated:
        entries |= affine("blocks.{i}.mlp.fc1", "blocks.{i}.mlp.up + blocks.{i}.mlp.gate", GATED)
    else:
        entries |= affine("blocks.{i}.mlp.fc1", "blocks.{i}.mlp.up", "hidden.{i} residual")
    return entries | affine("blocks.{i}.mlp.fc2", "blocks.{i}.mlp.down", "residual hidden.{i}")


def mamba_table(branches: int, gated: bool) -> Entries:
    """Map our Mamba backbones' names to the same names.

    Args:
        branches: scan directions of the teacher; one direction fills all of the student's.
        gated: the student's MLPs are gated.
    """
    theirs = BRANCH + ("{k}." if branches > 1 else "0.")
    return {
        **_common(gated),
        **_same(OWN + "in_proj", "inner.{i}+inner.{i} residual"),
        **affine(BRANCH + "{k}.conv1d", theirs + "conv1d", "inner.{i} 1 ."),
        **_selective(BRANCH + "{k}.", theirs, ".{k}"),
        # PlainMamba: one set for all directions, and a direction vector in B for each move
        **_same(OWN + "conv2d", "inner.{i} 1 . ."),
        OWN + "direction_B": (OWN + "direction_B", ". state.{i}"),
        **_selective(OWN, OWN, ""),
        **_same(OWN + "out_proj", "residual inner.{i}"),
    }


def mamba2_table(groups: int, gated: bool) -> Entries:
    """Map our Mamba-2 language models' names to the same names.

    Args:
        groups: groups of heads that share B and C.
        gated: the student's MLPs are gated.
    """
    inner, shared = "head.{i}*head_dim", f"{groups}*state.{{i}}"
    leaves = {f"{OWN}ssm.{leaf}": (f"{OWN}ssm.{leaf}", "head.{i}") for leaf in ("dt_bias", "A_log", "D")}
    return {
        **_common(gated),
        **_same(OWN + "in_proj", f"{inner}+{inner}+{shared}+{shared}+head.{{i}} residual"),
        **_same(OWN + "conv1d", f"{inner}+{shared}+{shared} 1 ."),
        **leaves,
        OWN + "norm.weight": (OWN + "norm.weight", inner),
        **_same(OWN + "out_proj", f"residual {inner}"),
    }


def _common(gated: bool) -> Entries:
    """Return the entries around the mixers, common to all state-space models."""
    return {
        "embedding.weight": ("embedding.weight", "vocab residual"),
        "cls_token": ("cls_token", "1 1 residual"),
        "pos_embed": ("pos_embed", "1 token residual"),
        **_same("patch_embed.proj", "residual . time . ."),
        **_same("blocks.{i}.norm1", "residual"),
        **_same("blocks.{i}.norm2", "residual"),
        **_same("blocks.{i}.mlp.fc1", GATED if gated else "hidden.{i} residual"),
        **_same("blocks.{i}.mlp.fc2", "residual hidden.{i}"),
        **_same("norm", "residual"),
        **_same("head", "class residual"),
    }


def _selective(ours: str, theirs: str, branch: str) -> Entries:
    """Return the entries of one selective SSM; with several, each branch has its own states and ranks."""
    rank, state = f"rank.{{i}}{branch}", f"state.{{i}}{branch}"
    return {
        ours + "ssm.x_proj.weight": (theirs + "ssm.x_proj.weight", f"{rank}+{state}+{state} inner.{{i}}"),
        ours + "ssm.dt_proj.weight": (theirs + "ssm.dt_proj.weight", f"inner.{{i}} {rank}"),
        ours + "ssm.dt_bias": (theirs + "ssm.dt_bias", "inner.{i}"),
        ours + "ssm.A_log": (theirs + "ssm.A_log", f"inner.{{i}} {state}"),
        ours + "ssm.D": (theirs + "ssm.D", "inner.{i}"),
    }


def _same(name: str, axes: str) -> Entries:
    return affine(name, name, axes)
