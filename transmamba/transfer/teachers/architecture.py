"""The canonical Transformer: the names of its tensors, and the facts that tensors do not hold."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["image", "audio", "encoder", "decoder", "ssm"]
Placement = Literal["pre", "post", "sandwich", "output"]
PositionResize = Literal["bicubic", "bicubic_antialias", "bilinear_antialias"]
Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "silu", "relu", "relu2"]
# keys of transformers' `rope_parameters`: rope_theta, rope_type, partial_rotary_factor, factor, ...
Rope = Mapping[str, Any]


@dataclass(frozen=True)
class Architecture:
    """Facts about a Transformer beyond its tensors.

    Canonical tensors: matrices are (out, in), norms hold the gain itself, positions start at row 0, LayerScale and
    every constant multiplier of a branch, an embedding or the logits are folded into the weights.

        patch_embed.{weight,bias}  cls_token  dist_token  reg_token  norm_pre.{weight,bias}            images
        conv1.{weight,bias}  conv2.{weight,bias}                                                        audio
        embedding.weight  embed_proj.{weight,bias}  type_embedding.weight  embed_norm.{weight,bias}     text
        pos_embed                                          (1, position, dim), prefix tokens in front
        blocks.{i}.{norm1,norm2}.{weight,bias}             where they are applied: `placement`
        blocks.{i}.{post_norm1,post_norm2}.{weight,bias}   the second pair of sandwich blocks
        blocks.{i}.attn.{q,k,v,out}.{weight,bias}          heads in order, rotary halves split (not interleaved)
        blocks.{i}.attn.{q_norm,k_norm}.{weight,bias}      one entry per channel of a head, or of all heads
        blocks.{i}.attn.relative_bias                      BEiT's table ((2 rows - 1) (2 columns - 1) + 3, head)
        blocks.{i}.mlp.{up,gate,down}.{weight,bias}        down(act(up)), or down(act(gate) up) where there is a gate
        norm.{weight,bias}  fc_norm.{weight,bias}  head.{weight,bias}  head_dist.{weight,bias}

    A bias, norm or head that a teacher lacks is absent, not zero. Prefix tokens stand in the order class, distillation,
    registers; the first rows of `pos_embed` belong to as many of them as it has rows beyond the grid.

    Attributes:
        kind: the Transformer's input, and whether it generates; "ssm" is a state-space model under our own names, of
            which only the sizes and `kv_heads`, its groups of B and C, mean anything.
        dim: width of the stream.
        depth: number of blocks.
        heads: query heads; None if the checkpoint does not state it.
        kv_heads: key and value heads; `heads` unless grouped.
        head_dim: channels of a head; None if the checkpoint does not state it.
        norm: LayerNorm or RMSNorm, for all norms alike.
        eps: added to the variance or mean square in every norm.
        placement: "pre" x + f(norm(x)); "post" norm(x + f(x)); "sandwich" x + post_norm(f(norm(x)));
            "output" x + norm(f(x)).
        parallel: both branches read the stream before the block: x + attn(norm1(x)) + mlp(norm2(x)).
        activation: of the MLP, or of its gate. "gelu" is exact, "gelu_tanh" the tanh approximation, "quick_gelu"
            x sigmoid(1.702 x), "relu2" the square of relu.
        causal: tokens attend to earlier ones only.
        scale: factor of the attention scores; head_dim ** -0.5 if None.
        ropes: rotary positions of every layer, None for a layer without; empty if no layer has any.
            `rope_type` "default", "linear", "llama3" or "yarn" as in transformers; "axial" is DINOv3's, in two axes.
        windows: per layer, tokens at a distance of `window` or more are not attended to; None attends to all. Empty if
            no layer has one.
        softcap: scores become softcap tanh(scores / softcap).
        logit_softcap: the same for the logits.
        grid: rows and columns of patches that the position table is for.
        position_resize: the family's own way of resizing its position table for another grid.
        tied: the head is the embedding (of the checkpoint; folding may have untied it).
        class_position: position of the class token; None if the checkpoint does not state it.
        pool: input of an image model's head: the class token, the mean of the patches, or None if unknown.
        pad_position: text encoders that number positions by counting real tokens (RoBERTa): the padding token.
        unknown: names of the facts that the checkpoint does not state, for instance "heads".
    """

    kind: Kind
    dim: int
    depth: int
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    norm: Literal["layer", "rms"] = "layer"
    eps: float = 1e-6
    placement: Placement = "pre"
    parallel: bool = False
    activation: Activation = "gelu"
    causal: bool = False
    scale: float | None = None
    ropes: tuple[Rope | None, ...] = ()
    windows: tuple[int | None, ...] = ()
    softcap: float | None = None
    logit_softcap: float | None = None
    grid: tuple[int, int] | None = None
    position_resize: PositionResize = "bicubic"
    tied: bool = False
    class_position: Literal["front", "middle"] | None = "front"
    pool: Literal["token", "mean"] | None = None
    pad_position: int | None = None
    unknown: tuple[str, ...] = ()
