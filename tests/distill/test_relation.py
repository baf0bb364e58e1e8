"""Relations between tokens, against the matrices written out."""

import pytest
import torch
import torch.nn.functional as F

from transmamba.distill import TokenRelationDistill, resize_tokens
from transmamba.ops import permute_tokens, scan_orders

STUDENT = torch.randn(3, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
TEACHER = torch.randn(3, 5, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
MASK = torch.tensor([[True] * 5, [True, True, False, True, False], [True] + [False] * 4])


def gram(x):
    x = F.normalize(x, dim=-1)
    return x @ x.mT


def by_hand(student, teacher):
    """Compute, for one sample, the mean over ordered pairs of different tokens."""
    n = len(student)
    squares = (gram(student) - gram(teacher)).square()
    return (squares.sum() - squares.diagonal().sum()) / max(n * (n - 1), 1)


@pytest.mark.parametrize("chunk", [1, 2, 5, 256])
def test_value_is_that_of_the_matrices(chunk):
    expected = torch.stack([by_hand(s, t) for s, t in zip(STUDENT, TEACHER, strict=True)]).mean()
    torch.testing.assert_close(TokenRelationDistill(chunk=chunk)([STUDENT], TEACHER), expected)


def test_two_tokens_by_hand():
    student = torch.tensor([[[1.0, 0.0], [1.0, 1.0]]])
    teacher = torch.tensor([[[2.0, 0.0, 0.0], [0.0, 0.0, 3.0]]])
    torch.testing.assert_close(TokenRelationDistill()([student], teacher), torch.tensor(0.5))  # (1 / sqrt 2 - 0)^2


def test_padding_counts_no_pair_and_one_token_has_none():
    real = [by_hand(s[m], t[m]) for s, t, m in zip(STUDENT, TEACHER, MASK, strict=True)]
    assert real[2] == 0
    torch.testing.assert_close(TokenRelationDistill(chunk=2)([STUDENT], TEACHER, MASK), sum(real) / 3)
    without = MASK & torch.tensor([[True], [True], [False]])
    torch.testing.assert_close(TokenRelationDistill()([STUDENT], TEACHER, without), sum(real[:2]) / 2)


def test_it_does_not_depend_on_rotation_scale_or_width():
    turn = torch.linalg.qr(torch.randn(7, 7, dtype=torch.float64))[0]
    loss = TokenRelationDistill()
    torch.testing.assert_close(loss([3 * STUDENT @ turn], TEACHER), loss([STUDENT], TEACHER))
    wider = torch.cat([STUDENT @ turn, torch.zeros(3, 5, 4, dtype=torch.float64)], -1)
    assert loss([wider], STUDENT) < 1e-20


def test_layers_and_directions_are_averaged_and_put_back():
    loss, orders = TokenRelationDistill(), scan_orders(("raster", "raster_reverse"), 5)
    one, two = loss([STUDENT], TEACHER), loss([STUDENT.square()], TEACHER)
    torch.testing.assert_close(loss([STUDENT, STUDENT.square()], TEACHER), (one + two) / 2)
    scanned = [permute_tokens(x, order) for x, order in zip((STUDENT, STUDENT.square()), orders, strict=True)]
    torch.testing.assert_close(loss(scanned, TEACHER, orders=orders), (one + two) / 2)
    masked = (loss([STUDENT], TEACHER, MASK) + loss([STUDENT.square()], TEACHER, MASK)) / 2
    torch.testing.assert_close(loss(scanned, TEACHER, MASK, orders=orders), masked)
    other = loss([STUDENT.square()], TEACHER.exp())
    torch.testing.assert_close(loss([STUDENT, STUDENT.square()], [TEACHER, TEACHER.exp()]), (one + other) / 2)


@pytest.mark.parametrize("mask", [None, MASK])
def test_gradients(mask):
    student = STUDENT.clone().requires_grad_()
    loss = TokenRelationDistill(chunk=2)
    assert torch.autograd.gradcheck(lambda x: loss([x], TEACHER, mask), student)
    teacher = TEACHER.clone().requires_grad_()
    loss([student], teacher, mask).backward()
    assert teacher.grad is None


def test_another_grid():
    fine = torch.randn(2, 16, 11, dtype=torch.float64)
    coarse = torch.randn(2, 4, 7, dtype=torch.float64)
    grids = ((2, 2), (4, 4))
    expected = [by_hand(s, t) for s, t in zip(coarse, resize_tokens(fine, (4, 4), (2, 2)), strict=True)]
    got = TokenRelationDistill(resize="features")([coarse], fine, grids=grids)
    torch.testing.assert_close(got, sum(expected) / 2)
    # along both axes of the matrix, one after the other
    half = resize_tokens(gram(fine), (4, 4), (2, 2))
    matrix = resize_tokens(half.mT.contiguous(), (4, 4), (2, 2)).mT
    squares = (gram(coarse) - matrix).square().masked_fill(torch.eye(4, dtype=torch.bool), 0)
    got = TokenRelationDistill(resize="relation")([coarse], fine, grids=grids)
    torch.testing.assert_close(got, squares.sum() / 2 / 12)


def test_memory_is_linear_in_the_tokens():
    saved = {}
    for tokens in (64, 256):
        kept = []

        def keep(x, kept=kept):
            kept.append((x.untyped_storage().data_ptr(), x.untyped_storage().nbytes()))
            return x

        student = torch.randn(1, tokens, 3, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            TokenRelationDistill(chunk=16)([student], torch.randn(1, tokens, 3))
        saved[tokens] = sum(dict(kept).values())
    assert saved[256] < 5 * saved[64] < 5 * 64 * 64 * 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_compared_in_single(dtype):
    student, teacher = STUDENT.to(dtype), TEACHER.to(dtype)
    got = TokenRelationDistill()([student], teacher)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, TokenRelationDistill()([student.float()], teacher.float()))
    with torch.autocast("cpu", torch.bfloat16):
        auto = TokenRelationDistill()([student.float()], teacher.float())
    torch.testing.assert_close(auto, got)


def test_degenerate_input():
    loss = TokenRelationDistill()
    assert loss([torch.ones(2, 1, 3)], torch.ones(2, 1, 5)) == 0
    zero = torch.zeros(2, 4, 3, requires_grad=True)
    value = loss([zero], torch.ones(2, 4, 5))
    value.backward()
    assert value.item() == pytest.approx(1) and zero.grad.isfinite().all()
    assert loss([STUDENT], TEACHER, torch.zeros_like(MASK)) == 0


def test_compiles():
    loss, student = TokenRelationDistill(chunk=2), STUDENT.float()
    got = torch.compile(loss, backend="aot_eager")([student], TEACHER.float(), MASK)
    torch.testing.assert_close(got, loss([student], TEACHER.float(), MASK))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: TokenRelationDistill()([STUDENT], TEACHER[:, :4]),
            "student layer 0 has 5 tokens, teacher 4: align them",
        ),
        (lambda: TokenRelationDistill()([STUDENT[:2]], TEACHER), "student layer 0 has 2 batch, teacher 3"),
        (lambda: TokenRelationDistill()([], TEACHER), "student is empty"),
        (lambda: TokenRelationDistill()([STUDENT], TEACHER, grids=((5,), (5,))), "grids and resize belong together"),
        (lambda: TokenRelationDistill(resize="features")([STUDENT], TEACHER), "grids and resize belong together"),
        (lambda: TokenRelationDistill(resize="relation")([STUDENT], TEACHER, MASK, grids=((5,), (5,))), "no padding"),
        (lambda: TokenRelationDistill()([STUDENT] * 3, [TEACHER] * 2), "3 student features, 2 of the teacher"),
        (lambda: TokenRelationDistill()([STUDENT], TEACHER, orders=[]), "1 student features, 0 scan orders"),
        (lambda: TokenRelationDistill()([STUDENT], [TEACHER], MASK[:, :4]), "mask has shape"),
        (lambda: TokenRelationDistill(resize="silently"), "unknown resize 'silently'"),
        (lambda: TokenRelationDistill(chunk=0), "chunk"),
    ],
)
def test_clear_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
    with pytest.raises(TypeError, match="student layer 0 has dtype torch.int64"):
        TokenRelationDistill()([torch.ones(3, 5, 2, dtype=torch.long)], TEACHER)
