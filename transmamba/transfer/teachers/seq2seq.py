"""Encoders of encoder-decoder models with absolute positions: BART, mBART, Pegasus, Marian, Blenderbot, M2M-100."""

from collections.abc import Callable
from typing import Literal, NamedTuple

from transmamba.transfer.teachers.architecture import Architecture
from transmamba.transfer.teachers.checkpoint import Checkpoint
from transmamba.transfer.teachers.encoders import head_facts
from transmamba.transfer.teachers.facts import read_activation
from transmamba.transfer.teachers.family import Canonical, Family
from transmamba.transfer.teachers.images import all_affine
from transmamba.transfer.teachers.opt import sines
from transmamba.transfer.teachers.terms import Term, Terms, affine, sqrt, src

LAYER = "encoder.layers.{i}."
NAMES = {f"attn.{letter}": f"self_attn.{letter}_proj" for letter in "qkv"}
# final_layer_norm belongs to the MLP of a layer, not to the end of the encoder
NAMES |= {"attn.out": "self_attn.out_proj", "norm1": "self_attn_layer_norm", "norm2": "final_layer_norm"}
NAMES |= {"mlp.up": "fc1", "mlp.down": "fc2"}
SCALED = ("plbart", "m2m_100", "fsmt")
NORM = "layers.0.self_attn_layer_norm.weight"
IGNORED = {
    r"decoder\..*": "decoder",
    r"shared\.weight": "the embedding, which the encoder shares",
    r"encoder\.embed_positions\.weights": "sines, which are computed again",
    r"(lm_head\..*|final_logits_bias)": "head of the decoder",
    r"(classification_head|qa_outputs)\..*": "head of a task",
}


class Form(NamedTuple):
    """Differences between these encoders: the places of the norms, and the numbering of positions.

    Attributes:
        pre_norm: norms stand before the branches, and one at the end.
        embed_norm: the embedding has a norm.
        first: row of the first position.
        positions: "all" tokens have one, or "real" ones, from the row behind the padding token's; "sines" are real
            tokens' positions in a table that is computed.
    """

    pre_norm: bool
    embed_norm: bool
    first: int = 0
    positions: Literal["all", "real", "sines"] = "all"


def _positions(checkpoint: Checkpoint, words: str, form: Form) -> tuple[Term, int | None]:
    """Return the table of positions, and the padding token if positions count real tokens."""
    table, config = src("encoder.embed_positions.weight"), checkpoint.config
    if form.positions == "all":
        # BART and mBART keep two rows in front that no position reads
        return table.rows(form.first).table(), None
    padding = config("pad_token_id", default=1, fact="pad_position")
    if form.positions == "real":
        return table.rows(padding + 1).table(), padding
    if not config.known:
        raise ValueError("sines are computed for positions that the configuration counts: give config=")
    rows, dim = config("max_position_embeddings", default=1024), checkpoint.shape(words)[1]
    # two more rows than positions; the first one stands behind the padding token's, which is zero
    return src(words).constant(lambda: sines(rows + 2, dim, padding)[padding + 1 :]).table(), padding


def _read(form: Form) -> Callable[[Checkpoint], Canonical]:
    def read(checkpoint: Checkpoint) -> Canonical:
        config = checkpoint.config
        if checkpoint.prefix.endswith("decoder."):
            raise ValueError("the tensors are those of a decoder alone")
        if not config.known and not checkpoint.stored.get("encoder." + NORM, "").endswith("encoder." + NORM):
            # BioGPT, a decoder, has all names of Pegasus' encoder
            raise ValueError("an encoder alone has the names of some decoders: give config=")
        words = "encoder.embed_tokens.weight"
        words = words if words in checkpoint else "shared.weight"
        dim = checkpoint.shape(words)[1]
        # the factor stands in the configuration only
        scaled = config("scale_embedding", default=config.model_type in SCALED, fact="scale_embedding")
        positions, padding = _positions(checkpoint, words, form)
        terms: Terms = {
            "embedding.weight": src(words) * (sqrt(dim) if scaled else 1.0),
            "pos_embed": positions,
            **all_affine(NAMES, "blocks.{i}.", LAYER),
            **(affine("embed_norm", "encoder.layernorm_embedding") if form.embed_norm else {}),
            **(affine("norm", "encoder.layer_norm") if form.pre_norm else {}),
        }
        architecture = Architecture(
            "encoder",
            dim=dim,
            depth=checkpoint.depth(LAYER + "fc1.weight"),
            **head_facts(config, dim, "encoder_attention_heads"),
            # no field of the configuration
            eps=1e-5,
            placement="pre" if form.pre_norm else "post",
            activation=read_activation(config, "activation_function", default="gelu" if padding is None else "relu"),
            pad_position=padding,
        )
        return Canonical(terms, architecture, IGNORED)

    return read


def _family(name: str, title: str, model_types: tuple[str, ...], form: Form) -> Family:
    alone = ((r"^(embed_tokens|embed_positions|layernorm_embedding|layer_norm|layers)\.", r"encoder.\1."),)
    return Family(name, title, model_types, f"encoder.{NORM}", _read(form), alone, (NORM,))


FAMILIES = (
    _family("bart_encoder", "encoders of BART, PLBart, MVP", ("bart", "plbart", "mvp"), Form(False, True, 2)),
    _family("mbart_encoder", "encoder of mBART", ("mbart",), Form(True, True, 2)),
    _family("pegasus_encoder", "encoders of Pegasus, Blenderbot", ("pegasus", "blenderbot"), Form(True, False)),
    _family("m2m_100_encoder", "encoder of M2M-100 and NLLB", ("m2m_100",), Form(True, False, 0, "sines")),
    _family("fsmt_encoder", "encoder of FSMT", ("fsmt",), Form(False, False, 0, "real")),
    _family("marian_encoder", "encoder of Marian", ("marian",), Form(False, False)),
    _family("blenderbot_small_encoder", "encoder of Blenderbot small", ("blenderbot-small",), Form(False, True)),
)
