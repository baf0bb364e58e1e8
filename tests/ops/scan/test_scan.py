import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.ops.scan.scans import assert_same, inputs, run
from transmamba.ops import multi_scan, scan_order, selective_scan
from transmamba.ops.dispatch import TABLE
from transmamba.ops.scan.inputs import ScanInputs

SEGMENTS = torch.arange(37) // 11
MASK = torch.arange(37) < torch.tensor([[30], [37]])
CASES = {
    "plain": {},
    "no softplus": {"softplus": False},
    "natural order": {"orders": None},
    "merge": {"merge": True},
    "packed": {"seq_idx": SEGMENTS.expand(2, -1)},
    "masked": {"mask": MASK},
    "masked, no softplus": {"mask": MASK, "softplus": False},
    "parameters by step": {"parameters_by_step": True},
}


def accepting():
    problem = ScanInputs(*(torch.zeros(1, 1, 3, 2),) * 2, torch.zeros(1, 5, 2), *(torch.zeros(1, 1, 3, 5),) * 2)
    return [b.name for b in TABLE["scan"] if b.name != "reference" and not b.unsupported_reasons(problem)]


def definition(u, dt, A, B, C, D, dt_bias, initial_state, index, *, softplus=True):
    """Compute one sequence and direction by scalar loops from Eqs. 1-2; lists of rows in natural token order."""
    length, dim = u.shape
    h, y = initial_state.clone(), torch.zeros(length, dim, dtype=u.dtype)
    for token in index.tolist():
        step = dt[token] + dt_bias
        step = torch.log(1 + torch.exp(step)) if softplus else step
        for d in range(dim):
            for n in range(A.shape[1]):
                h[d, n] = math.exp(step[d] * A[d, n]) * h[d, n] + step[d] * B[token, n] * u[token, d]
            y[token, d] = sum(C[token, n] * h[d, n] for n in range(A.shape[1])) + D[d] * u[token, d]
    return y, h


@pytest.mark.parametrize("softplus", [True, False])
def test_reference_is_the_recurrence(softplus):
    x = {k: v.detach() for k, v in inputs(2, 2, 5, 3, 2).items()}
    orders = [scan_order("forward", 5), scan_order("backward", 5)]
    y, last = multi_scan(**x, orders=orders, softplus=softplus, return_last_state=True, backend="reference")
    for b in range(2):
        for k in range(2):
            rows = [x[name][b, k] for name in ("dt", "B", "C")]
            args = (x["u"][b, 0], rows[0], x["A"][k], rows[1], rows[2], x["D"][k], x["dt_bias"][k])
            expected = definition(*args, x["initial_state"][b, k], orders[k].index, softplus=softplus)
            torch.testing.assert_close((y[b, k], last[b, k]), expected)


@pytest.mark.parametrize("backend", accepting())
@pytest.mark.parametrize("own", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_backend_agrees_with_reference_in_every_gradient(backend, case, own):
    """MambaInLlama 27."""
    options = {"orders": torch.stack([torch.randperm(37) for _ in range(3)]), "softplus": True, **CASES[case]}
    tensors = inputs(own=own)
    expected = run(multi_scan, tensors, backend="reference", **options)
    assert_same(run(multi_scan, tensors, backend=backend, **options), expected)


@pytest.mark.parametrize("backend", accepting())
@settings(deadline=None, max_examples=25)
@given(
    sizes=st.tuples(
        st.integers(0, 3),
        st.integers(1, 4),
        st.sampled_from([1, 2, 15, 16, 17, 33]),
        st.integers(1, 9),
        st.integers(1, 5),
    ),
    shared=st.booleans(),
)
def test_backend_agrees_with_reference_on_any_sizes(backend, sizes, shared):
    batch, k, length, dim, state = sizes
    tensors = inputs(batch, k, length, dim, state, shared=1 if shared else k)
    orders = torch.stack([torch.randperm(length) for _ in range(k)])
    expected = run(multi_scan, tensors, backend="reference", orders=orders, softplus=True)
    assert_same(run(multi_scan, tensors, backend=backend, orders=orders, softplus=True), expected)


@pytest.mark.parametrize("backend", ["reference", *accepting()])
def test_gradcheck(backend):
    tensors = inputs(2, 2, 3, 2, 2)

    def function(*values):
        return multi_scan(
            **dict(zip(tensors, values, strict=True)), softplus=True, backend=backend, return_last_state=True
        )

    assert torch.autograd.gradcheck(function, tuple(tensors.values()))


@pytest.mark.parametrize("backend", ["reference", *accepting()])
def test_packed_sequences_are_separate_sequences(backend):
    x = {k: v.detach() for k, v in inputs(1, 2, 11, 3, 2).items() if k != "initial_state"}
    orders = [scan_order("forward", 11), scan_order("backward", 11)]
    packed = multi_scan(**x, orders=orders, seq_idx=torch.tensor([[0] * 4 + [1] * 7]), backend=backend)
    for part in (slice(0, 4), slice(4, 11)):
        alone = {k: v[:, :, part] if v.dim() == 4 else v for k, v in x.items()}
        length = part.stop - part.start
        own = [scan_order("forward", length), scan_order("backward", length)]
        torch.testing.assert_close(packed[:, :, part], multi_scan(**alone, orders=own, backend=backend))


@pytest.mark.parametrize("backend", ["reference", *accepting()])
@pytest.mark.parametrize("softplus", [True, False])
def test_padded_sequences_are_unpadded_ones(backend, softplus):
    x = {k: v.detach() for k, v in inputs(1, 2, 11, 3, 2).items()}
    real = slice(3, 9)
    mask = torch.zeros(1, 11, dtype=torch.bool)
    mask[:, real] = True
    pair = ("forward", "backward")
    options = {"softplus": softplus, "return_last_state": True, "backend": backend}
    y, last = multi_scan(**x, orders=[scan_order(n, 11) for n in pair], mask=mask, **options)
    alone = {k: v[:, :, real] if v.dim() == 4 and k != "initial_state" else v for k, v in x.items()}
    expected, last_alone = multi_scan(**alone, orders=[scan_order(n, 6) for n in pair], **options)
    torch.testing.assert_close((y[:, :, real], last), (expected, last_alone))
    assert (y[:, :, ~mask[0]] == 0).all()


def test_nan_in_padding_stays_there():
    x = {k: v.detach() for k, v in inputs(1, 1, 5, 3, 2).items()}
    x["u"][:, :, 3:] = torch.nan
    mask = torch.tensor([[True, True, True, False, False]])
    y, last = multi_scan(**x, mask=mask, softplus=True, return_last_state=True)
    assert y.isfinite().all() and last.isfinite().all()


@pytest.mark.parametrize("backend", ["reference", *accepting()])
def test_a_scan_in_two_halves_is_the_whole(backend):
    x = {k: v.detach() for k, v in inputs(2, 1, 11, 3, 2).items()}
    y, last = multi_scan(**x, softplus=True, return_last_state=True, backend=backend)
    state, parts = x["initial_state"], []
    for half in (slice(0, 5), slice(5, 11)):
        cut = {k: v[:, :, half] if v.dim() == 4 and k != "initial_state" else v for k, v in x.items()}
        cut["initial_state"] = state
        part, state = multi_scan(**cut, softplus=True, return_last_state=True, backend=backend)
        parts.append(part)
    torch.testing.assert_close((torch.cat(parts, 2), state), (y, last))


def test_orders_permute_tokens_and_parameters_together():
    x = {k: v.detach() for k, v in inputs(2, 1, 6, 3, 2).items()}
    order = scan_order("snake", (2, 3))
    permuted = {k: v[:, :, order.index] if v.dim() == 4 and k != "initial_state" else v for k, v in x.items()}
    torch.testing.assert_close(multi_scan(**x, orders=[order])[:, :, order.index], multi_scan(**permuted))


@pytest.mark.parametrize("backend", ["reference", *accepting()])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_are_scanned_in_float32(backend, dtype):
    half = {k: v.detach() for k, v in inputs(dtype=torch.float32).items()}
    half = {k: v.to(dtype) if k in ("u", "dt", "B", "C") else v for k, v in half.items()}
    exact = {k: v.double() for k, v in half.items()}
    y, last = multi_scan(**half, softplus=True, return_last_state=True, backend=backend)
    expected, last_expected = multi_scan(**exact, softplus=True, return_last_state=True, backend="reference")
    assert y.dtype == dtype and last.dtype == torch.float32
    torch.testing.assert_close(y.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-4)
    torch.testing.assert_close(last.double(), last_expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", accepting())
@pytest.mark.parametrize("scale", [1e-6, 1.0, 30.0, 1e4])
def test_long_decays_and_extreme_steps_stay_finite(backend, scale):
    x = inputs(1, 1, 70, 3, 4, dtype=torch.float32)
    del x["dt_bias"]
    x["dt"] = (x["dt"].detach().abs() * scale).requires_grad_()
    for value in run(multi_scan, x, backend=backend).values():
        assert value.isfinite().all()


class TestSelectiveScan:
    @pytest.fixture
    def x(self):
        draw = torch.randn
        return {
            "u": draw(2, 6, 11),
            "delta": draw(2, 6, 11),
            "A": -torch.rand(6, 3),
            "B": draw(2, 3, 11),
            "C": draw(2, 3, 11),
            "D": draw(6),
            "z": draw(2, 6, 11),
            "delta_bias": draw(6),
        }

    def test_is_one_direction_of_multi_scan(self, x):
        y, last = selective_scan(**x, delta_softplus=True, return_last_state=True)
        tokens = {name: x[name].mT[:, None] for name in ("u", "delta", "B", "C")}
        expected, last_expected = multi_scan(
            tokens["u"], tokens["delta"], x["A"][None], tokens["B"], tokens["C"], x["D"][None],
            dt_bias=x["delta_bias"][None], softplus=True, return_last_state=True,
        )  # fmt: skip
        torch.testing.assert_close(y, expected[:, 0].mT * F.silu(x["z"]))
        torch.testing.assert_close(last, last_expected[:, 0])

    def test_groups_are_channels_with_their_own_B_and_C(self, x):
        x["B"], x["C"] = torch.randn(2, 2, 3, 11), torch.randn(2, 2, 3, 11)
        halves = []
        for g, channels in enumerate((slice(0, 3), slice(3, 6))):
            cut = {
                k: v[:, channels] if k in ("u", "delta", "z") else v[channels] for k, v in x.items() if k not in "BC"
            }
            halves.append(selective_scan(**cut, B=x["B"][:, g], C=x["C"][:, g]))
        torch.testing.assert_close(selective_scan(**x), torch.cat(halves, 1))

    @pytest.mark.parametrize("constant", ["B", "C", "BC"])
    def test_constant_parameters_are_repeated_ones(self, x, constant):
        per_channel = torch.randn(6, 3)
        repeated = dict(x)
        for name in constant:
            x[name] = per_channel
            repeated[name] = per_channel[None, :, :, None].expand(2, -1, -1, 11)
        torch.testing.assert_close(selective_scan(**x), selective_scan(**repeated))

    def test_the_answer_stands_in_the_layout_of_the_question(self, x):
        assert selective_scan(**x).is_contiguous()

    def test_groups_must_divide_channels(self, x):
        x["B"] = torch.randn(2, 4, 3, 11)
        with pytest.raises(
            ValueError, match="groups of B and C must divide the channels of u: got 4 groups, 6 channels"
        ):
            selective_scan(**x)

    def test_wrong_length_is_refused_by_name(self, x):
        x["delta"] = x["delta"][..., :7]
        with pytest.raises(TypeError, match=r"(?s)delta.*f32\[2,6,7\].*length=11"):
            selective_scan(**x)


def test_direction_counts_must_agree():
    x = inputs(2, 3, 5, 2, 2)
    with pytest.raises(TypeError, match="direction"):
        multi_scan(**{**x, "B": x["B"][:, :2]})
    with pytest.raises(ValueError, match=r"every input needs 1 or 2 entries on the direction axis, got .*'dt': 3"):
        multi_scan(**x, orders=[scan_order("forward", 5)] * 2)


WIDE = {"u": (2, 1, 7, 4), "dt": (2, 1, 7, 4), "A": (1, 4, 3), "B": (2, 1, 7, 3), "C": (2, 1, 7, 3), "dt_bias": (1, 4)}


@pytest.mark.parametrize("backend", accepting())
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("wide", ["u", "dt", "A", "B", "C"])
def test_one_input_alone_may_have_all_directions(backend, wide, packed):
    axis = 0 if wide == "A" else 1
    sizes = {name: [5 if (name, i) == (wide, axis) else n for i, n in enumerate(WIDE[name])] for name in WIDE}
    tensors = {name: (-torch.rand(size, dtype=torch.float64)).requires_grad_() for name, size in sizes.items()}
    for merge in (False, True):
        options = {"merge": merge, "seq_idx": (torch.arange(7) // 3).expand(2, -1) if packed else None}
        y, expected = (multi_scan(**tensors, backend=name, **options) for name in (backend, "reference"))
        torch.testing.assert_close(y, expected)
        one, other = (torch.autograd.grad(out.square().sum(), list(tensors.values())) for out in (y, expected))
        torch.testing.assert_close(one, other)


def test_orders_of_another_length_are_refused():
    with pytest.raises(ValueError, match="orders visit 4 tokens, there are 5"):
        multi_scan(**inputs(2, 1, 5, 2, 2), orders=[scan_order("forward", 4)])


@pytest.mark.parametrize("backend", accepting())
def test_token_numbers_out_of_range_never_reach_a_kernel(backend):
    with pytest.raises(ValueError, match="orders must hold token numbers 0 to 4, got 0 to 5"):
        multi_scan(**inputs(2, 1, 5, 2, 2), orders=torch.tensor([[0, 1, 2, 3, 5]]), backend=backend)


class TestTransforms:
    """compile, export, functorch and autocast see the custom op of a backend as one node."""

    @pytest.fixture(params=["reference", *accepting()])
    def scan(self, request):
        def function(u, dt, A, B, C):
            return multi_scan(u, dt, A, B, C, softplus=True, backend=request.param, merge=True)

        return function

    @pytest.fixture
    def args(self):
        x = inputs(2, 2, 5, 3, 2)
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

    def test_vmap_of_gradient_runs_on_the_reference(self, args):
        def loss(u, rest):
            return multi_scan(u, *rest, softplus=True).square().sum()

        stacked = torch.stack([args[0].detach(), 2 * args[0].detach()])
        rest = tuple(x.detach() for x in args[1:])
        got = torch.func.vmap(torch.func.grad(loss), in_dims=(0, None))(stacked, rest)
        expected = torch.stack([torch.func.grad(loss)(u, rest) for u in stacked])
        torch.testing.assert_close(got, expected)

    def test_autocast_does_not_lower_the_arithmetic(self, scan, args):
        single = [x.detach().float() for x in args]
        with torch.autocast("cpu", torch.bfloat16):
            inside = scan(*single)
        assert torch.equal(inside, scan(*single))

    def test_checkpointing(self, scan, args):
        got = torch.utils.checkpoint.checkpoint(scan, *args, use_reentrant=False).square().sum()
        torch.testing.assert_close(
            torch.autograd.grad(got, args), torch.autograd.grad(scan(*args).square().sum(), args)
        )


@pytest.mark.parametrize("backend", accepting())
@pytest.mark.parametrize("layout", ["channel-last", "channel-first"])
def test_opcheck(backend, layout):
    x = inputs(2, 2, 5, 3, 2)
    if layout == "channel-first":
        x["u"] = x["u"].detach().mT.contiguous().mT.requires_grad_()
    states = [x[name].detach().mT.contiguous().requires_grad_() for name in ("A", "initial_state")]
    args = (
        backend, x["u"], x["dt"], states[0], x["B"], x["C"], x["D"], x["dt_bias"],
        torch.stack([torch.randperm(5)] * 2), torch.zeros(2, 5, dtype=torch.long), states[1], True, False, False,
        False, True,
    )  # fmt: skip
    torch.library.opcheck(torch.ops.transmamba.scan_forward.default, args)
