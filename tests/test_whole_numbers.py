"""A whole number is accepted wherever a float is meant."""

import inspect
import types
import typing
from contextlib import suppress

import pytest

import transmamba as tm
from tests.hardening.examples import EXAMPLES, Sizes


def floats(function):
    """List the parameters that are annotated as a float, or as one of several types with a float among them."""
    parameters = inspect.signature(function).parameters.values()
    unions = types.UnionType, typing.Union
    return [
        p.name
        for p in parameters
        if p.annotation is float
        or (typing.get_origin(p.annotation) in unions and float in typing.get_args(p.annotation))
    ]


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_float_may_be_an_int(name):
    call = EXAMPLES[name](Sizes(0))
    for parameter in set(floats(call.function)) & call.arguments.keys():
        for number in (0, 1):
            with suppress(ValueError):  # out of range, so the type is right
                call.function(**call.arguments | {parameter: number})


def test_the_numbers_of_the_report():
    size = {"img_size": 8, "patch_size": 4, "dim": 12, "depth": 1}
    tm.models.Vim(**size, drop_path=0)
    tm.models.MambaEncoder(5, 8, depth=1, mlp_ratio=4)
    student = tm.models.VisionMamba(**size)
    tm.transfer.param_groups(student, [], lr=1, weight_decay=0)
    with pytest.raises(TypeError, match="lr"):
        tm.transfer.param_groups(student, [], lr="1")
    with pytest.raises(TypeError, match="lr"):
        tm.transfer.param_groups(student, [], lr=True)
