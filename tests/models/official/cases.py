"""Running a golden case of a vision family through our model of it."""

from itertools import product

import pytest
import torch

from tests.golden import Golden, golden
from transmamba.models import Features
from transmamba.models.official import FAMILIES, from_official
from transmamba.ops import use_backend


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


def computed(case: str, dtype: torch.dtype, backend: str) -> tuple[Golden, torch.nn.Module, torch.Tensor, Features]:
    """Run a case; return it, our model, its input and features, once logits and gradients are the official ones."""
    data, model, x = load(case, dtype)
    with use_backend(backend):
        features = model.forward_features(x, directions=True)
        x.requires_grad_()
        logits = model(x)
        check_gradients(data, model, x, logits)
    data.check("output/logits", logits)
    return data, model, x, features


def check_class_token_model(case: str, dtype: torch.dtype, backend: str) -> None:
    """Check logits, gradients, features and streams of a model that reads its class token."""
    data, model, _, features = computed(case, dtype, backend)
    data.check("output/features", features.last[:, features.extra[0]])
    for i, stream in enumerate(features.layers[:-1]):
        data.check(f"block/{i + 1}/residual", stream)
    for i in range(len(model.blocks)):
        natural = [part[i][:, order.inverse] for part, order in zip(features.directions, features.orders, strict=True)]
        data.check(f"block/{i}/hidden", sum(natural))


def check_directions(case: str, dtype: torch.dtype, backend: str, scale: float = 1) -> None:
    """Check the outputs of both directions of every mixer, times `scale`, before the output projection."""
    data, model, _ = load(case, dtype)
    for i, block in enumerate(model.blocks):
        stream = data.tensors[f"block/{i}/residual"].to(dtype)
        with use_backend(backend), torch.no_grad():
            _, parts = without_output_projection(block.mixer).forward_directions(block.norm1(stream))
        for part, name in zip(parts, ("forward", "backward"), strict=True):
            data.check(f"dir/{i}/{name}", scale * part)


def without_output_projection(mixer: torch.nn.Module) -> torch.nn.Module:
    """Let the mixer return the input of its output projection."""
    inner = mixer.out_proj.in_features
    mixer.out_proj = torch.nn.Linear(inner, inner, bias=False, dtype=mixer.out_proj.weight.dtype)
    torch.nn.init.eye_(mixer.out_proj.weight)
    return mixer
