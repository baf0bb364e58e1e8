import math

import pytest
import torch
import torch.nn.functional as F

from tests.golden import golden
from transmamba.nn import HeadSSM, Mamba2Mixer, MambaBlock
from transmamba.ops import scan_order

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
CASES = pytest.mark.parametrize("case", ["mamba2_block_a", "mamba2_block_b"])


def our_key(key):
    return f"ssm.{key}" if key in ("A_log", "D", "dt_bias") else key


def load(case, dtype):
    numbers = golden(case)
    config = numbers.meta["config"]
    ssm = HeadSSM(
        config["expand"] * config["d_model"] // config["headdim"],
        config["headdim"],
        d_state=config["d_state"],
        groups=config["ngroups"],
        channel_skip=config.get("D_has_hdim", False),
        dt_limit=tuple(config.get("dt_limit", (0.0, math.inf))),
        chunk_size=config["chunk_size"],
    )
    mixer = Mamba2Mixer(config["d_model"], bias=config.get("bias", False), ssm=ssm)
    mixer.load_state_dict({our_key(key): value for key, value in numbers.part("param").items()})
    return numbers, mixer.to(dtype)


@DTYPES
@CASES
def test_outputs_and_gradients_are_the_official_ones(case, dtype):
    numbers, mixer = load(case, dtype)
    x = numbers.tensors["input/x"].to(dtype).requires_grad_()
    y = mixer(x)
    numbers.check("output/y", y)
    numbers.check("output/y_len1", mixer(x[:, :1]))
    (y * numbers.tensors["input/cotangent"]).sum().backward()
    numbers.check("grad/input", x.grad)
    parameters = dict(mixer.named_parameters())
    for key in numbers.part("param"):
        numbers.check(f"grad/param/{key}", parameters[our_key(key)].grad)


@DTYPES
@torch.no_grad()
def test_decoding_is_the_official_one(dtype):
    numbers, mixer = load("mamba2_block_a", dtype)
    x, cut = numbers.tensors["input/x"].to(dtype), numbers.meta["prefill"]
    y, cache = mixer.prefill(x[:, :cut])
    numbers.check("decode/prefill_y", y)
    numbers.check("decode/prefill_conv_state", cache.conv)
    numbers.check("decode/prefill_ssm_state", cache.state)
    outputs = []
    for token in x[:, cut:].unbind(1):
        y, cache = mixer.step(token, cache)
        outputs.append(y)
    numbers.check("decode/step_y", torch.stack(outputs, 1))
    numbers.check("decode/final_conv_state", cache.conv)
    numbers.check("decode/final_ssm_state", cache.state)


def test_it_is_a_mixer_of_a_block_along_any_order():
    block, x = MambaBlock(6, Mamba2Mixer(6, 5, head_dim=4)).double(), torch.randn(2, 7, 6, dtype=torch.float64)
    order, mask = scan_order("backward", 7), torch.arange(7) < torch.tensor([[7], [4]])
    torch.testing.assert_close(block(x, [order], mask.flip(1)), block(x.flip(1), None, mask).flip(1))
    y, parts = block.forward_directions(x, [order])
    torch.testing.assert_close(y, block(x, [order]))
    torch.testing.assert_close(parts[0], block.mixer(block.norm1(x), [order]))


def test_the_part_of_the_direction_leaves_out_the_bias():
    mixer, x = Mamba2Mixer(6, 5, head_dim=4, bias=True), torch.randn(2, 7, 6)
    y, parts = mixer.forward_directions(x)
    torch.testing.assert_close(parts.sum(0) + mixer.out_proj.bias, y)


def test_it_starts_where_mamba_2_starts():
    ssm = HeadSSM(101, 3)
    A, dt = ssm.A_log.exp(), F.softplus(ssm.dt_bias)
    assert 1 <= A.min() < 3 and 14 < A.max() <= 16
    assert 1e-3 * 0.999 <= dt.min() < 2e-3 and 5e-2 < dt.max() <= 1e-1 * 1.001
    assert ssm.D.eq(1).all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: HeadSSM(4, groups=3), "groups must divide the heads: got 3 groups, 4 heads"),
        (lambda: Mamba2Mixer(8, head_dim=5), "heads must fill the inner width 16, got 3 heads of 5 channels"),
    ],
)
def test_impossible_sizes_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_one_order_at_most():
    with pytest.raises(ValueError, match="a mixer of 1 direction got 2 scan orders"):
        Mamba2Mixer(8, head_dim=4)(torch.zeros(1, 3, 8), [scan_order("forward", 3)] * 2)
