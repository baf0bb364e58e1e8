"""Running a golden case of a vision family through our model of it."""

from itertools import product

import pytest
import torch

from tests.golden import Golden, golden
from transmamba.models.official import FAMILIES, from_official


def every_run(*cases):
    """Parametrise a test over cases, precisions and backends."""
    runs = list(product(cases, [torch.float64, torch.float32], ["auto", "reference"]))
    ids = [f"{case}-{str(dtype)[6:]}-{backend}" for case, dtype, backend in runs]
    return pytest.mark.parametrize(("case", "dtype", "backend"), runs, ids=ids)


def load(case: str, dtype: torch.dtype = torch.float32) -> tuple[Golden, torch.nn.Module, torch.Tensor]:
    """Return the case, our model of it in evaluation mode, and its input."""
    data = golden(case)
    model = from_official(data.meta["family"], data.meta["config"], data.part("param", dtype)).eval()
    return data, model, data.tensors["input/x"].to(dtype)


def check_gradients(data: Golden, model: torch.nn.Module, x: torch.Tensor, logits: torch.Tensor) -> None:
    """Compare the gradients of the case's loss, for the input and for every parameter by its official name."""
    family = FAMILIES[data.meta["family"]]
    (logits * data.tensors["input/cotangent"].to(x.dtype)).sum().backward()
    data.check("grad/input", x.grad)
    compared = 0
    for name, parameter in model.named_parameters():
        shape = family.shape(name, parameter.shape)
        data.check(f"grad/param/{family.official_name(name)}", parameter.grad.reshape(shape))
        compared += 1
    assert compared == len(data.part("grad/param"))


def without_output_projection(mixer: torch.nn.Module) -> torch.nn.Module:
    """Let the mixer return the input of its output projection."""
    inner = mixer.out_proj.in_features
    mixer.out_proj = torch.nn.Linear(inner, inner, bias=False, dtype=mixer.out_proj.weight.dtype)
    torch.nn.init.eye_(mixer.out_proj.weight)
    return mixer
