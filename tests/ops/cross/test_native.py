import pytest
import torch
from tests.ops.native.problems import compare, problem

from transmamba.ops.cross import native
from transmamba.ops.native import library

TOLERANCE = {torch.float64: 1e-13, torch.float32: 3e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}
ALL = ("u", "dt", "A", "B", "C", "dt_bias")
FEATURES = {
    "plain": {},
    "merged": {"merge": True},
    "shared u": {"shared": ("u",)},
    "everything shared": {"shared": ALL},
    "shared C": {"shared": ("C",), "merge": True},
    "natural order": {"without": ("orders",)},
    "no bias, no softplus": {"without": ("dt_bias",), "softplus": False},
    "one state": {"state": 1, "dim": 67},
    "many states": {"state": 37, "length": 11},
    "time first": {"time_first": True, "without": ("orders",), "dim": 67},
    "one direction": {"k": 1, "dim": 131},
    "several parts of the channels": {"dim": 397, "length": 7, "state": 3},
    "all read one token": {"one_token": True, "queries": 41},
    "more queries than tokens": {"queries": 91, "length": 33},
    "no query": {"queries": 0},
    "no token": {"length": 0, "queries": 0},
    "one token": {"length": 1},
    "nobody": {"batch": 0},
}
variants = pytest.mark.parametrize("variant", library.variants() if library.available() else ())


@variants
@pytest.mark.parametrize("feature", FEATURES)
def test_every_instruction_set_agrees_with_the_reference(feature, variant):
    for dtype in (torch.float32, torch.float64):
        compare(problem(**FEATURES[feature], dtype=dtype), native, TOLERANCE[dtype], least=1.0, variant=variant)


@variants
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("feature", ["plain", "merged", "shared u", "time first", "one state"])
def test_half_precision_costs_only_its_own_rounding(feature, variant, dtype):
    compare(problem(**FEATURES[feature], dtype=dtype), native, TOLERANCE[dtype], variant=variant)


@pytest.mark.parametrize("missing", ["y", "last"])
def test_either_gradient_may_be_missing(missing):
    compare(problem(), native, 1e-13, without_gradient=missing)


def test_broadcast_and_sliced_inputs_are_read_where_they_lie():
    p, wide = problem(dim=37, state=5), torch.randn(2, 2, 37, 2 * 5 + 1, dtype=torch.float64)
    p = p._replace(
        u=p.u[..., :1].expand(-1, -1, -1, 37),
        dt=torch.randn(2, 2, 37, 74, dtype=torch.float64)[..., ::2] - 1,
        B=wide[..., :5],
        C=wide[:, :, :11, 6:],
        dt_bias=p.dt_bias[:1, :1].expand(2, 37),
    )
    before = [x.clone() for x in p if isinstance(x, torch.Tensor)]
    compare(p, native, 1e-13)
    assert all(torch.equal(x, y) for x, y in zip((x for x in p if isinstance(x, torch.Tensor)), before, strict=True))


def test_the_number_of_threads_changes_no_bit():
    p, answers, threads = problem(3, dim=300, dtype=torch.float32), [], torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            y, last, saved = native.forward(p, True)
            answers.append((y, last, *native.backward(p, saved, torch.ones_like(y), torch.ones_like(last))))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(x, y) for x, y in zip(*answers, strict=True))


@variants
def test_long_steps_forget_the_past_and_tiny_ones_keep_it(variant):
    for size in (1e-7, 60.0, 1e4):
        p = problem(softplus=False, without=("dt_bias",), dim=19, dtype=torch.float32)
        compare(p._replace(dt=size * torch.rand_like(p.dt)), native, 1e-5, variant=variant)


def test_refuses_what_it_cannot_run(monkeypatch):
    p = problem()
    assert native.unsupported_reasons(p) == []
    assert native.unsupported_reasons(p._replace(u=p.u.to("meta"))) == ["runs on a CPU, u is on meta"]


def test_an_order_that_is_no_permutation_is_named():
    p = problem()
    with pytest.raises(ValueError, match=r"orders must hold a permutation of range\(37\) in every row"):
        native.forward(p._replace(orders=torch.zeros_like(p.orders)), False)
