import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from transmamba.ops import FLOP_FORMULAS, cross_scan, multi_scan, read_state, scan_order, use_backend
from transmamba.ops.cross.inputs import CrossInputs
from transmamba.ops.dispatch import TABLE

LENGTH, QUERIES = 37, 11
MASK = torch.arange(LENGTH) < torch.tensor([[30], [LENGTH]])


def inputs(batch=2, k=2, length=LENGTH, queries=QUERIES, dim=5, state=7, *, shared=(), dtype=torch.float64):
    """Draw every tensor of `cross_scan`; `shared` names those that all directions share."""
    own = {name: 1 if name in shared else k for name in ("u", "dt", "A", "B", "C", "dt_bias")}

    def draw(*shape):
        return torch.randn(*shape, dtype=dtype)

    tensors = {
        "u": draw(batch, own["u"], length, dim),
        "dt": draw(batch, own["dt"], length, dim),
        "A": -torch.rand(own["A"], dim, state, dtype=dtype) - 0.1,
        "B": draw(batch, own["B"], length, state),
        "C": draw(batch, own["C"], queries, state),
        "dt_bias": draw(own["dt_bias"], dim),
    }
    return {name: x.requires_grad_() for name, x in tensors.items()}


def orders(k=2, length=LENGTH):
    return torch.stack([torch.randperm(length) for _ in range(k)])


def some_reads(batch=2, queries=QUERIES, length=LENGTH):
    return torch.randint(0, length, (batch, queries))


def run(tensors, **options):
    """Compute outputs, last states, and for every tensor the gradient of a fixed random functional of both."""
    y, last = cross_scan(**tensors, return_last_state=True, **options)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype) for x in (y, last)]
    grads = torch.autograd.grad((y * weights[0]).sum() + (last * weights[1]).sum(), list(tensors.values()))
    return {"y": y, "last": last, **{f"grad {name}": g for name, g in zip(tensors, grads, strict=True)}}


def accepting():
    x = torch.zeros(1, 1, 3, 2)
    problem = CrossInputs(x, x, torch.zeros(1, 5, 2), *(torch.zeros(1, 1, 3, 5),) * 2, None, None, torch.zeros(1, 3))
    return [b.name for b in TABLE["cross scan"] if b.name != "reference" and not b.unsupported_reasons(problem)]


def definition(u, dt, A, B, C, dt_bias, index, reads):
    """Compute y (query, dim) and the last state of one sequence and direction, by scalar loops."""
    dim, state = A.shape
    h, seen = torch.zeros(dim, state, dtype=u.dtype), {}
    for token in index.tolist():
        step = torch.log(1 + torch.exp(dt[token] + dt_bias))
        for d in range(dim):
            for n in range(state):
                h[d, n] = math.exp(step[d] * A[d, n]) * h[d, n] + step[d] * B[token, n] * u[token, d]
        seen[token] = h.clone()
    states = [h if reads is None else seen[int(reads[q])] for q in range(len(C))]
    return torch.stack([(C[q] * h).sum(-1) for q, h in enumerate(states)]), h


@pytest.mark.parametrize("backend", ["reference", *accepting()])
@pytest.mark.parametrize("named", [True, False])
def test_is_the_recurrence_read_where_it_is_asked_to(backend, named):
    x = {name: t.detach() for name, t in inputs(2, 2, 5, 3, 3, 2).items()}
    walk, reads = orders(2, 5), some_reads(2, 3, 5) if named else None
    y, last = cross_scan(**x, reads=reads, softplus=True, orders=walk, return_last_state=True, backend=backend)
    for b in range(2):
        for k in range(2):
            rows = (x["u"][b, k], x["dt"][b, k], x["A"][k], x["B"][b, k], x["C"][b, k], x["dt_bias"][k])
            expected = definition(*rows, walk[k], None if reads is None else reads[b])
            torch.testing.assert_close((y[b, k], last[b, k]), expected)


CASES = {
    "plain": {},
    "no softplus": {"softplus": False},
    "natural order": {"orders": None},
    "merge": {"merge": True},
    "masked": {"mask": MASK},
    "masked, no softplus": {"mask": MASK, "softplus": False},
    "everything at the end": {"reads": None},
    "everything at the end, merged": {"reads": None, "merge": True},
    "one token has all readers": {"reads": torch.full((2, QUERIES), 17)},
}


@pytest.mark.parametrize("backend", accepting())
@pytest.mark.parametrize("shared", [(), ("u",), ("C",), ("u", "dt", "A", "B", "C", "dt_bias")])
@pytest.mark.parametrize("case", CASES)
def test_backend_agrees_with_reference_in_every_gradient(backend, case, shared):
    options = {"orders": orders(), "reads": some_reads(), "softplus": True, **CASES[case]}
    if options["softplus"] is False:
        options["softplus"], shared = False, (*shared, "dt_bias")
    tensors = inputs(shared=shared)
    expected = run(tensors, backend="reference", **options)
    got = run(tensors, backend=backend, **options)
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("backend", accepting())
@settings(deadline=None, max_examples=25)
@given(
    sizes=st.tuples(
        st.integers(0, 3),
        st.integers(1, 3),
        st.sampled_from([1, 2, 15, 16, 17, 33]),
        st.sampled_from([0, 1, 2, 40]),
        st.sampled_from([1, 7, 17, 35]),
        st.integers(1, 5),
    )
)
def test_backend_agrees_with_reference_on_any_sizes(backend, sizes):
    batch, k, length, queries, _, _ = sizes
    tensors = inputs(*sizes)
    options = {"orders": orders(k, length), "reads": some_reads(batch, queries, length), "softplus": True}
    expected = run(tensors, backend="reference", **options)
    got = run(tensors, backend=backend, **options)
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("backend", ["reference", *accepting()])
@pytest.mark.parametrize("named", [True, False])
def test_gradcheck(backend, named):
    tensors = inputs(2, 2, 3, 2, 2, 2)
    reads = torch.tensor([[2, 0], [1, 1]]) if named else None

    def function(*values):
        x = dict(zip(tensors, values, strict=True))
        return cross_scan(**x, reads=reads, softplus=True, backend=backend, return_last_state=True)

    assert torch.autograd.gradcheck(function, tuple(tensors.values()))


@pytest.mark.parametrize("backend", ["reference", *accepting()])
@pytest.mark.parametrize("merge", [False, True])
def test_a_query_for_every_token_is_the_plain_scan(backend, merge):
    x = {name: t.detach() for name, t in inputs(queries=LENGTH).items()}
    options = {"softplus": True, "orders": orders(), "merge": merge, "return_last_state": True, "backend": backend}
    reads = torch.arange(LENGTH).expand(2, -1)
    torch.testing.assert_close(cross_scan(**x, reads=reads, **options), multi_scan(**x, **options))


@pytest.mark.parametrize("backend", ["reference", *accepting()])
@pytest.mark.parametrize("named", [True, False])
def test_queries_do_not_see_each_other(backend, named):
    x = {name: t.detach() for name, t in inputs().items()}
    reads, shuffle = some_reads() if named else None, torch.randperm(QUERIES)
    y = cross_scan(**x, reads=reads, softplus=True, backend=backend)
    x["C"] = x["C"][:, :, shuffle]
    again = cross_scan(**x, reads=None if reads is None else reads[:, shuffle], softplus=True, backend=backend)
    torch.testing.assert_close(again, y[:, :, shuffle])


@pytest.mark.parametrize("backend", ["reference", *accepting()])
@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.parametrize("named", [True, False])
def test_padding_changes_nothing(backend, softplus, named):
    x = {name: t.detach() for name, t in inputs(1, 2, 11, 4, 3, 2).items()}
    mask = torch.zeros(1, 11, dtype=torch.bool)
    mask[:, 3:9] = True
    reads = torch.tensor([[0, 5, 2, 2]])
    options = {"softplus": softplus, "merge": True, "return_last_state": True, "backend": backend}
    walk = [scan_order(name, 11) for name in ("forward", "backward")]
    x["u"][:, :, ~mask[0]] = torch.nan
    got = cross_scan(**x, reads=reads + 3 if named else None, orders=walk, mask=mask, **options)
    alone = {name: t[:, :, 3:9] if name in ("u", "dt", "B") else t for name, t in x.items()}
    walk = [scan_order(name, 6) for name in ("forward", "backward")]
    torch.testing.assert_close(got, cross_scan(**alone, reads=reads if named else None, orders=walk, **options))


@pytest.mark.parametrize("backend", ["reference", *accepting()])
class TestDegenerate:
    def test_no_query(self, backend):
        tensors = inputs(queries=0)
        got = run(tensors, reads=some_reads(queries=0), softplus=True, backend=backend)
        assert got["y"].shape == (2, 2, 0, 5) and got["grad C"].shape == (2, 2, 0, 7)
        expected = multi_scan(**(tensors | {"C": tensors["B"]}), softplus=True, return_last_state=True)[1]
        torch.testing.assert_close(got["last"], expected)

    @pytest.mark.parametrize("length", [0, 3])
    def test_no_query_of_merged_directions(self, backend, length):
        x = {name: t.detach() for name, t in inputs(length=length, queries=0).items()}
        some = {name: t.detach() for name, t in inputs(length=length).items()}
        y, expected = (cross_scan(**tensors, merge=True, backend=backend) for tensors in (x, some))
        assert y.shape == (*expected.shape[:-2], 0, expected.shape[-1])

    def test_a_context_of_one_token(self, backend):
        x = {name: t.detach() for name, t in inputs(length=1).items()}
        final = cross_scan(**x, softplus=True, backend=backend)
        named = cross_scan(**x, reads=torch.zeros(2, QUERIES, dtype=torch.long), softplus=True, backend=backend)
        dt = torch.nn.functional.softplus(x["dt"] + x["dt_bias"][:, None])
        expected = dt * x["u"] * (x["C"] * x["B"]).sum(-1, keepdim=True)
        torch.testing.assert_close((final, named), (expected, expected))

    def test_an_empty_context_has_a_state_of_zero(self, backend):
        x = {name: t.detach() for name, t in inputs(length=0).items()}
        assert torch.equal(cross_scan(**x, backend=backend), torch.zeros(2, 2, QUERIES, 5, dtype=torch.float64))


def test_nobody_listens_to_the_outputs():
    tensors = inputs()
    _, last = cross_scan(**tensors, reads=some_reads(), softplus=True, return_last_state=True)
    grads = torch.autograd.grad(last.sum(), list(tensors.values()), allow_unused=True, materialize_grads=True)
    assert (grads[list(tensors).index("C")] == 0).all()
    assert all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize("backend", ["reference", *accepting()])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("named", [True, False])
def test_half_precision_inputs_are_scanned_in_float32(backend, dtype, named):
    half = {name: x.detach() for name, x in inputs(dtype=torch.float32).items()}
    half = {name: x.to(dtype) if name in ("u", "dt", "B", "C") else x for name, x in half.items()}
    options = {"reads": some_reads() if named else None, "softplus": True, "return_last_state": True}
    y, last = cross_scan(**half, backend=backend, **options)
    exact = {name: x.double() for name, x in half.items()}
    expected, last_expected = cross_scan(**exact, backend="reference", **options)
    assert y.dtype == dtype and last.dtype == torch.float32
    torch.testing.assert_close(y.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-4)
    torch.testing.assert_close(last.double(), last_expected, rtol=1e-4, atol=1e-4)


def test_read_state_is_what_all_queries_read():
    C, state = torch.randn(2, 3, QUERIES, 7), torch.randn(2, 3, 5, 7)
    y = read_state(C, state)
    torch.testing.assert_close(y[1, 2, 3, 4], (C[1, 2, 3] * state[1, 2, 4]).sum())
    torch.testing.assert_close(read_state(C, state, merge=True), y.sum(1))
    torch.testing.assert_close(read_state(C[:, :1], state), read_state(C[:, :1].expand(-1, 3, -1, -1), state))


def test_operations_are_counted():
    x = inputs(2, 2, 5, 3, 11, 7)
    with FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS) as counter:
        cross_scan(**x, reads=some_reads(2, 3, 5), backend="chunked").sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 2 * 11 * 7 * (7 * 5 + 2 * 3)


class TestErrors:
    def test_a_token_that_is_not_there(self):
        with pytest.raises(ValueError, match="reads must hold context tokens 0 to 36, got 37 to 37"):
            cross_scan(**inputs(), reads=torch.full((2, QUERIES), LENGTH))

    def test_orders_of_another_length(self):
        with pytest.raises(ValueError, match="orders visit 5 tokens"):
            cross_scan(**inputs(), orders=[scan_order("forward", 5)] * 2)

    def test_directions_that_disagree(self):
        with pytest.raises(ValueError, match=r"every input needs 1 or 3 entries on the direction axis, got .*'dt': 2"):
            cross_scan(**inputs(), orders=[scan_order("forward", LENGTH)] * 3)

    def test_reads_for_another_number_of_queries_are_refused_by_name(self):
        with pytest.raises(TypeError, match=r"(?s)'reads'.*i64\[2,4\]"):
            cross_scan(**inputs(), reads=some_reads(queries=4))

    def test_a_named_backend_refuses_with_its_reason(self):
        expected = (
            r"cross scan backend 'cuda' refuses u \(2, 2, 37, 5\) float64 on cpu:\n  package mamba_ssm has no cross "
            r"scan\naccepting here: .*chunked, reference"
        )
        with pytest.raises(NotImplementedError, match=expected):
            cross_scan(**inputs(), backend="cuda")
        with pytest.raises(NotImplementedError, match="computes in float32 and does not take float64"):
            cross_scan(**inputs(), backend="triton")

    def test_an_unknown_backend(self):
        with pytest.raises(ValueError, match="unknown cross scan backend 'fast': expected auto, .*chunked, reference"):
            cross_scan(**inputs(), backend="fast")


def test_use_backend_decides_for_cross_scans_too():
    with use_backend("cuda"), pytest.raises(NotImplementedError, match="no cross scan"):
        cross_scan(**inputs())


@pytest.mark.parametrize("backend", ["reference", *accepting()])
class TestTransforms:
    """compile, export, functorch and autocast see the custom op of a backend as one node."""

    @pytest.fixture
    def scan(self, backend):
        reads = some_reads(2, 3, 5)

        def function(u, dt, A, B, C):
            read = cross_scan(u, dt, A, B, C, reads=reads, softplus=True, backend=backend, merge=True)
            return read + cross_scan(u, dt, A, B, C, softplus=True, backend=backend, merge=True)

        return function

    @pytest.fixture
    def args(self):
        x = inputs(2, 2, 5, 3, 3, 2)
        return tuple(x[name] for name in ("u", "dt", "A", "B", "C"))

    def test_compile_fullgraph_with_gradient(self, scan, args):
        compiled = torch.compile(scan, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(*args), scan(*args))
        got = torch.autograd.grad(compiled(*args).square().sum(), args)
        torch.testing.assert_close(got, torch.autograd.grad(scan(*args).square().sum(), args))

    def test_export(self, scan, args):
        class Model(torch.nn.Module):
            def forward(self, *values: Tensor) -> Tensor:
                return scan(*values)

        program = torch.export.export(Model(), args)
        torch.testing.assert_close(program.module()(*args), scan(*args))

    def test_autocast_does_not_lower_the_arithmetic(self, scan, args):
        single = [x.detach().float() for x in args]
        with torch.autocast("cpu", torch.bfloat16):
            inside = scan(*single)
        assert torch.equal(inside, scan(*single))


def test_vmap_of_gradient_runs_on_the_reference():
    x = inputs(2, 2, 5, 3, 3, 2)
    args = tuple(x[name].detach() for name in ("u", "dt", "A", "B", "C"))
    reads = some_reads(2, 3, 5)

    def loss(u, rest):
        return cross_scan(u, *rest, reads=reads, softplus=True).square().sum()

    stacked = torch.stack([args[0], 2 * args[0]])
    got = torch.func.vmap(torch.func.grad(loss), in_dims=(0, None))(stacked, args[1:])
    torch.testing.assert_close(got, torch.stack([torch.func.grad(loss)(u, args[1:]) for u in stacked]))


@pytest.mark.parametrize("backend", accepting())
@pytest.mark.parametrize("merge", [True, False])
def test_opcheck(backend, merge):
    x = inputs(2, 2, 5, 3, 3, 2)
    x["u"] = x["u"].detach().mT.contiguous().mT.requires_grad_()
    A = x["A"].detach().mT.contiguous().requires_grad_()
    args = (backend, x["u"], x["dt"], A, x["B"], x["C"], x["dt_bias"], orders(2, 5), some_reads(2, 3, 5), True, merge)
    torch.library.opcheck(torch.ops.transmamba.cross_forward.default, (*args, True))
