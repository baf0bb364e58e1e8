"""`MambaMixer` against the official block of mamba_ssm."""

import pytest
import torch

from tests.golden import golden
from transmamba.nn import MambaMixer
from transmamba.ops import use_backend

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
BACKENDS = pytest.mark.parametrize("backend", ["auto", "reference"])
CASES = pytest.mark.parametrize("case", ["mamba_block_a", "mamba_block_b"])


def our_key(key):
    if key.startswith(("in_proj", "out_proj")):
        return key
    if key.startswith("conv1d"):
        return f"branches.0.{key}"
    return "branches.0.ssm." + ("dt_bias" if key == "dt_proj.bias" else key)


def load(case, dtype):
    numbers = golden(case)
    config = dict(numbers.meta["config"])
    mixer = MambaMixer(config.pop("d_model"), config.pop("d_state"), **config)
    mixer.load_state_dict({our_key(key): value for key, value in numbers.part("param").items()})
    return numbers, mixer.to(dtype)


@BACKENDS
@DTYPES
@CASES
def test_outputs_and_gradients_are_the_official_ones(case, dtype, backend):
    numbers, mixer = load(case, dtype)
    x = numbers.tensors["input/x"].to(dtype).requires_grad_()
    with use_backend(backend):
        y = mixer(x)
        numbers.check("output/y", y)
        numbers.check("output/y_len1", mixer(x[:, :1]))
        (y * numbers.tensors["input/cotangent"]).sum().backward()
    numbers.check("grad/input", x.grad)
    parameters = dict(mixer.named_parameters())
    for key in numbers.part("param"):
        numbers.check(f"grad/param/{key}", parameters[our_key(key)].grad)


@BACKENDS
@DTYPES
@CASES
@torch.no_grad()
def test_decoding_is_the_official_one(case, dtype, backend):
    numbers, mixer = load(case, dtype)
    x, cut = numbers.tensors["input/x"].to(dtype), numbers.meta["prefill"]
    with use_backend(backend):
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
