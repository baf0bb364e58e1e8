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
# # Seeing and reading: from a LLaVA into a Mamba
#
# Small scenes of coloured letters, and questions about them: the colour of a letter, the number of red ones, the letter
# left of another. A LLaVA with a Transformer learns to answer. Mamba students of about half its size then get few steps
# and few scenes:
#
# | | starts from | learns from | CrossMamba |
# |---|---|---|---|
# | Mamba | random weights | answers | no |
# | Mamba, transfer | the teacher's language model | answers, logits, features | no |
# | text reads, from scratch | random weights | answers | text reads the image |
# | text reads, transfer | the teacher's language model | answers, logits, features | text reads the image |
# | image reads, transfer | the teacher's language model | answers, logits, features | image reads the question |
#
# Logits and features are the teacher's. All see through its vision encoder, as the paper's teacher and students share
# CLIP. Under four minutes on two CPU cores.

# %%
SEEDS = 3
TEACHER_STEPS = 700
STUDENT_STEPS = 160
TEACHER_SCENES = 16000
STUDENT_SCENES = 3000
TEST_SCENES = 900
BATCH = 64

# %%
import math
import random

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
import transformers
from matplotlib.font_manager import FontProperties, findfont
from PIL import Image, ImageDraw, ImageFont
from tqdm.auto import tqdm

import transmamba as tm
from transmamba.models.splice import IGNORE_INDEX, IMAGE_TOKEN_INDEX

# %% [markdown]
# ## Scenes
#
# Two rows of two cells; two to four different letters, each in one of three colours, in eight faces of matplotlib's
# fonts, moved by up to a pixel.

# %%
LETTERS, COLOURS = "AEKTXZ", {"red": (1.0, 0.2, 0.2), "green": (0.2, 0.9, 0.2), "blue": (0.3, 0.4, 1.0)}
CELL, SIDE = 12, 2
FONTS = ("DejaVu Sans", "DejaVu Serif", "DejaVu Sans Mono", "STIXGeneral")


def draw(letter, family, weight):
    font = ImageFont.truetype(findfont(FontProperties(family=family, weight=weight)), 11)
    cell = Image.new("L", (CELL, CELL))
    ImageDraw.Draw(cell).text((CELL / 2, CELL / 2), letter, 255, font=font, anchor="mm")
    return torch.tensor(list(cell.tobytes())).view(CELL, CELL) / 255


faces = [torch.stack([draw(x, family, w) for x in LETTERS]) for family in FONTS for w in ("normal", "bold")]
glyphs = [torch.stack(faces).roll((y, x), (2, 3)) for y in (-1, 0, 1) for x in (-1, 0, 1)]


# %%
def scene(rng):
    cells = sorted(rng.sample(range(SIDE**2), rng.randint(2, 4)))
    letters, image, things = rng.sample(LETTERS, len(cells)), torch.zeros(3, SIDE * CELL, SIDE * CELL), {}
    for cell, letter in zip(cells, letters, strict=True):
        colour = rng.choice(list(COLOURS))
        glyph = rng.choice(glyphs)[rng.randrange(len(faces)), LETTERS.index(letter)]
        y, x = (CELL * number for number in divmod(cell, SIDE))
        image[:, y : y + CELL, x : x + CELL] = glyph * torch.tensor(COLOURS[colour])[:, None, None]
        things[cell] = (letter, colour)
    return image, things


# %% [markdown]
# ## Questions
#
# Three kinds; the teacher also learns to describe a scene cell by cell, as LLaVA learns captions first.


# %%
def ask(things, kind, rng):
    if kind == "colour":
        letter, colour = rng.choice(list(things.values()))
        return f"what colour is {letter}", colour
    if kind == "how many":
        colour = rng.choice(list(COLOURS))
        return f"how many {colour}", str(sum(own == colour for _, own in things.values()))
    if kind == "left of":
        pairs = [(cell - 1, cell) for cell in things if cell % SIDE and cell - 1 in things]
        left, right = rng.choice(pairs) if pairs else (None, None)
        return pairs and (f"what is left of {things[right][0]}", things[left][0])
    return "describe", " ".join(" ".join(things.get(cell, ("nothing", "nothing"))) for cell in range(SIDE**2))


# %% [markdown]
# A sample is `<bos> <image> question answer <eos>`. The number of `<image>` is LLaVA's placeholder, -200; labels are
# -100 but on the answer.

# %%
WORDS = ["<pad>", "<bos>", "<eos>", "<patch>", *"what colour is how many left of describe nothing".split()]
WORDS += [*LETTERS, *COLOURS, *"01234"]
KINDS = ("colour", "how many", "left of")


def encode(question, answer):
    number = WORDS.index
    prompt = [number("<bos>"), IMAGE_TOKEN_INDEX, *map(number, question.split())]
    answer = [*map(number, answer.split()), number("<eos>")]
    padding = 12 - len(prompt) - len(answer)
    labels = [IGNORE_INDEX] * len(prompt) + answer + [IGNORE_INDEX] * padding
    return prompt + answer + [0] * padding, labels


# %%
def make(count, seed, kinds=KINDS):
    rng, samples = random.Random(seed), []
    while len(samples) < count:
        kind = kinds[len(samples) % len(kinds)]
        image, things = scene(rng)
        if asked := ask(things, kind, rng):
            samples.append((image, *map(torch.tensor, encode(*asked)), torch.tensor(kinds.index(kind))))
    return [torch.stack(column) for column in zip(*samples, strict=True)]


teacher_data = make(TEACHER_SCENES, 0, (*KINDS, "describe"))
student_data, test_data = make(STUDENT_SCENES, 1), make(TEST_SCENES, 2)


# %%
def show(axis, image, text):
    axis.imshow(image.movedim(0, 2))
    axis.set(xticks=[], yticks=[])
    axis.set_title(text, fontsize=8)


def say(ids):
    return " ".join(WORDS[i] for i in ids if i > 2)


figure, axes = plt.subplots(1, 6, figsize=(12, 2.2))
for axis, image, ids in zip(axes, *student_data[:2], strict=False):
    show(axis, image, say(ids))

# %% [markdown]
# ## The teacher
#
# `LlavaForConditionalGeneration` of `transformers`, tiny: a CLIP encoder of two layers, one patch a cell, a projector
# and a LLaMA of two layers. It wants a placeholder for every patch.

# %%
layers = {"num_hidden_layers": 2, "num_attention_heads": 4}
vision = transformers.CLIPVisionConfig(
    hidden_size=64, intermediate_size=128, image_size=SIDE * CELL, patch_size=CELL, **layers
)
text = transformers.LlamaConfig(
    vocab_size=len(WORDS), hidden_size=96, intermediate_size=256, initializer_range=0.1, tie_word_embeddings=True,
    bos_token_id=1, eos_token_id=2, pad_token_id=0, **layers,
)  # fmt: skip
config = transformers.LlavaConfig(
    vision_config=vision.to_dict(), text_config=text.to_dict(), image_token_index=3, vision_feature_layer=-1
)
torch.manual_seed(0)
teacher = transformers.LlavaForConditionalGeneration(config)


# %%
def expand(x, patch):
    """One value per patch where there was one per image."""
    return torch.cat([x[:, :1], x.new_full((len(x), SIDE**2), patch), x[:, 2:]], 1)


def run_teacher(images, ids, **options):
    ids = expand(ids, 3)
    return teacher(input_ids=ids, pixel_values=images, attention_mask=(ids != 0).long(), **options)


def teacher_loss(model, images, ids, labels):
    logits = run_teacher(images, ids).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), expand(labels, IGNORE_INDEX)[:, 1:].flatten())


# %% [markdown]
# One training loop for everybody; `loss` is all that differs.


# %%
def train(parameters, loss, data, steps, *, name, seed=0, evaluate=None):
    parameters = list(parameters)
    optimizer = torch.optim.AdamW(parameters, 2e-3, weight_decay=0.05)
    cosine = [min(1, (i + 1) / 20) * (1 + math.cos(math.pi * i / steps)) / 2 for i in range(steps + 1)]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, cosine.__getitem__)
    generator, curve = torch.Generator().manual_seed(seed), []
    for step in tqdm(range(1, steps + 1), desc=name, leave=False, mininterval=1):
        batch = torch.randint(len(data[0]), (BATCH,), generator=generator)
        optimizer.zero_grad()
        loss(*(column[batch] for column in data[:3])).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step(), schedule.step()
        if evaluate and step % max(1, steps // 4) == 0:
            curve.append((step, evaluate()))
    return curve


# %%
@torch.no_grad()
def accuracy(first_answer):
    """Per cent of the test questions of each kind whose first answered word is right."""
    images, ids, labels, kinds = test_data
    right = first_answer(images, ids, labels) == labels[labels != IGNORE_INDEX][::2]
    return [100 * right[kinds == kind].float().mean().item() for kind in range(len(KINDS))]


def teacher_answer(images, ids, labels):
    places = F.pad(expand(labels, IGNORE_INDEX)[:, 1:] != IGNORE_INDEX, (0, 1))
    return run_teacher(images, ids).logits[places][::2].argmax(-1)


def percent(values):
    return ", ".join(f"{kind} {value:.0f} %" for kind, value in zip(KINDS, values, strict=True))


# %%
train(teacher.parameters(), lambda *batch: teacher_loss(teacher, *batch), teacher_data, TEACHER_STEPS, name="teacher")
teacher.eval().requires_grad_(False)
print("teacher:", percent(accuracy(teacher_answer)))

# %% [markdown]
# ## The students
#
# `VisionLanguageMamba` puts the projected patches in the place of -200 and lets a Mamba read on. With CrossMamba after
# its first block, one modality reads the other there: `query="image"` lets the patches read the question (language
# awareness in visual features, as the paper's abstract has it), `query="text"` lets the words read the image.


# %%
def new_student(seed, query):
    torch.manual_seed(seed)
    language = tm.models.MambaLM(len(WORDS), 64, depth=2, d_intermediate=128)
    encoder = tm.models.ClipPatches(teacher.model.vision_tower, layer=-1)
    cross = {"cross_after": [0], "query": query} if query else {}
    return tm.models.VisionLanguageMamba(encoder, language, **cross)


# %% [markdown]
# Inheriting takes two calls: the language model, whose teacher is a LLaMA, its mixers started from the attention they
# replace; then the projector, whose outputs live on the same 64 of 96 channels.

# %%
PROJECTOR = {
    "linear_1.weight": ("linear_1.weight", "inner vision"),
    "linear_1.bias": ("linear_1.bias", "inner"),
    "linear_2.weight": ("linear_2.weight", "residual inner"),
    "linear_2.bias": ("linear_2.bias", "residual"),
}


# %%
def inherit(student):
    important, projector = tm.transfer.magnitude_importance, teacher.model.multi_modal_projector
    attention = tm.transfer.AttentionInit(heads=4, length=12)
    report = tm.subclone(teacher.model.language_model, student.language, important, ssm_from=attention)
    kept = torch.zeros(96).index_fill(0, torch.tensor(report.kept["residual"]), 1.0)
    scores = {"residual": kept, "inner": projector.linear_2.weight.abs().sum(0)}
    tm.subclone(projector, student.projector, scores, plan=PROJECTOR)
    return report


student = new_student(0, None)
print(inherit(student))

# %% [markdown]
# ## What a transferred student learns from
#
# Answers, the teacher's logits where an answer is predicted, and the teacher's last feature at the same patches and
# words. `align_image_text` would also bring different numbers of patches to one grid.

# %%
match_logits, match_features = tm.distill.LogitsDistill(temperature=2.0), tm.AdaptiveLayerDistill()


def run_student(student, images, ids, labels):
    return student(ids, list(images[:, None]), ids != 0, labels)


def features_loss(output, theirs, ids, calibrators):
    ids = expand(ids, 3)
    masks = {"student_mask": output.mask, "teacher_mask": ids != 0}
    patches = {"student_image": output.image, "teacher_image": ids == 3}
    grids = {"student_grid": output.grid, "teacher_grid": (SIDE, SIDE)}
    align = tm.distill.align_image_text
    aligned = [align(layer, theirs, **masks, **patches, **grids) for layer in output.layers]
    return match_features(calibrators([a.student for a in aligned]), aligned[0].teacher, aligned[0].mask)


# %%
def transfer_loss(student, calibrators, images, ids, labels):
    output = run_student(student, images, ids, labels)
    theirs = run_teacher(images, ids, output_hidden_states=True)
    answers = F.pad(expand(labels, IGNORE_INDEX)[:, 1:] != IGNORE_INDEX, (0, 1))
    words = tm.distill.align_text(output.logits, theirs.logits, output.answers(), answers)
    features = features_loss(output, theirs.hidden_states[-1], ids, calibrators)
    return 0.5 * output.loss() + match_logits(words.student, words.teacher, words.mask) + 0.5 * features


def answer_with(student):
    def first_answer(*batch):
        output = run_student(student, *batch)
        return output.logits[output.answers()][::2].argmax(-1)

    return first_answer


# %% [markdown]
# ## Train the students


# %%
def learn(way, query, transfer, seed):
    student = new_student(seed, query)
    calibrators = tm.distill.LayerCalibrators([64, 64], 96)
    own = [p for name, p in student.named_parameters() if not name.startswith("vision.")]
    if transfer:
        inherit(student)
        loss, trained = lambda *batch: transfer_loss(student, calibrators, *batch), [*own, *calibrators.parameters()]
    else:
        loss, trained = lambda *batch: run_student(student, *batch).loss(), own
    evaluate = lambda: accuracy(answer_with(student))  # noqa: E731
    name = f"{way}, seed {seed}"
    curve = train(trained, loss, student_data, STUDENT_STEPS, name=name, seed=seed, evaluate=evaluate)
    return student, curve, sum(p.numel() for p in own)


# %%
WAYS = {
    "Mamba": (None, False),
    "Mamba, transfer": (None, True),
    "text reads": ("text", False),
    "text reads, transfer": ("text", True),
    "image reads, transfer": ("image", True),
}
runs = {way: [learn(way, *how, seed) for seed in range(SEEDS)] for way, how in WAYS.items()}

# %% [markdown]
# ## The result
#
# Accuracy by kind of question, mean and standard deviation over the seeds, and the weights that are trained (without
# the vision encoder).

# %%
everything = [p.numel() for name, p in teacher.named_parameters() if "vision_tower" not in name]
print(f"{'':24s}{'weights':>8s}" + "".join(f"{kind:>16s}" for kind in KINDS))
for way, results in runs.items():
    last = torch.tensor([curve[-1][1] for _, curve, _ in results])
    cells = (f"{x.mean():.1f} ± {x.std(correction=0):.1f}" for x in last.unbind(1))
    print(f"{way:24s}{results[0][2]:8,d}" + "".join(f"{cell:>16s}" for cell in cells))
print(f"{'teacher':24s}{sum(everything):8,d}" + "".join(f"{x:16.1f}" for x in accuracy(teacher_answer)))

# %%
figure, axes = plt.subplots(1, 3, figsize=(12, 3.2), sharey=True)
for kind, axis in enumerate(axes):
    for way, results in runs.items():
        values = torch.tensor([[score[kind] for _, score in curve] for _, curve, _ in results])
        steps = [step for step, _ in results[0][1]]
        axis.plot(steps, values.mean(0), marker="o", markersize=3, label=way)
        axis.fill_between(steps, values.amin(0), values.amax(0), alpha=0.15)
    axis.axhline(accuracy(teacher_answer)[kind], color="gray", linestyle="--", label="teacher")
    axis.set(title=KINDS[kind], xlabel="step")
    axis.grid(alpha=0.3)
axes[0].set_ylabel("accuracy, %")
axes[0].legend(fontsize=7)
figure.tight_layout()

# %% [markdown]
# ## Sample answers
#
# Generated word by word from the cache, by the transferred student whose text reads the image, first seed.

# %%
student = runs["text reads, transfer"][0][0]
figure, axes = plt.subplots(2, 6, figsize=(12, 4.6))
for axis, image, ids, labels in zip(axes.flat, *test_data[:3], strict=False):
    prompt = ids[: int((labels == IGNORE_INDEX).cumprod(0).sum())]
    answer = say(student.generate(prompt[None], [image[None]], 3, stop_tokens=[2])[0])
    truth = say(labels)
    verdict = "" if answer == truth else f" (no: {truth})"
    show(axis, image, f"{say(prompt)}?\n{answer}{verdict}")

# %% [markdown]
# ## How to read this
#
# Transferred students answer questions about colour and number almost as the teacher does; those from scratch have
# mostly found out which answers are frequent. Which letter is left of another takes two steps, find the letter, then
# its neighbour: there all students are far from the teacher. It helps if the text can read the image, with and without
# transfer; patches that read the question change nothing on scenes this small. The worth of each part of the transfer,
# and the stability of training from other starts, are in `docs/results.md`.
#
# Next: more `STUDENT_STEPS`, CrossMamba after both blocks (`query="text"` only), or a Mamba-2 mixer in `new_student`.
