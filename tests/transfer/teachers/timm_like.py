"""Vision Transformers with the names and attributes of timm, which cannot be imported here; the published functions."""

import math

import torch
import torch.nn.functional as F
from torch import nn


class QuickGELU(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class RmsNorm(nn.Module):
    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x):
        return x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt() * self.weight


class Attention(nn.Module):
    """Fused or apart projections, norms of queries and keys, biases in the matrix or as vectors of their own."""

    def __init__(
        self, dim, heads, bias="fused", qk_norm=None, head_dim=None, window=None, rotate_half=False, apart=False
    ):
        super().__init__()
        self.num_heads, self.head_dim, self.rotate_half = heads, head_dim or dim // heads, rotate_half
        self.scale, inner = self.head_dim**-0.5, heads * self.head_dim
        self.qkv = None if apart else nn.Linear(dim, 3 * inner, bias=bias == "fused")
        if apart:
            self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, inner, bias=b) for b in (True, False, True))
        self.q_bias, self.v_bias = (nn.Parameter(torch.zeros(inner)) if bias == "own" else None for _ in "qv")
        self.q_norm, self.k_norm = ((qk_norm or nn.Identity)(self.head_dim) for _ in "qk")
        self.proj, self.window = nn.Linear(inner, dim), window
        if window:
            rows = (2 * window[0] - 1) * (2 * window[1] - 1) + 3
            self.relative_position_bias_table = nn.Parameter(torch.zeros(rows, heads))

    def forward(self, x, rope=None, prefix=1, bias=None):
        if self.qkv is None:
            q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        else:
            own = None if self.q_bias is None else torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
            q, k, v = F.linear(x, self.qkv.weight, self.qkv.bias if own is None else own).chunk(3, -1)
        q, k, v = (y.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for y in (q, k, v))
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = (torch.cat([y[:, :, :prefix], turn(y[:, :, prefix:], rope)], 2) for y in (q, k))
        scores = q @ k.transpose(-1, -2) * self.scale
        if self.window:
            scores = scores + lookup(self.relative_position_bias_table, self.window)
        scores = scores if bias is None else scores + bias
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


def turn(x, angles):
    first, second = x.chunk(2, -1)
    return x * angles.cos() + torch.cat([-second, first], -1) * angles.sin()


def lookup(table, window):
    rows, columns = window
    count = rows * columns
    bias = torch.empty(count + 1, count + 1, table.shape[1])
    for a in range(count):
        for b in range(count):
            down, right = a // columns - b // columns + rows - 1, a % columns - b % columns + columns - 1
            bias[a + 1, b + 1] = table[down * (2 * columns - 1) + right]
    bias[0, :], bias[:, 0], bias[0, 0] = table[-3], table[-2], table[-1]
    return bias.permute(2, 0, 1)


class Mlp(nn.Module):
    def __init__(self, dim, hidden, act):
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(dim, hidden), act(), nn.Linear(hidden, dim)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class GluMlp(nn.Module):
    def __init__(self, dim, hidden, act, gate_last=False):
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(dim, 2 * hidden), act(), nn.Linear(hidden, dim)
        self.gate_last = gate_last

    def forward(self, x):
        first, second = self.fc1(x).chunk(2, -1)
        return self.fc2(first * self.act(second) if self.gate_last else self.act(first) * second)


class SwiGLU(nn.Module):
    def __init__(self, dim, hidden, act):
        super().__init__()
        self.fc1_g, self.fc1_x, self.fc2 = nn.Linear(dim, hidden), nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.act = act()

    def forward(self, x):
        return self.fc2(self.act(self.fc1_g(x)) * self.fc1_x(x))


class LayerScale(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.gamma = nn.Parameter(0.3 * torch.ones(dim))

    def forward(self, x):
        return x * self.gamma


class Block(nn.Module):
    def __init__(self, dim, attn, mlp, norm, scaled):
        super().__init__()
        self.norm1, self.attn, self.ls1 = norm(dim), attn, LayerScale(dim) if scaled == "ls" else nn.Identity()
        self.norm2, self.mlp, self.ls2 = norm(dim), mlp, LayerScale(dim) if scaled == "ls" else nn.Identity()
        self.gamma_1, self.gamma_2 = (
            nn.Parameter(0.3 * torch.ones(dim)) if scaled == "gamma" else None for _ in range(2)
        )

    def forward(self, x, **kwargs):
        one, two = (1.0 if gamma is None else gamma for gamma in (self.gamma_1, self.gamma_2))
        x = x + one * self.ls1(self.attn(self.norm1(x), **kwargs))
        return x + two * self.ls2(self.mlp(self.norm2(x)))


class ResPostBlock(Block):
    def forward(self, x, **kwargs):
        x = x + self.norm1(self.attn(x, **kwargs))
        return x + self.norm2(self.mlp(x))


class PatchEmbed(nn.Module):
    def __init__(self, dim, size, patch, bias):
        super().__init__()
        self.grid_size = (size[0] // patch, size[1] // patch)
        self.proj = nn.Conv2d(2, dim, patch, patch, bias=bias)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


class RotaryEmbeddingDinoV3(nn.Module):
    def __init__(self, dim, temperature):
        super().__init__()
        self.dim, self.temperature, self.rotate_half = dim, float(temperature), True
        self.min_period, self.max_period, self.normalize_coords, self.grid_offset = None, None, "separate", 0.0

    def angles(self, grid):
        periods = self.temperature ** (torch.arange(self.dim // 4) / (self.dim // 4))
        rows, columns = ((torch.arange(n) + 0.5) / n * 2 - 1 for n in grid)
        centres = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).flatten(0, 1)
        return (2 * math.pi * centres[:, :, None] / periods).flatten(1).repeat(1, 2)


class RelativePositionBias(nn.Module):
    def __init__(self, window, heads):
        super().__init__()
        rows = (2 * window[0] - 1) * (2 * window[1] - 1) + 3
        self.relative_position_bias_table, self.window = nn.Parameter(torch.zeros(rows, heads)), window


class VisionTransformer(nn.Module):
    """All of timm's options that are tried here; `mlp` is "plain", "fused", "fused, gate last" or "apart"."""

    def __init__(
        self, size=(12, 12), dim=24, depth=3, heads=3, classes=5, global_pool="token", class_token=True, registers=0,
        distilled=False, no_embed_class=False, pre_norm=False, fc_norm=None, bias="fused", qk_norm=False, scaled=None,
        mlp="plain", act=nn.GELU, norm=nn.LayerNorm, eps=1e-6, rope=None, relative=None, absolute=True, head_dim=None,
        apart=False, attention_pool=False, block=Block, mask_token=False,
    ):  # fmt: skip
        super().__init__()
        make = lambda width: norm(width, eps=eps)  # noqa: E731
        fc_norm = global_pool == "avg" if fc_norm is None else fc_norm
        self.patch_embed, self.global_pool = PatchEmbed(dim, size, 4, not pre_norm), global_pool
        grid, token = self.patch_embed.grid_size, lambda n: nn.Parameter(torch.zeros(1, n, dim))
        self.cls_token = token(1) if class_token else None
        self.dist_token = token(1) if distilled else None
        self.reg_token = token(registers) if registers else None
        self.mask_token = token(1) if mask_token else None
        self.num_prefix_tokens, self.no_embed_class = class_token + distilled + registers, no_embed_class
        rows = grid[0] * grid[1] + (0 if no_embed_class else self.num_prefix_tokens)
        self.pos_embed = token(rows) if absolute else None
        self.norm_pre = make(dim) if pre_norm else nn.Identity()
        self.rope = None if rope is None else RotaryEmbeddingDinoV3(dim // heads, rope)
        self.rel_pos_bias = RelativePositionBias(grid, heads) if relative in ("shared", "both") else None
        mlps = {"plain": Mlp, "fused": GluMlp, "apart": SwiGLU}
        window = grid if relative in ("each", "both") else None
        self.blocks = nn.Sequential(*(
            block(
                dim,
                Attention(dim, heads, bias, make if qk_norm else None, head_dim, window, rope is not None, apart),
                mlps[mlp.split(",")[0]](dim, 40, act, **({"gate_last": True} if "last" in mlp else {})), make, scaled,
            )
            for _ in range(depth)
        ))  # fmt: skip
        self.norm = nn.Identity() if fc_norm else make(dim)
        self.fc_norm = make(dim) if fc_norm else nn.Identity()
        self.attn_pool = nn.Module() if attention_pool else None
        if attention_pool:
            self.attn_pool.latent = token(1)
        self.head = nn.Linear(dim, classes)
        self.head_dist = nn.Linear(dim, classes) if distilled else None

    def forward_features(self, x):
        grid, x = self.patch_embed.grid_size, self.patch_embed(x)
        if self.no_embed_class:
            x = x + self.pos_embed
        tokens = [token for token in (self.cls_token, self.dist_token, self.reg_token) if token is not None]
        x = torch.cat([*(token.expand(len(x), -1, -1) for token in tokens), x], 1)
        if self.pos_embed is not None and not self.no_embed_class:
            x = x + self.pos_embed
        x, rope = self.norm_pre(x), None if self.rope is None else self.rope.angles(grid)
        shared = self.rel_pos_bias
        bias = None if shared is None else lookup(shared.relative_position_bias_table, shared.window)
        for block in self.blocks:
            x = block(x, rope=rope, prefix=self.num_prefix_tokens, bias=bias)
        return self.norm(x)

    def forward(self, x):
        x = self.forward_features(x)
        pooled = x[:, 0] if self.global_pool == "token" else x[:, self.num_prefix_tokens :].mean(1)
        logits = self.head(self.fc_norm(pooled))
        return logits if self.head_dist is None else (logits + self.head_dist(x[:, 1])) / 2
