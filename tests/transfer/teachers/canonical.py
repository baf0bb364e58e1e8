"""A plain Transformer on canonical tensors, written from `Architecture` alone: the other side of every proof here.

Slow and readable on purpose; `Reference` shares no code with the library.
"""

import importlib
import math

import torch
import torch.nn.functional as F

from transmamba.models import from_transformer

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu,
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
}


IMAGES = torch.randn(2, 2, 12, 12, generator=torch.Generator().manual_seed(1))


def perturb(model, scale=0.1, seed=0):
    """Move every parameter, so that no gain is one, no bias zero, and a dropped tensor shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def image_model(sizes, name, kind="Model", **facts):
    """Build a perturbed image model of transformers; facts are those that differ from `sizes`."""
    transformers = importlib.import_module("transformers")
    config = getattr(transformers, f"{name}Config")(**sizes | facts)
    return perturb(getattr(transformers, f"{name}{kind}")(config))


def error(got, wanted):
    """Compute the largest difference relative to the largest number wanted."""
    return float((got - wanted).abs().max() / wanted.abs().max())


class Reference:
    """The forward of a translated teacher."""

    def __init__(self, teacher):
        self.w = {name: teacher[name].float() for name in teacher}
        self.facts = teacher.architecture

    def image(self, pixels):
        w, facts = self.w, self.facts
        patch = w["patch_embed.weight"].shape[-1]
        x = F.conv2d(pixels, w["patch_embed.weight"], w.get("patch_embed.bias"), stride=patch)
        grid, x = tuple(x.shape[-2:]), x.flatten(2).transpose(1, 2)
        prefix = [w[name].expand(len(x), -1, -1) for name in ("cls_token", "dist_token", "reg_token") if name in w]
        count = sum(token.shape[1] for token in prefix)
        x = torch.cat([*prefix, x], 1)
        if "pos_embed" in w:
            table, cells = w["pos_embed"], grid[0] * grid[1]
            assert facts.grid == grid
            own = table.shape[1] - cells
            x[:, :own] += table[:, :own]
            x[:, count:] += table[:, own:]
        x = self.norm(x, "norm_pre") if "norm_pre.weight" in w else x
        return self.blocks(x, mask=None, grid=grid, prefix=count)

    def classify(self, pixels):
        w, last = self.w, self.image(pixels)
        tokens = [name for name in ("cls_token", "dist_token", "reg_token") if name in w]
        count = sum(w[name].shape[1] for name in tokens)
        x = self.norm(last[:, 0] if self.facts.pool == "token" else last[:, count:].mean(1), "fc_norm")
        logits = self.linear(x, "head")
        return logits if "head_dist.weight" not in w else (logits + self.linear(last[:, 1], "head_dist")) / 2

    def audio(self, mel):
        w = self.w
        x = F.gelu(F.conv1d(mel, w["conv1.weight"], w["conv1.bias"], padding=1))
        x = F.gelu(F.conv1d(x, w["conv2.weight"], w["conv2.bias"], stride=2, padding=1)).transpose(1, 2)
        return self.blocks(x + w["pos_embed"][:, : x.shape[1]])

    def text(self, ids, mask=None, types=None):
        w, facts = self.w, self.facts
        x = w["embedding.weight"][ids]
        if "pos_embed" in w:
            positions = torch.arange(ids.shape[1]).expand_as(ids)
            if facts.pad_position is not None:
                real = ids.ne(facts.pad_position).long()
                # rows before the first position are cut off; padding reads none
                positions = (real.cumsum(1) - 1).clamp_min(0)
            positions = w["pos_embed"][0][positions]
            x = x + (positions if "embed_proj.weight" not in w or positions.shape[-1] == x.shape[-1] else 0)
        if "type_embedding.weight" in w:
            x = x + w["type_embedding.weight"][torch.zeros_like(ids) if types is None else types]
        x = self.norm(x, "embed_norm") if "embed_norm.weight" in w else x
        x = self.linear(x, "embed_proj") if "embed_proj.weight" in w else x
        return self.blocks(x, mask)

    def logits(self, ids, mask=None):
        logits = self.linear(self.text(ids, mask), "head")
        cap = self.facts.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def blocks(self, x, mask=None, grid=None, prefix=0):
        for i in range(self.facts.depth):
            x = self.block(x, i, mask, grid, prefix)
        return self.norm(x, "norm") if "norm.weight" in self.w else x

    def block(self, x, i, mask, grid, prefix):
        b, placement = f"blocks.{i}.", self.facts.placement
        attend = lambda h: self.attention(h, i, mask, grid, prefix)  # noqa: E731
        mlp = lambda h: self.mlp(h, b + "mlp.")  # noqa: E731
        if self.facts.parallel:
            return x + attend(self.norm(x, b + "norm1")) + mlp(self.norm(x, b + "norm2"))
        for branch, n in ((attend, "1"), (mlp, "2")):
            before = self.norm(x, f"{b}norm{n}") if placement in ("pre", "sandwich") else x
            y = branch(before)
            if placement == "sandwich":
                y = self.norm(y, f"{b}post_norm{n}")
            if placement == "output":
                y = self.norm(y, f"{b}norm{n}")
            x = self.norm(x + y, f"{b}norm{n}") if placement == "post" else x + y
        return x

    def attention(self, x, i, mask, grid, prefix):
        w, facts, b = self.w, self.facts, f"blocks.{i}.attn."
        sizes = {"q": facts.heads, "k": facts.kv_heads, "v": facts.kv_heads}
        q, k, v = (self.linear(x, b + letter) for letter in "qkv")
        full = f"{b}q_norm.weight" in w and len(w[f"{b}q_norm.weight"]) == q.shape[-1] != facts.head_dim
        if full:
            q, k = self.norm(q, b + "q_norm"), self.norm(k, b + "k_norm")
        q, k, v = (y.unflatten(-1, (sizes[n], -1)).transpose(1, 2) for y, n in ((q, "q"), (k, "k"), (v, "v")))
        if not full and f"{b}q_norm.weight" in w:
            q, k = self.norm(q, b + "q_norm"), self.norm(k, b + "k_norm")
        rope = facts.ropes[i] if facts.ropes else None
        if rope is not None:
            cos, sin = axial(rope, grid, q.shape[-1]) if rope["rope_type"] == "axial" else angles(rope, *q.shape[-2:])
            q, k = (torch.cat([y[..., :prefix, :], turn(y[..., prefix:, :], cos, sin)], 2) for y in (q, k))
        k, v = (y.repeat_interleave(facts.heads // facts.kv_heads, 1) for y in (k, v))
        scores = q @ k.transpose(-1, -2) * (facts.scale or q.shape[-1] ** -0.5)
        if facts.softcap:
            scores = facts.softcap * torch.tanh(scores / facts.softcap)
        if f"{b}relative_bias" in w:
            scores = scores + relative_bias(w[f"{b}relative_bias"], grid)
        distance = torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1])
        seen = torch.ones_like(distance, dtype=torch.bool)
        if facts.causal:
            seen &= distance >= 0
        if facts.windows and facts.windows[i] is not None:
            seen &= distance.abs() < facts.windows[i]
        if mask is not None:
            seen = seen & mask[:, None, None]
        y = scores.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num() @ v
        return self.linear(y.transpose(1, 2).flatten(2), b + "out")

    def mlp(self, x, b):
        act, up = ACTIVATIONS[self.facts.activation], self.linear(x, b + "up")
        gated = b + "gate.weight" in self.w
        return self.linear(act(self.linear(x, b + "gate")) * up if gated else act(up), b + "down")

    def linear(self, x, name):
        return F.linear(x, self.w[name + ".weight"], self.w.get(name + ".bias"))

    def norm(self, x, name):
        weight = self.w.get(name + ".weight")
        if weight is None:
            return x
        if self.facts.norm == "rms":
            return F.rms_norm(x, x.shape[-1:], weight, self.facts.eps)
        return F.layer_norm(x, x.shape[-1:], weight, self.w.get(name + ".bias"), self.facts.eps)


class Canonical(Reference):
    """The same, and every result is that of `models.from_transformer` as well, so that each proof holds for both."""

    def __init__(self, teacher):
        super().__init__(teacher)
        self._teacher, self._model = teacher, None

    def image(self, pixels):
        return self._twice(super().image(pixels), lambda model: model.forward_features(pixels).last)

    def classify(self, pixels):
        return self._twice(super().classify(pixels), lambda model: model(pixels))

    def audio(self, mel):
        return self._twice(super().audio(mel), lambda model: model.forward_features(mel).last)

    def text(self, ids, mask=None, types=None):
        x = super().text(ids, mask, types)
        if self.facts.kind != "encoder":
            return x
        real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
        options = {} if types is None else {"type_ids": types}
        return self._twice(x, lambda model: model.forward_features(ids, mask=mask, **options).last, real)

    def logits(self, ids, mask=None):
        return self._twice(super().logits(ids, mask), lambda model: model(ids, mask))

    def _twice(self, wanted, run, where=...):
        """Return `wanted` once our own model of the teacher gives it too; a checkpoint that hides facts makes none."""
        if self.facts.unknown or self.facts is not self._teacher.architecture:
            return wanted
        if self._model is None:
            self._model = from_transformer(self._teacher).float()
        with torch.no_grad():
            assert error(run(self._model)[where], wanted[where]) < 1e-5
        return wanted


def frequencies(rope, dims):
    """Return the angle per position of each rotated pair, and the factor of cosine and sine (yarn)."""
    theta, kind = rope["rope_theta"], rope["rope_type"]
    inverse = theta ** (-torch.arange(0, dims, 2, dtype=torch.float64) / dims)
    if kind == "linear":
        return inverse / rope["factor"], 1.0
    if kind == "llama3":
        length = rope["original_max_position_embeddings"]
        wave = 2 * math.pi / inverse
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        smooth = ((length / wave - low) / (high - low)).clamp(0, 1)
        return inverse * smooth + inverse / rope["factor"] * (1 - smooth), 1.0
    if kind == "yarn":
        return yarn(rope, inverse, dims)
    return inverse, 1.0


def yarn(rope, inverse, dims):
    length, factor = rope["original_max_position_embeddings"], rope["factor"]
    at = lambda turns: dims * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(rope["rope_theta"]))  # noqa: E731
    low, high = at(rope.get("beta_fast", 32)), at(rope.get("beta_slow", 1))
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dims - 1)
    ramp = ((torch.arange(dims // 2, dtype=torch.float64) - low) / max(high - low, 0.001)).clamp(0, 1)
    attention = rope.get("attention_factor") or 0.1 * math.log(factor) + 1.0
    return inverse / factor * ramp + inverse * (1 - ramp), attention


def angles(rope, length, head_dim):
    dims = int(head_dim * rope.get("partial_rotary_factor", 1.0))
    inverse, factor = frequencies(rope, dims)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * inverse
    return tuple((factor * f(torch.cat([angle] * 2, -1))).float() for f in (torch.cos, torch.sin))


def axial(rope, grid, head_dim):
    """Return DINOv3's coordinates of patch centres in -1 to 1, a quarter of a head's channels for each axis, twice."""
    rows, columns = ((torch.arange(0.5, n) / n) * 2 - 1 for n in grid)
    inverse = rope["rope_theta"] ** -torch.arange(0, 1, 4 / head_dim)
    coordinates = torch.cartesian_prod(rows, columns)
    angle = (2 * math.pi * coordinates[:, :, None] * inverse).flatten(1).repeat(1, 2)
    return angle.cos(), angle.sin()


def turn(x, cos, sin):
    """Rotate the first channels of every head, as many as there are angles, in halves."""
    dims = cos.shape[-1]
    y, rest = x[..., :dims], x[..., dims:]
    first, second = y.chunk(2, -1)
    return torch.cat([y * cos + torch.cat([-second, first], -1) * sin, rest], -1)


def relative_bias(table, grid):
    """Return BEiT's bias (head, token, token) of a class token and a grid."""
    rows, columns = grid
    cells = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
    offset = cells[:, None] - cells[None] + torch.tensor([rows - 1, columns - 1])
    index = torch.full((len(cells) + 1,) * 2, 0)
    index[1:, 1:] = offset[..., 0] * (2 * columns - 1) + offset[..., 1]
    index[0, :], index[:, 0], index[0, 0] = len(table) - 3, len(table) - 2, len(table) - 1
    return table[index].permute(2, 0, 1)
