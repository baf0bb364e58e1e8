import pytest
import torch
import torch.nn.functional as F

from transmamba.nn import CrossMamba, CrossMambaBlock, RMSNorm

DIM, CONTEXT = 6, 4


def cross(**options):
    return CrossMamba(DIM, CONTEXT, d_state=3, residual=False, **options)


@pytest.fixture
def pair():
    return torch.randn(2, 5, DIM, dtype=torch.double), torch.randn(2, 7, CONTEXT, dtype=torch.double)


def test_is_norms_residuals_and_mlp_around_the_mixer(pair):
    x, context = pair
    block = CrossMambaBlock(DIM, CONTEXT, cross(readout="progress"), mlp_ratio=2.0).double()
    inner = block.mixer(F.layer_norm(x, (DIM,)), F.layer_norm(context, (CONTEXT,)))
    middle = x + inner
    hidden = F.gelu(block.mlp.fc1(F.layer_norm(middle, (DIM,))))
    assert hidden.shape[-1] == 2 * DIM
    torch.testing.assert_close(block(x, context), middle + block.mlp.fc2(hidden))


def test_without_mlp_there_is_one_residual_and_norms_are_a_choice(pair):
    x, context = pair
    block = CrossMambaBlock(DIM, CONTEXT, mlp=False, norm=RMSNorm).double()
    assert block.mlp is None and block.norm2 is None
    torch.testing.assert_close(block(x, context), x + block.mixer(block.norm1(x), block.norm_context(context)))


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("block", [False, True])
def test_steps_and_pieces_give_the_parallel_pass(pair, bidirectional, block):
    x, context = pair
    mask = torch.arange(7) < torch.tensor([[7], [4]])
    if block:
        module = CrossMambaBlock(DIM, CONTEXT, cross(bidirectional=bidirectional)).double()
    else:
        module = CrossMamba(DIM, CONTEXT, bidirectional=bidirectional).double()
    cache = module.prefill(context, mask)
    expected = module(x, context, mask)
    torch.testing.assert_close(torch.stack([module.step(token, cache) for token in x.unbind(1)], 1), expected)
    torch.testing.assert_close(torch.cat([module.read(part, cache) for part in x.split(2, 1)], 1), expected)


def test_a_context_of_padding_alone_adds_nothing(pair):
    x, context = pair
    block = CrossMambaBlock(DIM, CONTEXT, cross(bidirectional=True), mlp=False).double()
    torch.testing.assert_close(block(x, context, torch.zeros(2, 7, dtype=torch.bool)), x)


def test_the_cache_of_a_bfloat16_block_stays_float32():
    block = CrossMambaBlock(DIM, CONTEXT, cross()).bfloat16()
    cache = block.prefill(torch.randn(2, 7, CONTEXT, dtype=torch.bfloat16))
    x = torch.randn(2, DIM, dtype=torch.bfloat16)
    assert (cache.state.dtype, block.step(x, cache).dtype) == (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("readout", ["aligned", "progress"])
def test_only_the_last_state_is_read_token_by_token(pair, readout):
    module = CrossMamba(DIM, CONTEXT, readout=readout).double()
    with pytest.raises(ValueError, match=f"it needs readout=\"final\", got '{readout}'"):
        module.prefill(pair[1])


def test_a_mixer_with_its_own_residual_is_refused():
    with pytest.raises(ValueError, match="the block adds the query, and so does its mixer: build it with residual=Fa"):
        CrossMambaBlock(DIM, CONTEXT, CrossMamba(DIM, CONTEXT))


def test_sizes_that_do_not_fit_are_refused(pair):
    x, context = pair
    with pytest.raises(ValueError, match="context has 6 channels, the module was built for 4"):
        CrossMambaBlock(DIM, CONTEXT).double()(x, x)
    with pytest.raises(ValueError, match="mlp_ratio=inf of a width of 6 leaves no channel, or too many"):
        CrossMambaBlock(DIM, CONTEXT, mlp_ratio=float("inf"))


def test_branches_are_dropped_in_training_alone(pair):
    x, context = pair
    block = CrossMambaBlock(DIM, CONTEXT, drop_path=0.5).double()
    block.train()
    assert not torch.equal(block(x, context), block.eval()(x, context))


def test_compiles_in_one_graph(pair):
    block = CrossMambaBlock(DIM, CONTEXT, cross(bidirectional=True)).double()
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*pair), block(*pair))
