"""One valid call for every public name, of random small sizes; the fuzz takes it and spoils one argument.

A public name that is new joins by one function of `Sizes` here, or by a line of `EXEMPT` that says why not.
"""

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from transmamba import distill, models, ops, transfer
from transmamba import nn as tnn


class Call(NamedTuple):
    """What is called, and with what; `then` are the arguments of calling the result, for a module."""

    function: Callable[..., Any]
    arguments: dict[str, Any]
    then: dict[str, Any] | None = None


class Sizes:
    """Random sizes by name, always the same ones for one name, and tensors of them."""

    def __init__(self, seed: int, scale: float = 1.0) -> None:
        self._random, self._scale, self._known = random.Random(seed), scale, {}
        self._generator = torch.Generator().manual_seed(seed)

    def __getitem__(self, name: str) -> int:
        """A size of 1 to 5."""
        return self._known.setdefault(name, self._random.randint(1, 5))

    def normal(self, axes: str) -> Tensor:
        """Normal numbers times the scale; `axes` are names of sizes, or numbers."""
        shape = [int(a) if a.isdigit() else self[a] for a in axes.split()]
        return torch.randn(shape, generator=self._generator) * self._scale

    def positive(self, axes: str) -> Tensor:
        """Between 0 and 1, whatever the scale."""
        return torch.sigmoid(self.normal(axes))

    def whole(self, axes: str, below: int) -> Tensor:
        """Integers from 0."""
        return (self.positive(axes) * below).long().clamp(0, below - 1)

    def mask(self, axes: str) -> Tensor:
        """True for about half; the first of a row is."""
        mask = self.normal(axes) > 0
        mask[:, 0] = True
        return mask

    def choice(self, *options: Any) -> Any:
        """One of the options."""
        return self._random.choice(options)


def orders_of(s: Sizes, count: int, length: int) -> list[ops.ScanOrder]:
    names = ("forward", "backward")
    return ops.scan_orders([names[i % 2] for i in range(count)], length)


# --- ops ---


def selective_scan(s):
    u, A = s.normal("batch dim length"), -s.positive("dim state")
    B = s.choice("batch state length", "dim state")
    return Call(ops.selective_scan, {
        "u": u, "delta": s.normal("batch dim length"), "A": A, "B": s.normal(B), "C": s.normal("batch state length"),
        "D": s.normal("dim"), "z": s.normal("batch dim length"), "delta_bias": s.normal("dim"),
        "delta_softplus": True, "return_last_state": s.choice(True, False),
        "initial_state": s.normal("batch dim state"), "backend": s.choice("auto", "native", "chunked", "reference"),
    })  # fmt: skip


def multi_scan(s):
    k, length = s["direction"], s["length"]
    return Call(ops.multi_scan, {
        "u": s.normal("batch direction length dim"), "dt": s.normal("batch direction length dim"),
        "A": -s.positive("direction dim state"), "B": s.normal("batch 1 length state"),
        "C": s.normal("batch direction length state"), "D": s.normal("1 dim"), "dt_bias": s.normal("direction dim"),
        "softplus": True, "orders": s.choice(None, orders_of(s, k, length)),
        "mask": s.choice(None, s.mask("batch length")), "seq_idx": s.choice(None, s.whole("batch length", 2)),
        "initial_state": s.choice(None, s.normal("batch direction dim state")), "merge": s.choice(True, False),
        "step_parameters": s.choice(True, False), "return_last_state": s.choice(True, False),
        "backend": s.choice("auto", "native", "chunked", "reference"),
    })  # fmt: skip


def causal_conv1d(s):
    k, length = s["direction"], s["length"]
    past = s["width"] - 1
    return Call(ops.causal_conv1d, {
        "x": s.normal("batch length dim"), "weight": s.normal("direction dim width"), "bias": s.normal("direction dim"),
        "orders": s.choice(None, orders_of(s, k, length)), "seq_idx": s.choice(None, s.whole("batch length", 2)),
        "initial_tokens": s.choice(None, s.normal(f"batch direction {past} dim")),
        "activation": s.choice(None, "silu"), "backend": s.choice("auto", "native", "chunked", "reference"),
    })  # fmt: skip


def mixing_matrix(s):
    return Call(ops.mixing_matrix, {
        "dt": s.positive("batch direction length dim"), "A": -s.positive("1 dim state"),
        "B": s.normal("batch direction length state"), "C": s.normal("batch 1 length state"),
        "D": s.normal("direction dim"), "dt_bias": s.normal("1 dim"), "softplus": True,
        "orders": s.choice(None, orders_of(s, s["direction"], s["length"])),
    })  # fmt: skip


def scan_order(s):
    grid = s.choice((s["frame"], s["row"], s["column"]), (s["row"], s["column"]))
    return Call(ops.scan_order, {"name": s.choice("snake", "diagonal_reverse"), "grid": grid, "device": "cpu"})


def scan_orders(s):
    return Call(ops.scan_orders, {"specs": ["backward", list(range(s["length"]))], "grid": s["length"], "device": None})


def permute_tokens(s):
    return Call(ops.permute_tokens, {
        "x": s.normal("batch length dim"), "order": ops.scan_order("backward", s["length"]), "dim": 1,
    })  # fmt: skip


def selective_step(s):
    return Call(ops.selective_step, {
        "state": s.normal("batch dim state"), "u": s.normal("batch dim"), "dt": s.normal("batch dim"),
        "A": -s.positive("dim state"), "B": s.normal("batch state"), "C": s.normal("batch 1 state"),
        "D": s.normal("dim"), "z": s.normal("batch dim"), "dt_bias": s.normal("dim"), "dt_softplus": True,
    })  # fmt: skip


def conv_step(s):
    return Call(ops.conv_step, {
        "state": s.normal("batch dim width"), "x": s.normal("batch dim"), "weight": s.normal("dim width"),
        "bias": s.normal("dim"),
    })  # fmt: skip


def ssd_scan(s):
    return Call(ops.ssd_scan, {
        "x": s.normal("batch length head channel"), "dt": s.normal("batch length head"), "A": -s.positive("head"),
        "B": s.normal("batch length 1 state"), "C": s.normal("batch length 1 state"), "D": s.normal("head channel"),
        "dt_bias": s.normal("head"), "dt_softplus": True, "dt_limit": (0.0, 10.0),
        "initial_state": s.normal("batch head channel state"), "seq_idx": s.choice(None, s.whole("batch length", 2)),
        "mask": s.choice(None, s.mask("batch length")), "chunk_size": s["chunk"], "return_last_state": True,
    })  # fmt: skip


def ssd_step(s):
    return Call(ops.ssd_step, {
        "state": s.normal("batch head channel state"), "x": s.normal("batch head channel"), "dt": s.normal("batch head"),
        "A": -s.positive("head"), "B": s.normal("batch 1 state"), "C": s.normal("batch 1 state"), "D": s.normal("head"),
        "dt_bias": s.normal("head"), "dt_softplus": True, "dt_limit": (0.0, 10.0),
    })  # fmt: skip


def _trapezoid(s, axes):
    return {
        "x": s.normal(f"{axes} head channel"), "dt": s.positive(f"{axes} head"), "A": -s.positive(f"{axes} head"),
        "B": s.normal(f"{axes} head {s['pair'] * 2 + 1}"), "C": s.normal(f"{axes} head {s['pair'] * 2 + 1}"),
        "blend": s.positive(f"{axes} head"), "theta": s.normal(f"{axes} head pair"), "D": s.normal("head"),
    }  # fmt: skip


def _trapezoid_state(s):
    state = s["pair"] * 2 + 1
    axes = ("batch head pair", f"batch head channel {state}", f"batch head {state}", "batch head channel")
    return ops.TrapezoidState(*(s.normal(a) for a in axes))


def trapezoidal_scan(s):
    return Call(ops.trapezoidal_scan, {
        **_trapezoid(s, "batch length"), "initial": s.choice(None, _trapezoid_state(s)),
        "seq_idx": s.choice(None, s.whole("batch length", 2)), "mask": s.choice(None, s.mask("batch length")),
        "chunk_size": s["chunk"],
    })  # fmt: skip


def trapezoidal_step(s):
    return Call(ops.trapezoidal_step, {"before": _trapezoid_state(s), **_trapezoid(s, "batch")})


def use_backend(s):
    return Call(ops.use_backend, {"name": s.choice("auto", "reference")})


# --- nn ---


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
    return Call(tnn.Mlp, {"dim": s["dim"], "hidden_dim": s["hidden"]}, _tokens(s))


def GatedMlp(s):
    return Call(tnn.GatedMlp, {"dim": s["dim"], "hidden_dim": s["hidden"]}, _tokens(s))


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
         "expand": 2, "bias": s.choice(True, False), "conv_bias": s.choice(True, False), "ssm": None},
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
         "rotary_fraction": 1.0, "decay": nn.functional.softplus},
        _packed(s),
    )  # fmt: skip


def CrossMamba(s):
    return Call(
        tnn.CrossMamba,
        {"query_dim": s["dim"], "context_dim": s["context"], "d_state": s["state"], "d_conv": s["width"], "expand": 2,
         "readout": s.choice("final", "progress"), "bidirectional": s.choice(True, False)},
        {"query": s.normal("batch length dim"), "context": s.normal("batch past context"),
         "context_mask": s.choice(None, s.mask("batch past"))},
    )  # fmt: skip


def PatchEmbed(s):
    return Call(
        tnn.PatchEmbed,
        {"dim": s["dim"], "patch_size": 2, "in_chans": s["chans"], "stride": s.choice(None, 1)},
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


def Scan2dMixer(s):
    x, grid = _map(s)
    return Call(
        tnn.Scan2dMixer,
        {"dim": s["dim"], "d_state": s["state"], "d_conv": 3, "expand": 2.0, "dt_rank": "auto", "directions": 2,
         "conv_bias": True, "gated": s.choice(True, False)},
        {**x, "orders": orders_of(s, 2, grid[0] * grid[1]), "grid": grid},
    )  # fmt: skip


def SnakeMixer(s):
    x, grid = _map(s)
    orders = ops.scan_orders(models.SNAKES, grid)
    return Call(
        tnn.SnakeMixer,
        {"dim": s["dim"], "d_state": s["state"], "d_conv": 3, "expand": 2, "released_scan": s.choice(True, False)},
        {**x, "orders": orders, "moves": tnn.moves_between(orders, grid), "grid": grid},
    )


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
        {"dim": s["dim"], "patch_size": 4, "in_chans": s["chans"], "refinements": s.choice(0, 1)},
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


# --- models ---


def _image(s, side=8):
    return {"x": s.normal(f"batch 3 {side} {side}"), }  # fmt: skip


def _backbone(s, **options):
    return {"img_size": 8, "patch_size": 4, "in_chans": 3, "num_classes": s["classes"], "dim": s["dim"], **options}


def VisionMamba(s):
    options = {"depth": 2, "orders": ("forward", "backward"), "mlp": s.choice(True, False), "d_state": s["state"]}
    return Call(models.VisionMamba, _backbone(s, **options), _image(s))


def Vim(s):
    options = {"depth": 2, "stride": s.choice(None, 2), "d_state": s["state"], "drop_path": 0.1,
               "float32_residual": True}  # fmt: skip
    return Call(models.Vim, _backbone(s, **options), _image(s))


def ViT(s):
    return Call(models.ViT, _backbone(s, depth=2, heads=s["dim"], distilled=s.choice(True, False)), _image(s))


def PlainMamba(s):
    options = {"depth": 2, "d_state": s["state"], "refinements": 1, "convolved": (0,), "drop_path": 0.1,
               "released_scan": False}  # fmt: skip
    return Call(models.PlainMamba, _backbone(s, **options), {"x": s.normal("2 3 8 12")})


def VideoMamba(s):
    options = {"num_frames": 2, "tubelet": 1, "depth": 2, "drop_path": 0.1, "float32_residual": True}
    return Call(models.VideoMamba, _backbone(s, **options), {"x": s.normal("batch 3 2 8 8")})


def VideoTextMamba(s):
    encoder = models.VideoMamba(8, 4, num_frames=2, dim=s["dim"], depth=2, num_classes=0)
    return Call(
        models.VideoTextMamba,
        {"encoder": encoder, "teacher_dim": s["context"]},
        {"x": s.normal("batch 3 2 8 8"), "visible": None, "per_frame": s.choice(True, False)},
    )


def _pyramid(s, function):
    arguments = {"dims": (2 * s["dim"], 2 * s["hidden"]), "depths": (1, 1), "d_state": s["state"],
                 "num_classes": s["classes"], "drop_path": 0.1}  # fmt: skip
    return Call(function, arguments, {"x": s.normal("batch 3 32 36")})


def vmamba_v0(s):
    return _pyramid(s, models.vmamba_v0)


def vmamba_v2(s):
    return _pyramid(s, models.vmamba_v2)


def MambaLM(s):
    return Call(
        models.MambaLM,
        {"vocab_size": 8 * s["classes"], "dim": s["dim"], "depth": 2, "mixer": tnn.MambaMixer,
         "d_intermediate": s.choice(0, 3), "tied": s.choice(True, False), "vocab_multiple": 8, "norm_eps": 1e-5},
        {"ids": s.whole("batch length", 8), "mask": s.choice(None, s.mask("batch length")),
         "seq_idx": s.choice(None, s.whole("batch length", 2))},
    )  # fmt: skip


def MambaEncoder(s):
    return Call(
        models.MambaEncoder,
        {"vocab_size": 8, "dim": s["dim"], "depth": 2, "max_length": 5, "types": 2, "mlp_ratio": 2.0,
         "d_state": s["state"]},
        {"ids": s.whole("batch length", 8), "mask": s.choice(None, s.mask("batch length")),
         "type_ids": s.whole("batch length", 2)},
    )  # fmt: skip


def next_token(s):
    return Call(models.next_token, {
        "logits": s.normal("batch classes"), "temperature": s.choice(0.0, 1.0), "top_k": s.choice(None, 1, 9),
        "top_p": s.choice(None, 0.5), "generator": torch.Generator(),
    })  # fmt: skip


def select_layers(s):
    return Call(models.select_layers, {"layers": [s.normal("batch dim")] * 3, "indices": s.choice(None, 2, [0, -1])})


def recompute_blocks(s):
    model = models.Vim(8, 4, dim=s["dim"], depth=1)
    return Call(models.recompute_blocks, {"model": model, "enabled": True})


# --- distill ---


def _layers(s, count=2):
    return [s.normal("batch length dim") for _ in range(count)]


def AdaptiveLayerDistill(s):
    return Call(
        distill.AdaptiveLayerDistill,
        {"similarity": s.choice("token", "flatten", "pooled"), "weighting": s.choice("ratio", "neg_cos", "uniform"),
         "tau": 1.0, "eps": 0.01, "detach_weights": s.choice(True, False), "weight_scope": s.choice("batch", "sample"),
         "scale": s.choice("sum1", "mean_N"), "teacher_layers": "last", "process_group": None},
        {"student": _layers(s), "teacher": s.normal("batch length dim"),
         "mask": s.choice(None, s.mask("batch length")), "return_details": s.choice(True, False)},
    )  # fmt: skip


def BidirectionalDistill(s):
    return Call(
        distill.BidirectionalDistill,
        {"inner": None, "order": s.choice("scan", "raster"), "reduction": "mean",
         "direction_weights": {"forward": 1.0, "backward": 0.5}},
        {"forward": _layers(s), "backward": _layers(s), "teacher": s.normal("batch length dim"),
         "mask": s.choice(None, s.mask("batch length")), "return_details": True, "order": None},
    )  # fmt: skip


def MultiDirectionalDistill(s):
    grid = (s["row"], s["column"])
    layers = [s.normal(f"batch {grid[0] * grid[1]} dim") for _ in range(2)]
    return Call(
        distill.MultiDirectionalDistill,
        {"inner": None, "order": "scan", "reduction": "sum", "direction_weights": None},
        {"student": {"column": layers, "raster_reverse": layers}, "teacher": layers[0], "mask": None, "grid": grid,
         "order": None, "orders": None, "return_details": False},
    )  # fmt: skip


def TransMambaLoss(s):
    return Call(
        distill.TransMambaLoss, {"task_weight": 0.5, "distill_weight": 2.0},
        {"task": s.normal("1")[0], "distill": s.normal("1")[0]},
    )  # fmt: skip


def FeatureCalibrator(s):
    return Call(
        distill.FeatureCalibrator,
        {"student_dim": s["dim"], "teacher_dim": s["context"], "mode": s.choice("pad_mlp", "linear", "pad"),
         "pad": s.choice("right", "center"), "hidden_dim": s.choice(None, 3), "depth": 2, "activation": nn.GELU,
         "bias": True, "residual": s.choice(True, False), "norm": s.choice(None, "layer", "standardize"),
         "on_wider": "project", "device": None, "dtype": None},
        _tokens(s),
    )  # fmt: skip


def LayerCalibrators(s):
    return Call(
        distill.LayerCalibrators,
        {"student_dims": [s["dim"]] * 2, "teacher_dim": s["context"], "shared": s.choice(True, False),
         "recompute": s.choice(True, False)},
        {"student": _layers(s)},
    )  # fmt: skip


def LogitsDistill(s):
    return Call(
        distill.LogitsDistill,
        {"temperature": 2.0, "divergence": s.choice("forward", "reverse", "js"), "beta": 0.5,
         "chunk": s.choice(None, 2)},
        {"student": s.normal("batch length classes"), "teacher": s.normal("batch length classes"),
         "mask": s.choice(None, s.mask("batch length"))},
    )  # fmt: skip


def LastFeatureDistill(s):
    return Call(
        distill.LastFeatureDistill, {"criterion": s.choice("cosine", "mse")},
        {"student": s.normal("batch length dim"), "teacher": s.normal("batch length dim"), "mask": None},
    )  # fmt: skip


def LayerwiseDistill(s):
    return Call(
        distill.LayerwiseDistill,
        {"criterion": s.choice("cosine", "mse"), "teacher_layers": s.choice("proportional", [0, 2])},
        {"student": _layers(s), "teacher": _layers(s, 3), "mask": s.choice(None, s.mask("batch length"))},
    )


def OfficialRepoLoss(s):
    pooled = s.normal("batch dim")
    return Call(
        distill.OfficialRepoLoss, {"tau": 2.0, "final_weight": 3.0},
        {"task": s.normal("1")[0], "final": pooled, "layers": [pooled, pooled], "teacher": s.normal("batch dim")},
    )  # fmt: skip


def OFADistill(s):
    return Call(
        distill.OFADistill, {"gamma": 1.5, "temperature": 1.0},
        {"student": s.normal("batch classes"), "teacher": s.normal("batch classes"),
         "target": s.whole("batch", s["classes"])},
    )  # fmt: skip


def MixingMatrixDistill(s):
    matrices = [s.normal("batch head length length")] * 2
    return Call(
        distill.MixingMatrixDistill, {"relative": s.choice(True, False)},
        {"student": matrices, "teacher": [s.normal("batch head length length")] * 2},
    )  # fmt: skip


def align_tokens(s):
    grid = (s["row"], s["column"])
    tokens = grid[0] * grid[1]
    return Call(distill.align_tokens, {
        "student": s.normal(f"batch {tokens + 1} dim"), "teacher": s.normal("batch 6 context"), "student_prefix": 1,
        "teacher_prefix": s.choice(2, [0, -1]), "prefix_position": "front", "student_grid": grid,
        "teacher_grid": (2, 2), "resize": s.choice("student", "teacher"), "interpolation": "bilinear",
    })  # fmt: skip


def drop_tokens(s):
    return Call(distill.drop_tokens, {
        "x": s.normal("batch 6 dim"), "special": s.choice(2, [0, -1]), "position": s.choice("front", "middle", "both"),
    })  # fmt: skip


def flatten_map(s):
    return Call(distill.flatten_map, {
        "x": s.normal("batch dim row column"), "layout": s.choice("channels_first", "channels_last"),
    })  # fmt: skip


def resize_tokens(s):
    grid = (s["row"], s["column"])
    return Call(distill.resize_tokens, {
        "x": s.normal(f"batch {grid[0] * grid[1]} dim"), "grid": grid, "target": (s["length"], 2),
        "interpolation": s.choice("bilinear", "bicubic", "area", "nearest"),
    })  # fmt: skip


def align_text(s):
    mask = s.mask("batch length")
    return Call(distill.align_text, {
        "student": s.normal("batch length dim"), "teacher": s.normal("batch length context"), "student_mask": mask,
        "teacher_mask": mask.flip(1),
    })  # fmt: skip


def match_layers(s):
    return Call(distill.match_layers, {
        "student": _layers(s), "teacher": _layers(s, 3),
        "how": s.choice("last", "proportional", "similarity", [0, -1]),
    })  # fmt: skip


def linear_cka(s):
    return Call(distill.linear_cka, {"x": s.normal("batch length dim"), "y": s.normal("batch length context")})


def cka_matrix(s):
    return Call(distill.cka_matrix, {"student": _layers(s), "teacher": _layers(s, 3)})


def dry_run(s):
    return Call(distill.dry_run, {
        "student": _layers(s), "teacher": {"a": s.normal("batch length context")}, "how": "last",
        "align": distill.align_tokens,
    })  # fmt: skip


def sample_tokens(s):
    return Call(distill.sample_tokens, {
        "length": s["length"] + 3, "kept": s["length"], "generator": torch.Generator(), "device": "cpu",
    })  # fmt: skip


def _tapped(**arguments):
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    with distill.tap(**{"model": model, **arguments}) as features:
        model(torch.ones(2, 3))
    return features.layers


def tap(s):
    return Call(_tapped, {"patterns": s.choice("*", ["0"]), "point": "output", "frozen": False, "select": None})


# --- transfer ---


def _pair(s):
    teacher = models.ViT(8, 4, dim=2 * s["dim"], depth=2, heads=s["dim"], num_classes=s["classes"])
    student = models.VisionMamba(8, 4, dim=s["dim"], depth=1, num_classes=s["classes"])
    return teacher, student


def subclone(s):
    teacher, student = _pair(s)
    return Call(transfer.subclone, {
        "teacher": s.choice(teacher, teacher.state_dict()), "student": student,
        "importance": s.choice(transfer.magnitude_importance, {n: p.abs() for n, p in teacher.named_parameters()}),
        "plan": None, "layer_map": s.choice("early", "uniform", [1], {0: 1}), "rescale": s.choice(None, "sqrt"),
        "exclude": s.choice(None, ["head.*"]), "grow": s.choice(True, False), "ssm_from": None,
    })  # fmt: skip


def AttentionInit(s):
    return Call(transfer.AttentionInit, {"heads": 2 * s["head"], "length": s["length"], "kv_heads": s["head"],
                                         "decay": 0.01})  # fmt: skip


def init_convolutions(s):
    start = s.choice("normal", "identity")
    return Call(transfer.init_convolutions, {"student": _pair(s)[1], "start": start, "std": 0.5})


def param_groups(s):
    student = _pair(s)[1]
    return Call(transfer.param_groups, {
        "student": student, "inherited": {"head.weight"}, "lr": 0.1, "inherited_lr": 0.01, "weight_decay": 0.1,
    })  # fmt: skip


def freeze(s):
    return Call(transfer.freeze, {"student": _pair(s)[1], "names": ["head.weight"], "frozen": True})


def _importance(s, function, **more):
    teacher, _ = _pair(s)
    return Call(function, {"teacher": teacher, "batches": [s.normal("batch 3 8 8")], **more, "progress": False})


def activation_importance(s):
    return _importance(s, transfer.activation_importance)


def wanda_importance(s):
    return _importance(s, transfer.wanda_importance)


def taylor_importance(s):
    return _importance(s, transfer.taylor_importance, loss=lambda teacher, batch: teacher(batch).square().mean())


def stability_importance(s):
    teacher, _ = _pair(s)
    after = {name: p.detach() + 1 for name, p in teacher.named_parameters()}
    return Call(transfer.stability_importance, {
        "before": teacher, "after": after, "measure": s.choice("absolute", "relative", "squared"),
    })  # fmt: skip


def StabilityRecorder(s):
    return Call(transfer.StabilityRecorder, {"teacher": _pair(s)[0]})


def propose_plan(s):
    teacher, student = _pair(s)
    return Call(transfer.propose_plan, {"teacher": teacher, "student": student})


def bind(s):
    return Call(transfer.bind, {"plan": {"a": ("a", "residual head*head_dim")}, "head_dim": s["dim"]})


def stage_plan(s):
    return Call(transfer.stage_plan, {"depths": (1, s["length"]), "teacher_depth": 6})


FUNCTIONS = {
    name: value
    for name, value in list(globals().items())
    if callable(value) and any(hasattr(module, name) for module in (ops, tnn, models, distill, transfer))
}
PACKAGES = {"ops": ops, "nn": tnn, "models": models, "distill": distill, "transfer": transfer}
EXAMPLES: dict[str, Callable[[Sizes], Call]] = {
    f"{package}.{name}": function
    for package, module in PACKAGES.items()
    for name, function in FUNCTIONS.items()
    if hasattr(module, name)
}
_records = "holds what it is given"
_files = "reads a checkpoint: test_checkpoints.py"
EXEMPT = {
    **dict.fromkeys(["ops.ScanOrder", "ops.TrapezoidState", "nn.MixerCache", "nn.ScanParameters", "models.Features",
                     "models.Backbone", "models.Pretrained", "models.BlockStack", "models.VMamba",
                     "distill.AdaptiveDetails", "distill.DirectionalDetails", "distill.MatchRow", "distill.MatchTable",
                     "distill.TokenSample", "distill.AlignedText", "distill.TappedFeatures", "transfer.Proposal",
                     "transfer.SubcloneReport"], _records),
    **dict.fromkeys(["models.from_official", "models.to_official", "models.from_hf", "transfer.open_safetensors"],
                    _files),
    **dict.fromkeys(["transfer.magnitude_importance", "transfer.first_importance", "transfer.random_importance"],
                    "scores for subclone, which checks them"),
}  # fmt: skip
