"""GPT-2 and the models with its names: StarCoder, GPT-Neo, GPT-J, CodeGen, and the first GPT."""

from typing import Any

from transmamba.transfer.teachers.architecture import Rope
from transmamba.transfer.teachers.checkpoint import Checkpoint
from transmamba.transfer.teachers.decoder import (
    Steps,
    block_terms,
    decoder_facts,
    head_counts,
    ignored,
    layers,
    stem_terms,
)
from transmamba.transfer.teachers.facts import read_activation
from transmamba.transfer.teachers.family import Canonical, Family
from transmamba.transfer.teachers.layer_norm import split_fused
from transmamba.transfer.teachers.terms import Term, Terms, src

LAYER = "h.{i}."
LN = "h.{i}.ln_1.weight"
FIRST = "h.0.ln_1.weight"
GPT2 = {
    "norm1": "ln_1",
    "norm2": "ln_2",
    "attn.out": "attn.c_proj",
    "mlp.up": "mlp.c_fc",
    "mlp.down": "mlp.c_proj",
} | dict.fromkeys(("attn.q", "attn.k", "attn.v"), "attn.c_attn")
# both branches read the output of one norm
GPTJ = {
    "norm1": "ln_1", "norm2": "ln_1", "attn.q": "attn.q_proj", "attn.k": "attn.k_proj", "attn.v": "attn.v_proj",
    "attn.out": "attn.out_proj", "mlp.up": "mlp.fc_in", "mlp.down": "mlp.fc_out",
}  # fmt: skip
BUFFERS = {r"h\.\d+\.attn\.(attention\.)?(bias|masked_bias|causal_mask)": "buffer of the causal mask"}
POSITIONS = {"pos_embed": src("wpe.weight").table()}
TASKS = {r"multiple_choice_head\..*": "head of another task"}


def read_gpt2(checkpoint: Checkpoint) -> Canonical:
    """Read GPT-2: Conv1D stores (in, out), and queries, keys and values are one matrix."""
    config = checkpoint.config
    width, columns = checkpoint.shape(FIRST)[0], checkpoint.shape("h.0.attn.c_attn.weight")
    # StarCoder stores (out, in) and ImageGPT norms without mean and bias, under the same names
    if columns != (width, 3 * width) or "h.0.ln_1.bias" not in checkpoint:
        raise ValueError(f"a matrix attn.c_attn of shape {columns}, or norms without bias, are not those of a GPT-2")
    steps = _conv1d(GPT2)
    terms = _terms(checkpoint) | POSITIONS | block_terms(GPT2, steps, LAYER)
    if config("scale_attn_by_inverse_layer_idx"):
        # scores of layer i are divided by i + 1 as well; its queries are instead
        for i in range(layers(checkpoint, LN)):
            query = block_terms({"attn.q": GPT2["attn.q"]}, steps, f"h.{i}.")
            terms |= {name.replace("{i}", str(i)): term * (1 / (i + 1)) for name, term in query.items()}
        del terms["blocks.{i}.attn.q.weight"], terms["blocks.{i}.attn.q.bias"]
    return _decoder(checkpoint, terms, scale=_unscaled(checkpoint))


def read_bigcode(checkpoint: Checkpoint) -> Canonical:
    """Read StarCoder: one key and value head serves all queries; without multi_query, heads of the three alternate."""
    heads = head_counts(checkpoint)[0]
    groups = 1 if checkpoint.config("multi_query", default=True) else heads
    terms = _terms(checkpoint) | POSITIONS | block_terms(GPT2, split_fused(groups, heads // groups), LAYER)
    return _decoder(checkpoint, terms, "gelu_pytorch_tanh", kv_heads=groups, scale=_unscaled(checkpoint))


def read_gpt_neo(checkpoint: Checkpoint) -> Canonical:
    """Read GPT-Neo: scores are not scaled, and every other layer has a window."""
    config, depth = checkpoint.config, layers(checkpoint, LN)
    names = {part: name.replace("attn.", "attn.attention.") for part, name in GPTJ.items()}
    names |= {"norm2": "ln_2", "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj"}
    kinds = config("attention_layers") or [
        kind
        for group, count in config("attention_types", default=[[["global", "local"], 12]])
        for kind in count * group
    ]
    window = config("window_size", default=256, fact="windows")
    windows = tuple(window if kind == "local" else None for kind in kinds[:depth])
    terms = _terms(checkpoint) | POSITIONS | block_terms(names, layer=LAYER)
    return _decoder(checkpoint, terms, scale=1.0, windows=windows)


def read_gptj(checkpoint: Checkpoint) -> Canonical:
    """Read GPT-J: parallel branches after one norm; neighbouring channels are rotated, in a part of every head."""
    rotary, rope, heads = _rotary(checkpoint)
    turn: Steps = lambda term: term.halves(heads, rotary)  # noqa: E731
    terms = _terms(checkpoint) | block_terms(GPTJ, {"attn.q": turn, "attn.k": turn}, LAYER)
    return _decoder(checkpoint, terms, parallel=True, ropes=(rope,) * layers(checkpoint, LN))


def read_codegen(checkpoint: Checkpoint) -> Canonical:
    """Read GPT-J with one fused matrix, in four parts (it was trained on four devices) of queries, values and keys."""
    rotary, rope, heads = _rotary(checkpoint)
    names = GPTJ | dict.fromkeys(("attn.q", "attn.k", "attn.v"), "attn.qkv_proj")
    steps: dict[str, Steps] = {
        "attn.q": lambda term: term.slots(4, 3, 0, 1).halves(heads, rotary),
        "attn.v": lambda term: term.slots(4, 3, 1, 2),
        "attn.k": lambda term: term.slots(4, 3, 2, 3).halves(heads, rotary),
    }
    terms = _terms(checkpoint) | block_terms(names, steps, LAYER)
    return _decoder(checkpoint, terms, parallel=True, ropes=(rope,) * layers(checkpoint, LN))


def read_openai_gpt(checkpoint: Checkpoint) -> Canonical:
    """Read the first GPT: norms after the sums, and none at the end."""
    terms = _terms(checkpoint, "tokens_embed.weight") | {"pos_embed": src("positions_embed.weight").table()}
    del terms["norm.weight"], terms["norm.bias"]
    activation = read_activation(checkpoint.config, "afn", default="gelu")
    return _decoder(
        checkpoint, terms | block_terms(GPT2, _conv1d(GPT2), LAYER), embedding="tokens_embed.weight",
        # the name "gelu" means the tanh approximation in this family
        placement="post", activation="gelu_tanh" if activation == "gelu" else activation,
    )  # fmt: skip


def _terms(checkpoint: Checkpoint, embedding: str = "wte.weight") -> Terms:
    return stem_terms(checkpoint, embedding, "ln_f")


def _conv1d(names: dict[str, str]) -> dict[str, Steps]:
    def part(index: int) -> Steps:
        return lambda term: term.T.part(index, 3)

    def transpose(term: Term) -> Term:
        return term.T

    fused = {f"attn.{letter}": part(index) for index, letter in enumerate("qkv")}
    return {part: transpose for part in names if "norm" not in part} | fused


def _unscaled(checkpoint: Checkpoint) -> float | None:
    return None if checkpoint.config("scale_attn_weights", default=True) else 1.0


def _rotary(checkpoint: Checkpoint) -> tuple[int, Rope, int]:
    """Read the rotated channels of a head, their positions, and the number of heads."""
    heads, _, head_dim = head_counts(checkpoint)
    rotary = checkpoint.config("rotary_dim")
    if rotary is None:
        raise ValueError("rotary_dim is null, which does not say how many channels of a head are rotated")
    # a little more, so that the product with the width is not a little less than the number of channels
    part = min(1.0, (rotary + 0.25) / head_dim)
    return rotary, {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": part}, heads


def _decoder(
    checkpoint: Checkpoint, terms: Terms, activation: str = "gelu_new", embedding: str = "wte.weight", **facts: Any
) -> Canonical:
    config = checkpoint.config
    if config("add_cross_attention"):
        raise ValueError("add_cross_attention is refused: the decoder reads an encoder, canonical ones read text alone")
    facts = {
        "norm": "layer",
        "ropes": (),
        "kv_heads": None,
        "head_dim": None,
        "activation": read_activation(config, "activation_function", default=activation),
    } | facts
    known = decoder_facts(checkpoint, embedding, LN, **facts)
    return Canonical(terms, known, ignored(checkpoint) | BUFFERS | TASKS)


def _family(name: str, title: str, read: Any, heads: int, *, tied: bool = True, **more: Any) -> Family:
    known = {"num_attention_heads": heads, "layer_norm_epsilon": 1e-5, "tie_word_embeddings": tied}
    return Family(name, title, (name,), FIRST, read, defaults=known | more)


FAMILIES = (
    _family("gpt2", "GPT-2", read_gpt2, 12),
    _family("gpt_bigcode", "StarCoder, SantaCoder", read_bigcode, 12),
    _family("gpt_neo", "GPT-Neo", read_gpt_neo, 16),
    _family("gptj", "GPT-J", read_gptj, 16, tied=False, rotary_dim=64),
    _family("codegen", "CodeGen", read_codegen, 16, tied=False, rotary_dim=64),
    _family("openai-gpt", "GPT-1", read_openai_gpt, 12),
)
