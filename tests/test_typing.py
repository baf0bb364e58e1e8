import os
import subprocess
import sys
from collections.abc import Sequence

import pytest
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from transmamba import _typing
from transmamba._typing import check_choice, typed


@typed
def shift(x: Float[Tensor, "batch dim"], by: Float[Tensor, " dim"]) -> Float[Tensor, "batch dim"]:
    return x + by


@typed
def broken(x: Float[Tensor, "batch dim"]) -> Float[Tensor, "dim batch"]:
    return x


class Stack(nn.Module):
    @typed
    def forward(self, x: Float[Tensor, "batch dim"], rest: Sequence[Float[Tensor, " dim"]] = ()) -> Tensor:
        return shift(x, torch.ones(x.shape[1]))


def test_wrong_shape_names_parameter_shape_and_axes():
    with pytest.raises(TypeError, match=r"(?s)by.*f32\[3\].*dim=2"):
        shift(torch.zeros(5, 2), torch.zeros(3))


def test_wrong_dtype_is_refused():
    with pytest.raises(TypeError, match=r"i64\[5,2\]"):
        shift(torch.zeros(5, 2, dtype=torch.long), torch.zeros(2))


def test_masks_of_whole_numbers_are_named_with_what_to_pass_instead():
    @typed
    def masked(x: Float[Tensor, "batch dim"], own_mask: Bool[Tensor, "batch dim"] | None = None) -> Tensor:
        return x

    with pytest.raises(TypeError, match=r"own_mask is int64, and masks are bool.*: pass own_mask\.bool\(\)"):
        masked(torch.zeros(5, 2), torch.ones(5, 2, dtype=torch.long))
    with pytest.raises(TypeError, match=r"(?s)own_mask.*bool\[5,3\]"):
        masked(torch.zeros(5, 2), torch.ones(5, 3, dtype=torch.bool))
    with pytest.raises(TypeError, match="unexpected|multiple|other"):
        masked(torch.zeros(5, 2), other=torch.ones(5, 2, dtype=torch.long))


def test_wrong_result_is_refused():
    with pytest.raises(TypeError, match="return"):
        broken(torch.zeros(5, 2))


def test_rejected_call_leaves_the_border_closed():
    for _ in range(2):
        with pytest.raises(TypeError):
            shift(torch.zeros(5, 2), torch.zeros(3))


def test_only_the_outermost_call_is_checked(monkeypatch):
    monkeypatch.setattr(_typing, "CHECK", "1")

    @typed
    def outer(x: Float[Tensor, "batch dim"]) -> Tensor:
        return shift(x, torch.ones(1))

    assert outer(torch.zeros(5, 2)).shape == (5, 2)
    monkeypatch.setattr(_typing, "CHECK", "all")
    with pytest.raises(TypeError, match="by"):
        outer(torch.zeros(5, 2))


def test_a_form_of_call_is_checked_once_and_another_anew(monkeypatch):
    monkeypatch.setattr(_typing, "CHECK", "1")
    results = [torch.ones(2), torch.ones(3)]

    @typed
    def take(x: Float[Tensor, " dim"], scale: float = 1.0) -> Float[Tensor, " dim"]:
        return results.pop(0)

    take(torch.zeros(2))
    assert take(torch.zeros(2)).shape == (3,)  # not looked at
    for other in (
        (torch.zeros(2, 1),),
        (torch.zeros(2, dtype=torch.long),),
        (torch.zeros(2), "1"),
        (torch.zeros(2), True),
    ):
        with pytest.raises(TypeError):
            take(*other)


def test_a_rejected_form_of_call_is_rejected_again(monkeypatch):
    monkeypatch.setattr(_typing, "CHECK", "1")
    test_rejected_call_leaves_the_border_closed()


def test_a_call_that_cannot_be_compared_is_checked_every_time(monkeypatch):
    monkeypatch.setattr(_typing, "CHECK", "1")
    results = [torch.ones(2), torch.ones(3)]

    @typed
    def take(x: Float[Tensor, " dim"], choices: dict[str, int]) -> Float[Tensor, " dim"]:
        return results.pop(0)

    take(torch.zeros(2), {})
    with pytest.raises(TypeError, match="return"):
        take(torch.zeros(2), {})


def test_compiles_without_a_graph_break():
    compiled = torch.compile(Stack(), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(torch.zeros(5, 2)), torch.ones(5, 2))


def test_every_wrapper_has_its_own_code_object():
    assert shift.__code__ is not broken.__code__


def test_switching_off_returns_the_function_itself():
    script = "from transmamba._typing import typed\ndef f(x: int): return x\nassert typed(f) is f"
    subprocess.run([sys.executable, "-c", script], check=True, env={**os.environ, "TRANSMAMBA_CHECK": "0"})


@pytest.mark.parametrize(
    ("choices", "rest", "message"),
    [
        (("x", "y"), "", "unknown order 'b': expected x or y"),
        (("x", "y", None), "", "unknown order 'b': expected x, y or None"),
        (iter("wxyz"), ", or a mapping", "unknown order 'b': expected one of w, x, y, z, or a mapping"),
    ],
)
def test_an_unknown_choice_is_refused_with_the_known_ones(choices, rest, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        check_choice("order", "b", choices, rest)


def test_a_known_choice_passes():
    check_choice("order", "y", ("x", "y"))
    check_choice("order", None, ("x", None))
