import pytest
import torch
import torch.nn.functional as F

from tests.golden import golden
from transmamba.ops import causal_conv1d, conv_step, scan_order, scan_orders, use_backend
from transmamba.ops.conv import reference
from transmamba.ops.conv.inputs import ConvInputs
from transmamba.ops.dispatch import TABLE, Backend

OPS = golden("ops_a")


def definition(x, weight, bias, index, before):
    """Compute one sequence and direction: y[r(t)] = bias + sum_j weight[j] x[r(t - width + 1 + j)]."""
    width = weight.shape[1]
    history = torch.cat([before, x[index]])
    y = torch.zeros_like(x)
    for t, token in enumerate(index.tolist()):
        y[token] = bias + sum(weight[:, j] * history[t + j] for j in range(width))
    return y


@pytest.mark.parametrize("width", [1, 2, 5])
def test_each_direction_sees_the_tokens_it_has_visited(width):
    x, weight, bias = torch.randn(2, 7, 3), torch.randn(2, 3, width), torch.randn(2, 3)
    before = torch.randn(2, 2, width - 1, 3)
    orders = scan_orders(["forward", (3, 1, 4, 0, 6, 5, 2)], 7)
    y = causal_conv1d(x, weight, bias, orders=orders, initial_tokens=before)
    for b in range(2):
        for k in range(2):
            expected = definition(x[b], weight[k], bias[k], orders[k].index, before[b, k])
            torch.testing.assert_close(y[b, k], expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("case", ["conv_silu", "conv_none_nobias", "conv_initial_state"])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_outputs_and_gradients_are_the_official_ones(case, dtype, backend):
    given = {name: x.requires_grad_() for name, x in OPS.part(f"{case}/in", dtype).items()}
    cotangent, before = given.pop("cotangent"), given.get("initial_states")
    y = causal_conv1d(
        given["x"].mT,
        given["weight"][None],
        given["bias"][None] if "bias" in given else None,
        initial_tokens=None if before is None else before.mT[:, None],
        activation=OPS.meta["cases"][case]["activation"],
        backend=backend,
    )[:, 0].mT
    OPS.check(f"{case}/out/y", y)
    for name, grad in zip(given, torch.autograd.grad((y * cotangent).sum(), list(given.values())), strict=True):
        OPS.check(f"{case}/grad/{name}", grad)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_step_is_the_official_one_and_leaves_its_input_alone(dtype):
    given = OPS.part("conv_update/in", dtype)
    state = given["conv_state"].clone()
    y, after = conv_step(given["conv_state"], given["x"], given["weight"], given["bias"])
    OPS.check("conv_update/out/y", F.silu(y))
    OPS.check("conv_update/out/conv_state", after)
    assert torch.equal(given["conv_state"], state)


def test_steps_give_what_the_whole_sequence_gives():
    x, weight, bias = torch.randn(2, 7, 3), torch.randn(1, 3, 4), torch.randn(1, 3)
    state, outputs = torch.zeros(2, 3, 4), []
    for t in range(7):
        y, state = conv_step(state, x[:, t], weight[0], bias[0])
        outputs.append(y)
    torch.testing.assert_close(torch.stack(outputs, 1), causal_conv1d(x, weight, bias)[:, 0])


def test_pieces_continued_from_the_last_tokens_give_the_whole():
    x, weight = torch.randn(2, 11, 3), torch.randn(1, 3, 5)
    for cut in (4, 7, 10):
        first = causal_conv1d(x[:, :cut], weight)
        second = causal_conv1d(x[:, cut:], weight, initial_tokens=x[:, None, cut - 4 : cut])
        torch.testing.assert_close(torch.cat([first, second], 2), causal_conv1d(x, weight))


@pytest.mark.parametrize("order", ["forward", "backward"])
def test_packed_sequences_do_not_see_each_other(order):
    lengths, weight, bias = (5, 1, 2, 3), torch.randn(1, 3, 4), torch.randn(1, 3)
    x = torch.randn(2, sum(lengths), 3)
    seq_idx = torch.repeat_interleave(torch.tensor([4, 0, 7, 4]), torch.tensor(lengths)).expand(2, -1)
    packed = causal_conv1d(x, weight, bias, orders=[scan_order(order, x.shape[1])], seq_idx=seq_idx)
    alone = [
        causal_conv1d(part, weight, bias, orders=[scan_order(order, part.shape[1])]) for part in x.split(lengths, 1)
    ]
    torch.testing.assert_close(packed, torch.cat(alone, 2))


def test_gradients_are_those_of_finite_differences():
    x, weight, bias = (torch.randn(*shape, dtype=torch.float64) for shape in [(2, 5, 3), (2, 3, 4), (2, 3)])
    before = torch.randn(2, 2, 3, 3, dtype=torch.float64)
    seq_idx = torch.tensor([[0, 0, 1, 1, 1], [0, 0, 0, 0, 1]])
    for tensor in (x, weight, bias, before):
        tensor.requires_grad_()

    def packed(x, weight, bias, before):
        orders = scan_orders(["forward", "backward"], 5)
        return causal_conv1d(x, weight, bias, orders=orders, seq_idx=seq_idx, initial_tokens=before)

    assert torch.autograd.gradcheck(packed, (x, weight, bias, before))


def accepting():
    c = ConvInputs(torch.zeros(1, 5, 3), torch.zeros(2, 3, 4))
    return [each.name for each in TABLE["convolution"] if not each.unsupported_reasons(c)]


class TestTransforms:
    """compile, export, functorch and checkpointing see a compiled convolution as one node."""

    @pytest.fixture(params=accepting())
    def convolve(self, request):
        orders = scan_orders(["forward", "backward"], 5)

        def function(x, weight, bias):
            return causal_conv1d(x, weight, bias, orders=orders, activation="silu", backend=request.param)

        return function

    @pytest.fixture
    def args(self):
        return tuple(torch.randn(*shape).requires_grad_() for shape in [(2, 5, 3), (2, 3, 4), (2, 3)])

    def test_compile_fullgraph_with_gradient(self, convolve, args):
        compiled = torch.compile(convolve, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(*args), convolve(*args))
        got = torch.autograd.grad(compiled(*args).square().sum(), args)
        torch.testing.assert_close(got, torch.autograd.grad(convolve(*args).square().sum(), args))

    def test_export(self, convolve, args):
        class Model(torch.nn.Module):
            def forward(self, *values):
                return convolve(*values)

        program = torch.export.export(Model(), args)
        torch.testing.assert_close(program.module()(*args), convolve(*args))

    def test_checkpointing(self, convolve, args):
        got = torch.utils.checkpoint.checkpoint(convolve, *args, use_reentrant=False).square().sum()
        want = torch.autograd.grad(convolve(*args).square().sum(), args)
        torch.testing.assert_close(torch.autograd.grad(got, args), want)

    def test_vmap_of_gradient_runs_in_plain_torch(self, args):
        x, weight, bias = (t.detach() for t in args)
        gradient = torch.func.grad(lambda t: causal_conv1d(t, weight, bias).square().sum())
        stacked = torch.stack([x, 2 * x])
        want = torch.stack([gradient(t) for t in stacked])
        torch.testing.assert_close(torch.func.vmap(gradient)(stacked), want)


@pytest.mark.parametrize("backend", [name for name in accepting() if name in ("triton", "native")])
@pytest.mark.parametrize("optional", [True, False])
def test_opcheck(backend, optional):
    x, weight, bias, before = (torch.randn(*s) for s in [(2, 5, 3), (2, 3, 4), (2, 3), (2, 2, 3, 3)])
    orders, segments = torch.stack([torch.randperm(5)] * 2), torch.zeros(2, 5, dtype=torch.long)
    rest = (bias.requires_grad_(), orders, orders.argsort(-1), segments, before.requires_grad_())
    args = (backend, x.requires_grad_(), weight.requires_grad_(), *(rest if optional else [None] * 5), True)
    torch.library.opcheck(torch.ops.transmamba.conv_forward.default, args)


def test_silu_in_the_same_pass_is_silu_after_it():
    x, weight = torch.randn(2, 7, 3), torch.randn(2, 3, 4)
    for backend in accepting():
        apart = F.silu(causal_conv1d(x, weight, backend=backend))
        torch.testing.assert_close(causal_conv1d(x, weight, activation="silu", backend=backend), apart)


def test_a_preference_for_a_backend_reaches_convolutions_it_can_run(monkeypatch):
    asked = []

    def run(c):
        asked.append(c.weight.shape[2])
        return reference.run(c)

    spy = Backend("native", run, lambda c: ["too wide"] if c.weight.shape[2] > 4 else [])
    monkeypatch.setitem(TABLE, "convolution", (spy, *TABLE["convolution"][-2:]))
    x = torch.zeros(1, 5, 3)
    for name in ("chunked", "reference"):
        with use_backend(name):
            causal_conv1d(x, torch.zeros(1, 3, 4))
    assert asked == []
    with use_backend("native"):
        causal_conv1d(x, torch.zeros(1, 3, 4))
        causal_conv1d(x, torch.zeros(1, 3, 5))
    with use_backend("cuda"):
        causal_conv1d(x, torch.zeros(1, 3, 2))
    assert asked == [4, 2]
    expected = (
        r"convolution backend 'native' refuses x \(1, 5, 3\) float32 on cpu:\n  too wide\naccepting here: chunked"
    )
    with pytest.raises(NotImplementedError, match=expected):
        causal_conv1d(x, torch.zeros(1, 3, 5), backend="native")


def test_unknown_backend_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown convolution backend 'fast': expected auto, .*, reference"):
        causal_conv1d(torch.zeros(1, 5, 3), torch.zeros(1, 3, 4), backend="fast")


def test_orders_must_match_the_directions():
    for directions, width in ((0, 4), (2, 0)):
        with pytest.raises(
            ValueError, match=f"weight has {directions} directions and width {width}: expected at least"
        ):
            causal_conv1d(torch.ones(1, 5, 3), torch.ones(directions, 3, width))
    with pytest.raises(ValueError, match="weight has 2 directions, orders 1"):
        causal_conv1d(torch.zeros(1, 5, 3), torch.zeros(2, 3, 4), orders=[scan_order("forward", 5)])


def test_initial_tokens_must_fill_the_kernel():
    with pytest.raises(
        ValueError, match=r"initial_tokens must hold 3 tokens \(width - 1\) for 1 directions, got 2 for 1"
    ):
        causal_conv1d(torch.zeros(1, 5, 3), torch.zeros(1, 3, 4), initial_tokens=torch.zeros(1, 1, 2, 3))
