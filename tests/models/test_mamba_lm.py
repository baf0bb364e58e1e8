import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from tests.golden import golden
from transmamba._checkpoint import read_checkpoint
from transmamba.models import Backbone, MambaLM, mamba_sizes
from transmamba.models.official.load import build_and_load
from transmamba.models.official.mamba import MAMBA_FAMILIES, lm_name
from transmamba.nn import Attention, Mamba2Mixer, Mamba3Mixer, MambaMixer, TransformerBlock
from transmamba.ops import use_backend

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
GOLDEN = pytest.mark.parametrize("case", ["mamba_lm_a", "mamba_lm_b_mamba2"])
KINDS = {
    "mamba": {},
    "mamba2": {"mixer": partial(Mamba2Mixer, d_state=5, head_dim=4), "tied": False},
    "mamba3": {"mixer": partial(Mamba3Mixer, d_state=4, head_dim=4)},
    "mamba, mlp": {"d_intermediate": 9},
    "attention, positions": {
        "mixer": partial(Attention, heads=2, causal=True), "max_length": 24, "norm": "layer", "head_bias": True,
        "block": partial(TransformerBlock, hidden_dim=7), "tied": False,
    },
    "mixture": {
        "mixer": [
            partial(Attention, heads=3, kv_heads=1, causal=True, rope={"rope_theta": 9.0}, window=4),
            partial(MambaMixer, d_state=5),
            partial(Mamba2Mixer, d_state=5, head_dim=4),
        ],
        "block": partial(TransformerBlock, norm="rms", hidden_dim=7, gated=True, placement="sandwich"),
        "logit_softcap": 2.0,
    },
}  # fmt: skip
kinds = pytest.mark.parametrize("options", KINDS.values(), ids=KINDS.keys())


def tiny(dtype=torch.float64, **options):
    return MambaLM(19, 6, **{"depth": 3, "mixer": partial(MambaMixer, d_state=5), **options}).to(dtype)


def load(case, dtype):
    numbers = golden(case)
    model = build_and_load(MAMBA_FAMILIES["mamba_lm"], numbers.meta["config"], read_checkpoint(numbers.part("param")))
    return numbers, model.to(dtype)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@DTYPES
@GOLDEN
def test_outputs_and_gradients_are_the_official_ones(case, dtype, backend):
    numbers, model = load(case, dtype)
    ids = numbers.tensors["input/ids"]
    with use_backend(backend):
        features = model.forward_features(ids, directions=True)
        logits = model(ids)
        loss = F.cross_entropy(logits.flatten(0, 1), numbers.tensors["input/targets"].flatten())
        loss.backward()
    numbers.check("output/logits", logits)
    numbers.check("output/hidden", features.last)
    numbers.check("output/loss", loss[None])
    before = 0.0
    for i, layer in enumerate(features.layers):
        hidden = features.directions[0][i]
        numbers.check(f"block/{i}/hidden", hidden)
        numbers.check(f"block/{i}/residual", layer - hidden)
        before = layer
    assert before is features.layers[-1]
    for name, parameter in model.named_parameters():
        numbers.check(f"grad/param/{lm_name(name)}", parameter.grad)


@DTYPES
@GOLDEN
def test_greedy_text_is_the_official_one(case, dtype):
    numbers, model = load(case, dtype)
    ids = numbers.tensors["input/ids"]
    assert torch.equal(model.generate(ids, 6)[:, ids.shape[1] :], numbers.tensors["output/greedy6"])


@pytest.mark.parametrize(
    ("size", "parameters"),
    [
        ("mamba_130m", 129_135_360),
        ("mamba_370m", 371_516_416),
        ("mamba_790m", 793_204_224),
        ("mamba_1_4b", 1_372_178_432),
        ("mamba_2_8b", 2_768_345_600),
        ("mamba2_130m", 128_989_632),
        ("mamba2_370m", 368_346_624),
        ("mamba2_780m", 780_161_280),
        ("mamba2_1_3b", 1_343_757_312),
        ("mamba2_2_7b", 2_702_599_680),
    ],
)
def test_published_sizes(size, parameters):
    with torch.device("meta"):
        model = getattr(mamba_sizes, size)()
    assert sum(p.numel() for p in model.parameters()) == parameters


@kinds
def test_steps_after_a_prefill_give_the_parallel_pass(options):
    model, ids = tiny(**options), torch.randint(19, (2, 11))
    expected = model(ids)
    logits, cache = model.prefill(ids[:, :4])
    torch.testing.assert_close(logits, expected[:, 3])
    logits, cache = model.prefill(ids[:, 4:6], cache=cache)
    torch.testing.assert_close(logits, expected[:, 5])
    for t in range(6, 11):
        logits, cache = model.step(ids[:, t], cache)
        torch.testing.assert_close(logits, expected[:, t])


@kinds
def test_text_does_not_depend_on_the_padding(options):
    model, lengths = tiny(**options), torch.tensor([[7], [2], [5]])
    ids, mask = torch.randint(19, (3, 7)), torch.arange(7).flip(0) < lengths
    together = model.generate(ids, 5, mask=mask)
    for b in range(3):
        alone = model.generate(ids[b, mask[b]][None], 5)
        assert torch.equal(together[b, 7:], alone[0, int(lengths[b]) :])
    logits = model(ids, mask)
    torch.testing.assert_close(logits[1, mask[1]], model(ids[1, mask[1]][None])[0])


@kinds
def test_generation_repeats_the_whole_pass_token_by_token(options):
    model, ids = tiny(**options), torch.randint(19, (2, 3))
    text = ids
    for _ in range(6):
        text = torch.cat([text, model(text)[:, -1, :19].argmax(-1, keepdim=True)], 1)
    assert torch.equal(model.generate(ids, 6), text)


def test_a_stop_token_ends_its_sequence():
    model, ids = tiny(), torch.randint(19, (2, 3))
    free = model.generate(ids, 8)[:, 3:]
    stop = int(free[0, 2])
    until = [row.index(stop) + 1 if stop in row else 8 for row in free.tolist()]
    stopped = model.generate(ids, 8, stop_tokens=[stop, 18], pad_token=7)[:, 3:]
    ends = [min([i + 1 for i, t in enumerate(row) if t in (stop, 18)] + [8]) for row in free.tolist()]
    assert ends[0] <= until[0] and stopped.shape[1] == max(ends)
    for row, expected, end in zip(stopped, free, ends, strict=True):
        assert torch.equal(row[:end], expected[:end]) and (row[end:] == 7).all()


def test_rows_beyond_the_vocabulary_are_never_chosen():
    model = tiny()
    with torch.no_grad():
        model.embedding.weight[19:] = 100.0
    text = model.generate(torch.randint(19, (5, 3)), 9, temperature=5.0)
    assert text.max() < 19 and model(text).shape[-1] == 24


def test_no_new_tokens_is_the_prompt():
    ids = torch.randint(19, (2, 3))
    assert torch.equal(tiny().generate(ids, 0), ids)


@kinds
def test_layers_are_the_stream_after_each_block(options):
    model, ids = tiny(**options), torch.randint(19, (2, 7))
    features = model.forward_features(ids)
    x = model.embedding(ids) if model.pos_embed is None else model.embedding(ids) + model.pos_embed[:, :7]
    for block, layer in zip(model.blocks, features.layers, strict=True):
        x = block(x)
        torch.testing.assert_close(layer, x)
    torch.testing.assert_close(model._logits(features.last), model(ids))
    last, (middle,) = model.forward_intermediates(ids, [-2])
    torch.testing.assert_close((last, middle), (features.last, features.layers[1]))
    assert isinstance(model, Backbone) and features.grid == (7,)


@kinds
def test_packed_texts_do_not_see_each_other(options):
    model, ids, seq_idx = tiny(**options), torch.randint(19, (1, 8)), torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]])
    alone = torch.cat([model(ids[:, :3]), model(ids[:, 3:])], 1)
    torch.testing.assert_close(model(ids, seq_idx=seq_idx), alone)
    features = model.forward_features(ids, directions=True, seq_idx=seq_idx)
    torch.testing.assert_close(model._logits(features.last), alone)


@kinds
def test_bfloat16_weights_keep_a_float32_stream(options):
    model, ids = tiny(torch.bfloat16, **options), torch.randint(19, (2, 7))
    features = model.forward_features(ids)
    assert all(layer.dtype == torch.float32 for layer in features.layers)
    assert model.generate(ids, 2).shape == (2, 9)


@kinds
def test_autocast_trains_and_decodes(options):
    model, ids = tiny(torch.float32, **options), torch.randint(19, (2, 7))
    expected = model(ids)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(ids)
        logits.float().square().mean().backward()
        assert model.generate(ids, 2).shape == (2, 9)
    torch.testing.assert_close(logits.float(), expected, rtol=0.1, atol=0.1 * expected.abs().max().item())
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


def test_a_meta_model_starts_like_any_other():
    torch.manual_seed(3)
    expected = tiny(torch.float32, depth=8, d_intermediate=200)
    with torch.device("meta"):
        model = tiny(torch.float32, depth=8, d_intermediate=200)
    model.to_empty(device="cpu")
    model.reset_parameters()
    for (name, got), wanted in zip(model.named_parameters(), expected.parameters(), strict=True):
        if got.numel() > 200:
            torch.testing.assert_close(
                got.std(), wanted.std(), rtol=0.3, atol=1e-3, msg=lambda m, name=name: f"{name}: {m}"
            )
        assert got.isfinite().all()
    bound = 1 / math.sqrt(256) / math.sqrt(2 * 8)
    assert 0.9 * bound < model.blocks[0].mlp.fc2.weight.abs().max() <= bound
    assert "blocks.0.mixer.branches.0.ssm.A_log" in model.no_weight_decay()


@kinds
def test_compiles_in_one_graph(options):
    model, ids = tiny(torch.float32, **options), torch.randint(19, (2, 7))
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(ids), model(ids))


def test_one_builder_per_block():
    builders = [partial(MambaMixer, d_state=5), Mamba3Mixer, partial(Attention, heads=2, causal=True)]
    model = MambaLM(19, 64, depth=3, mixer=builders)
    assert [type(block.mixer) for block in model.blocks] == [MambaMixer, Mamba3Mixer, Attention]
    with pytest.raises(ValueError, match="mixer has 3 entries for 2 layers: give one builder, or one per layer"):
        MambaLM(19, 64, depth=2, mixer=builders)
    with pytest.raises(ValueError, match="block has 1 entries for 2 layers"):
        MambaLM(19, 64, depth=2, block=[TransformerBlock])


def test_capped_logits():
    model = tiny(logit_softcap=0.5)
    free = tiny()
    free.load_state_dict(model.state_dict())
    ids = torch.randint(19, (2, 5))
    torch.testing.assert_close(model(ids), 0.5 * torch.tanh(free(ids) / 0.5))
    torch.testing.assert_close(model.prefill(ids)[0], model(ids)[:, -1])


def test_positions_restart_with_every_packed_text_and_skip_padding():
    model, ids = tiny(max_length=24), torch.randint(19, (1, 8))
    x = model.embedding(ids)
    seq_idx = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]])
    rows = model.pos_embed[0][[0, 1, 2, 0, 1, 2, 3, 4]]
    torch.testing.assert_close(model._place(x, None, seq_idx)[0], x[0] + rows)
    mask = torch.tensor([[False, False, True, True, True, True, True, True]])
    torch.testing.assert_close(model._place(x, mask)[0, 2:], x[0, 2:] + model.pos_embed[0, :6])


def test_a_text_longer_than_the_positions_is_refused():
    model, ids = tiny(max_length=6), torch.randint(19, (2, 7))
    with pytest.raises(ValueError, match="built for at most 6 tokens, got 7"):
        model(ids)
    assert model.generate(ids[:, :3], 4).shape == (2, 7)  # the last token is never read
    with pytest.raises(ValueError, match="built for at most 6 tokens, got 7"):
        model.generate(ids[:, :3], 5)
    mask = torch.tensor([[False] + [True] * 6] * 2)
    assert model(ids, mask).isfinite().all()


def test_contradictions_are_refused():
    with pytest.raises(ValueError, match="give either block or d_intermediate"):
        tiny(block=TransformerBlock, d_intermediate=5)
    with pytest.raises(ValueError, match="logit_softcap must be positive, got 0.0"):
        tiny(logit_softcap=0.0)


def test_without_a_last_norm_the_head_reads_the_stream():
    model, ids = tiny(final_norm=False), torch.randint(19, (2, 5))
    features = model.forward_features(ids)
    assert features.last is features.layers[-1] and not [key for key in model.state_dict() if key.startswith("norm")]
    torch.testing.assert_close(model(ids), features.last @ model.head.weight.T)
    assert model.bfloat16()(ids).dtype == torch.bfloat16
