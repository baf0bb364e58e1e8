"""Encoders of encoder-decoder models with absolute positions: BART, mBART, Pegasus, Marian, Blenderbot."""

from collections.abc import Callable
from typing import NamedTuple

from transmamba.transfer.teachers.architecture import Architecture
from transmamba.transfer.teachers.checkpoint import Checkpoint
from transmamba.transfer.teachers.facts import read_activation
from transmamba.transfer.teachers.family import Canonical, Family
from transmamba.transfer.teachers.images import all_affine
from transmamba.transfer.teachers.terms import Terms, affine, sqrt, src

LAYER = "encoder.layers.{i}."
NAMES = {f"attn.{letter}": f"self_attn.{letter}_proj" for letter in "qkv"}
# final_layer_norm belongs to the MLP of a layer, not to the end of the encoder
NAMES |= {"attn.out": "self_attn.out_proj", "norm1": "self_attn_layer_norm", "norm2": "final_layer_norm"}
NAMES |= {"mlp.up": "fc1", "mlp.down": "fc2"}
NORM = "layers.0.self_attn_layer_norm.weight"
IGNORED = {
    r"decoder\..*": "decoder",
    r"shared\.weight": "the embedding, which the encoder shares",
    r"(lm_head\..*|final_logits_bias)": "head of the decoder",
    r"(classification_head|qa_outputs)\..*": "head of a task",
}


class Form(NamedTuple):
    """What tells these encoders apart: where norms stand, and the row of the first position."""

    pre_norm: bool
    embed_norm: bool
    first: int = 0


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
        dim, heads = checkpoint.shape(words)[1], config("encoder_attention_heads", fact="heads")
        # the factor stands in the configuration only
        scaled = config("scale_embedding", default=config.model_type == "plbart", fact="scale_embedding")
        terms: Terms = {
            "embedding.weight": src(words) * (sqrt(dim) if scaled else 1.0),
            # BART and mBART keep two rows in front that no position reads
            "pos_embed": src("encoder.embed_positions.weight").rows(form.first).table(),
            **all_affine(NAMES, "blocks.{i}.", LAYER),
            **(affine("embed_norm", "encoder.layernorm_embedding") if form.embed_norm else {}),
            **(affine("norm", "encoder.layer_norm") if form.pre_norm else {}),
        }
        architecture = Architecture(
            "encoder",
            dim=dim,
            depth=checkpoint.depth(LAYER + "fc1.weight"),
            heads=heads,
            head_dim=None if heads is None else dim // heads,
            # no field of the configuration
            eps=1e-5,
            placement="pre" if form.pre_norm else "post",
            activation=read_activation(config, "activation_function", default="gelu"),
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
    _family("marian_encoder", "encoder of Marian", ("marian",), Form(False, False)),
    _family("blenderbot_small_encoder", "encoder of Blenderbot small", ("blenderbot-small",), Form(False, True)),
)
