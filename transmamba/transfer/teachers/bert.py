"""BERT and the models built from its layers: RoBERTa, ELECTRA, ERNIE, ALBERT, DistilBERT, ESM and their kin."""

from dataclasses import replace
from typing import NamedTuple

from transmamba.transfer.teachers.architecture import Architecture
from transmamba.transfer.teachers.checkpoint import Checkpoint
from transmamba.transfer.teachers.encoders import encoder_facts, head_facts, refuse_decoders
from transmamba.transfer.teachers.facts import read_activation
from transmamba.transfer.teachers.family import Canonical, Family
from transmamba.transfer.teachers.images import all_affine
from transmamba.transfer.teachers.terms import Terms, affine, optional, src

LAYER = "encoder.layer.{i}."
EMBEDDINGS = "embeddings."
TASKS = "embeddings.task_type_embeddings.weight"
# the first BERT files name a norm's gain gamma and its bias beta
GAMMA_BETA = ((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias"))
HEADS = {
    r"pooler\..*": "pooler, a head on the first token",
    r"(cls|lm_head|generator_lm_head|predictions|vocab_(transform|layer_norm|projector))\..*": "head of masked tokens",
    r"(discriminator|generator)_predictions\..*": "head of replaced tokens",
    r"(classifier|pre_classifier|summary|sequence_summary|sop_classifier)\..*": "head of a task",
    r"((.*\.)?(qa_outputs|qa_classifier)|splinter_qass)\..*": "head of answer spans",
    r"((.*\.)?encode_proj|text_projection)\..*": "projection of the first token",
    r"embeddings\.token_type_ids": "buffer",
}


class Norms(NamedTuple):
    """Names of a layer's norms in the checkpoint, and the ends of the encoder that have a norm."""

    attention: str
    mlp: str
    final: str | None = None
    embedding: str | None = "embeddings.LayerNorm"


POST = Norms("attention.output.LayerNorm", "output.LayerNorm")
BEFORE_BRANCHES = Norms("attention.LayerNorm", "intermediate.LayerNorm", "LayerNorm")
XL = Norms("attention.self_attn_layer_norm", "LayerNorm", "encoder.LayerNorm", None)
MEGATRON = Norms("attention.ln", "ln", "encoder.ln", None)


def bert_layers(norms: Norms) -> Terms:
    """Map all blocks to their names in BERT."""
    names = {f"attn.{part[0]}": f"attention.self.{part}" for part in ("query", "key", "value")}
    names |= {"attn.out": "attention.output.dense", "mlp.up": "intermediate.dense", "mlp.down": "output.dense"}
    return all_affine(names | {"norm1": norms.attention, "norm2": norms.mlp}, "blocks.{i}.", LAYER)


def embedding_terms(checkpoint: Checkpoint, first_position: int = 0, norm: str | None = POST.embedding) -> Terms:
    """Return words, positions and token types, and the projection of embeddings narrower than the stream."""
    positions = src(EMBEDDINGS + "position_embeddings.weight").rows(first_position)
    # ERNIE adds the row of the task to every token; task 0 unless a task is given
    positions = positions.plus(TASKS, slice(0, 1)) if TASKS in checkpoint else positions
    terms = {
        "embedding.weight": src(EMBEDDINGS + "word_embeddings.weight"),
        "pos_embed": positions.table(),
        **optional({"type_embedding.weight": src(EMBEDDINGS + "token_type_embeddings.weight")}),
    }
    terms |= {} if norm is None else affine("embed_norm", norm)
    projections = [name for name in ("embeddings_project", "encoder.embedding_hidden_mapping_in")]
    found = [name for name in projections if f"{name}.weight" in checkpoint]
    return terms | (affine("embed_proj", found[0]) if found else {})


def _read(checkpoint: Checkpoint, norms: Norms = POST, counted: bool = False, activation: str = "gelu") -> Canonical:
    output = LAYER + "attention.output.dense.weight"
    depth = checkpoint.depth(output)
    dim = checkpoint.shape(output.replace("{i}", "0"))[0]
    architecture = encoder_facts(checkpoint, depth, dim, "post" if norms is POST else "pre", activation)
    first = 0
    if counted:
        # positions are numbered from padding_idx + 1 on, real tokens only; padding reads the row of its own id
        padding = checkpoint.config("pad_token_id", default=1, fact="pad_position")
        architecture, first = replace(architecture, pad_position=padding), padding + 1
    terms = embedding_terms(checkpoint, first, norms.embedding) | bert_layers(norms)
    terms |= {} if norms.final is None else affine("norm", norms.final)
    differs: tuple[str, ...] = ()
    if TASKS in checkpoint and checkpoint.shape(TASKS)[0] > 1:
        differs = ("tasks other than task 0, whose embedding is part of the positions",)
    return Canonical(terms, architecture, HEADS, differs)


def read_bert(checkpoint: Checkpoint, activation: str = "gelu") -> Canonical:
    """Read BERT: norms follow each sum; ELECTRA and RemBERT project narrow embeddings."""
    return _read(checkpoint, activation=activation)


def read_roberta(checkpoint: Checkpoint) -> Canonical:
    """Read RoBERTa: BERT whose positions count real tokens."""
    return _read(checkpoint, counted=True)


def read_roberta_prelayernorm(checkpoint: Checkpoint) -> Canonical:
    """Read RoBERTa with norms before the branches, and one at the end."""
    return _read(checkpoint, BEFORE_BRANCHES, counted=True)


def read_xlm_roberta_xl(checkpoint: Checkpoint) -> Canonical:
    """Read RoBERTa with norms before the branches, and none after the embedding."""
    return _read(checkpoint, XL, counted=True)


def read_megatron_bert(checkpoint: Checkpoint) -> Canonical:
    """Read BERT with norms before the branches, and none after the embedding."""
    return _read(checkpoint, MEGATRON)


def read_distilbert(checkpoint: Checkpoint) -> Canonical:
    """Read BERT without token types; the configuration has no eps; sinusoidal positions are stored as a table."""
    layer, config = "transformer.layer.{i}.", checkpoint.config
    depth = checkpoint.depth(layer + "attention.out_lin.weight")
    dim = checkpoint.shape("embeddings.word_embeddings.weight")[1]
    refuse_decoders(config.values)
    names = {f"attn.{letter}": f"attention.{letter}_lin" for letter in "qkv"}
    names |= {"attn.out": "attention.out_lin", "mlp.up": "ffn.lin1", "mlp.down": "ffn.lin2"}
    names |= {"norm1": "sa_layer_norm", "norm2": "output_layer_norm"}
    architecture = Architecture(
        "encoder",
        dim=dim,
        depth=depth,
        **head_facts(config, dim, "n_heads"),
        eps=1e-12,
        placement="post",
        activation=read_activation(config, "activation", default="gelu"),
    )
    return Canonical(embedding_terms(checkpoint) | all_affine(names, "blocks.{i}.", layer), architecture, HEADS)


def read_albert(checkpoint: Checkpoint) -> Canonical:
    """Read ALBERT: the layers of a group are the same few layers in turn, so every layer names its tensors itself."""
    config, groups = checkpoint.config, "encoder.albert_layer_groups."
    count = checkpoint.depth(groups + "{i}.albert_layers.0.ffn.weight")
    inner = checkpoint.depth(groups + "0.albert_layers.{i}.ffn.weight")
    steps = config("num_hidden_layers", default=12 if config.model_type == "albert" else None)
    if steps is None:
        raise ValueError(
            "ALBERT's layers share their tensors, which do not show how many layers there are: give config="
        )
    names = {f"attn.{part[0]}": f"attention.{part}" for part in ("query", "key", "value")}
    names |= {"attn.out": "attention.dense", "mlp.up": "ffn", "mlp.down": "ffn_output"}
    names |= {"norm1": "attention.LayerNorm", "norm2": "full_layer_layer_norm"}
    terms = embedding_terms(checkpoint)
    for layer in range(steps * inner):
        group = int(layer // inner / (steps / count))
        stored = f"{groups}{group}.albert_layers.{layer % inner}."
        for canonical, name in names.items():
            terms |= affine(f"blocks.{layer}.{canonical}", stored + name)
    dim = checkpoint.shape("encoder.embedding_hidden_mapping_in.weight")[0]
    architecture = encoder_facts(checkpoint, steps * inner, dim, activation="gelu_new")
    return Canonical(terms, architecture, HEADS)


MARKER = "embeddings.word_embeddings.weight"
FAMILIES = (
    Family(
        "bert",
        "BERT, ELECTRA, ERNIE, RemBERT, BertGeneration, Splinter, DPR, text of ALIGN and Chinese CLIP",
        (
            "bert",
            "electra",
            "ernie",
            "rembert",
            "bert-generation",
            "splinter",
            "dpr",
            "align_text_model",
            "chinese_clip_text_model",
        ),
        MARKER,
        read_bert,
        GAMMA_BETA,
    ),
    Family(
        "roberta",
        "RoBERTa, XLM-RoBERTa, CamemBERT, data2vec text, text of CLAP and BridgeTower",
        ("roberta", "xlm-roberta", "camembert", "data2vec-text", "clap_text_model", "bridgetower_text_model"),
        MARKER,
        read_roberta,
        GAMMA_BETA,
    ),
    Family(
        "roberta_prelayernorm",
        "RoBERTa-PreLayerNorm",
        ("roberta-prelayernorm",),
        MARKER,
        read_roberta_prelayernorm,
        GAMMA_BETA,
    ),
    Family("xlm_roberta_xl", "XLM-RoBERTa-XL", ("xlm-roberta-xl",), MARKER, read_xlm_roberta_xl, GAMMA_BETA),
    Family("megatron_bert", "Megatron-BERT", ("megatron-bert",), MARKER, read_megatron_bert, GAMMA_BETA),
    Family("albert", "ALBERT", ("albert",), MARKER, read_albert, GAMMA_BETA),
    Family("distilbert", "DistilBERT", ("distilbert",), MARKER, read_distilbert, GAMMA_BETA),
)
