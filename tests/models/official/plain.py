"""The official models once more, as plainly as can be: loops over tokens on a state dict by official names.

`p` is that state dict, `at` the prefix of a part in it. Nothing of the library is used here.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]


def draw(shapes: dict[str, tuple[int, ...]]) -> State:
    """Draw random numbers of a size that keeps the stream in bounds; steps and decays where training leaves them."""
    state = {}
    for name, shape in shapes.items():
        x = torch.randn(shape, dtype=torch.float64)
        leaf = name.rpartition(".")[2]
        if leaf == "num_batches_tracked":
            state[name] = torch.tensor(7)
            continue
        if "A_" in name:
            x = x.abs().log1p()
        elif leaf == "running_var":
            x = x.abs() + 0.5
        elif len(shape) == 1 and leaf == "weight":
            x = 1 + 0.2 * x
        elif len(shape) > 1 and "pos" not in name and "cls" not in name:
            x = x / math.sqrt(math.prod(shape[1:]))
        state[name] = x
    return state


def norm(p: State, at: str, x: Tensor, *, rms: bool = True, eps: float = 1e-5) -> Tensor:
    """Apply RMSNorm, or LayerNorm."""
    centred = x if rms else x - x.mean(-1, keepdim=True)
    y = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * p[f"{at}.weight"]
    return y if rms else y + p[f"{at}.bias"]


def linear(p: State, at: str, x: Tensor) -> Tensor:
    """Apply a linear layer with or without a bias."""
    y = x @ p[f"{at}.weight"].T
    return y + p[f"{at}.bias"] if f"{at}.bias" in p else y


def causal(p: State, at: str, x: Tensor) -> Tensor:
    """Compute silu of a depthwise convolution over the past, tap by tap."""
    weight = p[f"{at}.weight"][:, 0]
    width = weight.shape[1]
    seen = F.pad(x, (0, 0, width - 1, 0))
    y = sum(seen[:, j : j + x.shape[1]] * weight[:, j] for j in range(width))
    return F.silu(y + p[f"{at}.bias"] if f"{at}.bias" in p else y)


def recur(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """Compute h = exp(dt A) h + dt B u, y = C h + D u, token by token."""
    h, outputs = u.new_zeros(len(u), u.shape[2], A.shape[1]), []
    for t in range(u.shape[1]):
        step = dt[:, t, :, None]
        h = torch.exp(step * A) * h + step * B[:, t, None] * u[:, t, :, None]
        outputs.append((h * C[:, t, None]).sum(-1) + D * u[:, t])
    return torch.stack(outputs, 1)


def ssm(p: State, at: str, u: Tensor, way: str = "") -> Tensor:
    """Apply x_proj, dt_proj, A and D to u; `way` is "_b" for the parameters of the way back."""
    states = p[f"{at}A{way}_log"].shape[1]
    low, B, C = linear(p, f"{at}x_proj{way}", u).split([p[f"{at}dt_proj{way}.weight"].shape[1], states, states], -1)
    dt = F.softplus(linear(p, f"{at}dt_proj{way}", low))
    return recur(u, dt, -p[f"{at}A{way}_log"].exp(), B, C, p[f"{at}D{way}"])


def mamba(p: State, at: str, x: Tensor, *, kind: str = "none", halve: bool = False) -> Tensor:
    """Run the mixer of mamba_ssm ("none") and of Vim ("v1", "v2")."""
    u, z = linear(p, f"{at}in_proj", x).chunk(2, -1)
    convolved = causal(p, f"{at}conv1d", u)
    y = ssm(p, at, convolved)
    if kind == "v1":
        states = p[f"{at}A_log"].shape[1]
        rank = p[f"{at}dt_proj.weight"].shape[1]
        low, B, C = linear(p, f"{at}x_proj", convolved).flip(1).split([rank, states, states], -1)
        dt = F.softplus(linear(p, f"{at}dt_proj", low))
        y = y + recur(convolved.flip(1), dt, -p[f"{at}A_b_log"].exp(), B, C, p[f"{at}D"]).flip(1)
    if kind == "v2":
        y = y + ssm(p, at, causal(p, f"{at}conv1d_b", u.flip(1)), "_b").flip(1)
        y = y / 2 if halve else y
    out = linear(p, f"{at}out_proj", y * F.silu(z))
    return out * p[f"{at}gamma"] if f"{at}gamma" in p else out


def mamba2(p: State, at: str, x: Tensor, c: dict) -> Tensor:
    """Run the mixer of Mamba-2, head by head."""
    inner = p[f"{at}out_proj.weight"].shape[1]
    heads, groups, states = len(p[f"{at}A_log"]), c.get("ngroups", 1), c["d_state"]
    width = heads * c["headdim"]
    mlp = inner - width
    z0, x0, z, xBC, dt = linear(p, f"{at}in_proj", x).split([mlp, mlp, width, width + 2 * groups * states, heads], -1)
    u, B, C = causal(p, f"{at}conv1d", xBC).split([width, groups * states, groups * states], -1)
    dt, A, outputs = F.softplus(dt + p[f"{at}dt_bias"]), -p[f"{at}A_log"].exp(), []
    for h in range(heads):
        part, group = slice(h * c["headdim"], (h + 1) * c["headdim"]), h * groups // heads
        of = slice(group * states, (group + 1) * states)
        D = p[f"{at}D"][part] if c.get("D_has_hdim") else p[f"{at}D"][h]
        u_h = u[..., part]
        A_h = A[h].expand(u_h.shape[2], states)
        outputs.append(recur(u_h, dt[..., h, None].expand_as(u_h), A_h, B[..., of], C[..., of], D))
    y = torch.cat(outputs, -1)
    if c.get("rmsnorm", True):
        before = c.get("norm_before_gate", False)
        y = y if before else y * F.silu(z)
        parts = y.unflatten(-1, (groups, -1))
        y = (parts / (parts.square().mean(-1, keepdim=True) + 1e-5).sqrt()).flatten(-2) * p[f"{at}norm.weight"]
        y = y * F.silu(z) if before else y
    else:
        y = y * F.silu(z)
    return linear(p, f"{at}out_proj", torch.cat([F.silu(z0) * x0, y], -1))


def _turned(x: Tensor, c: dict) -> Tensor:
    """Turn the first channels of a head (batch, token, channel) in pairs; angles are those of float32."""
    width = c.get("rotary_emb_dim", 0)
    y, apart = x.clone(), not c.get("rotary_emb_interleaved")
    for i in range(width // 2):
        frequency = 1 / torch.tensor(c.get("rotary_emb_base", 10000.0)) ** (torch.tensor(2.0 * i) / width)
        angles = torch.arange(x.shape[1], dtype=torch.float32) * frequency
        cos, sin = angles.cos().double(), angles.sin().double()
        a, b = (i, i + width // 2) if apart else (2 * i, 2 * i + 1)
        y[..., a], y[..., b] = x[..., a] * cos - x[..., b] * sin, x[..., b] * cos + x[..., a] * sin
    return y


def attention(p: State, at: str, x: Tensor, c: dict) -> Tensor:
    """Run the attention of mamba_ssm, head by head and token by token."""
    heads, kv_heads = c["num_heads"], c.get("num_heads_kv", c["num_heads"])
    size = c.get("head_dim", x.shape[2] // heads)
    rows = linear(p, f"{at}in_proj", x)
    count = size * (heads + 2 * kv_heads)
    rows, (up, gate) = rows[..., :count], rows[..., count:].chunk(2, -1)
    if f"{at}conv1d.weight" in p:
        weight = p[f"{at}conv1d.weight"][:, 0]
        seen = F.pad(rows, (0, 0, weight.shape[1] - 1, 0))
        rows = sum(seen[:, j : j + x.shape[1]] * weight[:, j] for j in range(weight.shape[1])) + p[f"{at}conv1d.bias"]
    parts = rows.split(size, -1)
    outputs = []
    for h in range(heads):
        group = h * kv_heads // heads
        q, k = _turned(parts[h], c), _turned(parts[heads + group], c)
        v, scale = parts[heads + kv_heads + group], c.get("softmax_scale", size**-0.5)
        for_each = [
            (scale * (q[:, t : t + 1] @ k[:, : t + 1].mT)).softmax(-1) @ v[:, : t + 1] for t in range(x.shape[1])
        ]
        outputs.append(torch.cat(for_each, 1))
    return linear(p, f"{at}out_proj", torch.cat([*outputs, up * F.silu(gate)], -1))


def patches(p: State, at: str, x: Tensor, stride: int) -> Tensor:
    """Send every patch by itself through the stem's weights."""
    weight = p[f"{at}.weight"]
    side = weight.shape[-1]
    rows = range(0, x.shape[-2] - side + 1, stride)
    columns = range(0, x.shape[-1] - side + 1, stride)
    boxes = [x[..., i : i + side, j : j + side].flatten(1) @ weight.flatten(1).T for i in rows for j in columns]
    return torch.stack(boxes, 1) + p[f"{at}.bias"]


def layers(p: State, x: Tensor, mix, *, rms: bool, eps: float) -> Tensor:
    """Compute x + mixer(norm(x)), layer by layer, and the last norm."""
    i = 0
    while f"layers.{i}.norm.weight" in p:
        x = x + mix(p, f"layers.{i}.mixer.", norm(p, f"layers.{i}.norm", x, rms=rms, eps=eps))
        i += 1
    return norm(p, "norm_f", x, rms=rms, eps=eps)


def angles(side: int, width: int, trained: int) -> Tensor:
    """Compute the angle of every cell and channel in Vim's rotation; float32, as it is kept."""
    table = torch.zeros(side * side, width)
    for cell in range(side * side):
        for channel in range(width):
            place = cell // side if channel < width // 2 else cell % side
            pair = channel % (width // 2) // 2
            table[cell, channel] = place / side * trained / 10000 ** (2 * pair / (width // 2))
    return table


def _turn(p: State, x: Tensor) -> Tensor:
    """Turn every token but the first of an odd number, channel by channel."""
    cos, sin = p["rope.freqs_cos"], p["rope.freqs_sin"]
    y = x.clone()
    for t in range(len(cos)):
        for a in range(0, x.shape[2], 2):
            token, b = t + x.shape[1] % 2, a + 1
            y[:, token, a] = x[:, token, a] * cos[t, a] - x[:, token, b] * sin[t, a]
            y[:, token, b] = x[:, token, b] * cos[t, b] + x[:, token, a] * sin[t, b]
    return y


def _vim_layers(p: State, x: Tensor, mix, c: dict) -> Tensor:
    """Run the layers, which carry output and sum of all before apart, one by one or two at a time."""
    rms, eps = c.get("rms_norm", True), c.get("norm_epsilon", 1e-5)

    def layer(i: int, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        residual = hidden if residual is None else residual + hidden
        return mix(p, f"layers.{i}.mixer.", norm(p, f"layers.{i}.norm", residual, rms=rms, eps=eps)), residual

    hidden, residual, paired = x, None, c.get("if_bidirectional", False)
    for i in range(0, c["depth"], 1 + paired):
        if c.get("if_rope"):
            hidden = _turn(p, hidden)
            if residual is not None and c.get("if_rope_residual"):
                residual = _turn(p, residual)
        if paired:
            back = (hidden.flip(1), None if residual is None else residual.flip(1))
            (hidden, residual), (more, other) = layer(i, hidden, residual), layer(i + 1, *back)
            hidden, residual = hidden + more.flip(1), residual + other.flip(1)
        else:
            hidden, residual = layer(i, hidden, residual)
    assert residual is not None
    return norm(p, "norm_f", residual + hidden, rms=rms, eps=eps)


def vim(p: State, x: Tensor, c: dict) -> Tensor:
    """Compute the logits of Vim."""
    tokens = patches(p, "patch_embed.proj", x, c["stride"])
    count, batch = tokens.shape[1], len(x)
    own = [p[name].expand(batch, -1, -1) for name in ("cls_token", "cls_token_head", "cls_token_tail") if name in p]
    places: list[int] = []
    if len(own) == 2:
        tokens, places = torch.cat([own[0], tokens, own[1]], 1), [0, count + 1]
    elif own:
        places = [count // 2 if c.get("use_middle_cls_token", True) else 0]
        tokens = torch.cat([tokens[:, : places[0]], own[0], tokens[:, places[0] :]], 1)
    tokens = tokens + p["pos_embed"] if "pos_embed" in p else tokens
    kind = "v1" if c.get("if_bimamba") else c.get("bimamba_type", "v2")

    def mix(p: State, at: str, x: Tensor) -> Tensor:
        return mamba(p, at, x, kind=kind, halve=c.get("if_divide_out", True))

    y = _vim_layers(p, tokens, mix, c)
    if places:
        return _head(p, sum(y[:, place] for place in places) / len(places))
    if c.get("final_pool_type") == "mean":
        return _head(p, y.mean(1))
    if c.get("final_pool_type") == "max":
        return _head(p, y).max(1).values
    return _head(p, y[:, -1])


def _head(p: State, x: Tensor) -> Tensor:
    return linear(p, "head", x) if "head.weight" in p else x


def video_mamba(p: State, x: Tensor, c: dict) -> Tensor:
    """Compute the logits of VideoMamba, of images and of clips of tubelets of any length."""
    if x.dim() == 4:
        tokens = patches(p, "patch_embed.proj", x, c.get("stride", c["patch_size"])) + p["pos_embed"][:, 1:]
    else:
        frames = x.split(c.get("kernel_size", 1), 2)
        flat = {"proj.weight": p["patch_embed.proj.weight"].flatten(1, 2), "proj.bias": p["patch_embed.proj.bias"]}
        rows = [patches(flat, "proj", frame.flatten(1, 2), c["patch_size"]) for frame in frames]
        times = p["temporal_pos_embedding"]
        tokens = torch.cat([row + p["pos_embed"][:, 1:] + times[:, t, None] for t, row in enumerate(rows)], 1)
    first = (p["cls_token"] + p["pos_embed"][:, :1]).expand(len(x), -1, -1)
    kind = "v2" if c.get("bimamba", True) else "none"

    def mix(p: State, at: str, x: Tensor) -> Tensor:
        return mamba(p, at, x, kind=kind)

    y = layers(p, torch.cat([first, tokens], 1), mix, rms=c.get("rms_norm", True), eps=c.get("norm_epsilon", 1e-5))
    return _head(p, y[:, 0])


def language_model(p: State, ids: Tensor, c: dict) -> Tensor:
    """Compute the logits of the language models of mamba_ssm."""
    ssm_cfg = dict(c["ssm_cfg"])
    two, rms = ssm_cfg.pop("layer", "Mamba1") == "Mamba2", c.get("rms_norm", True)
    x, i = p["backbone.embedding.weight"][ids], 0
    while f"backbone.layers.{i}.norm.weight" in p:
        at = f"backbone.layers.{i}."
        normed = norm(p, f"{at}norm", x, rms=rms)
        if i in c.get("attn_layer_idx", ()):
            x = x + attention(p, f"{at}mixer.", normed, c["attn_cfg"])
        else:
            x = x + (mamba2(p, f"{at}mixer.", normed, ssm_cfg) if two else mamba(p, f"{at}mixer.", normed))
        if f"{at}norm2.weight" in p:
            value, gate = linear(p, f"{at}mlp.fc1", norm(p, f"{at}norm2", x, rms=rms)).chunk(2, -1)
            x = x + linear(p, f"{at}mlp.fc2", value * F.silu(gate))
        i += 1
    return norm(p, "backbone.norm_f", x, rms=rms) @ p["lm_head.weight"].T


def _batch_norm(p: State, at: str, x: Tensor) -> Tensor:
    scale = p[f"{at}.weight"] / (p[f"{at}.running_var"] + 1e-5).sqrt()
    return (x - p[f"{at}.running_mean"][:, None, None]) * scale[:, None, None] + p[f"{at}.bias"][:, None, None]


def snakes(rows: int, columns: int) -> list[list[int]]:
    """Return rows from the top and back, columns from the left and back; every other line runs backwards."""
    by_row = [[i * columns + j for j in range(columns)][:: -1 if i % 2 else 1] for i in range(rows)]
    by_column = [[i * columns + j for i in range(rows)][:: -1 if j % 2 else 1] for j in range(columns)]
    first, second = (sum(lines, []) for lines in (by_row, by_column))
    return [first, first[::-1], second, second[::-1]]


def _moves(order: list[int], columns: int) -> list[int]:
    steps = {1: 1, -1: 2, -columns: 3, columns: 4}  # right, left, up, down
    return [0] + [
        (4 if b > a else 3) if a % columns == b % columns else steps[b - a]
        for a, b in zip(order[:-1], order[1:], strict=True)
    ]


def snake_mixer(p: State, at: str, x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Run the mixer of PlainMamba with both of its quirks: see backbones in the notes of the official code."""
    u, z = linear(p, f"{at}in_proj", x).chunk(2, -1)
    kernel = p[f"{at}conv2d.weight"]
    image = u.transpose(1, 2).unflatten(2, grid)
    image = F.conv2d(image, kernel, p.get(f"{at}conv2d.bias"), padding=kernel.shape[-1] // 2, groups=len(kernel))
    u = F.silu(image).flatten(2).transpose(1, 2)
    states = p[f"{at}A_log"].shape[1]
    rank = p[f"{at}dt_proj.weight"].shape[1]
    low, B, C = linear(p, f"{at}x_proj", u).split([rank, states, states], -1)
    # the bias of the steps counts twice, and steps, B and C are those of raster order
    dt = F.softplus(linear(p, f"{at}dt_proj", low) + p[f"{at}dt_proj.bias"])
    total = torch.zeros_like(u)
    for order in snakes(*grid):
        B_moved = B + p[f"{at}direction_Bs"][_moves(order, grid[1])]
        y = recur(u[:, order], dt, -p[f"{at}A_log"].exp(), B_moved, C, p[f"{at}D"])
        total = total + y[:, torch.tensor(order).argsort()]
    out = linear(p, f"{at}out_proj", total * F.silu(z))
    return out * p[f"{at}gamma"] if f"{at}gamma" in p else out


def plain_mamba(p: State, x: Tensor, c: dict) -> Tensor:
    """Compute the logits of PlainMamba in evaluation mode."""
    at = "backbone."
    side = c["patch_size"] // 2
    x = F.relu(_batch_norm(p, f"{at}patch_embed.stem.1", F.conv2d(x, p[f"{at}patch_embed.stem.0.weight"], None, 2, 3)))
    for i in range(c.get("num_convs_patch_embed", 1)):
        x = F.conv2d(x, p[f"{at}patch_embed.convs.{3 * i}.weight"], padding=1)
        x = F.relu(_batch_norm(p, f"{at}patch_embed.convs.{3 * i + 1}", x))
    x = F.pad(x, (0, -x.shape[3] % side, 0, -x.shape[2] % side))
    grid = (x.shape[2] // side, x.shape[3] // side)
    tokens = patches(p, f"{at}patch_embed.projection", x, side)
    if f"{at}pos_embed" in p:
        table, side = p[f"{at}pos_embed"], round(p[f"{at}pos_embed"].shape[1] ** 0.5)
        image = table.mT.unflatten(2, (side, side))
        if grid != (side, side):
            image = F.interpolate(image, grid, mode=c["interpolate_mode"], align_corners=False)
        tokens = tokens + image.flatten(2).mT
    for i in range(c["num_layers"]):
        layer = f"{at}layers.{i}."
        own = c["layer_cfgs"] if isinstance(c["layer_cfgs"], dict) else c["layer_cfgs"][i]
        normed = norm(p, f"{layer}norm", tokens, rms=own["use_rms_norm"])
        tokens = tokens + snake_mixer(p, f"{layer}mamba.", normed, grid)
        if f"{layer}dw.0.weight" in p:
            image = tokens.transpose(1, 2).unflatten(2, grid)
            image = F.conv2d(image, p[f"{layer}dw.0.weight"], padding=1, groups=tokens.shape[2])
            tokens = F.gelu(_batch_norm(p, f"{layer}dw.1", image)).flatten(2).transpose(1, 2)
    if c.get("final_norm", True):
        tokens = norm(p, f"{at}ln1", tokens, rms=False, eps=c.get("norm_cfg", {"eps": 1e-6})["eps"])
    return linear(p, "head.fc", tokens.mean(1))


def _act(name: str, x: Tensor) -> Tensor:
    return {"silu": F.silu, "gelu": F.gelu, "relu": F.relu, "sigmoid": torch.sigmoid}[name](x)


def _orders(scan: str, rows: int, columns: int) -> list[list[int]]:
    raster = list(range(rows * columns))
    column = [i * columns + j for j in range(columns) for i in range(rows)]
    if scan.endswith("1d"):
        return [raster] * 4
    return (
        [raster, raster, raster[::-1], raster[::-1]]
        if scan.endswith("2d")
        else [raster, column, raster[::-1], column[::-1]]
    )


def _along(p: State, at: str, k: int, seen: Tensor) -> Tensor:
    """Run direction k of VMamba's scan over tokens in its order."""
    inner, states, rank = seen.shape[2], p[f"{at}A_logs"].shape[1], p[f"{at}dt_projs_weight"].shape[2]
    of = slice(k * inner, (k + 1) * inner)
    low, B, C = (seen @ p[f"{at}x_proj_weight"][k].T).split([rank, states, states], -1)
    dt = F.softplus(low @ p[f"{at}dt_projs_weight"][k].T + p[f"{at}dt_projs_bias"][k])
    return recur(seen, dt, -p[f"{at}A_logs"][of].exp(), B, C, p[f"{at}Ds"][of])


def _headed(p: State, at: str, k: int, seen: Tensor) -> Tensor:
    """Run direction k of the scan with the heads of Mamba-2, head by head."""
    heads, width = p[f"{at}Ds"].shape[1:]
    states = (p[f"{at}x_proj_weight"].shape[1] - heads) // 2
    low, B, C = (seen @ p[f"{at}x_proj_weight"][k].T).split([heads, states, states], -1)
    outputs = []
    for h in range(heads):
        u = seen[..., h * width : (h + 1) * width]
        dt = F.softplus(low[..., h] + p[f"{at}dt_projs_bias"][k, h])[..., None].expand_as(u)
        A = -p[f"{at}A_logs"][k, h].exp().expand(width, states)
        outputs.append(recur(u, dt, A, B, C, p[f"{at}Ds"][k, h]))
    return torch.cat(outputs, -1)


def _cascade(p: State, at: str, u: Tensor, grid: tuple[int, int]) -> Tensor:
    """Scan rows, then columns; the results are added step by step, not token by token."""

    def unit(x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()

    image = unit(u.unflatten(1, grid))
    rows = [_along(p, at, 0, row) + _along(p, at, 1, row.flip(1)) for row in image.unbind(1)]
    image = unit(torch.stack(rows, 1))
    columns = [_along(p, at, 2, column) + _along(p, at, 3, column.flip(1)) for column in image.unbind(2)]
    return torch.stack(columns, 2).flatten(1, 2)


def scan2d(p: State, at: str, x: Tensor, grid: tuple[int, int], c: dict) -> Tensor:
    """Run the mixer of VMamba."""
    kind = c["forward_type"]
    act = "silu" if kind == "v0" else c.get("ssm_act_layer", "silu")
    gated = "_noz" not in kind or "_nozact" in kind
    projected = linear(p, f"{at}in_proj", x)
    u, z = projected.chunk(2, -1) if gated else (projected, None)
    conv = f"{at}conv2d.1" if kind.startswith("m0") else f"{at}conv2d"
    if f"{conv}.weight" in p:
        kernel = p[f"{conv}.weight"]
        image = F.conv2d(
            u.mT.unflatten(2, grid),
            kernel,
            p.get(f"{conv}.bias"),
            padding=kernel.shape[-1] // 2,
            groups=len(kernel),
        )
        u = image.flatten(2).mT
    u = _act(act, u)
    if "2dc" in kind:
        y = _cascade(p, at, u, grid)
    else:
        y, scan = torch.zeros_like(u), _headed if kind.startswith("m0") else _along
        for k, order in enumerate(_orders(kind.split("_")[0], *grid)):
            y = y + scan(p, at, k, u[:, order])[:, torch.tensor(order).argsort()]
    y = _out_norm(p, f"{at}out_norm", y, grid, kind)
    y = F.gelu(y) if "_oact" in kind else y
    if z is not None:
        y = y * (z if "_nozact" in kind else _act(act, z))
    return linear(p, f"{at}out_proj", y)


def _out_norm(p: State, at: str, y: Tensor, grid: tuple[int, int], kind: str) -> Tensor:
    if "_onnone" in kind:
        return y
    if "_onsigmoid" in kind:
        return torch.sigmoid(y)
    if "_onsoftmax" in kind:
        return y.exp() / y.exp().sum(1, keepdim=True)
    if "_ondwconv3" in kind or "_oncnorm" in kind:
        y = norm(p, f"{at}.0", y, rms=False) if "_oncnorm" in kind else y
        kernel = p[f"{at}.{2 if '_oncnorm' in kind else 1}.weight"]
        return F.conv2d(y.mT.unflatten(2, grid), kernel, padding=1, groups=len(kernel)).flatten(2).mT
    return norm(p, at, y, rms=False)


def _channel_norm(p: State, at: str, x: Tensor) -> Tensor:
    """Apply LayerNorm, or BatchNorm in evaluation mode, channels last."""
    if f"{at}.running_mean" not in p:
        return norm(p, at, x, rms=False)
    centred = x - p[f"{at}.running_mean"]
    return centred / (p[f"{at}.running_var"] + 1e-5).sqrt() * p[f"{at}.weight"] + p[f"{at}.bias"]


def _mlp(p: State, at: str, x: Tensor, c: dict) -> Tensor:
    h = linear(p, f"{at}mlp.fc1", _channel_norm(p, f"{at}norm2", x))
    act = c.get("mlp_act_layer", "gelu")
    if c.get("gmlp"):
        value, gate = h.chunk(2, -1)
        return linear(p, f"{at}mlp.fc2", value * _act(act, gate))
    return linear(p, f"{at}mlp.fc2", _act(act, h))


def vmamba(p: State, x: Tensor, c: dict) -> Tensor:
    """Compute the logits of VMamba."""

    def normed(at: str, x: Tensor) -> Tensor:
        return _channel_norm(p, at, x.movedim(1, -1)).movedim(-1, 1) if f"{at}.weight" in p else x

    def conv(at: str, x: Tensor, stride: int, padding: int) -> Tensor:
        return F.conv2d(x, p[f"{at}.weight"], p[f"{at}.bias"], stride, padding)

    patch = c.get("patch_size", 4)
    if c.get("patchembed_version", "v1") == "v1":
        x = normed("patch_embed.2", conv("patch_embed.0", x, patch, 0))
    else:
        x = F.gelu(normed("patch_embed.2", conv("patch_embed.0", x, patch // 2, 1)))
        x = normed("patch_embed.7", conv("patch_embed.5", x, patch // 2, 1))
    x = x + p["pos_embed"] if "pos_embed" in p else x
    for s, depth in enumerate(c["depths"]):
        grid, tokens = (x.shape[2], x.shape[3]), x.flatten(2).mT
        for i in range(depth):
            at = f"layers.{s}.blocks.{i}."
            tokens = tokens + scan2d(p, f"{at}op.", _channel_norm(p, f"{at}norm", tokens), grid, c)
            if f"{at}norm2.weight" in p:
                tokens = tokens + _mlp(p, at, tokens, c)
        x = tokens.mT.unflatten(2, grid)
        if s + 1 < len(c["depths"]):
            at, version = f"layers.{s}.downsample.", c.get("downsample_version", "v2")
            if version == "v1":
                x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
                parts = [x[:, :, i::2, j::2] for i, j in ((0, 0), (1, 0), (0, 1), (1, 1))]
                merged = _channel_norm(p, f"{at}norm", torch.cat(parts, 1).movedim(1, -1))
                x = linear(p, f"{at}reduction", merged).movedim(-1, 1)
            else:
                x = normed(f"{at}3", conv(f"{at}1", x, 2, 0 if version == "v2" else 1))
    return linear(p, "classifier.head", _channel_norm(p, "classifier.norm", x.flatten(2).mT).mean(1))
