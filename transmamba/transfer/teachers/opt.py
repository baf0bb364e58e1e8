"""Decoder language models under fairseq's names: OPT, BioGPT, XGLM."""

import math
from typing import Any

import torch
from torch import Tensor

from transmamba.transfer.teachers.checkpoint import Checkpoint
from transmamba.transfer.teachers.decoder import block_terms, decoder_facts, ignored, stem_terms
from transmamba.transfer.teachers.facts import read_activation
from transmamba.transfer.teachers.family import Canonical, Family
from transmamba.transfer.teachers.terms import Term, Terms, sqrt, src

DOWN = "layers.{i}.fc2.weight"
FIRST = "layers.0.fc1.weight"
OPT = {
    "norm1": "self_attn_layer_norm",
    "norm2": "final_layer_norm",
    "attn.q": "self_attn.q_proj",
    "attn.k": "self_attn.k_proj",
    "attn.v": "self_attn.v_proj",
    "attn.out": "self_attn.out_proj",
    "mlp.up": "fc1",
    "mlp.down": "fc2",
}
# the first rows belong to padding: positions are counted from row 2 on
OFFSET = 2


def read_opt(checkpoint: Checkpoint) -> Canonical:
    """Read OPT; OPT-350m projects its smaller word vectors before positions are added, so both fold."""
    before = checkpoint.config("do_layer_norm_before", default=True, fact="placement")
    terms = stem_terms(checkpoint, norm="final_layer_norm") | block_terms(OPT) | _positions()
    dim = checkpoint.shape("embed_positions.weight")[1]
    if "project_in.weight" in checkpoint:
        terms["embedding.weight"] = terms["embedding.weight"].matmul("project_in.weight", transpose=True)
        terms["head.weight"] = terms["head.weight"].matmul("project_out.weight")
    last = before and not checkpoint.config("_remove_final_layer_norm")
    if not last:
        del terms["norm.weight"], terms["norm.bias"]
    if not checkpoint.config("layer_norm_elementwise_affine", default=True):
        ones = src("embed_positions.weight").ones(dim)
        terms |= {f"blocks.{{i}}.{norm}.weight": ones for norm in ("norm1", "norm2")}
        if last:
            terms["norm.weight"] = ones
    return _decoder(checkpoint, terms, "relu", placement="pre" if before else "post", dim=dim)


def read_biogpt(checkpoint: Checkpoint) -> Canonical:
    """Read BioGPT: embeddings are scaled, the head that is tied to them is not."""
    return _decoder(checkpoint, _scaled(checkpoint, "output_projection") | _positions(), "gelu", "output_projection")


def read_xglm(checkpoint: Checkpoint) -> Canonical:
    """Read XGLM, whose positions are sines that no tensor stores."""
    config = checkpoint.config
    length, dim = config("max_position_embeddings", default=2048), checkpoint.shape("embed_tokens.weight")[1]
    # the row of the padding token is zero, wherever that token is
    padding = config("pad_token_id", default=1)
    positions = src("embed_tokens.weight").constant(lambda: sines(length + OFFSET, dim, padding)[OFFSET:]).table()
    terms = _scaled(checkpoint) | {"pos_embed": positions}
    return _decoder(checkpoint, terms, "gelu")


def sines(rows: int, dim: int, zero: int | None = None) -> Tensor:
    """Return Fairseq's table of positions: sines in the first half of the channels, cosines in the second."""
    half = dim // 2
    angle = torch.arange(rows)[:, None] * torch.exp(torch.arange(half) * -(math.log(10000) / (half - 1)))
    table = torch.cat([angle.sin(), angle.cos(), torch.zeros(rows, dim % 2)], 1)
    if zero is not None and zero < rows:
        table[zero] = 0
    return table


def _positions() -> dict[str, Term]:
    return {"pos_embed": src("embed_positions.weight").rows(OFFSET).table()}


def _scaled(checkpoint: Checkpoint, head: str = "lm_head") -> Terms:
    scaled = checkpoint.config("scale_embedding", default=True)
    scale = sqrt(checkpoint.shape("embed_tokens.weight")[1]) if scaled else 1.0
    return stem_terms(checkpoint, norm="layer_norm", head=head, embed_scale=scale) | block_terms(OPT)


def _decoder(
    checkpoint: Checkpoint, terms: Terms, activation: str, head: str = "lm_head", dim: int | None = None, **facts: Any
) -> Canonical:
    config = checkpoint.config
    if config("add_cross_attention"):
        raise ValueError("add_cross_attention is refused: the decoder reads an encoder, canonical ones read text alone")
    known = decoder_facts(
        checkpoint, "embed_tokens.weight" if dim is None else "embed_positions.weight", DOWN, head, norm="layer",
        # these models leave LayerNorm's eps at torch's default
        eps=1e-5, ropes=(), heads=config("num_attention_heads", "attention_heads", fact="heads"), kv_heads=None,
        head_dim=None, activation=read_activation(config, "activation_function", "hidden_act", default=activation),
        **facts,
    )  # fmt: skip
    return Canonical(terms, known, ignored(checkpoint, head) | {r"embed_positions\.weights": "computed positions"})


def _family(name: str, title: str, read: Any, heads: int) -> Family:
    return Family(
        name, title, (name,), FIRST, read, defaults={"num_attention_heads": heads, "tie_word_embeddings": True}
    )


FAMILIES = (
    _family("opt", "OPT, Galactica", read_opt, 12),
    _family("biogpt", "BioGPT", read_biogpt, 16),
    _family("xglm", "XGLM", read_xglm, 16),
)
