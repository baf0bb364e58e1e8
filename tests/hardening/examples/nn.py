"""Examples of `transmamba.nn`."""

from torch import nn

from tests.hardening.examples.sizes import Call, orders_of
from transmamba import models, ops
from transmamba import nn as tnn


def _tokens(s):
    return {"x": s.normal("batch length dim")}


def _mixing(s, directions=1):
    return {
        "x": s.normal("batch length dim"), "orders": orders_of(s, directions, s["length"]),
        "mask": s.choice(None, s.mask("batch length")),
    }  # fmt: skip


def _packed(s, directions=1):
    return {**_mixing(s, directions), "seq_idx": s.choice(None, s.whole("batch length", 2))}


def Mlp(s):
    options = {"activation": s.choice("gelu", "relu2"), "bias": s.choice(True, False)}
    return Call(tnn.Mlp, {"dim": s["dim"], "hidden_dim": s["hidden"], **options}, _tokens(s))


def GatedMlp(s):
    options = {"multiple": s.choice(1, 128), "activation": s.choice("silu", "gelu_tanh"), "bias": s.choice(True, False)}
    return Call(tnn.GatedMlp, {"dim": s["dim"], "hidden_dim": s["hidden"], **options}, _tokens(s))


def Attention(s):
    heads, causal = s["head"], s.choice(True, False)
    return Call(
        tnn.Attention,
        {"d_model": s["dim"], "heads": heads, "kv_heads": s.choice(None, 1, heads), "head_dim": 2 * s["pair"],
         "causal": causal, "qkv_bias": s.choice(True, False), "out_bias": s.choice(True, False),
         "qk_norm": s.choice(None, "head", "full"), "norm": s.choice("layer", "rms"), "norm_eps": 1e-2,
         "norm_bias": s.choice(True, False), "rope": s.choice(None, {"rope_theta": 9.0, "partial_rotary_factor": 1.0}),
         "scale": s.choice(None, 0.5), "window": s.choice(None, 2), "softcap": s.choice(None, 3.0),
         "relative_grid": None},
        _packed(s),
    )  # fmt: skip


def TransformerBlock(s):
    mixer = s.choice(tnn.MambaMixer(s["dim"]), tnn.Attention(s["dim"], 1))
    return Call(
        tnn.TransformerBlock,
        {"dim": s["dim"], "mixer": mixer, "hidden_dim": s["hidden"], "gated": s.choice(True, False),
         "activation": s.choice("gelu", "quick_gelu"), "mlp_bias": s.choice(True, False),
         "norm": s.choice("layer", "rms"), "eps": 1e-2, "norm_bias": s.choice(True, False),
         "placement": s.choice("pre", "post", "sandwich", "output"), "parallel": False,
         "without": s.choice((), ("norm2",)), "drop_path": 0.1},
        _packed(s),
    )  # fmt: skip


def LayerNorm(s):
    return Call(tnn.LayerNorm, {"dim": s["dim"], "eps": 1e-2, "bias": s.choice(True, False)}, _tokens(s))


def DropPath(s):
    return Call(tnn.DropPath, {"rate": s.choice(0.0, 0.3)}, _tokens(s))


def MambaBlock(s):
    return Call(
        tnn.MambaBlock,
        {"dim": s["dim"], "mixer": s.choice(None, tnn.MambaMixer(s["dim"])), "mlp": s.choice(True, False),
         "mlp_ratio": 2.0, "norm": nn.LayerNorm, "drop_path": 0.1},
        _mixing(s),
    )  # fmt: skip


def MambaMixer(s):
    k = s["direction"]
    return Call(
        tnn.MambaMixer,
        {"d_model": s["dim"], "d_state": s["state"], "d_conv": s["width"], "expand": s.choice(1, 2),
         "dt_rank": s.choice("auto", 2), "directions": k, "bias": s.choice(True, False),
         "conv_bias": s.choice(True, False), "average": s.choice(True, False)},
        _packed(s, k),
    )  # fmt: skip


def ScanBranch(s):
    return Call(tnn.ScanBranch, {
        "d_inner": s["dim"], "d_state": s["state"], "d_conv": s["width"], "dt_rank": s["rank"], "conv_bias": True,
    })  # fmt: skip


def Mamba2Mixer(s):
    return Call(
        tnn.Mamba2Mixer,
        {"d_model": s["dim"], "d_state": s["state"], "head_dim": s["dim"], "d_conv": s["width"],
         "expand": 2, "bias": s.choice(True, False), "conv_bias": s.choice(True, False), "ssm": None,
         "directions": 1},
        _packed(s),
    )  # fmt: skip


def HeadSSM(s):
    channels = s["head"] * s["channel"] + 2 * s["state"]
    return Call(
        tnn.HeadSSM,
        {"heads": s["head"], "head_dim": s["channel"], "d_state": s["state"], "groups": 1,
         "channel_skip": s.choice(True, False), "dt_limit": (0.0, 1.0), "chunk_size": s["chunk"]},
        {"xBC": s.normal(f"batch length {channels}"), "dt": s.normal("batch length head"),
         "mask": s.choice(None, s.mask("batch length")),
         "initial_state": s.choice(None, s.normal("batch head channel state")),
         "seq_idx": s.choice(None, s.whole("batch length", 2))},
    )  # fmt: skip


def Mamba3Mixer(s):
    return Call(
        tnn.Mamba3Mixer,
        {"d_model": s["dim"], "d_state": 2 * s["pair"], "head_dim": s["dim"], "expand": 2, "groups": 1,
         "rotary_fraction": 1.0, "decay": nn.functional.softplus, "directions": 1},
        _packed(s),
    )  # fmt: skip


def CrossMamba(s):
    return Call(
        tnn.CrossMamba,
        {"query_dim": s["dim"], "context_dim": s["context"], "d_state": s["state"], "d_conv": s["width"], "expand": 2,
         "readout": s.choice("final", "progress"), "bidirectional": s.choice(True, False),
         "residual": s.choice(True, False)},
        {"query": s.normal("batch length dim"), "context": s.normal("batch past context"),
         "context_mask": s.choice(None, s.mask("batch past")), "query_mask": s.choice(None, s.mask("batch length"))},
    )  # fmt: skip


def CrossMambaBlock(s):
    mixer = tnn.CrossMamba(s["dim"], s["context"], residual=False)
    return Call(
        tnn.CrossMambaBlock,
        {"query_dim": s["dim"], "context_dim": s["context"], "mixer": s.choice(None, mixer),
         "mlp": s.choice(True, False), "mlp_ratio": 2.0, "norm": nn.LayerNorm, "drop_path": 0.1},
        {"x": s.normal("batch length dim"), "context": s.normal("batch past context"),
         "context_mask": s.choice(None, s.mask("batch past")), "query_mask": s.choice(None, s.mask("batch length"))},
    )  # fmt: skip


def PatchEmbed(s):
    return Call(
        tnn.PatchEmbed,
        {"dim": s["dim"], "patch_size": 2, "in_chans": s["chans"], "stride": s.choice(None, 1), "bias": True},
        {"image": s.normal(f"batch chans {2 * s['row']} {2 * s['column']}")},
    )


def TubeletEmbed(s):
    return Call(
        tnn.TubeletEmbed,
        {"dim": s["dim"], "tubelet": 2, "patch_size": 2, "in_chans": s["chans"]},
        {"clip": s.normal(f"batch chans {2 * s['frame']} {2 * s['row']} {2 * s['column']}")},
    )


def init_position(s):
    return Call(tnn.init_position, {"positions": s["length"], "dim": s["dim"]})


def resize_position(s):
    grid = (s["row"], s["column"])
    return Call(tnn.resize_position, {
        "table": s.normal(f"1 {grid[0] * grid[1]} dim"), "grid": grid, "new_grid": (s["length"], s["state"]),
    })  # fmt: skip


def RMSNorm(s):
    return Call(tnn.RMSNorm, {"dim": s["dim"], "eps": 1e-5}, _tokens(s))


def GatedRMSNorm(s):
    return Call(
        tnn.GatedRMSNorm,
        {"dim": s["dim"], "groups": 1, "norm_before_gate": s.choice(True, False), "eps": 1e-5},
        {**_tokens(s), "z": s.normal("batch length dim")},
    )


def UnitRMSNorm(s):
    return Call(tnn.UnitRMSNorm, {"eps": 1e-6}, _tokens(s))


def SelectiveSSM(s):
    return Call(
        tnn.SelectiveSSM,
        {"d_inner": s["dim"], "d_state": s["state"], "dt_rank": s["rank"], "dt_min": 1e-3, "dt_max": 0.1},
        {"u": s.normal("batch length dim"), "mask": s.choice(None, s.mask("batch length"))},
    )


def StackedSSM(s):
    return Call(tnn.StackedSSM, {
        "d_inner": s["dim"], "d_state": s["state"], "dt_rank": s["rank"], "directions": s["direction"],
    })  # fmt: skip


def _map(s):
    return {"x": s.normal(f"batch {s['row'] * s['column']} dim")}, (s["row"], s["column"])


def SS2D(s):
    x, grid = _map(s)
    return Call(
        tnn.SS2D,
        {"dim": s["dim"], "d_state": s["state"], "d_conv": 3, "expand": 2.0, "dt_rank": "auto", "directions": 2,
         "conv_bias": True, "gated": s.choice(True, False)},
        {**x, "orders": orders_of(s, 2, grid[0] * grid[1]), "grid": grid},
    )  # fmt: skip


def PlainMambaMixer(s):
    x, grid = _map(s)
    orders = ops.scan_orders(models.SNAKES, grid)
    return Call(
        tnn.PlainMambaMixer,
        {"dim": s["dim"], "d_state": s["state"], "d_conv": 3, "expand": 2, "released_scan": s.choice(True, False)},
        {**x, "orders": orders, "moves": tnn.moves_between(orders, grid), "grid": grid},
    )


def ScaledMixer(s):
    return Call(
        tnn.ScaledMixer,
        {"dim": s["dim"], "mixer": tnn.MambaMixer(s["dim"], s["state"]), "initial": 0.1},
        {"x": s.normal("batch token dim")},
    )


def ThereAndBackMixer(s):
    return Call(
        tnn.ThereAndBackMixer,
        {"d_model": s["dim"], "d_state": s["state"], "d_conv": s["width"], "expand": s.choice(2, 1.5),
         "dt_rank": "auto", "bias": s.choice(True, False), "conv_bias": True},
        {"x": s.normal("batch token dim"), "orders": s.choice(None, orders_of(s, 2, s["token"])),
         "mask": s.choice(None, s.mask("batch token"))},
    )  # fmt: skip


def moves_between(s):
    grid = (s["row"], s["column"])
    return Call(tnn.moves_between, {"orders": ops.scan_orders(models.SNAKES, grid), "grid": grid})


def scan_directions(s):
    ssm = tnn.SelectiveSSM(s["dim"], s["state"], dt_rank=1)
    u = s.normal("batch 1 length dim")
    return Call(tnn.scan_directions, {"u": u, "parameters": [ssm.scan_parameters(u[:, 0])], "orders": None})


def ConvStem(s):
    return Call(
        tnn.ConvStem,
        {"dim": s["dim"], "patch_size": 4, "in_chans": s["chans"], "num_convs": s.choice(0, 1)},
        {"image": s.normal("2 chans 8 9")},
    )


def ConvNorm(s):
    return Call(
        tnn.ConvNorm,
        {"in_chans": s["chans"], "dim": s["dim"], "kernel_size": 3, "stride": s.choice(1, 2)},
        {"x": s.normal("batch chans row column")},
    )


def PatchMerging(s):
    return Call(tnn.PatchMerging, {"in_chans": s["chans"], "dim": s["dim"]}, {"x": s.normal("batch chans row column")})
