"""The blocks and language models of mamba_ssm."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn

from transmamba.models.mamba_lm import MambaLM, mamba_block
from transmamba.models.official.family import Family, read_config
from transmamba.nn import HeadSSM, Mamba2Mixer, Mamba3Mixer, MambaMixer
from transmamba.nn.convolved_attention import ConvolvedAttention

# arguments that affect only how the numbers are initialised or computed
IGNORED = (
    "dt_min",
    "dt_max",
    "dt_init",
    "dt_scale",
    "dt_init_floor",
    "A_init_range",
    "use_fast_path",
    "use_mem_eff_path",
    "layer_idx",
    "conv_init",
    "sequence_parallel",
    "device",
    "dtype",
)
MAMBA = {"d_state": 16, "d_conv": 4, "expand": 2, "dt_rank": "auto", "bias": False, "conv_bias": True}
MAMBA2 = {
    "d_state": 128,
    "d_conv": 4,
    "expand": 2,
    "headdim": 64,
    "ngroups": 1,
    "D_has_hdim": False,
    "norm_before_gate": False,
    "dt_limit": (0.0, float("inf")),
    "bias": False,
    "conv_bias": True,
    "chunk_size": 256,
    "d_ssm": None,
    "rmsnorm": True,
}
MAMBA3 = {"d_state": 128, "expand": 2, "headdim": 64, "ngroups": 1, "rope_fraction": 0.5}
LM = {
    "d_model": 2560,
    "n_layer": 64,
    "vocab_size": 50277,
    "d_intermediate": 0,
    "pad_vocab_size_multiple": 8,
    "tie_embeddings": True,
    "ssm_cfg": {},
    "rms_norm": True,
    "attn_layer_idx": (),
    "attn_cfg": {},
}
ATTENTION = {
    "num_heads": None,
    "num_heads_kv": None,
    "head_dim": None,
    "mlp_dim": 0,
    "qkv_proj_bias": True,
    "out_proj_bias": True,
    "softmax_scale": None,
    "causal": False,
    "d_conv": 0,
    "rotary_emb_dim": 0,
    "rotary_emb_base": 10000.0,
    "rotary_emb_interleaved": False,
}


def build_mamba(d_model: int, config: Mapping[str, Any]) -> MambaMixer:
    """Build the mixer of these official arguments."""
    found = read_config(config, MAMBA, ignored=IGNORED)
    return MambaMixer(d_model, found.pop("d_state"), **found)


def build_mamba2(d_model: int, config: Mapping[str, Any]) -> Mamba2Mixer:
    """Build the mixer of these official arguments."""
    c = read_config(config, MAMBA2, ignored=IGNORED)
    d_ssm = int(c["expand"] * d_model) if c["d_ssm"] is None else c["d_ssm"]
    ssm = HeadSSM(
        d_ssm // c["headdim"],
        c["headdim"],
        d_state=c["d_state"],
        groups=c["ngroups"],
        channel_skip=c["D_has_hdim"],
        dt_limit=tuple(c["dt_limit"]),
        chunk_size=min(c["chunk_size"], 64),  # changes no number; large chunks are for tensor cores
    )
    names = ("d_conv", "expand", "bias", "conv_bias", "d_ssm")
    mixer = Mamba2Mixer(d_model, **{name: c[name] for name in names}, normed=c["rmsnorm"], ssm=ssm)
    mixer.norm.norm_before_gate = c["norm_before_gate"]
    return mixer


def build_mamba3(d_model: int, config: Mapping[str, Any]) -> Mamba3Mixer:
    """Build the mixer of these official arguments, with the decay that mamba_ssm has had since June 2026."""
    fixed = {"is_mimo": False, "is_outproj_norm": False, "A_floor": 1e-4}
    c = read_config(config, MAMBA3, fixed, (*IGNORED, "mimo_rank", "chunk_size", "fuse_pregate_headwise_norm"))
    return Mamba3Mixer(
        d_model,
        c["d_state"],
        head_dim=c["headdim"],
        expand=c["expand"],
        groups=c["ngroups"],
        rotary_fraction=c["rope_fraction"],
    )


def build_attention(d_model: int, config: Mapping[str, Any]) -> ConvolvedAttention:
    """Build the attention of these official arguments.

    Raises:
        ValueError: an argument is not understood, the number of heads is missing, or tokens see later ones.
    """
    c = read_config(config, ATTENTION, ignored=("layer_idx", "device", "dtype"))
    if c["num_heads"] is None:
        raise ValueError("attn_cfg has no num_heads: the official attention has no default for it")
    if not c["causal"]:
        raise ValueError(
            "attn_cfg without causal=True: each token would attend to the one it is to predict, so no language model "
            "was trained that way"
        )
    turned, head_dim, rope = c["rotary_emb_dim"], c["head_dim"] or d_model // c["num_heads"], None
    if turned:
        # half a channel more, because the share times the width is rounded down
        share = min(1.0, (turned + 0.5) / head_dim)
        rope = {"rope_theta": c["rotary_emb_base"], "partial_rotary_factor": share}
        rope |= {"interleaved": True} if c["rotary_emb_interleaved"] else {}
    return ConvolvedAttention(
        d_model,
        c["num_heads"],
        kv_heads=c["num_heads_kv"],
        head_dim=c["head_dim"],
        d_conv=c["d_conv"] or None,
        hidden_dim=-(-c["mlp_dim"] // 256) * 128,  # value and gate fill a multiple of 256
        qkv_bias=c["qkv_proj_bias"],
        out_bias=c["out_proj_bias"],
        rope=rope,
        scale=c["softmax_scale"],
    )


BUILDERS: dict[str, Callable[..., nn.Module]] = {"Mamba1": build_mamba, "Mamba2": build_mamba2, "Mamba3": build_mamba3}


def build_lm(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> MambaLM:
    """Build the language model of these official arguments."""
    c = read_config(config, LM, ignored=("fused_add_norm", "residual_in_fp32"))
    ssm = dict(c["ssm_cfg"])
    layer = ssm.pop("layer", "Mamba1")
    if layer not in BUILDERS:
        raise ValueError(
            f"cannot build from these official arguments: layer={layer!r}: expected one of {', '.join(BUILDERS)}"
        )
    norm: Literal["rms", "layer"] = "rms" if c["rms_norm"] else "layer"
    return MambaLM(
        c["vocab_size"],
        c["d_model"],
        depth=c["n_layer"],
        mixer=_mixers(c, partial(BUILDERS[layer], config=ssm)),
        block=mamba_block(c["d_intermediate"], norm=norm),
        norm=norm,
        tied=c["tie_embeddings"],
        vocab_multiple=c["pad_vocab_size_multiple"],
    )


def _mixers(c: Mapping[str, Any], mixer: Callable[[int], nn.Module]) -> Any:
    """Return one builder, or with layers of attention one per layer."""
    attended = tuple(c["attn_layer_idx"] or ())
    if not attended:
        return mixer
    beyond = [i for i in attended if not 0 <= i < c["n_layer"]]
    if beyond:
        raise ValueError(f"attn_layer_idx names layers {beyond}: expected 0 to {c['n_layer'] - 1}")
    attention = partial(build_attention, config=c["attn_cfg"] or {})
    return [attention if i in attended else mixer for i in range(c["n_layer"])]


def _build_block(build: Any, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Any:
    return build(config["d_model"], {name: value for name, value in config.items() if name != "d_model"})


def mixer_name(name: str) -> str:
    """Return the official name of a tensor of any mixer.

    Raises:
        ValueError: the tensor belongs to a second direction, which the official mixers have not.
    """
    if name.startswith("branches.") and not name.startswith("branches.0."):
        raise ValueError(f"mamba_ssm has no name for {name}: its mixer has one direction")
    if name == "branches.0.ssm.dt_bias":
        return "dt_proj.bias"
    name = name.replace("qkv.", "in_proj.") if name.startswith("qkv.") else name
    name = f"out_{name}" if name.startswith("proj.") else name
    return name.removeprefix("branches.0.").removeprefix("ssm.")


def lm_name(name: str) -> str:
    """Return the official name of a tensor of the language model."""
    if name.startswith("blocks."):
        _, i, rest = name.split(".", 2)
        head, _, tail = rest.partition(".")
        head = "norm" if head == "norm1" else head
        return f"backbone.layers.{i}.{head}.{mixer_name(tail) if head == 'mixer' else tail}"
    part, _, leaf = name.partition(".")
    return {"embedding": "backbone.embedding.", "norm": "backbone.norm_f.", "head": "lm_head."}[part] + leaf


MAMBA_FAMILIES = {
    "mamba_lm": Family(MambaLM, build_lm, lm_name),
    "mamba_block": Family(MambaMixer, partial(_build_block, build_mamba), mixer_name),
    "mamba2_block": Family(Mamba2Mixer, partial(_build_block, build_mamba2), mixer_name),
    "mamba3_block": Family(Mamba3Mixer, partial(_build_block, build_mamba3), mixer_name),
}
