"""Encoders near to BERT with one part of their own: RoFormer, ESM, I-BERT, BigBird, XLM, ProphetNet."""

from dataclasses import replace

import torch

from transmamba.transfer.teachers.architecture import Architecture
from transmamba.transfer.teachers.bert import (
    GAMMA_BETA,
    HEADS,
    LAYER,
    MARKER,
    POST,
    Norms,
    bert_layers,
    embedding_terms,
    read_bert,
    read_roberta,
)  # fmt: skip
from transmamba.transfer.teachers.checkpoint import Checkpoint
from transmamba.transfer.teachers.encoders import encoder_facts, head_facts, read_eps
from transmamba.transfer.teachers.facts import read_activation
from transmamba.transfer.teachers.family import Canonical, Family
from transmamba.transfer.teachers.images import all_affine
from transmamba.transfer.teachers.terms import Terms, affine, sqrt, src

ESM = Norms("attention.LayerNorm", "LayerNorm", "encoder.emb_layer_norm_after", None)
OUTPUT, WORDS = LAYER + "attention.output.dense.weight", "embeddings.word_embeddings.weight"
SINES = "encoder.embed_positions.weight"


def _sizes(checkpoint: Checkpoint) -> tuple[int, int]:
    return checkpoint.depth(OUTPUT), checkpoint.shape(OUTPUT.replace("{i}", "0"))[0]


def read_roformer(checkpoint: Checkpoint) -> Canonical:
    """Read BERT without a table of positions: queries and keys are rotated in pairs of neighbouring channels."""
    architecture = encoder_facts(checkpoint, *_sizes(checkpoint))
    if SINES not in checkpoint:
        raise ValueError(f"the teacher lacks {SINES}, by which RoFormer is known")
    if architecture.heads is None:
        raise ValueError("rotary pairs lie within heads, and their number is needed to sort them: give config=")
    if checkpoint.config("rotary_value"):
        raise ValueError("values are turned as well (rotary_value), which no canonical encoder does")
    _check_sines(checkpoint)
    terms = embedding_terms(checkpoint) | bert_layers(POST)
    del terms["pos_embed"]
    for letter, name in (("q", "query"), ("k", "key")):
        turned = affine(f"blocks.{{i}}.attn.{letter}", f"{LAYER}attention.self.{name}")
        terms |= {ours: term.halves(architecture.heads) for ours, term in turned.items()}
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 1.0}
    ignored = HEADS | {r"encoder\.embed_positions\.weight": "sines and cosines of the rotary positions"}
    return Canonical(terms, replace(architecture, ropes=(rope,) * architecture.depth), ignored)


def _check_sines(checkpoint: Checkpoint) -> None:
    """Raise ValueError unless the stored table equals the rotary positions of base 10000."""
    table = checkpoint.weights[checkpoint.stored[SINES]].detach()
    if table.is_meta:
        return
    count, dim = table.shape
    angle = torch.arange(count)[:, None] * 10_000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    # as far apart as bfloat16 rounds
    if not torch.allclose(table.double().cpu(), torch.cat([angle.sin(), angle.cos()], 1), rtol=0, atol=5e-3):
        raise ValueError(f"{checkpoint.stored[SINES]} does not hold the sines and cosines of base 10000")


def read_esm(checkpoint: Checkpoint) -> Canonical:
    """Read ESM: norms precede the branches; positions are a table that counts real tokens, or rotary."""
    config, (depth, dim) = checkpoint.config, _sizes(checkpoint)
    architecture = encoder_facts(checkpoint, depth, dim, "pre")
    table = "embeddings.position_embeddings.weight" in checkpoint
    kind = config("position_embedding_type", default="absolute" if table else "rotary", fact="ropes")
    rotary, padding = kind == "rotary", config("pad_token_id", default=1, fact="pad_position")
    norm = "embeddings.layer_norm" if "embeddings.layer_norm.weight" in checkpoint else None
    terms = (
        embedding_terms(checkpoint, 0 if rotary else padding + 1, norm)
        | bert_layers(ESM)
        | affine("norm", "encoder.emb_layer_norm_after")
    )
    if rotary:
        del terms["pos_embed"]
        rope = {"rope_type": "default", "rope_theta": config("rope_theta", default=1e4), "partial_rotary_factor": 1.0}
        architecture = replace(architecture, ropes=(rope,) * depth)
    else:
        architecture = replace(architecture, pad_position=padding)
    ignored = HEADS | {r"contact_head\..*": "head of contacts"}
    ignored |= {r"embeddings\.position_embeddings\.weight": "unused: positions are rotary"} if rotary else {}
    if not config("token_dropout", default=False, fact="token_dropout"):
        return Canonical(terms, architecture, ignored)
    # words are scaled as if 12 % of them were masked, and back by the share that is: 0.88 where none is
    terms["embedding.weight"] = src(WORDS) * (1 - 0.15 * 0.8)
    differs = (
        "inputs with mask tokens (token_dropout): their words are zero there, and the others scaled by their share",
    )
    return Canonical(terms, architecture, ignored, differs)


def read_ibert(checkpoint: Checkpoint) -> Canonical:
    """Read RoBERTa with room for integers, which are used in quant_mode only."""
    if "embeddings.word_embeddings.weight_integer" not in checkpoint:
        raise ValueError("the teacher lacks embeddings.word_embeddings.weight_integer, by which I-BERT is known")
    if checkpoint.config("quant_mode"):
        raise ValueError("the teacher computes in integers (quant_mode)")
    canonical = read_roberta(checkpoint)
    numbers = r".*\.(weight_integer|bias_integer|(weight|fc|act)_scaling_factor|x_min|x_max|shift)"
    return replace(canonical, ignored=HEADS | {numbers: "unused: integers of quant_mode"})


def read_big_bird(checkpoint: Checkpoint) -> Canonical:
    """Read BERT, if attention is not sparse; the factor of the words is in the configuration only."""
    config = checkpoint.config
    if config("attention_type", default="block_sparse") != "original_full":
        raise ValueError(
            "its attention is sparse: expected attention_type='original_full', but the configuration has"
            f" {config('attention_type', default='block_sparse')!r}"
        )
    canonical, words = read_bert(checkpoint, activation="gelu_new"), src(WORDS)
    factor = sqrt(canonical.architecture.dim) if config("rescale_embeddings") else 1.0
    return replace(canonical, terms=canonical.terms | {"embedding.weight": words * factor})


def read_xlm(checkpoint: Checkpoint) -> Canonical:
    """Read lists of attentions, MLPs and norms; FlauBERT may have the norms before the branches."""
    config, words = checkpoint.config, "embeddings.weight"
    if config("causal") or config("asm"):
        raise ValueError("the teacher is causal, or has an adaptive softmax: expected a plain encoder")
    dim = checkpoint.shape(words)[1]
    names = {f"attn.{letter}": f"attentions.{{i}}.{letter}_lin" for letter in "qkv"}
    names |= {"attn.out": "attentions.{i}.out_lin", "norm1": "layer_norm1.{i}", "norm2": "layer_norm2.{i}"}
    names |= {"mlp.up": "ffns.{i}.lin1", "mlp.down": "ffns.{i}.lin2"}
    terms: Terms = {"embedding.weight": src(words), "pos_embed": src("position_embeddings.weight").table()}
    terms |= affine("embed_norm", "layer_norm_emb") | all_affine(names, "blocks.{i}.", "")
    architecture = Architecture(
        "encoder",
        dim=dim,
        depth=checkpoint.depth("ffns.{i}.lin1.weight"),
        **head_facts(config, dim, "n_heads"),
        eps=read_eps(config),
        placement="pre" if config("pre_norm", default=False, fact="placement") else "post",
        activation="gelu" if config("gelu_activation", default=True, fact="activation") else "relu",
    )
    languages = "lang_embeddings.weight" in checkpoint
    differs = ("languages (langs), whose embedding is added where they are given",) if languages else ()
    ignored = HEADS | {
        r"lang_embeddings\.weight": "languages, unless they are given",
        r"(pred_layer|logits_proj)\..*": "head of a task",
    }
    return Canonical(terms, architecture, ignored, differs)


def read_prophetnet(checkpoint: Checkpoint) -> Canonical:
    """Read blocks in BERT's order; the first position is the row after the padding token's."""
    config, layer = checkpoint.config, "encoder.layers.{i}."
    words = "encoder.word_embeddings.weight"
    words = words if words in checkpoint else "word_embeddings.weight"
    padding = config("pad_token_id", default=0, fact="pad_token_id")
    dim = checkpoint.shape(words)[1]
    names = {f"attn.{name[0]}": f"self_attn.{name}_proj" for name in ("query", "key", "value")}
    names |= {"attn.out": "self_attn.out_proj", "norm1": "self_attn_layer_norm", "norm2": "feed_forward_layer_norm"}
    names |= {"mlp.up": "feed_forward.intermediate", "mlp.down": "feed_forward.output"}
    positions = src("encoder.position_embeddings.weight").rows(padding + 1).table()
    terms: Terms = {"embedding.weight": src(words), "pos_embed": positions}
    terms |= affine("embed_norm", "encoder.embeddings_layer_norm") | all_affine(names, "blocks.{i}.", layer)
    architecture = Architecture(
        "encoder",
        dim=dim,
        depth=checkpoint.depth(layer + "feed_forward.output.weight"),
        **head_facts(config, dim, "num_encoder_attention_heads"),
        eps=1e-5,
        placement="post",
        activation=read_activation(config, "activation_function", default="gelu"),
    )
    ignored = {
        r"decoder\..*": "decoder",
        r"word_embeddings\.weight": "the embedding, which the encoder shares",
        r"lm_head\..*": "head of the decoder",
    }
    return Canonical(terms, architecture, ignored)


FAMILIES = (
    Family("roformer", "RoFormer", ("roformer",), MARKER, read_roformer, GAMMA_BETA),
    Family("esm", "ESM", ("esm",), MARKER, read_esm, GAMMA_BETA),
    Family("ibert", "I-BERT", ("ibert",), MARKER, read_ibert, GAMMA_BETA),
    Family("big_bird", "BigBird with full attention", ("big_bird",), MARKER, read_big_bird, GAMMA_BETA),
    Family("xlm", "XLM, FlauBERT", ("xlm", "flaubert"), "layer_norm_emb.weight", read_xlm),
    Family(
        "prophetnet_encoder",
        "encoder of ProphetNet",
        ("prophetnet",),
        "encoder.embeddings_layer_norm.weight",
        read_prophetnet,
        ((r"^(position_embeddings|embeddings_layer_norm|layers)\.", r"encoder.\1."),),
        ("embeddings_layer_norm.weight",),
    ),
)
