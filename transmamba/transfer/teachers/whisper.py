"""Whisper's encoder of mel spectrograms, in Whisper, in Voxtral and in MOSS."""

from transmamba.transfer.teachers.architecture import Architecture
from transmamba.transfer.teachers.checkpoint import Checkpoint
from transmamba.transfer.teachers.encoders import head_facts
from transmamba.transfer.teachers.facts import read_activation
from transmamba.transfer.teachers.family import Canonical, Family
from transmamba.transfer.teachers.images import all_affine
from transmamba.transfer.teachers.terms import Terms, affine, src

LAYER = "encoder.layers.{i}."
NAMES = {f"attn.{letter}": f"self_attn.{letter}_proj" for letter in "qkv"}
# final_layer_norm is the norm before the MLP, not after the last layer; keys have no bias
NAMES |= {"attn.out": "self_attn.out_proj", "norm1": "self_attn_layer_norm", "norm2": "final_layer_norm"}
NAMES |= {"mlp.up": "fc1", "mlp.down": "fc2"}
IGNORED = {
    r"decoder\..*": "decoder",
    r"proj_out\.weight": "head of the decoder",
    r"(projector|classifier)\..*": "head of a task",
    "layer_weights": "weights of a mean over layers, part of a head",
}


def read_whisper(checkpoint: Checkpoint) -> Canonical:
    """Read Whisper's encoder: two convolutions with GELU, a table of positions, and pre-norm layers."""
    config = checkpoint.config
    if not config.known and not checkpoint.stored.get("encoder.conv1.weight", "").endswith("encoder.conv1.weight"):
        # Qwen2-Audio's encoder has all these names, and averages frames before its last norm
        raise ValueError("an encoder alone has the names of others' encoders: give config=")
    terms: Terms = {"pos_embed": src("encoder.embed_positions.weight").table()}
    terms |= affine("conv1", "encoder.conv1") | affine("conv2", "encoder.conv2") | affine("norm", "encoder.layer_norm")
    terms |= all_affine(NAMES, "blocks.{i}.", LAYER)
    dim = checkpoint.shape("encoder.conv2.weight")[0]
    architecture = Architecture(
        "audio",
        dim=dim,
        depth=checkpoint.depth(LAYER + "fc1.weight"),
        **head_facts(config, dim, "encoder_attention_heads", "num_attention_heads"),
        # no field of the configuration
        eps=1e-5,
        activation=read_activation(config, "activation_function", default="gelu"),
    )
    return Canonical(terms, architecture, IGNORED)


FAMILIES = (
    Family(
        "whisper",
        "encoders of Whisper, Voxtral, MOSS",
        ("whisper", "voxtral_encoder", "moss_transcribe_diarize_audio"),
        "encoder.conv1.weight",
        read_whisper,
        # the encoder alone
        ((r"^(conv1|conv2|embed_positions|layer_norm|layers)\.", r"encoder.\1."),),
        ("conv1.weight",),
    ),
)
