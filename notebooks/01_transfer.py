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
# # A first transfer: from a Vision Transformer into a Mamba
#
# A Transformer teacher learns to read handwritten digits. A smaller Mamba student then learns the same task from a
# quarter of the data, in five ways that take equally many steps:
#
# | | starts from | learns from |
# |---|---|---|
# | from scratch | random weights | labels |
# | logits | random weights | labels and the teacher's logits |
# | subclone | the teacher's important neurons | labels |
# | closed form | the same, with the output projections of mixers and MLPs solved | labels |
# | TransMamba | the teacher's important neurons | labels and the teacher's features, in both scan directions |
#
# Everything runs on a laptop's CPU in under three minutes. The first cell holds every knob.

# %%
SEEDS = 3
TEACHER_STEPS = 600
TUNING_STEPS = 20
STUDENT_STEPS = 120
TRAIN_IMAGES = 300
BATCH = 32
TASK_WEIGHT = 0.9

# %%
import copy
import math

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from tqdm.auto import tqdm

import transmamba as tm

torch.set_num_threads(1)  # the models are so small that two threads mostly wait for each other

# %% [markdown]
# ## Data
#
# scikit-learn ships 1797 digits of 8 x 8 pixels. The teacher is trained on 1200 of them, the students on
# `TRAIN_IMAGES`; the rest is for testing.

# %%
images, labels = load_digits(return_X_y=True)
shuffle = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
images = torch.tensor(images, dtype=torch.float32)[shuffle].view(-1, 1, 8, 8) / 8 - 1
labels = torch.tensor(labels)[shuffle]
teacher_data = images[:1200], labels[:1200]
student_data = images[:TRAIN_IMAGES], labels[:TRAIN_IMAGES]
test_images, test_labels = images[1200:], labels[1200:]

figure, axes = plt.subplots(1, 10, figsize=(10, 1.2))
for axis, image, label in zip(axes, images, labels, strict=False):
    axis.imshow(image[0], cmap="gray_r")
    axis.set(title=int(label), xticks=[], yticks=[])


# %% [markdown]
# ## One training loop for everybody
#
# The library has no trainer. This loop is ordinary PyTorch; `loss` is a function of the model and a batch, and is all
# that differs between the ways. Every tenth of the training it measures accuracy on the test digits.


# %%
@torch.no_grad()
def accuracy(model):
    return 100 * (model(test_images).argmax(-1) == test_labels).float().mean().item()


def size(model):
    return sum(p.numel() for p in model.parameters())


# %%
def train(model, data, steps, loss, *, name, seed=0, others=(), learning_rate=2e-3):
    parameters = [*model.parameters(), *(p for module in others for p in module.parameters())]
    optimizer = torch.optim.AdamW(parameters, learning_rate, weight_decay=0.05)
    cosine = [min(1, (i + 1) / 20) * (1 + math.cos(math.pi * i / steps)) / 2 for i in range(steps + 1)]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, cosine.__getitem__)
    generator, curve = torch.Generator().manual_seed(seed), []
    for step in tqdm(range(1, steps + 1), desc=name, leave=False, mininterval=1):
        batch = torch.randint(len(data[0]), (BATCH,), generator=generator)
        optimizer.zero_grad()
        loss(model, data[0][batch], data[1][batch]).backward()
        optimizer.step()
        schedule.step()
        if step % max(1, steps // 10) == 0:
            curve.append((step, accuracy(model)))
    return curve


# %%
def task_loss(model, x, y):
    return F.cross_entropy(model(x), y)


# %% [markdown]
# ## The teacher
#
# A small ViT: patches of 2 x 2 pixels make a grid of 4 x 4 tokens.

# %%
torch.manual_seed(0)
teacher = tm.models.ViT(img_size=8, patch_size=2, in_chans=1, num_classes=10, dim=64, depth=4, heads=4)
train(teacher, teacher_data, TEACHER_STEPS, task_loss, name="teacher")
teacher.eval().requires_grad_(False)
print(f"teacher: {accuracy(teacher):.1f} % of the test digits, {size(teacher):,} weights")

# %% [markdown]
# ## Which neurons matter
#
# The paper keeps the weights that change least when the teacher is tuned for a moment on part of the data. So tune a
# copy, compare, and hand the scores to `subclone`. It cuts the teacher's 64 channels to the student's 48 with one
# choice of channels for the whole residual stream, and reports where each tensor went.

# %%
tuned = copy.deepcopy(teacher).requires_grad_(True)
train(tuned, student_data, TUNING_STEPS, task_loss, name="tuning", learning_rate=3e-4)
importance = tm.transfer.stability_importance(teacher, tuned)


# %%
def new_student(seed, *, inherit):
    torch.manual_seed(seed)
    student = tm.models.VisionMamba(
        img_size=8, patch_size=2, in_chans=1, num_classes=10, dim=48, depth=4, orders=("forward", "backward")
    )
    return student, tm.subclone(teacher, student, importance) if inherit else None


student, report = new_student(0, inherit=True)
print(f"student: {size(student):,} weights, {accuracy(student):.1f} % of the test digits before any training\n")
print(report)

# %% [markdown]
# ## Readouts in closed form
#
# A mixer that starts at random is a rich set of features of its input; only its output projection has to be right.
# `fit_layers` solves it, and the second matrix of each MLP, by ridge regression: so that the student's stream follows
# the kept channels of the teacher's, layer after layer. It needs images, no labels and no gradient, and takes a moment.


# %%
def solve_readouts(student, report):
    kept = torch.eye(64)[list(report.kept["residual"])]  # from the teacher's 64 channels to the student's 48
    return tm.transfer.fit_layers(
        teacher, student, student_data[0].split(BATCH), projection=kept, tokens=lambda x: x[:, 1:], progress=False
    )


print(solve_readouts(student, report))

# %% [markdown]
# ## Losses
#
# The Transformer has one feature, the tokens of its last layer. The Mamba scans forward and backward, and each layer
# shows both scans apart (`forward_features(x, directions=True)`). `BidirectionalDistill` compares the forward scan with
# the teacher and the backward scan with the reversed teacher, every layer weighted by how far it still is.

# %%
logits_distill = tm.distill.LogitsDistill(temperature=2.0)


def logits_loss(model, x, y):
    logits = model(x)
    return 0.5 * F.cross_entropy(logits, y) + 0.5 * logits_distill(logits, teacher(x))


# %% [markdown]
# A calibrator per layer and direction brings 48 channels to 64. It starts as padding with zeros and is thrown away
# after training.


# %%
class TransMamba(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.calibrators = torch.nn.ModuleList(tm.distill.LayerCalibrators([48] * 4, 64) for _ in range(2))
        self.distill, self.total, self.log = tm.BidirectionalDistill(), tm.TransMambaLoss.v1(TASK_WEIGHT), []

    def forward(self, model, x, y):
        features = model.forward_features(x, directions=True)
        scans = [calibrate(scan) for calibrate, scan in zip(self.calibrators, features.directions, strict=True)]
        target = teacher.forward_features(x).last[:, 1:]  # without the class token
        distill, details = self.distill(*scans, target, return_details=True)
        self.log.append(details)
        return self.total(F.cross_entropy(model.forward_head(features), y), distill)


# %% [markdown]
# ## Train the students


# %%
def learn(way, seed):
    student, report = new_student(seed, inherit=way in ("subclone", "closed form", "TransMamba"))
    if way == "closed form":
        solve_readouts(student, report)
    loss = {"logits": logits_loss, "TransMamba": TransMamba()}.get(way, task_loss)
    others = [loss] if isinstance(loss, torch.nn.Module) else []
    curve = train(student, student_data, STUDENT_STEPS, loss, name=f"{way}, seed {seed}", seed=seed, others=others)
    return curve, getattr(loss, "log", None)


WAYS = ("from scratch", "logits", "subclone", "closed form", "TransMamba")
runs = {way: [learn(way, seed) for seed in range(SEEDS)] for way in WAYS}

# %% [markdown]
# ## Learning curves
#
# The line is the mean over seeds, the band their range.

# %%
figure, axis = plt.subplots(figsize=(7, 4))
for way, results in runs.items():
    steps = [step for step, _ in results[0][0]]
    accuracies = torch.tensor([[value for _, value in curve] for curve, _ in results])
    axis.plot(steps, accuracies.mean(0), marker="o", markersize=3, label=way)
    axis.fill_between(steps, accuracies.amin(0), accuracies.amax(0), alpha=0.2)
axis.axhline(accuracy(teacher), color="gray", linestyle="--", label="teacher")
axis.set(xlabel="step", ylabel="test accuracy, %", title=f"{TRAIN_IMAGES} training images")
axis.legend()
axis.grid(alpha=0.3)

# %% [markdown]
# ## What the distillation saw
#
# The cosine between each student layer and the teacher, and the weight that the layer gets for it: the farther a layer,
# the higher its weight. First seed, forward scan on top, backward below.

# %%
log = runs["TransMamba"][0][1]
figure, axes = plt.subplots(2, 2, figsize=(9, 5), sharex=True)
for row, direction in zip(axes, range(2), strict=True):
    for axis, name in zip(row, ("cosine", "weight"), strict=True):
        values = torch.stack([getattr(details.details[direction], name) for details in log])
        for layer in range(values.shape[1]):
            axis.plot(values[:, layer], label=f"layer {layer}")
        axis.set(title=f"{log[0].directions[direction]}: {name}")
axes[0, 0].legend(fontsize=8)
for axis in axes[1]:
    axis.set(xlabel="step")
figure.tight_layout()

# %% [markdown]
# ## The result

# %%
print(f"{'':14s}  {'after a fifth':>16s}  {'halfway':>16s}  {'at the end':>16s}")
for way, results in runs.items():
    final = torch.tensor([[value for _, value in curve] for curve, _ in results])
    cells = (final[:, [len(final[0]) // 5 - 1, len(final[0]) // 2 - 1, -1]]).unbind(1)
    spread = (f"{x.mean():.1f} ± {x.std(correction=0):.1f}" for x in cells)
    print(f"{way:14s}" + "".join(f"  {text:>16s}" for text in spread))
print(f"{'teacher':14s}" + " " * 38 + f"{accuracy(teacher):.1f}")

# %% [markdown]
# ## How to read this
#
# Mean and standard deviation over the seeds, in per cent. This small task is decided by where the student starts:
# with the teacher's neurons it is far ahead from the first steps, and farther with its readouts solved as well.
# Feature distillation on top of inheritance adds nothing in a run this short, and logits do not help a student that
# has barely begun. Which part helps when is a matter of budget, of data and of the weights; the records are in
# `docs/results.md`.
#
# Next: turn `TASK_WEIGHT`, give the students more images, or pass `orders=tm.models.SNAKES` and use
# `tm.distill.MultiDirectionalDistill`.
