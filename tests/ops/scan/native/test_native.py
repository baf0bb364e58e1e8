import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops.scan.native.problems import FLOATS, cast, check, computed, expected, gradients_of_outputs, problem
from transmamba.ops.native import library
from transmamba.ops.scan import native, reference

pytestmark = pytest.mark.skipif(not library.available(), reason="the package was built without the native library")

EVERYTHING_STEPPED = ("dt", "A", "dt_bias")  # fields that directions must share to share their exponentials
FEATURES = {
    "plain": dict(k=1, without=("orders", "segments", "initial_state")),
    "orders": dict(without=("segments", "initial_state")),
    "own u": dict(own_u=True, without=("segments",)),
    "shared parameters": dict(shared=("dt", "A", "B", "C", "D", "dt_bias"), without=("segments",)),
    "merged": dict(merge=True),
    "segments": dict(without=("initial_state",), length=71),
    "no softplus": dict(softplus=False, shared=("B",), without=("dt_bias", "D")),
    "parameters by step": dict(parameters_by_step=True, length=67),
    "shared decay": dict(k=4, length=67, shared=EVERYTHING_STEPPED, parameters_by_step=True, without=("segments",)),
    "shared decay, odd directions, all shared, merged": dict(
        k=7, shared=(*EVERYTHING_STEPPED, "B", "C", "D"), parameters_by_step=True, merge=True, without=("segments",)
    ),
    "shared decay, passes of four states": dict(
        k=4, length=67, dim=37, state=12, shared=EVERYTHING_STEPPED, parameters_by_step=True, without=("segments",)
    ),
    "shared decay and readout, passes of four states": dict(
        k=5,
        length=67,
        dim=37,
        state=8,
        shared=(*EVERYTHING_STEPPED, "C"),
        parameters_by_step=True,
        without=("segments",),
    ),
    "shared decay and readout, passes of four states, merged": dict(
        **dict(k=4, dim=37, state=16, shared=(*EVERYTHING_STEPPED, "C"), parameters_by_step=True, merge=True),
        without=("segments",),
    ),
    "shared decay with segments": dict(shared=EVERYTHING_STEPPED, parameters_by_step=True),
    "shared decay without orders": dict(shared=EVERYTHING_STEPPED, own_u=True, without=("orders", "segments")),
    "time first": dict(k=1, dim=37, length=53, time_first=True, without=("orders",)),
    "time first with orders": dict(time_first=True),
    "one state": dict(state=1, dim=67, length=71),
    "one state, merged": dict(state=1, dim=67, merge=True, shared=("dt", "A", "dt_bias")),
    "one state, time first": dict(state=1, k=1, dim=67, time_first=True, without=("orders",)),
    "one state, time first, several spans and segments": dict(
        state=1, own_u=True, dim=3, length=1100, time_first=True, without=("orders",)
    ),
    "one state, time first, merged and shared": dict(
        state=1, dim=5, length=67, time_first=True, merge=True, shared=("dt", "B", "C"), without=("orders", "segments")
    ),
    "one state, time first, no softplus": dict(state=1, time_first=True, softplus=False, without=("orders",)),
    "many states": dict(state=37, length=11, without=("segments",)),
    "several parts of the channels": dict(dim=397, length=7, state=3),
}


@pytest.mark.parametrize("variant", library.variants() if library.available() else ())
@pytest.mark.parametrize("feature", FEATURES)
def test_every_instruction_set_agrees_with_the_reference(feature, variant):
    check(problem(**FEATURES[feature]), torch.float32, variant)
    check(problem(**FEATURES[feature]), torch.float64, variant)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("variant", library.variants() if library.available() else ())
@pytest.mark.parametrize(
    "feature",
    [
        *("orders", "merged", "shared decay", "time first", "one state", "one state, merged", "one state, time first"),
        "one state, time first, merged and shared",
    ],
)
def test_half_precision_costs_only_its_own_rounding(feature, variant, dtype):
    check(problem(**FEATURES[feature]), dtype, variant)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.tuples(
        *(st.sampled_from(s) for s in ((0, 1, 2), (1, 2, 5), (1, 2, 31, 32, 33, 67), (1, 3, 16, 35), (1, 2, 5, 16)))
    ),
    shared=st.sets(st.sampled_from(("dt", "A", "B", "C", "D", "dt_bias"))),
    without=st.sets(st.sampled_from(("D", "dt_bias", "orders", "segments", "initial_state"))),
    flags=st.fixed_dictionaries({n: st.booleans() for n in ("merge", "parameters_by_step", "time_first", "own_u")}),
)
def test_any_combination_agrees_with_the_reference(sizes, shared, without, flags):
    # with nothing to tell the number of directions, it is one
    check(problem(*sizes, shared=shared, without=without - {"orders"}, **flags), least=5.0)
    # a few numbers of size one may cancel
    check(problem(sizes[0], 1, *sizes[2:], without=without, **flags), torch.float32, least=5.0)


def test_broadcast_and_sliced_inputs_are_read_where_they_lie():
    p = problem(dim=37, state=5)
    wide = torch.randn(2, 3, 37, 2 * 5 + 1, dtype=torch.float64)
    p = p._replace(
        u=p.u[..., :1].expand(-1, -1, -1, 37),
        dt=torch.randn(2, 3, 37, 74, dtype=torch.float64)[..., ::2],
        B=wide[..., :5],
        C=wide[..., 6:],
        dt_bias=p.dt_bias[:1, :1].expand(3, 37),
    )
    before = [x.clone() for x in p if isinstance(x, torch.Tensor)]
    check(p)
    assert all(torch.equal(x, y) for x, y in zip((x for x in p if isinstance(x, torch.Tensor)), before, strict=True))


def test_gradient_of_the_outputs_may_be_broadcast_and_that_of_the_last_states_missing():
    p = problem(dim=37)
    grad_y, grad_last = (
        torch.ones((), dtype=torch.float64).expand(2, 3, 37, 37),
        torch.zeros(2, 3, 7, 37, dtype=torch.float64),
    )
    got, want = computed(p, grad_y, None), expected(p, grad_y, grad_last)
    torch.testing.assert_close(got, {n: want[n] for n in got})


@pytest.mark.parametrize("name", FLOATS)
def test_gradcheck(name):
    class Scan(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.problem = p._replace(**{name: x})
            y, last, ctx.saved = native.forward(ctx.problem, True)
            return y, last

        @staticmethod
        def backward(ctx, grad_y, grad_last):
            return getattr(native.backward(ctx.problem, ctx.saved, grad_y, grad_last), name)

    p = problem(1, 2, 5, 3, 2)
    assert torch.autograd.gradcheck(Scan.apply, getattr(p, name).requires_grad_())


@pytest.mark.parametrize("time_first", [False, True])
@pytest.mark.parametrize("state", [1, 3])
def test_no_tokens_leave_the_state_and_give_no_gradients(state, time_first):
    p = problem(length=0, k=1, state=state, time_first=time_first, without=("orders", "segments"))
    grads = gradients_of_outputs(p)
    got = computed(p, *grads)
    assert torch.equal(got["last"], p.initial_state) and torch.equal(got["initial_state"], grads[1])
    assert all((got[n] == 0).all() for n in ("A", "D", "dt_bias"))


def test_output_lies_as_the_input_does():
    assert native.forward(problem(k=1, time_first=True), False)[0].stride(-2) == 1
    assert native.forward(problem(), False)[0].stride(-1) == 1


@pytest.mark.parametrize("variant", library.variants() if library.available() else ())
@pytest.mark.parametrize("time_first", [False, True])
@pytest.mark.parametrize("state", [1, 5])
def test_a_step_of_minus_infinity_before_softplus_is_no_step(variant, state, time_first):
    missing = ("orders", "segments", "dt_bias")
    p = cast(problem(1, 1, 40, 19, state, time_first=time_first, without=missing), torch.float32)
    p.dt[:, :, 3:] = -torch.inf
    y, last, _ = native.forward(p, True, variant=variant)
    stopped = native.forward(
        p._replace(u=p.u[:, :, :3], dt=p.dt[:, :, :3], B=p.B[:, :, :3], C=p.C[:, :, :3]), False, variant=variant
    )
    assert torch.equal(last, stopped[1])
    grads = computed(p, *gradients_of_outputs(p), variant)
    assert all(x.isfinite().all() for x in grads.values())
    assert (grads["dt"][:, :, 3:] == 0).all() and (grads["B"][:, :, 3:] == 0).all()


@pytest.mark.parametrize("variant", library.variants() if library.available() else ())
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-7, 90.0, 1e4, 1e30])
def test_extreme_steps_are_finite_and_right_where_the_reference_is(variant, size):
    p = cast(problem(1, 1, 43, 19, 3, softplus=False, without=("orders", "segments", "dt_bias", "D")), torch.float32)
    p = p._replace(dt=size * torch.rand_like(p.dt))
    grads = gradients_of_outputs(p)
    got, want = computed(p, *grads, variant), expected(p, *grads)
    for name, value in want.items():
        assert got[name].isfinite().all(), name
        assert (got[name] - value).norm() <= 1e-5 * value.norm() + 1e-30, name


@pytest.mark.parametrize("variant", library.variants() if library.available() else ())
def test_growing_states_and_infinite_ones_follow_the_reference(variant):
    p = cast(problem(1, 1, 41, 19, 3, softplus=False, without=("orders", "segments", "dt_bias", "D")), torch.float32)
    p = p._replace(dt=p.dt.abs() + 1, A=p.A.abs() * torch.tensor([0.1, 1.0, 60.0])[:, None])
    y, want = native.forward(p, False, variant=variant)[0], reference.run(p)[0]
    torch.testing.assert_close(y, want, rtol=1e-4, atol=0, equal_nan=True)


@pytest.mark.parametrize("variant", library.variants() if library.available() else ())
def test_growing_states_with_time_first_follow_the_reference(variant):
    # products of such decays overflow long before the states do
    p = problem(1, 1, 41, 19, 1, time_first=True, without=("orders", "segments", "dt_bias", "initial_state"))
    p = cast(p._replace(A=p.A.abs() * 6), torch.float32)
    p.u[:, :, :40] = 0
    y = native.forward(p, False, variant=variant)[0]
    assert y.isfinite().all()
    torch.testing.assert_close(y, reference.run(p)[0], rtol=1e-4, atol=1e-30)


@pytest.mark.parametrize("variant", library.variants() if library.available() else ())
@pytest.mark.parametrize("time_first", [False, True])
@pytest.mark.parametrize("state", [1, 3])
@pytest.mark.parametrize("k, length, dim", [(1, 2112, 128), (1, 2113, 131), (2, 5, 29001)])
def test_large_outputs_are_those_of_each_sequence_alone(variant, k, length, dim, state, time_first):
    # 2.2 MB: written past the caches, while those of one sequence are not; rows are whole cache lines, or start and end
    # anywhere in them, or have not even one
    p = problem(2, k, length, dim, state, time_first=time_first, without=("orders", "segments"))
    p = cast(p, torch.float32)
    grads = gradients_of_outputs(p)
    got = computed(p, *grads, variant)
    for i in range(2):
        of_batch = ("u", "dt", "B", "C", "initial_state")
        alone = computed(
            p._replace(**{n: getattr(p, n)[i : i + 1] for n in of_batch}), *(x[i : i + 1] for x in grads), variant
        )
        assert all(torch.equal(got[n][i], alone[n][0]) for n in ("y", "last", "u", "dt", "initial_state"))


@pytest.mark.parametrize("layout", [{}, {"time_first": True, "own_u": True}])
@pytest.mark.parametrize("length, dim", [(529, 128), (530, 129)])
def test_large_outputs_of_directions_that_share_decays_are_those_of_each_sequence_alone(length, dim, layout):
    shared = {"shared": (*EVERYTHING_STEPPED, "C"), "parameters_by_step": True}
    without = ("orders", "segments") if layout else ("segments",)
    p = cast(problem(2, 4, length, dim, 8, **shared, **layout, without=without), torch.float32)
    y, last, _ = native.forward(p, False)
    for i in range(2):
        alone = p._replace(**{n: getattr(p, n)[i : i + 1] for n in ("u", "dt", "B", "C", "initial_state")})
        y_alone, last_alone, _ = native.forward(alone, False)
        assert torch.equal(y[i], y_alone[0])
        assert torch.equal(last[i], last_alone[0])


def test_a_state_kept_for_thousands_of_steps_drifts_no_more_than_float32_must():
    p = problem(1, 1, 2003, 16, 2, softplus=False, without=("orders", "segments", "dt_bias", "D"))
    p = cast(p._replace(dt=torch.full_like(p.dt, 1e-6), u=torch.zeros_like(p.u)), torch.float32)
    wide = cast(p, torch.float64)
    kept = torch.exp(2003 * 1e-6 * wide.A[:, None]) * wide.initial_state
    assert (native.forward(p, False)[1] - kept).norm() < 1.1 * (reference.run(p)[1] - kept).norm()


def test_refuses_what_it_cannot_run(monkeypatch):
    p = problem()
    assert native.unsupported_reasons(p) == []
    assert native.unsupported_reasons(p._replace(u=p.u.to("meta"))) == ["runs on a CPU, u is on meta"]
    assert native.unsupported_reasons(p._replace(u=p.u.long())) == [
        "needs float32, bfloat16, float16 or float64, u is torch.int64"
    ]
    monkeypatch.setattr(native, "available", lambda: False)
    assert "install a C++ compiler" in native.unsupported_reasons(p)[0]


def test_an_order_that_is_no_permutation_is_named():
    p = problem()
    with pytest.raises(ValueError, match=r"orders must hold a permutation of range\(37\) in every row"):
        native.forward(p._replace(orders=torch.zeros_like(p.orders)), False)
