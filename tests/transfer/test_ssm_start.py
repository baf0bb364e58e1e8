import math

import pytest
import torch
import torch.nn.functional as F

from transmamba.models import SNAKES, PlainMamba, VisionMamba, ViT
from transmamba.nn.plain_mamba import moves_between
from transmamba.ops import scan_orders
from transmamba.transfer import SSM_PARAMETERS, AttentionInit, first_importance, magnitude_importance, subclone
from transmamba.transfer.attention_weights import constant_direction
from transmamba.transfer.linear_attention import low_rank

from .conftest import snapshot, unchanged

TOKENS = 16


def vit(dim=12, heads=1, depth=2):
    teacher = ViT(img_size=8, patch_size=2, dim=dim, depth=depth, heads=heads)
    with torch.no_grad():
        for p in teacher.parameters():  # biases and norms as after training: not zeros and ones
            p.add_(0.3 * torch.rand_like(p))
    return teacher


def student(dim=12, d_state=3, orders=("forward", "backward"), depth=2):
    return VisionMamba(img_size=8, patch_size=2, dim=dim, depth=depth, d_state=d_state, orders=orders)


def scores_and_values(block, h, heads):
    """Compute by head: q.k / sqrt(head_dim), and the values times the output projection."""
    q, k, v = (
        part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in block.attn.qkv(h).chunk(3, -1)
    )  # batch head token channel
    out = block.attn.proj.weight.unflatten(1, (heads, -1))
    return q @ k.mT / math.sqrt(q.shape[-1]), torch.einsum("bhjp,dhp->bhjd", v, out)


def relative(actual, expected):
    return ((actual - expected).norm() / expected.norm()).item()


def lowest_rank_teacher(teacher, rank):
    """Make every score matrix and value map of the teacher fit the student's rank."""
    with torch.no_grad():
        for block in teacher.blocks:
            q, k, v = block.attn.qkv.weight.chunk(3)
            for part in (q, k):
                part[rank:] = 0
            bias_q, bias_k, _ = block.attn.qkv.bias.chunk(3)
            bias_q[rank:] = 0
            bias_k[rank:] = 0
            v[4:] = 0
            block.attn.qkv.bias[-len(v) + 4 :] = 0
    return teacher


def test_the_first_forward_is_bidirectional_linear_attention():
    teacher, model = lowest_rank_teacher(vit(), 3), student()
    report = subclone(teacher, model, magnitude_importance, ssm_from=AttentionInit(1, TOKENS))
    h = teacher.blocks[1].norm1(torch.randn(2, TOKENS, 12))
    torch.testing.assert_close(model.blocks[1].norm1(h), teacher.blocks[1].norm1(h), atol=1e-4, rtol=1e-4)
    scores, values = scores_and_values(teacher.blocks[1], h, 1)
    both = scores + torch.diag_embed(scores.diagonal(dim1=-2, dim2=-1))  # each direction has the diagonal
    expected = (both @ values)[:, 0] / TOKENS
    assert relative(model.blocks[1].mixer(h), expected) < 0.02
    assert report.sliced["blocks.1.mixer.in_proj.weight"] == "blocks.1.attn.qkv: linear attention"
    assert report.fraction == 1.0
    assert not [name for name in report.unused if ".attn." in name]


def test_one_direction_is_causal_and_four_see_all_tokens_twice():
    teacher = lowest_rank_teacher(vit(), 3)
    h = teacher.blocks[0].norm1(torch.randn(2, TOKENS, 12))
    scores, values = scores_and_values(teacher.blocks[0], h, 1)
    diagonal = torch.diag_embed(scores.diagonal(dim1=-2, dim2=-1))
    for orders, matrix in (
        (("forward",), scores.tril()),
        (SNAKES, scores + diagonal),
    ):
        model = student(orders=orders)
        subclone(teacher, model, magnitude_importance, ssm_from=AttentionInit(1, TOKENS, decay=1e-4))
        actual = model.blocks[0].mixer(h, scan_orders(orders, model.grid))
        assert relative(actual, (matrix @ values)[:, 0] / TOKENS) < 1e-3


def test_a_mixer_with_one_set_of_parameters_for_four_snakes_sees_all_tokens_twice():
    teacher = lowest_rank_teacher(vit(), 3)
    model = PlainMamba(img_size=64, patch_size=16, dim=12, depth=2, d_state=3)
    subclone(teacher, model, magnitude_importance, ssm_from=AttentionInit(1, TOKENS, decay=1e-4))
    h = teacher.blocks[0].norm1(torch.randn(2, TOKENS, 12))
    scores, values = scores_and_values(teacher.blocks[0], h, 1)
    expected = ((scores + torch.diag_embed(scores.diagonal(dim1=-2, dim2=-1))) @ values)[:, 0] / TOKENS
    expected = expected + teacher.blocks[0].attn.proj.bias  # this mixer has a bias to put it in
    orders = scan_orders(SNAKES, model.grid)
    assert relative(model.blocks[0].mixer(h, orders, moves_between(orders, model.grid), model.grid), expected) < 1e-3


def test_less_decay_is_closer():
    teacher = lowest_rank_teacher(vit(), 3)
    h = teacher.blocks[0].norm1(torch.randn(2, TOKENS, 12))
    scores, values = scores_and_values(teacher.blocks[0], h, 1)
    errors = []
    for decay in (1.0, 0.1, 0.01):
        model = student(orders=("forward",))
        subclone(teacher, model, magnitude_importance, ssm_from=AttentionInit(1, TOKENS, decay=decay))
        errors.append(relative(model.blocks[0].mixer(h), (scores.tril() @ values)[:, 0] / TOKENS))
    assert errors[0] > 5 * errors[1] > 25 * errors[2]


def test_several_heads_give_their_mean_score_and_summed_values():
    teacher, model = vit(heads=3), student(d_state=2, orders=("forward",))
    subclone(teacher, model, magnitude_importance, ssm_from=AttentionInit(3, TOKENS, decay=1e-4))
    block, mixer = teacher.blocks[0], model.blocks[0].mixer
    q, k, v = (torch.cat(pair, 1) for pair in zip(
        block.attn.qkv.weight.chunk(3), (b[:, None] for b in block.attn.qkv.bias.chunk(3)), strict=True
    ))  # fmt: skip
    C, B = low_rank(q.T @ k / (3 * math.sqrt(4)), 2)
    out, x = low_rank(block.attn.proj.weight @ v, (24 - 8) // 2)
    h = block.norm1(torch.randn(2, TOKENS, 12))
    one = F.pad(h, (0, 1), value=1.0)
    scores = ((one @ C.T) @ (one @ B.T).mT).tril() / TOKENS
    assert relative(mixer(h), scores @ (one @ x.T) @ out) < 1e-3


def test_grouped_keys_are_those_of_a_teacher_that_repeats_them():
    width, length = 12, TOKENS
    q, kv, out = torch.randn(12, width), torch.randn(2, 6, width), torch.randn(width, 12)
    names = "layers.{}.self_attn.{}_proj.weight"
    grouped, repeated = {}, {}
    for layer in range(2):
        for name, tensor in (("q", q), ("k", kv[0]), ("v", kv[1]), ("o", out)):
            wide = tensor.reshape(2, 3, width).repeat_interleave(2, 0).reshape(12, width) if name in "kv" else tensor
            grouped["model." + names.format(layer, name)] = tensor
            repeated[names.format(layer, name)] = wide
        rest = {f"{leaf}.weight": torch.ones(12) for leaf in ("input_layernorm", "post_attention_layernorm")}
        rest |= {f"mlp.{part}_proj.weight": torch.ones(7, 12) for part in ("gate", "up")}
        for leaf, tensor in (rest | {"mlp.down_proj.weight": torch.ones(12, 7)}).items():
            grouped[f"model.layers.{layer}.{leaf}"] = repeated[f"layers.{layer}.{leaf}"] = tensor
    for leaf, tensor in (("norm.weight", torch.ones(12)), ("embed_tokens.weight", torch.ones(5, 12))):
        grouped[f"model.{leaf}"] = repeated[leaf] = tensor
    one, two = student(), student()
    two.load_state_dict(one.state_dict())
    options = {"family": "llama", "partial": True}  # its norms and MLPs are not those of the student
    first = subclone(grouped, one, first_importance, ssm_from=AttentionInit(4, length, kv_heads=2), **options)
    second = subclone(repeated, two, first_importance, ssm_from=AttentionInit(4, length), **options)
    for name, tensor in two.state_dict().items():
        torch.testing.assert_close(one.state_dict()[name], tensor)
    # without biases there is no constant direction
    assert "gate and biases as initialised" in first.sliced["blocks.0.mixer.in_proj.weight"]
    assert first.inherited == second.inherited


def test_a_narrower_student_reads_the_kept_channels():
    teacher, model = vit(dim=12, heads=3), student(dim=8, d_state=1)
    report = subclone(teacher, model, magnitude_importance, ssm_from=AttentionInit(3, TOKENS))
    kept = torch.tensor(report.kept["residual"])
    gamma, beta = (p.detach()[kept] for p in teacher.blocks[0].norm1.parameters())
    one = constant_direction(0, {"blocks.0.norm1.weight": gamma, "blocks.0.norm1.bias": beta})
    h = F.layer_norm(torch.randn(5, 8), (8,), gamma, beta)
    torch.testing.assert_close(h @ one, torch.ones(5), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(F.silu(model.blocks[0].mixer.in_proj(h)[:, 16:]), torch.ones(5, 16))


def test_a_norm_without_bias_has_no_constant_direction():
    gamma = torch.rand(7) + 0.5
    assert constant_direction(0, {"blocks.0.norm1.weight": gamma}) is None
    zero = {"blocks.0.norm1.weight": gamma, "blocks.0.norm1.bias": torch.zeros(7)}
    assert constant_direction(0, zero) is None


def test_every_parameter_still_learns():
    model = student()
    subclone(vit(), model, magnitude_importance, ssm_from=AttentionInit(1, TOKENS))
    model(torch.randn(2, 3, 8, 8)).square().sum().backward()
    frozen = {name for name, p in model.named_parameters() if not p.grad.abs().sum()}
    assert not frozen


@pytest.mark.parametrize(
    ("init", "teacher", "model", "message"),
    [
        (AttentionInit(5, 7), vit(), student(), "36 query, key and value rows and 12 inputs .* not 5 heads"),
        (AttentionInit(1, 7), vit(), student(d_state=6), "24 inner channels has no room for 2 x 2 x 6"),
        (AttentionInit(1, 7), student(), student(), "no attention to start from"),
    ],
)
def test_attention_that_does_not_fit_leaves_the_student_untouched(init, teacher, model, message):
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        subclone(teacher, model, magnitude_importance, ssm_from=init)
    assert unchanged(model, before)


def test_a_mixer_of_other_names_is_refused():
    names = ("in_proj.weight", "out_proj.weight", "kernel.weight")
    model = {f"blocks.0.mixer.{name}": torch.zeros(24, 12) for name in names}
    message = r"blocks\.0\.mixer is neither a Mamba nor a Mamba-2 mixer by its names: in_proj\.weight, .*kernel"
    with pytest.raises(ValueError, match=message):
        subclone(vit(), model | {"blocks.0.norm1.weight": torch.zeros(12)}, {}, ssm_from=AttentionInit(1, 7))


def test_an_excluded_mixer_is_left_alone():
    model = student()
    before = snapshot(model)
    options = {"exclude": [*SSM_PARAMETERS, "blocks.0.mixer.*"], "ssm_from": AttentionInit(1, TOKENS)}
    report = subclone(vit(), model, magnitude_importance, **options)
    assert not any("blocks.0.mixer" in name for name in report.inherited)
    assert "blocks.1.mixer.in_proj.weight" in report.inherited
    assert torch.equal(model.blocks[0].mixer.in_proj.weight, before["blocks.0.mixer.in_proj.weight"])


def test_half_a_mixer_is_refused():
    with pytest.raises(ValueError, match="block 0 has only some of the tensors that a mixer and an attention need"):
        init = AttentionInit(1, TOKENS)
        subclone(vit(), student(), magnitude_importance, exclude=["*out_proj*"], ssm_from=init)


def test_a_teacher_with_holes_leaves_the_student_untouched():
    teacher, model = vit(), student()
    teacher.blocks[1].attn.proj.weight.data[3, 4] = torch.nan
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"teacher tensor blocks\.1\.attn\.proj\.weight has non-finite numbers"):
        subclone(teacher, model, magnitude_importance, ssm_from=AttentionInit(1, TOKENS))
    assert unchanged(model, before)


def test_a_wider_student_cannot_start_from_attention():
    with pytest.raises(ValueError, match="block 0 reads 16 channels, 12 of the teacher's 12 are kept"):
        subclone(vit(), student(16), magnitude_importance, grow=True, ssm_from=AttentionInit(1, 7))


def test_numbers_of_heads_are_checked():
    with pytest.raises(ValueError, match="key heads must divide the heads: got 2 key heads, 3 heads"):
        AttentionInit(3, 7, kv_heads=2)
    with pytest.raises(ValueError, match="heads, length and decay must be positive"):
        AttentionInit(3, 0)
    with pytest.raises(ValueError, match="heads, length and decay must be positive"):
        AttentionInit(3, 7, decay=0)


def test_low_rank_is_the_nearest_product():
    product = torch.randn(7, 5) @ torch.randn(5, 11)
    left, right = low_rank(product, 5)
    torch.testing.assert_close(left.T @ right, product)
    left, right = low_rank(product, 13)
    assert left.shape == (13, 7)
    torch.testing.assert_close(left.T @ right, product)
