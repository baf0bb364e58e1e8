"""A whole number is accepted wherever a float is meant."""

import inspect
import typing

import pytest

import transmamba as tm
from tests.hardening.examples import EXAMPLES, Sizes


def floats(function):
    """Names of the parameters that are annotated as a float, or as one of several types with a float among them."""
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.annotation is float or float in typing.get_args(p.annotation)]


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_float_may_be_an_int(name):
    call = EXAMPLES[name](Sizes(0))
    for parameter in floats(call.function):
        if parameter not in call.arguments:
            continue
        for number in (1, 0):
            try:
                call.function(**call.arguments | {parameter: number})
                break
            except ValueError:  # out of range, not of a wrong type
                assert number, f"{name} takes neither {parameter}=1 nor {parameter}=0"


def test_the_numbers_of_the_report():
    size = {"img_size": 8, "patch_size": 4, "dim": 12, "depth": 1}
    tm.models.Vim(**size, drop_path=0)
    tm.models.MambaEncoder(5, 8, depth=1, mlp_ratio=4)
    student = tm.models.VisionMamba(**size)
    tm.transfer.param_groups(student, [], lr=1, weight_decay=0)
    with pytest.raises(TypeError, match="lr"):
        tm.transfer.param_groups(student, [], lr="1")
