"""A call as JSON, and back: plain data, registered builders, and a clear error for the rest."""

import json
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from transmamba import models
from transmamba.models.config import BUILDERS, rebuild, write_call, write_family
from transmamba.nn import HeadSSM, Mamba2Mixer, Mamba3Mixer, MambaMixer, RMSNorm


class Holder:
    """A model that keeps its arguments."""

    def __init__(self, **given):
        self.given = given


def back(**arguments):
    """Return the arguments after a journey through text."""
    return rebuild(json.loads(json.dumps(write_call("Holder", arguments))), {}, Holder).given


@pytest.fixture
def own():
    """Register a mixer of the user's while a test runs."""

    @models.register
    class LocalMixer(nn.Module):
        def __init__(self, dim, rope=None, inner=MambaMixer):
            super().__init__()
            self.rope, self.inner = rope, inner(dim)

    yield LocalMixer
    del BUILDERS["LocalMixer"]


def test_plain_data_comes_back_with_tuples_for_lists():
    given = {
        "a": None,
        "b": True,
        "c": 3,
        "d": -0.5,
        "e": "x",
        "f": (1, (2, 3)),
        "g": [],
        "h": {"k": [1, {"build": 2}]},
    }
    assert back(**given) == {**given, "g": ()}
    assert back(x=math.inf)["x"] == math.inf and math.isnan(back(x=math.nan)["x"])
    assert back() == {}


def test_the_written_form():
    mixers = [MambaMixer, partial(Mamba2Mixer, d_state=64)]
    assert write_call("MambaLM", {"dim": 8, "mixer": mixers}) == {
        "build": "MambaLM",
        "arguments": {
            "dim": 8,
            "mixer": [
                {"build": "MambaMixer", "arguments": {}},
                {"build": "Mamba2Mixer", "arguments": {"d_state": 64}},
            ],
        },
    }
    assert write_family("vim", {"img_size": (8, 8)}) == {"family": "vim", "config": {"img_size": [8, 8]}}


def test_builders_come_back(own):
    inner = partial(Mamba2Mixer, d_state=4, head_dim=8)
    given = back(a=own, b=[own, RMSNorm], c=partial(own, rope={"theta": 1e4, "factors": [1.0, 2.0]}, inner=inner))
    assert given["a"] is own and given["b"] == (own, RMSNorm)
    built = given["c"](8)
    assert built.rope == {"theta": 1e4, "factors": [1.0, 2.0]} and built.inner.ssm.d_state == 4
    assert back(x=partial(own))["x"] is own
    nested = back(x=partial(partial(own, rope={}), inner=inner))["x"]
    assert nested.func is own and nested.keywords["rope"] == {} and nested.keywords["inner"].keywords == inner.keywords


def test_a_registered_function_is_known_with_and_without_its_decorator():
    def wide(dim):
        return MambaMixer(dim, expand=3)

    registered = models.register(wide)
    try:
        assert write_call("x", {"mixer": wide}) == write_call("x", {"mixer": registered})
        assert back(mixer=wide)["mixer"](4).out_proj.in_features == 12
    finally:
        del BUILDERS["wide"]


class Unknown(MambaMixer):
    """A mixer that is not registered, though its base is."""


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Unknown, r"x is Unknown, which is not registered: decorate it with @transmamba\.models\.register before"),
        ([MambaMixer, Unknown], r"x\[1\] is Unknown, which is not registered"),
        (partial(Unknown, d_state=3), "x is Unknown, which is not registered"),
        (partial(Mamba2Mixer, ssm=HeadSSM(2, 4)),
         r"x\.ssm is of type HeadSSM: expected plain data, a registered class or function, or a functools\.partial of "
         "one; register a function that builds it, or the model, from plain data with @transmamba"),
        (partial(Mamba3Mixer, decay=F.softplus), r"x\.decay is softplus, which is not registered"),
        (partial(MambaMixer, 8), r"x is a functools\.partial with positional arguments: pass them by keyword"),
        (lambda dim: nn.Identity(), r"x is .*<lambda>, which is not registered"),
        ({"a": [1, torch.zeros(2)]}, r"x\['a'\]\[1\] is of type Tensor: a dictionary may hold plain data only"),
        ({"a": MambaMixer}, r"x\['a'\] is of type type: a dictionary may hold plain data only"),
        ({"a": {0: 4}}, r"x\['a'\] is a dictionary with the key 0: its keys must be strings"),
        ({"build": "Vim"}, "x is a dictionary with the key 'build', which config.json keeps for builders"),
        (torch.float32, "x is of type dtype"),
        (nn.Identity(), "x is of type Identity"),
    ],
)  # fmt: skip
def test_the_rest_is_refused_by_its_place(value, message):
    with pytest.raises(ValueError, match=message):
        write_call("Holder", {"x": value})


@pytest.mark.parametrize(
    ("build_config", "message"),
    [
        ({}, "does not say what to build with which arguments: {}"),
        ({"build": "Holder", "arguments": {"x": {"build": "MambaMixer"}}}, "does not say what to build with which"),
        ({"build": "Holder", "arguments": {"x": [{"build": 3, "arguments": {}}]}}, "does not say what to build"),
        ({"build": "Other", "arguments": {}},
         "cannot build 'Other': it is neither Holder nor registered with transmamba.models.register; if it is yours"),
        ({"build": "Holder", "arguments": {"x": {"build": "os.system", "arguments": {}}}},
         "cannot build 'os.system': it is not registered with transmamba.models.register"),
        ({"build": "Holder", "arguments": {"x": {"build": "Holder", "arguments": {}}}}, "cannot build 'Holder'"),
        ({"family": "gpt", "config": {}}, "names no official family and its config: {'config': {}, 'family'"),
        ({"family": ["vim"], "config": {}}, "names no official family"),
    ],
)  # fmt: skip
def test_only_registered_names_are_built(build_config, message):
    with pytest.raises(ValueError, match=message):
        rebuild(build_config, {}, Holder)


def test_lists_in_lists_without_end_are_refused():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ValueError, match="config.json is nested too deeply"):
        rebuild({"build": "Holder", "arguments": {"x": deep}}, {}, Holder)
