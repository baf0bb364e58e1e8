"""Names and shapes of the official state dicts, as the official constructors make them."""

import math

Shapes = dict[str, tuple[int, ...]]


def prefixed(prefix: str, shapes: Shapes) -> Shapes:
    """Put `shapes` under a prefix."""
    return {prefix + name: shape for name, shape in shapes.items()}


def norm(at: str, width: int, rms: bool) -> Shapes:
    """Return the shapes of RMSNorm, or LayerNorm."""
    return {f"{at}.weight": (width,)} | ({} if rms else {f"{at}.bias": (width,)})


def linear(at: str, rows: int, columns: int, bias: bool = True) -> Shapes:
    """Return the shapes of a linear layer."""
    return {f"{at}.weight": (rows, columns)} | ({f"{at}.bias": (rows,)} if bias else {})


def mamba(d: int, kind: str = "none", gamma: bool = False, **c) -> Shapes:
    """Return the shapes of the mixer of mamba_ssm, and that of Vim and VideoMamba."""
    inner, states, width = int(c.get("expand", 2) * d), c.get("d_state", 16), c.get("d_conv", 4)
    rank = c.get("dt_rank", "auto")
    rank = math.ceil(d / 16) if rank == "auto" else rank
    bias, conv_bias = c.get("bias", False), c.get("conv_bias", True)
    shapes = linear("in_proj", 2 * inner, d, bias) | linear("out_proj", d, inner, bias)
    shapes |= {"A_b_log": (inner, states)} if kind == "v1" else {}
    for way in ("", "_b") if kind == "v2" else ("",):
        shapes |= {f"conv1d{way}.weight": (inner, 1, width)} | ({f"conv1d{way}.bias": (inner,)} if conv_bias else {})
        shapes |= linear(f"x_proj{way}", rank + 2 * states, inner, False) | linear(f"dt_proj{way}", inner, rank)
        shapes |= {f"A{way}_log": (inner, states), f"D{way}": (inner,)}
    return shapes | ({"gamma": (d,)} if gamma else {})


def mamba2(d: int, **c) -> Shapes:
    """Return the shapes of the mixer of Mamba-2."""
    inner, groups = c.get("expand", 2) * d, c.get("ngroups", 1)
    width = inner if c.get("d_ssm") is None else c["d_ssm"]
    heads, conv = width // c["headdim"], width + 2 * groups * c["d_state"]
    shapes = linear("in_proj", 2 * inner + 2 * groups * c["d_state"] + heads, d, c.get("bias", False))
    shapes |= {"conv1d.weight": (conv, 1, c.get("d_conv", 4))}
    shapes |= {"conv1d.bias": (conv,)} if c.get("conv_bias", True) else {}
    shapes |= {"dt_bias": (heads,), "A_log": (heads,), "D": (width if c.get("D_has_hdim") else heads,)}
    shapes |= {"norm.weight": (width,)} if c.get("rmsnorm", True) else {}
    return shapes | linear("out_proj", d, inner, c.get("bias", False))


def attention(d: int, **c) -> Shapes:
    """Return the shapes of the attention of mamba_ssm."""
    head_dim, heads, hidden = (
        c.get("head_dim", d // c["num_heads"]),
        c["num_heads"],
        -(-c.get("mlp_dim", 0) // 256) * 256,
    )
    width = head_dim * (heads + 2 * c.get("num_heads_kv", heads))
    shapes = linear("in_proj", width + hidden, d, c.get("qkv_proj_bias", True))
    shapes |= linear("out_proj", d, head_dim * heads + hidden // 2, c.get("out_proj_bias", True))
    return shapes | ({"conv1d.weight": (width, 1, c["d_conv"]), "conv1d.bias": (width,)} if c.get("d_conv") else {})


def _layers(c: dict, mixer: Shapes) -> Shapes:
    d, rms = c["embed_dim"], c.get("rms_norm", True)
    shapes = norm("norm_f", d, rms)
    for i in range(c["depth"]):
        shapes |= norm(f"layers.{i}.norm", d, rms) | prefixed(f"layers.{i}.mixer.", mixer)
    classes = c["num_classes"]
    return shapes | (linear("head", classes, d) if classes else {})


def vim(c: dict) -> Shapes:
    """Return the shapes of Vim."""
    d, side, size = c["embed_dim"], c["patch_size"], c["img_size"]
    count = ((size - side) // c["stride"] + 1) ** 2
    double = c.get("use_double_cls_token")
    tokens = (["cls_token_head", "cls_token_tail"] if double else ["cls_token"]) if c.get("if_cls_token", True) else []
    shapes: Shapes = {name: (1, 1, d) for name in tokens}
    shapes |= {"pos_embed": (1, count + len(tokens), d)} if c.get("if_abs_pos_embed", True) else {}
    shapes |= {"patch_embed.proj.weight": (d, 3, side, side), "patch_embed.proj.bias": (d,)}
    if c.get("if_rope"):
        shapes |= {f"rope.freqs_{name}": ((size // side) ** 2, d) for name in ("cos", "sin")}
    kind = "v1" if c.get("if_bimamba") else c.get("bimamba_type", "v2")
    gamma = c.get("init_layer_scale") is not None
    return shapes | _layers(c, mamba(d, kind, gamma, d_state=c.get("d_state", 16), **(c.get("ssm_cfg") or {})))


def video_mamba(c: dict) -> Shapes:
    """Return the shapes of VideoMamba, of images and of clips."""
    d, side, size = c["embed_dim"], c["patch_size"], c["img_size"]
    count = ((size - side) // c.get("stride", side) + 1) ** 2
    shapes: Shapes = {"cls_token": (1, 1, d), "pos_embed": (1, count + 1, d), "patch_embed.proj.bias": (d,)}
    tube = c.get("kernel_size", 1)
    if "num_frames" in c:
        shapes |= {"temporal_pos_embedding": (1, c["num_frames"] // tube, d)}
        shapes |= {"patch_embed.proj.weight": (d, 3, tube, side, side)}
    else:
        shapes |= {"patch_embed.proj.weight": (d, 3, side, side)}
    return shapes | _layers(c, mamba(d, "v2" if c.get("bimamba", True) else "none", **(c.get("ssm_cfg") or {})))


def language_model(c: dict) -> Shapes:
    """Return the shapes of the language models of mamba_ssm."""
    d, rms, ssm_cfg = c["d_model"], c.get("rms_norm", True), dict(c["ssm_cfg"])
    two = ssm_cfg.pop("layer", "Mamba1") == "Mamba2"
    multiple = c.get("pad_vocab_size_multiple", 8)
    rows = -(-c["vocab_size"] // multiple) * multiple
    shapes: Shapes = {"backbone.embedding.weight": (rows, d), "lm_head.weight": (rows, d)}
    shapes |= norm("backbone.norm_f", d, rms)
    hidden = -(-c.get("d_intermediate", 0) // 128) * 128
    for i in range(c["n_layer"]):
        at = f"backbone.layers.{i}."
        mixer = (mamba2 if two else mamba)(d, **ssm_cfg)
        mixer = attention(d, **c["attn_cfg"]) if i in c.get("attn_layer_idx", ()) else mixer
        shapes |= norm(f"{at}norm", d, rms) | prefixed(f"{at}mixer.", mixer)
        if hidden:
            shapes |= norm(f"{at}norm2", d, rms) | linear(f"{at}mlp.fc1", 2 * hidden, d, False)
            shapes |= linear(f"{at}mlp.fc2", d, hidden, False)
    return shapes


def batch_norm(at: str, width: int) -> Shapes:
    """Return the shapes of BatchNorm with its statistics."""
    shapes: Shapes = {f"{at}.{leaf}": (width,) for leaf in ("weight", "bias", "running_mean", "running_var")}
    return shapes | {f"{at}.num_batches_tracked": ()}


def _snake(d: int, own: dict) -> Shapes:
    inner, states, conv = int(own.get("expand", 2) * d), own.get("d_state", 16), own.get("conv_size", 7)
    rank = own.get("dt_rank", "auto")
    rank = math.ceil(d / 16) if rank == "auto" else rank
    bias = own.get("bias", False)
    mixer = linear("in_proj", 2 * inner, d, bias) | linear("out_proj", d, inner, bias)
    mixer |= {"conv2d.weight": (inner, 1, conv, conv)} | (
        {"conv2d.bias": (inner,)} if own.get("conv_bias", True) else {}
    )
    mixer |= linear("x_proj", rank + 2 * states, inner, False) | linear("dt_proj", inner, rank)
    mixer |= {"A_log": (inner, states), "D": (inner,), "direction_Bs": (5, states)}
    return mixer | ({"gamma": (d,)} if own.get("init_layer_scale") is not None else {})


def plain_mamba(c: dict) -> Shapes:
    """Return the shapes of PlainMamba with its head, as mmpretrain names it."""
    d, side = c["embed_dims"], c["patch_size"] // 2
    count = math.ceil(c["img_size"] // 2 / side) ** 2
    shapes = {"patch_embed.stem.0.weight": (64, 3, 7, 7)} | batch_norm("patch_embed.stem.1", 64)
    for i in range(c.get("num_convs_patch_embed", 1)):
        shapes |= {f"patch_embed.convs.{3 * i}.weight": (64, 64, 3, 3)}
        shapes |= batch_norm(f"patch_embed.convs.{3 * i + 1}", 64)
    shapes |= {"patch_embed.projection.weight": (d, 64, side, side), "patch_embed.projection.bias": (d,)}
    shapes |= {"pos_embed": (1, count, d)} if c.get("with_pos_embed", True) else {}
    shapes |= norm("ln1", d, False) if c.get("final_norm", True) else {}
    for i in range(c["num_layers"]):
        own = c["layer_cfgs"] if isinstance(c["layer_cfgs"], dict) else c["layer_cfgs"][i]
        shapes |= norm(f"layers.{i}.norm", d, own["use_rms_norm"])
        shapes |= prefixed(f"layers.{i}.mamba.", _snake(d, own["mamba_cfg"]))
        if i in c.get("layers_with_dwconv", ()):
            shapes |= {f"layers.{i}.dw.0.weight": (d, 1, 3, 3)} | batch_norm(f"layers.{i}.dw.1", d)
    return prefixed("backbone.", shapes) | linear("head.fc", c["num_classes"], d)


def _scan2d(d: int, c: dict) -> Shapes:
    kind = c["forward_type"]
    first, headed = kind == "v0", kind.startswith("m0")
    inner, states = int(c.get("ssm_ratio", 2.0) * d), c.get("ssm_d_state", 16)
    rank = math.ceil(d / 16) if c.get("ssm_dt_rank", "auto") == "auto" else c["ssm_dt_rank"]
    conv = 3 if first else c.get("ssm_conv", 3)
    shapes = linear("in_proj", inner if "_noz" in kind and "_nozact" not in kind else 2 * inner, d, False)
    if conv > 1:
        at = "conv2d.1" if headed else "conv2d"
        shapes |= {f"{at}.weight": (inner, 1, conv, conv)}
        shapes |= {f"{at}.bias": (inner,)} if first or c.get("ssm_conv_bias", True) else {}
    shapes |= {"x_proj_weight": (4, rank + 2 * states, inner)}
    if headed:
        shapes |= {"dt_projs_bias": (4, rank), "A_logs": (4, rank), "Ds": (4, rank, inner // rank)}
    else:
        shapes |= {"dt_projs_weight": (4, inner, rank), "dt_projs_bias": (4, inner)}
        shapes |= {"A_logs": (4 * inner, states), "Ds": (4 * inner,)}
    if "_on" not in kind:
        shapes |= norm("out_norm", inner, False)
    if "_oncnorm" in kind:
        shapes |= norm("out_norm.0", inner, False) | {"out_norm.2.weight": (inner, 1, 3, 3)}
    if "_ondwconv3" in kind:
        shapes |= {"out_norm.1.weight": (inner, 1, 3, 3)}
    return shapes | linear("out_proj", d, inner, False)


def vmamba(c: dict) -> Shapes:
    """Return the shapes of VMamba of any version, names of today."""
    dims, patch, normed = c["dims"], c.get("patch_size", 4), c.get("patch_norm", True)
    shapes: Shapes = {}

    def own_norm(at: str, width: int) -> Shapes:
        return batch_norm(at, width) if c.get("norm_layer", "ln").lower() == "bn" else norm(at, width, False)

    def conv(at: str, rows: int, columns: int, side: int) -> Shapes:
        return {f"{at}.weight": (rows, columns, side, side), f"{at}.bias": (rows,)}

    if c.get("patchembed_version", "v1") == "v1":
        stem = [(0, 2, 3, dims[0], patch)]
    else:
        stem = [(0, 2, 3, dims[0] // 2, patch // 2 + 1), (5, 7, dims[0] // 2, dims[0], patch // 2 + 1)]
    for at, normed_at, inputs, outputs, side in stem:
        shapes |= conv(f"patch_embed.{at}", outputs, inputs, side)
        shapes |= own_norm(f"patch_embed.{normed_at}", outputs) if normed else {}
    side = c["imgsize"] // patch
    shapes |= {"pos_embed": (1, dims[0], side, side)} if c.get("posembed") else {}
    for s, (d, depth) in enumerate(zip(dims, c["depths"], strict=True)):
        for i in range(depth):
            at = f"layers.{s}.blocks.{i}."
            shapes |= own_norm(f"{at}norm", d) | prefixed(f"{at}op.", _scan2d(d, c))
            hidden = int(d * c.get("mlp_ratio", 4.0))
            if hidden:
                shapes |= own_norm(f"{at}norm2", d) | linear(f"{at}mlp.fc2", d, hidden)
                shapes |= linear(f"{at}mlp.fc1", 2 * hidden if c.get("gmlp") else hidden, d)
        if s + 1 < len(dims):
            at, side = f"layers.{s}.downsample.", {"v1": 0, "v2": 2, "v3": 3}[c.get("downsample_version", "v2")]
            if side:
                shapes |= conv(f"{at}1", dims[s + 1], d, side) | own_norm(f"{at}3", dims[s + 1])
            else:
                shapes |= own_norm(f"{at}norm", 4 * d) | linear(f"{at}reduction", dims[s + 1], 4 * d, False)
    return shapes | own_norm("classifier.norm", dims[-1]) | linear("classifier.head", c["num_classes"], dims[-1])
