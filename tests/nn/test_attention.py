"""Attention against its definition, against transformers' own, and against itself: packed, padded, token by token."""

import copy
import itertools

import pytest
import torch
from torch import nn

from transmamba.nn import Attention
from transmamba.nn.scores import relative_index
from transmamba.ops import permute_tokens, scan_order

DIM = 8
KINDS = {
    "plain": {},
    "grouped": {"kv_heads": 2, "qkv_bias": False},
    "one key head": {"kv_heads": 1, "out_bias": False},
    "wide heads": {"head_dim": 6, "scale": 0.3},
    "rotary": {"rope": {"rope_theta": 20.0}},
    "window": {"window": 3, "rope": {"rope_theta": 20.0, "partial_rotary_factor": 0.5}, "head_dim": 4},
    "head norms": {"qk_norm": "head", "norm": "rms"},
    "full norms": {"qk_norm": "full", "kv_heads": 2, "window": 2},
    "softcap": {"softcap": 0.7, "kv_heads": 2},
    "softcap, window": {"softcap": 0.7, "window": 4, "rope": {"rope_theta": 20.0}},
}
kinds = pytest.mark.parametrize("options", KINDS.values(), ids=KINDS.keys())
both = pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])


def attention(causal=True, dtype=torch.float64, **options):
    module = Attention(DIM, 4, causal=causal, **options).to(dtype)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def tokens(*shape, dtype=torch.float64):
    return torch.randn(*shape, DIM, dtype=dtype)


def defined(module, x):
    """Compute the output for one sequence, pair by pair."""
    heads, groups, length = module.heads, module.heads // module.kv_heads, len(x)
    q, k, v = module.qkv(x).split(module.sizes, -1)
    if module.qk_norm == "full":
        q, k = module.q_norm(q), module.k_norm(k)
    q, k, v = (t.unflatten(-1, (-1, module.head_dim)) for t in (q, k, v))
    if module.qk_norm == "head":
        q, k = module.q_norm(q), module.k_norm(k)
    if module.rotary is not None:
        phases = module.rotary.phases(torch.arange(length)[None], x.dtype)
        q, k = (module.rotary.turn(t.transpose(0, 1)[None], phases)[0].transpose(0, 1) for t in (q, k))
    mixed = torch.zeros(length, heads, module.head_dim, dtype=x.dtype)
    for i, head in itertools.product(range(length), range(heads)):
        near = [
            j for j in range(length)
            if (j <= i or not module.causal) and (module.window is None or abs(i - j) < module.window)
        ]  # fmt: skip
        scores = torch.stack([q[i, head] @ k[j, head // groups] * module.scale for j in near])
        if module.softcap is not None:
            scores = module.softcap * (scores / module.softcap).tanh()
        weights = scores.softmax(0)
        mixed[i, head] = sum(w * v[j, head // groups] for w, j in zip(weights, near, strict=True))
    return module.proj(mixed.flatten(1))


@both
@kinds
def test_is_its_definition(causal, options):
    module, x = attention(causal, **options), tokens(2, 7)
    torch.testing.assert_close(module(x), torch.stack([defined(module, one) for one in x]))


@both
@kinds
def test_gradients_are_those_of_differences(causal, options):
    module = attention(causal, **options)
    mask = torch.tensor([[False, True, True, True], [True, True, True, False]])
    names, values = zip(*module.named_parameters(), strict=True)

    def run(x, *parameters):
        return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (x, None, mask))

    assert torch.autograd.gradcheck(run, (tokens(2, 4).requires_grad_(), *values), fast_mode=True)


@both
@kinds
@pytest.mark.parametrize("poison", [torch.nan, 1e30])
def test_padding_on_either_side_influences_nothing(causal, options, poison):
    module, x = attention(causal, **options), tokens(3, 9)
    mask = torch.zeros(3, 9, dtype=torch.bool)
    for row, real in enumerate((slice(4, 9), slice(0, 6), slice(2, 8))):
        mask[row, real] = True
    x = x.masked_fill(~mask[..., None], poison).requires_grad_()
    y = module(x, mask=mask)
    for row in range(3):
        torch.testing.assert_close(y[row, mask[row]], module(x[row, mask[row]][None])[0])
    bias = torch.zeros(DIM, dtype=torch.float64) if module.proj.bias is None else module.proj.bias
    torch.testing.assert_close(y[~mask], bias.expand(int((~mask).sum()), -1))
    y.square().sum().backward()
    assert x.grad.isfinite().all() and not x.grad[~mask].any()
    assert all(p.grad.isfinite().all() for p in module.parameters())


@both
@kinds
def test_packed_texts_do_not_attend_to_each_other(causal, options):
    module, x = attention(causal, **options), tokens(2, 11)
    seq_idx = torch.tensor([3, 3, 3, 3, 0, 3, 3, 3, 3, 3, 3]).expand(2, -1)
    alone = torch.cat([module(part) for part in x.split((4, 1, 6), 1)], 1)
    torch.testing.assert_close(module(x, seq_idx=seq_idx), alone)
    mask = torch.ones(2, 11, dtype=torch.bool)
    mask[:, [2, 7]] = False
    parts = zip(x.split((4, 1, 6), 1), mask.split((4, 1, 6), 1), strict=True)
    alone = torch.cat([module(part, mask=real) for part, real in parts], 1)
    torch.testing.assert_close(module(x, mask=mask, seq_idx=seq_idx), alone)


@kinds
def test_steps_from_nothing_give_the_parallel_pass(options):
    module, x = attention(**options), tokens(2, 40)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            cache, outputs = module.empty_cache(2), []
            for token in x.unbind(1):
                y, cache = module.step(token, cache)
                outputs.append(y)
        torch.testing.assert_close(torch.stack(outputs, 1), module(x))


@kinds
def test_prefill_in_pieces_and_steps_give_the_parallel_pass(options):
    module, x = attention(**options), tokens(2, 14)
    cache, outputs = None, []
    for piece in x[:, :11].split((1, 2, 5, 3), 1):
        y, cache = module.prefill(piece, cache=cache)
        outputs.append(y)
    for t in range(11, 14):
        y, cache = module.step(x[:, t], cache)
        outputs.append(y[:, None])
    torch.testing.assert_close(torch.cat(outputs, 1), module(x))


@kinds
def test_a_padded_prompt_goes_on_as_if_alone(options):
    module, x = attention(**options), tokens(3, 12)
    mask = torch.ones(3, 12, dtype=torch.bool)
    mask[0, :4], mask[1, 3:7], mask[2, 5:7] = False, False, False
    with torch.no_grad():
        y, cache = module.prefill(x[:, :7], mask[:, :7])
        z, cache = module.prefill(x[:, 7:9], cache=cache)
        outputs = [y, z]
        for t in range(9, 12):
            z, cache = module.step(x[:, t], cache)
            outputs.append(z[:, None])
        together = torch.cat(outputs, 1)
        for row in range(3):
            torch.testing.assert_close(together[row, mask[row]], module(x[row, mask[row]][None])[0])


@kinds
def test_a_cache_may_be_continued_twice(options):
    module, x = attention(**options), tokens(1, 5)
    one, other = tokens(1, 3), tokens(1, 3)
    with torch.no_grad():
        _, cache = module.prefill(x)
        first, second = cache, cache
        for t in range(3):
            y, first = module.step(one[:, t], first)
            z, second = module.step(other[:, t], second)
        torch.testing.assert_close(y, module(torch.cat([x, one], 1))[:, -1])
        torch.testing.assert_close(z, module(torch.cat([x, other], 1))[:, -1])
        again = cache
        for t in range(3):
            again_y, again = module.step(one[:, t], again)
        torch.testing.assert_close(again_y, y)


def test_steps_write_in_place_and_copy_seldom():
    module = attention()
    with torch.no_grad():
        _, cache = module.prefill(tokens(1, 100))
        buffers = set()
        for token in tokens(1, 300).unbind(1):
            _, cache = module.step(token, cache)
            buffers.add(cache.keys.data_ptr())
    assert len(buffers) <= 2 and cache.length == 400 and cache.keys.shape[2] <= 800


def test_a_windowed_layer_keeps_its_window_alone():
    module = attention(window=5)
    with torch.no_grad():
        _, cache = module.prefill(tokens(1, 100))
        assert cache.keys.shape[2] == 4
        for token in tokens(1, 100).unbind(1):
            _, cache = module.step(token, cache)
            assert cache.keys.shape[2] <= 16


@both
def test_orders(causal):
    module, x = attention(causal, rope={"rope_theta": 20.0}), tokens(2, 6)
    order = scan_order("antidiagonal", (2, 3))
    if causal:  # a causal sequence along the order
        torch.testing.assert_close(permute_tokens(module(x, [order]), order), module(permute_tokens(x, order)))
        with pytest.raises(ValueError, match="a mixer of 1 direction got 2 scan orders"):
            module(x, [order, order])
    else:
        assert torch.equal(module(x, [order, order]), module(x))


@both
def test_the_one_direction_is_all_but_the_bias(causal):
    module, x = attention(causal), tokens(2, 6)
    mixed, parts = module.forward_directions(x, [scan_order("forward", 6)])
    torch.testing.assert_close((mixed, parts[0] + module.proj.bias), (module(x), module(x)))
    with pytest.raises(ValueError, match="attention cannot be split by direction, got 2 scan orders"):
        module.forward_directions(x, [scan_order("forward", 6)] * 2)


@pytest.mark.parametrize(
    ("causal", "name"), [(True, "rotary"), (True, "softcap, window"), (False, "window"), (True, "head norms")]
)
def test_compiles_and_exports_for_any_batch_and_length(causal, name):
    module = attention(causal, torch.float32, **KINDS[name])
    x, mask = tokens(2, 7, dtype=torch.float32), torch.ones(2, 7, dtype=torch.bool)
    mask[0, :3] = False
    seq_idx = torch.tensor([[0, 0, 0, 1, 1, 1, 1]] * 2)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for arguments in ((x,), (x, None, mask), (x, None, mask, seq_idx)):
        torch.testing.assert_close(compiled(*arguments), module(*arguments))
    batch, length = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("length", min=2, max=4096)
    shapes = {0: batch, 1: length}
    plain = torch.export.export(module, (x,), dynamic_shapes=(shapes, None, None, None)[:1]).module()
    masked = torch.export.export(module, (x, None, mask), dynamic_shapes=(shapes, None, shapes)).module()
    for size in ((2, 7), (1, 12), (5, 3)):
        x, mask = tokens(*size, dtype=torch.float32), torch.rand(size) < 0.7
        torch.testing.assert_close(plain(x), module(x))
        torch.testing.assert_close(masked(x, None, mask), module(x, None, mask))


@kinds
def test_half_precision_stays_close(options):
    module, x = attention(dtype=torch.float32, **options), tokens(2, 9, dtype=torch.float32)
    expected = module(x)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        torch.testing.assert_close(module(x).float(), expected, rtol=0.1, atol=0.1)
        y, cache = module.prefill(x[:, :8])
        torch.testing.assert_close(module.step(x[:, 8], cache)[0].float(), expected[:, 8], rtol=0.1, atol=0.1)
    half = copy.deepcopy(module).bfloat16()
    torch.testing.assert_close(half(x.bfloat16()).float(), expected, rtol=0.1, atol=0.1)


def test_bias_by_distance_is_that_of_beit():
    beit = pytest.importorskip("transformers.models.beit.modeling_beit")
    transformers = pytest.importorskip("transformers")
    config = transformers.BeitConfig(
        image_size=(12, 12), patch_size=4, hidden_size=DIM, num_attention_heads=4, use_relative_position_bias=True
    )
    theirs, module = beit.BeitRelativePositionBias(config), attention(False, relative_grid=[3, 3])
    with torch.no_grad():
        theirs.relative_position_bias_table.copy_(module.relative_bias)
    x = tokens(2, 10)
    q, k, v = (t.unflatten(-1, (4, 2)).transpose(1, 2) for t in module.qkv(x).split(DIM, -1))
    bias = theirs((3, 3)).double()
    y = ((q @ k.transpose(-1, -2) * 2**-0.5 + bias).softmax(-1) @ v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(module(x), module.proj(y), rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match=r"a class token and a grid of \(3, 3\), 10 tokens; got 9"):
        module(x[:, 1:])
    mask = torch.ones(2, 10, dtype=torch.bool)
    mask[:, 4:] = False
    shorter = (q @ k.transpose(-1, -2) * 2**-0.5 + bias)[..., :4].softmax(-1) @ v[:, :, :4]
    y = module.proj(shorter.transpose(1, 2).flatten(2))
    torch.testing.assert_close(module(x, mask=mask)[:, :4], y[:, :4], rtol=1e-6, atol=1e-6)


def test_bias_by_distance_depends_on_rows_and_columns_between_cells():
    index = relative_index((2, 3), 7, torch.device("cpu"))
    cells = list(itertools.product(range(2), range(3)))
    between = {(i, j): (a - c, b - d) for i, (a, b) in enumerate(cells) for j, (c, d) in enumerate(cells)}
    found = {}
    for (i, j), distance in between.items():
        assert found.setdefault(distance, int(index[i + 1, j + 1])) == index[i + 1, j + 1]
    assert sorted(found.values()) == list(range(15))
    assert set(index[0, 1:].tolist()) == {15} and set(index[1:, 0].tolist()) == {16} and index[0, 0] == 17


def test_the_table_of_distances_starts_at_zero():
    module = attention(False, relative_grid=(2, 2))
    module.reset_parameters()
    assert module.relative_bias.shape == (12, 4) and not module.relative_bias.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, "heads must divide the width: got 3 heads, width 8"),
        ({"kv_heads": 3}, "kv_heads must divide the heads: got 3 kv_heads, 4 heads"),
        ({"softcap": 0.0}, "softcap must be positive, got 0.0"),
        ({"relative_grid": [2, 3], "window": 2}, "over the tokens of a grid is neither causal nor windowed"),
        ({"relative_grid": [2, 3, 4]}, "a grid of rows and columns has two sides, got 3"),
        ({"rope": {"rope_theta": 1.0, "rope_type": "axial", "grid": [2, 2]}, "head_dim": 4, "causal": True},
         "neither causal nor windowed"),
    ],
)  # fmt: skip
def test_contradictions_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Attention(DIM, **{"heads": 4, **options})


def test_what_needs_more_is_refused():
    with pytest.raises(ValueError, match="it needs attention with causal=True"):
        attention(False).prefill(tokens(1, 3))
    with pytest.raises(ValueError, match="tokens of a grid cannot be packed"):
        attention(False, relative_grid=[2, 2])(tokens(1, 5), seq_idx=torch.zeros(1, 5, dtype=torch.long))
    with pytest.raises(ValueError, match="x has 7 channels, the module was built for 8"):
        attention()(torch.zeros(1, 3, 7, dtype=torch.float64))


def test_is_the_attention_of_torch():
    theirs = nn.MultiheadAttention(DIM, 4, batch_first=True)
    module = Attention(DIM, 4)
    module.load_state_dict({
        "qkv.weight": theirs.in_proj_weight, "qkv.bias": theirs.in_proj_bias,
        "proj.weight": theirs.out_proj.weight, "proj.bias": theirs.out_proj.bias,
    })  # fmt: skip
    x = torch.randn(2, 5, DIM)
    torch.testing.assert_close(module(x), theirs(x, x, x)[0])


def test_nothing_is_left_of_a_sequence_of_padding():
    module, mask = attention(), torch.tensor([[False] * 3, [True] * 3])
    y = module(tokens(2, 3), mask=mask)
    torch.testing.assert_close(y[0], module.proj.bias.expand(3, -1))
    _, cache = module.prefill(tokens(2, 3), mask)
    x = tokens(2)
    torch.testing.assert_close(module.step(x, cache)[0][0], module(x[:1, None])[0, 0])
