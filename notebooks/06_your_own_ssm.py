# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own state-space model
#
# The library knows many scan orders and the recurrences of Mamba. This notebook brings an order that it does not
# know, a spiral, and a recurrence of its own, a leaky average, and moves a Transformer's knowledge into the result.
# Nothing is registered and nothing is inherited from: a backbone is any module that answers five methods.

# %%
TEACHER_STEPS = 400
STUDENT_STEPS = 120
BATCH = 32
SEEDS = 3

# %%
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from tqdm.auto import tqdm

import transmamba as tm
from transmamba.models import BlockStack, Features
from transmamba.models.stack import reset_children
from transmamba.nn.embed import draw_position
from transmamba.ops import permute_tokens, scan_orders

# %% [markdown]
# ## A new scan order
#
# An order is a list of token numbers. This one walks along the rim of the grid and winds inwards.


# %%
def spiral(rows, columns):
    grid, walk = [[row * columns + column for column in range(columns)] for row in range(rows)], []
    while grid:
        walk += grid.pop(0)
        grid = [list(line) for line in zip(*grid, strict=True)][::-1]  # turn the rest
    return walk


walk = torch.tensor(spiral(4, 4))
figure, axis = plt.subplots(figsize=(3, 3))
axis.plot(walk % 4, walk // 4, marker="o")
axis.invert_yaxis()
axis.set(xticks=range(4), yticks=range(4), title="the order of 16 tokens")


# %% [markdown]
# ## A new recurrence
#
# $h_t = k_t h_{t-1} + (1 - k_t)\, u_t$ with $k_t = \sigma(W u_t)$: the share that is kept depends on the token.


# %%
def leaky_average(u_scan, keep_scan):
    h, states = torch.zeros_like(u_scan[:, 0]), []
    for u, keep in zip(u_scan.unbind(1), keep_scan.unbind(1), strict=True):
        h = keep * h + (1 - keep) * u
        states.append(h)
    return torch.stack(states, 1)


# %% [markdown]
# ## A mixer
#
# A mixer is called as `mixer(x, orders, mask)`. `forward_directions` also gives the contribution of each direction, in
# natural token order; the contributions add up to the output. Directional distillation needs nothing else.


# %%
class LeakyMixer(nn.Module):
    def __init__(self, dim, directions):
        super().__init__()
        self.in_proj = nn.Linear(dim, 2 * dim)
        self.keep = nn.ModuleList(nn.Linear(dim, dim) for _ in range(directions))
        self.out_proj = nn.Linear(dim, dim, bias=False)

    def forward(self, x, orders, mask=None):
        return self.forward_directions(x, orders)[0]

    def forward_directions(self, x, orders, mask=None):
        u, gate = self.in_proj(x).chunk(2, -1)
        parts = torch.stack([self.along(u, *pair) for pair in zip(self.keep, orders, strict=True)])
        parts = self.out_proj(parts * F.silu(gate))
        return parts.sum(0), parts

    def along(self, u, keep, order):
        u_scan = permute_tokens(u, order)
        y_scan = leaky_average(u_scan, torch.sigmoid(keep(u_scan)))
        return permute_tokens(y_scan, order.undo())


# %% [markdown]
# ## A backbone
#
# Patches, blocks of LayerNorm, mixer, LayerNorm, MLP, and a head. `BlockStack` collects the streams and the
# directions.


# %%
class SpiralNet(tm.models.FeatureMethods, nn.Module):
    def __init__(self, dim, depth):
        super().__init__()
        self.patch_embed = tm.nn.PatchEmbed(dim, patch_size=2, in_chans=1)
        self.pos_embed = tm.nn.init_position(16, dim)
        self.orders = (spiral(4, 4), spiral(4, 4)[::-1])
        self.blocks = BlockStack(tm.nn.MambaBlock(dim, LeakyMixer(dim, 2)) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, 10)

    def forward(self, x):
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x, directions=False):
        orders, tokens = scan_orders(self.orders, (4, 4)), self.patch_embed(x) + self.pos_embed
        layers, shares = self.blocks.streams(tokens, orders, directions=directions)
        return Features(self.norm(layers[-1]), layers, (4, 4), shares, tuple(orders))

    def no_weight_decay(self):
        return {"pos_embed"}

    def reset_parameters(self):
        reset_children(self)
        draw_position(self.pos_embed)  # the model's own parameters


print("a backbone:", isinstance(SpiralNet(48, 4), tm.models.Backbone))

# %% [markdown]
# ## A teacher, as in notebook 01

# %%
images, labels = load_digits(return_X_y=True)
shuffle = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
images = torch.tensor(images, dtype=torch.float32)[shuffle].view(-1, 1, 8, 8) / 8 - 1
labels = torch.tensor(labels)[shuffle]


def accuracy(model):
    with torch.no_grad():
        return 100 * (model(images[1200:]).argmax(-1) == labels[1200:]).float().mean().item()


# %%
def train(model, count, steps, loss, others=(), *, name):
    optimizer = torch.optim.AdamW([*model.parameters(), *(p for m in others for p in m.parameters())], 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, cycle_momentum=False)
    for _ in tqdm(range(steps), desc=name, leave=False, mininterval=1):
        batch = torch.randint(count, (BATCH,))
        optimizer.zero_grad()
        loss(model, images[batch], labels[batch]).backward()
        optimizer.step()
        schedule.step()
    return accuracy(model)


def task(model, x, y):
    return F.cross_entropy(model(x), y)


# %%
torch.manual_seed(0)
teacher = tm.models.ViT(img_size=8, patch_size=2, in_chans=1, num_classes=10, dim=64, depth=4, heads=4)
print(f"teacher: {train(teacher, 1200, TEACHER_STEPS, task, name='teacher'):.1f} %")
teacher.eval().requires_grad_(False)

# %% [markdown]
# ## A plan of inheritance
#
# `subclone` knows this library's names, and `SpiralNet` uses them, so it would find a plan by itself. For names of
# your own a plan is a dictionary: student tensor, teacher tensor, and a word for each axis. Axes that share a word
# share one choice of neurons; `affine` writes the entries of a weight and its bias.

# %%
affine = tm.transfer.plan.affine
plan = {
    "pos_embed": ("pos_embed", "1 token residual"),
    **affine("patch_embed.proj", "patch_embed.proj", "residual . . ."),
    **affine("blocks.{i}.norm1", "blocks.{i}.norm1", "residual"),
    **affine("blocks.{i}.norm2", "blocks.{i}.norm2", "residual"),
    **affine("blocks.{i}.mlp.fc1", "blocks.{i}.mlp.fc1", "hidden.{i} residual"),
    **affine("blocks.{i}.mlp.fc2", "blocks.{i}.mlp.fc2", "residual hidden.{i}"),
    **affine("norm", "norm", "residual"),
    **affine("head", "head", "class residual"),
}
print(tm.subclone(teacher, SpiralNet(48, 4), tm.transfer.magnitude_importance, plan=plan))

# %% [markdown]
# ## Distillation along the spiral
#
# `MultiDirectionalDistill` takes the orders with the features, so the teacher's tokens are walked along the same
# spiral.


# %%
class SpiralDistill(nn.Module):
    def __init__(self):
        super().__init__()
        self.calibrators = nn.ModuleList(tm.distill.LayerCalibrators([48] * 4, 64) for _ in range(2))
        self.distill, self.total = tm.distill.MultiDirectionalDistill(), tm.TransMambaLoss.v1(0.9)

    def forward(self, model, x, y):
        features = model.forward_features(x, directions=True)
        scans = [calibrate(scan) for calibrate, scan in zip(self.calibrators, features.directions, strict=True)]
        names = ("inwards", "outwards")
        orders = dict(zip(names, features.orders, strict=True))
        target = teacher.forward_features(x).last[:, 1:]
        distill = self.distill(dict(zip(names, scans, strict=True)), target, orders=orders)
        return self.total(F.cross_entropy(model.forward_head(features), y), distill)


# %% [markdown]
# ## What the transfer brings


# %%
def learn(way, seed):
    torch.manual_seed(seed)
    student, distill = SpiralNet(48, 4), SpiralDistill()
    if way != "from scratch":
        tm.subclone(teacher, student, tm.transfer.magnitude_importance, plan=plan)
    loss, others = (distill, [distill]) if way == "subclone, distilled" else (task, [])
    return train(student, 300, STUDENT_STEPS, loss, others, name=f"{way}, seed {seed}")


for way in ("from scratch", "subclone", "subclone, distilled"):
    found = torch.tensor([learn(way, seed) for seed in range(SEEDS)])
    print(f"{way:20s} {found.mean():.1f} ± {found.std(correction=0):.1f} % of the test digits, {SEEDS} seeds")

# %% [markdown]
# The same steps serve any recurrence. If yours is a selective scan, call `tm.ops.multi_scan` instead of the loop: it
# runs all directions in one kernel. `docs/adding_a_backbone.md` shows how to let a backbone join the tests.
