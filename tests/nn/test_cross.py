import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from transmamba.nn import CrossMamba
from transmamba.ops import selective_scan, use_backend
from transmamba.ops.native import library

READOUTS = ("final", "aligned", "progress")


def states(module, context, k=0):
    """Return all states of direction k in scan order: (batch, inner, state) each, straight from the recurrence."""
    writer = module.branches[k]
    x = module.in_proj(context if k == 0 else context.flip(1))
    width = writer.conv1d.kernel_size[0]
    u = F.silu(writer.conv1d(F.pad(x.mT, (width - 1, 0))).mT)
    low, B = writer.x_proj(u).split([writer.dt_rank, writer.d_state], -1)
    dt = F.softplus(writer.dt_proj(low) + writer.dt_bias)
    h, found = torch.zeros(len(u), u.shape[-1], writer.d_state, dtype=u.dtype), []
    for t in range(u.shape[1]):
        h = torch.exp(-dt[:, t, :, None] * writer.A_log.exp()) * h + (dt * u)[:, t, :, None] * B[:, t, None]
        found.append(h)
    return found


def read(module, query, chosen):
    """Compute the output if query t reads the states `chosen[t]`, one (batch, inner, state) per direction."""
    C = module.c_proj(query).unflatten(-1, (len(module.branches), -1))
    y = torch.stack([sum((h * C[:, t, k, None]).sum(-1) for k, h in enumerate(hs)) for t, hs in enumerate(chosen)], 1)
    return query + module.out_proj(y * F.silu(module.gate_proj(query)))


@pytest.fixture
def pair():
    return torch.randn(2, 5, 8, dtype=torch.double), torch.randn(2, 7, 6, dtype=torch.double)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_final_reads_the_last_state_of_each_direction(pair, bidirectional):
    query, context = pair
    module = CrossMamba(8, 6, d_state=3, bidirectional=bidirectional).double()
    last = [states(module, context, k)[-1] for k in range(1 + bidirectional)]
    torch.testing.assert_close(module(query, context), read(module, query, [last] * 5))


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("queries", [3, 5, 7, 11])
def test_progress_reads_in_proportion(pair, bidirectional, queries):
    query, context = torch.randn(2, queries, 8, dtype=torch.double), pair[1]
    module = CrossMamba(8, 6, d_state=3, readout="progress", bidirectional=bidirectional).double()
    along = [states(module, context, k) for k in range(1 + bidirectional)]
    chosen = []
    for t in range(queries):
        s = math.ceil((t + 1) * 7 / queries) - 1
        chosen.append([h[s if k == 0 else 6 - s] for k, h in enumerate(along)])
    torch.testing.assert_close(module(query, context), read(module, query, chosen))


@pytest.mark.parametrize("bidirectional", [False, True])
def test_progress_over_equal_lengths_is_aligned(pair, bidirectional):
    query, context = torch.randn(2, 7, 8, dtype=torch.double), pair[1]
    progress = CrossMamba(8, 6, d_state=3, readout="progress", bidirectional=bidirectional).double()
    aligned = CrossMamba(8, 6, d_state=3, readout="aligned", bidirectional=bidirectional).double()
    aligned.load_state_dict(progress.state_dict())
    torch.testing.assert_close(progress(query, context), aligned(query, context))


def test_aligned_with_itself_is_a_plain_selective_scan():
    x = torch.randn(2, 7, 8, dtype=torch.double)
    module = CrossMamba(8, 8, d_state=3, readout="aligned").double()
    writer = module.branches[0]
    u = F.silu(writer.conv1d(F.pad(module.in_proj(x).mT, (3, 0))))
    low, B = writer.x_proj(u.mT).split([writer.dt_rank, 3], -1)
    delta = writer.dt_proj(low).mT
    y = selective_scan(
        u, delta, -writer.A_log.exp(), B.mT, module.c_proj(x).mT, z=module.gate_proj(x).mT,
        delta_bias=writer.dt_bias, delta_softplus=True,
    )  # fmt: skip
    torch.testing.assert_close(module(x, x), x + module.out_proj(y.mT))


def test_final_does_not_care_about_the_order_of_queries(pair):
    query, context = pair
    module, shuffle = CrossMamba(8, 6).double(), torch.randperm(5)
    torch.testing.assert_close(module(query[:, shuffle], context), module(query, context)[:, shuffle])


def test_the_order_of_the_context_matters(pair):
    query, context = pair
    module = CrossMamba(8, 6).double()
    assert not torch.allclose(module(query, context.flip(1)), module(query, context))


@pytest.mark.parametrize(("readout", "bidirectional"), list(itertools.product(("final", "progress"), (False, True))))
@pytest.mark.parametrize("real", [slice(0, 4), slice(2, 6)])
def test_padding_in_the_context_changes_nothing(pair, readout, bidirectional, real):
    query, context = pair
    mask = torch.zeros(2, 7, dtype=torch.bool)
    mask[0, real] = mask[1] = True
    module = CrossMamba(8, 6, readout=readout, bidirectional=bidirectional).double()
    got = module(query, context.masked_fill(~mask[..., None], 100.0), mask)
    torch.testing.assert_close(got[:1], module(query[:1], context[:1, real]))
    torch.testing.assert_close(got[1:], module(query[1:], context[1:]))


@pytest.mark.parametrize("readout", ["final", "progress"])
def test_nobody_asks(pair, readout):
    module = CrossMamba(8, 6, readout=readout, bidirectional=True).double()
    assert module(pair[0][:, :0], pair[1]).shape == (2, 0, 8)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_over_one_token_all_readouts_agree(pair, bidirectional):
    query, context = pair[0][:, :1], pair[1][:, :1]
    final, *others = (CrossMamba(8, 6, readout=readout, bidirectional=bidirectional).double() for readout in READOUTS)
    for module in others:
        module.load_state_dict(final.state_dict())
        torch.testing.assert_close(module(query, context), final(query, context))


@pytest.mark.parametrize("readout", ["final", "progress"])
def test_a_context_of_padding_alone_adds_nothing(pair, readout):
    query, context = pair
    module = CrossMamba(8, 6, readout=readout, bidirectional=True).double()
    torch.testing.assert_close(module(query, context, torch.zeros(2, 7, dtype=torch.bool)), query)


@pytest.mark.parametrize(("readout", "bidirectional"), list(itertools.product(("final", "progress"), (False, True))))
@pytest.mark.parametrize("real", [slice(0, 3), slice(1, 4)])
def test_padding_in_the_query_changes_nothing_and_reads_nothing(pair, readout, bidirectional, real):
    query, context = pair
    mask, context_mask = torch.zeros(2, 5, dtype=torch.bool), torch.ones(2, 7, dtype=torch.bool)
    mask[0, real] = mask[1] = True
    context_mask[0, 6] = False
    module = CrossMamba(8, 6, readout=readout, bidirectional=bidirectional).double()
    got = module(query, context, context_mask, mask)
    kept = context[:1, context_mask[0]]
    torch.testing.assert_close(got[:1, real], module(query[:1, real], kept))
    torch.testing.assert_close(got[1:], module(query[1:], context[1:]))
    assert torch.equal(got[~mask], query[~mask])


@pytest.mark.parametrize(("readout", "bidirectional"), list(itertools.product(("final", "progress"), (False, True))))
def test_an_empty_context_is_one_of_which_nothing_was_read(pair, readout, bidirectional):
    query, context = pair[0].requires_grad_(), pair[1][:, :0]
    module = CrossMamba(8, 6, readout=readout, bidirectional=bidirectional).double()
    for mask in (None, torch.ones(2, 0, dtype=torch.bool)):
        got = module(query, context, mask)
        assert torch.equal(got, query)
        (grad,) = torch.autograd.grad(got.sum(), query)
        assert torch.equal(grad, torch.ones_like(grad))


@pytest.mark.parametrize("name", ["context_mask", "query_mask"])
def test_a_mask_of_whole_numbers_is_refused_with_what_to_pass(pair, name):
    mask = torch.ones(2, 7 if name == "context_mask" else 5, dtype=torch.long)
    with pytest.raises(TypeError, match=rf"{name} is int64, and masks are bool, .* real token: pass {name}.bool\(\)"):
        CrossMamba(8, 6).double()(*pair, **{name: mask})


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("backend", ["chunked", "native"] if library.available() else ["chunked"])
def test_every_backend_gives_the_same(readout, backend):
    query, context, mask = torch.randn(2, 7, 8), torch.randn(2, 7, 6), torch.arange(7) < torch.tensor([[7], [5]])
    module = CrossMamba(8, 6, readout=readout, bidirectional=True)
    answers = []
    for name in (backend, "reference"):
        with use_backend(name):
            y = module(query, context, mask)
            answers.append((y, *torch.autograd.grad(y.square().sum(), list(module.parameters()))))
    torch.testing.assert_close(*answers)


@pytest.mark.parametrize("readout", READOUTS)
def test_autocast_leaves_the_states_in_float32(readout):
    query, context = torch.randn(2, 7, 8), torch.randn(2, 7, 6)
    module = CrossMamba(8, 6, readout=readout, bidirectional=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = module(query, context)
        cache = module.prefill(context).state if readout == "final" else y
    assert y.dtype == cache.dtype == torch.float32
    torch.testing.assert_close(y, module(query, context), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("readout", READOUTS)
def test_gradients_reach_both_inputs(readout):
    query = torch.randn(1, 3, 4, dtype=torch.double, requires_grad=True)
    context = torch.randn(1, 3, 2, dtype=torch.double, requires_grad=True)
    module = CrossMamba(4, 2, d_state=2, readout=readout, bidirectional=True).double()
    assert torch.autograd.gradcheck(module, (query, context))


@pytest.mark.parametrize("readout", READOUTS)
def test_compiles_in_one_graph(readout):
    query, context = torch.randn(2, 5, 8), torch.randn(2, 5, 6)
    module = CrossMamba(8, 6, readout=readout)
    torch.testing.assert_close(
        torch.compile(module, fullgraph=True, backend="aot_eager")(query, context), module(query, context)
    )


def test_aligned_refuses_unequal_lengths(pair):
    with pytest.raises(ValueError, match="needs equal lengths, got 5 query and 7 context tokens: use readout="):
        CrossMamba(8, 6, readout="aligned").double()(*pair)


def test_other_widths_are_refused_by_name(pair):
    query, context = pair
    with pytest.raises(ValueError, match="context has 8 channels, the module was built for 6"):
        CrossMamba(8, 6).double()(query, query)
    with pytest.raises(ValueError, match="query has 6 channels, the module was built for 8"):
        CrossMamba(8, 6).double()(context, context)


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="d_state must be at least 1, got 0"):
        CrossMamba(8, 6, d_state=0)
    with pytest.raises(TypeError, match="(?s)readout.*first"):
        CrossMamba(8, 6, readout="first")


def test_another_batch_is_refused_by_name(pair):
    query, context = pair
    with pytest.raises(TypeError, match=r"(?s)context.*batch=2"):
        CrossMamba(8, 6).double()(query, context[:1])
