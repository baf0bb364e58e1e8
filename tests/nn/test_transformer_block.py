"""A block around any mixer: its parts in their places, token by token, and in other dtypes."""

import itertools
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from transmamba.nn import Attention, GatedMlp, LayerNorm, Mamba2Mixer, MambaMixer, Mlp, TransformerBlock
from transmamba.ops import scan_order

DIM = 6
PLACEMENTS = {
    "pre": lambda x, f, norm, post: x + f(norm(x)),
    "post": lambda x, f, norm, post: norm(x + f(x)),
    "sandwich": lambda x, f, norm, post: x + post(f(norm(x))),
    "output": lambda x, f, norm, post: x + norm(f(x)),
}
MIXERS = {
    "attention": partial(Attention, DIM, heads=3, causal=True, window=4, rope={"rope_theta": 9.0}),
    "mamba": partial(MambaMixer, DIM, 3),
    "mamba2": partial(Mamba2Mixer, DIM, 3, head_dim=4),
}
mixers = pytest.mark.parametrize("build", MIXERS.values(), ids=MIXERS.keys())
placements = pytest.mark.parametrize("placement", PLACEMENTS)


def perturbed(block):
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(0.3 * torch.randn_like(parameter))
    return block


def block_of(mixer, dtype=torch.float64, **options):
    return perturbed(TransformerBlock(DIM, mixer, **{"hidden_dim": 7, **options})).to(dtype)


@pytest.mark.parametrize("norm", ["layer", "rms"])
@placements
def test_norms_stand_where_the_placement_puts_them(placement, norm):
    block, x = block_of(Attention(DIM, 2), placement=placement, norm=norm, eps=1e-2), torch.randn(2, 5, DIM).double()
    assert (block.post_norm1 is not None) == (placement == "sandwich")
    after = PLACEMENTS[placement](x, block.attn, block.norm1, block.post_norm1)
    expected = PLACEMENTS[placement](after, block.mlp, block.norm2, block.post_norm2)
    torch.testing.assert_close(block(x), expected)
    weight, bias = block.norm1.weight, getattr(block.norm1, "bias", None)
    by_hand = F.layer_norm(x, (DIM,), weight, bias, 1e-2) if norm == "layer" else F.rms_norm(x, (DIM,), weight, 1e-2)
    torch.testing.assert_close(block.norm1(x), by_hand)


def test_parallel_branches_read_the_same_stream():
    block, x = block_of(Attention(DIM, 2), parallel=True), torch.randn(2, 5, DIM).double()
    torch.testing.assert_close(block(x), x + block.attn(block.norm1(x)) + block.mlp(block.norm2(x)))


def test_a_block_without_mlp_and_one_without_norms():
    x = torch.randn(2, 5, DIM).double()
    block = block_of(MambaMixer(DIM), hidden_dim=None)
    torch.testing.assert_close(block(x), x + block.mixer(block.norm1(x)))
    block = block_of(MambaMixer(DIM), without=["norm1", "norm2"])
    after = x + block.mixer(x)
    torch.testing.assert_close(block(x), after + block.mlp(after))


def test_names_are_those_of_timm_and_of_our_language_models():
    def names(mixer, **options):
        keys = TransformerBlock(DIM, mixer, hidden_dim=7, **options).state_dict()
        return list(dict.fromkeys(key.rsplit(".", 1)[0] for key in keys))

    assert names(Attention(DIM, 2)) == ["norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"]
    assert names(Attention(DIM, 2, causal=True), placement="sandwich") == [
        "norm1", "mixer.qkv", "mixer.proj", "post_norm1", "norm2", "mlp.fc1", "mlp.fc2", "post_norm2",
    ]  # fmt: skip
    assert names(Mamba2Mixer(DIM, 3, head_dim=4))[1].startswith("mixer")


@mixers
@placements
def test_steps_after_a_prefill_give_the_parallel_pass(build, placement):
    block, x = block_of(build(), placement=placement), torch.randn(2, 9, DIM).double()
    y, cache = block.prefill(x[:, :4], None, None)
    outputs = [y]
    for t in range(4, 9):
        y, cache = block.step(x[:, t], cache)
        outputs.append(y[:, None])
    torch.testing.assert_close(torch.cat(outputs, 1), block(x))


@mixers
def test_masks_texts_and_orders_reach_the_mixer(build):
    block, x = block_of(build()), torch.randn(2, 8, DIM).double()
    mask = torch.rand(2, 8) < 0.6
    seq_idx = torch.tensor([[0, 0, 0, 1, 1, 1, 2, 2]] * 2)
    for given in itertools.product((None, [scan_order("backward", 8)]), (None, mask), (None, seq_idx)):
        after = x + block.mixer(block.norm1(x), *given)
        torch.testing.assert_close(block(x, *given), after + block.mlp(block.norm2(after)))
        whole, parts = block.forward_directions(x, *given)
        torch.testing.assert_close(whole, block(x, *given))
        assert parts.shape == (1, 2, 8, DIM)


@mixers
@placements
def test_a_float32_stream_passes_bfloat16_weights(build, placement):
    block, x = block_of(build(), torch.bfloat16, placement=placement), torch.randn(2, 5, DIM)
    expected = block_of(build(), torch.float32, placement=placement)
    expected.load_state_dict({name: value.float() for name, value in block.state_dict().items()})
    y = block(x)
    assert y.dtype == (torch.bfloat16 if placement == "post" else torch.float32)
    torch.testing.assert_close(y.float(), expected(x), rtol=0.1, atol=0.1)


def test_drop_path_drops_both_branches():
    block, x = block_of(Attention(DIM, 2), drop_path=0.9999999), torch.randn(3, 5, DIM).double()
    assert torch.equal(block.train()(x), x) and not torch.equal(block.eval()(x), x)


@mixers
def test_compiles_in_one_graph(build):
    block, x = block_of(build(), torch.float32), torch.randn(2, 5, DIM)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(block, fullgraph=True, backend="aot_eager")(x), block(x))


ACTIVATIONS = {
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5)),
    "gelu_tanh": lambda x: 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))),
    "quick_gelu": lambda x: x / (1 + torch.exp(-1.702 * x)),
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "relu": lambda x: x.clamp_min(0),
    "relu2": lambda x: x.clamp_min(0) ** 2,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name):
    x, act = torch.randn(5, DIM).double(), ACTIVATIONS[name]
    mlp = Mlp(DIM, 7, activation=name, bias=False).double()
    torch.testing.assert_close(mlp(x), act(x @ mlp.fc1.weight.T) @ mlp.fc2.weight.T)
    gated = GatedMlp(DIM, 7, multiple=1, activation=name, bias=True).double()
    value, gate = gated.fc1(x).chunk(2, -1)
    torch.testing.assert_close(gated(x), gated.fc2(value * act(gate)))
    assert gated.fc2.in_features == 7 and GatedMlp(DIM, 7).fc2.in_features == 128


def test_a_layer_norm_gives_the_dtype_of_its_weights():
    norm, x = perturbed(LayerNorm(DIM, eps=1e-3)), torch.randn(2, 5, DIM)
    expected = F.layer_norm(x, (DIM,), norm.weight, norm.bias, 1e-3)
    torch.testing.assert_close(norm(x), expected)
    half = LayerNorm(DIM, eps=1e-3, bias=False).bfloat16()
    assert half(x).dtype == torch.bfloat16 and list(half.state_dict()) == ["weight"]
    torch.testing.assert_close(half(x).float(), F.layer_norm(x, (DIM,), eps=1e-3), rtol=0.02, atol=0.02)
    norm.reset_parameters()
    assert torch.equal(norm(x), nn.LayerNorm(DIM, eps=1e-3)(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"parallel": True, "placement": "post"},
            "a parallel block has an MLP and norms of placement 'pre', got 'post'",
        ),
        ({"parallel": True, "hidden_dim": None}, "a parallel block has an MLP"),
        ({"without": ["post_norm1"]}, r"cannot leave out \['post_norm1'\]: the norms of the block are norm1, norm2"),
        ({"without": ["norm2"], "hidden_dim": None}, "the norms of the block are norm1"),
        ({"hidden_dim": 0}, "hidden_dim must be at least 1, got 0"),
    ],
)
def test_contradictions_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TransformerBlock(DIM, Attention(DIM, 2), **{"hidden_dim": 7, **options})


def test_another_width_is_refused():
    with pytest.raises(ValueError, match="x has 5 channels, the module was built for 6"):
        block_of(Attention(DIM, 2))(torch.zeros(1, 3, 5).double())
