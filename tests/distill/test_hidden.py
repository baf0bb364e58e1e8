import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from transmamba.distill import HiddenLogitsDistill, LogitsDistill


class Largest(TorchDispatchMode):
    """Remembers the most elements of a tensor that an operation makes, and the bytes that operations read and write."""

    def __init__(self):
        super().__init__()
        self.elements = self.bytes = 0

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        out = operation(*arguments, **(options or {}))
        made = [x for x in (out if isinstance(out, tuple | list) else [out]) if isinstance(x, torch.Tensor)]
        self.elements = max([self.elements, *(x.numel() for x in made)])
        aliases = any(r.alias_info is not None and not r.alias_info.is_write for r in operation._schema.returns)
        if not aliases:
            read = [x for x in arguments if isinstance(x, torch.Tensor)]
            self.bytes += sum(x.numel() * x.element_size() for x in (*made, *read))
        return out


@pytest.fixture
def pair():
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64, requires_grad=True)  # noqa: E731
    return draw(2, 5, 3), draw(11, 3), draw(2, 5, 7), draw(11, 7)


@pytest.mark.parametrize("divergence", ["forward", "reverse", "js"])
@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("masked", [False, True])
def test_agrees_with_the_divergence_of_the_logits(pair, divergence, chunk, masked):
    student, head, teacher, teacher_head = pair
    mask = torch.arange(5).expand(2, 5) < torch.tensor([[3], [5]]) if masked else None
    expected = LogitsDistill(2.0, divergence, beta=0.3)(student @ head.T, teacher @ teacher_head.T, mask)
    got = HiddenLogitsDistill(2.0, divergence, beta=0.3, chunk=chunk)(*pair, mask)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)
    for one, other in zip(*(torch.autograd.grad(3 * x, (student, head)) for x in (got, expected)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_no_tensor_has_all_tokens_and_all_classes(pair):
    student, head, teacher, teacher_head = (x.detach().float() for x in pair)
    student, teacher = student.repeat(4, 10, 1).requires_grad_(), teacher.repeat(4, 10, 1)
    head, teacher_head = head.repeat(20, 1).requires_grad_(), teacher_head.repeat(20, 1)
    tokens, classes = 8 * 50, 220
    seen = {}
    for chunked in (True, False):
        with Largest() as seen[chunked]:
            if chunked:
                loss = HiddenLogitsDistill(2.0, chunk=16)(student, head, teacher, teacher_head)
            else:
                loss = LogitsDistill(2.0)(student @ head.T, teacher @ teacher_head.T)
            loss.backward()
    assert seen[False].elements == tokens * classes
    assert seen[True].elements <= max(16 * classes, tokens * 7)


def test_no_gradient_reaches_the_teacher_nor_is_computed_unasked(pair):
    HiddenLogitsDistill()(*pair).backward()
    assert pair[2].grad is None and pair[3].grad is None
    with torch.no_grad():
        assert not HiddenLogitsDistill()(*pair).requires_grad


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_frozen_side_gets_no_gradient_and_the_other_its_own(pair, frozen):
    HiddenLogitsDistill()(*pair).backward()
    whole = pair[1 - frozen].grad.clone()
    pair[1 - frozen].grad = None
    given = [x.detach() if side == frozen else x for side, x in enumerate(pair)]
    HiddenLogitsDistill(chunk=3)(*given).backward()
    assert given[frozen].grad is None
    torch.testing.assert_close(pair[1 - frozen].grad, whole)


def test_a_frozen_head_costs_no_gradient_of_its_size(pair):
    student, head, *teacher = (x.detach().float() for x in pair)
    seen = {}
    for trained in (True, False):
        head = head.detach().repeat(100, 1).requires_grad_(trained)
        teacher_head = teacher[1].repeat(len(head) // len(teacher[1]), 1)
        with Largest() as seen[trained]:
            HiddenLogitsDistill()(student.requires_grad_(), head, teacher[0], teacher_head).backward()
        head = head[:11]
    assert seen[False].bytes < seen[True].bytes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_a_single_loss_and_gradients_of_its_own(pair, dtype):
    half = [x.detach().to(dtype).requires_grad_() for x in pair]
    loss = HiddenLogitsDistill(2.0, chunk=4)(*half)
    expected = LogitsDistill(2.0)(half[0] @ half[1].T, half[2] @ half[3].T)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert half[0].grad.dtype == half[1].grad.dtype == dtype


def test_an_empty_batch_is_no_number_like_any_mean(pair):
    _, head, _, teacher_head = pair
    empty = [torch.zeros(0, 5, size, dtype=torch.float64) for size in (3, 7)]
    assert HiddenLogitsDistill()(empty[0], head, empty[1], teacher_head).isnan()


def test_misfits_are_named(pair):
    student, head, teacher, teacher_head = pair
    with pytest.raises(ValueError, match=r"student has tokens \(2, 5\), teacher \(2, 4\)"):
        HiddenLogitsDistill()(student, head, teacher[:, :4], teacher_head)
    with pytest.raises(ValueError, match="student_head has 11 classes, teacher_head 9: distil between equal"):
        HiddenLogitsDistill()(student, head, teacher, teacher_head[:9])
    with pytest.raises(TypeError, match="teacher_head has dtype torch.int64: expected a floating dtype"):
        HiddenLogitsDistill()(student, head, teacher, teacher_head.long())
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        HiddenLogitsDistill(chunk=0)


def test_padding_may_hold_anything(pair):
    student, head, teacher, teacher_head = (x.detach().clone() for x in pair)
    mask = torch.arange(5).expand(2, 5) < torch.tensor([[3], [5]])
    wanted = HiddenLogitsDistill()(student, head, teacher, teacher_head, mask)
    student[~mask], teacher[~mask] = torch.nan, torch.inf
    student.requires_grad_()
    head.requires_grad_()
    loss = HiddenLogitsDistill()(student, head, teacher, teacher_head, mask)
    assert torch.equal(loss, wanted)
    loss.backward()
    assert student.grad.isfinite().all() and head.grad.isfinite().all()
    assert not student.grad[~mask].any()


def test_one_real_token_is_a_batch_of_its_own(pair):
    student, head, teacher, teacher_head = pair
    mask = torch.zeros(2, 5, dtype=torch.bool)
    mask[1, 2] = True
    alone = HiddenLogitsDistill()(student[1:, 2:3], head, teacher[1:, 2:3], teacher_head)
    torch.testing.assert_close(HiddenLogitsDistill()(student, head, teacher, teacher_head, mask), alone)
    assert HiddenLogitsDistill()(student, head, teacher, teacher_head, mask & ~mask) == 0


@pytest.mark.parametrize("divergence", ["forward", "reverse", "js"])
def test_classes_without_probability_add_nothing(pair, divergence):
    student, head, teacher, teacher_head = (x.detach().clone() for x in pair)
    # logits of a thousand: their classes have a probability of exactly zero or one
    head[:4] *= 1000
    teacher_head[2:6] *= 1000
    student.requires_grad_(), head.requires_grad_()
    expected = LogitsDistill(1.5, divergence)(student @ head.T, teacher @ teacher_head.T)
    got = HiddenLogitsDistill(1.5, divergence, chunk=4)(student, head, teacher, teacher_head)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)
    for one, other in zip(*(torch.autograd.grad(x, (student, head)) for x in (got, expected)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("divergence", ["forward", "reverse", "js"])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_in_autocast_it_agrees_with_the_divergence_of_the_logits(pair, divergence, temperature):
    student, head, teacher, teacher_head = (x.detach().float().requires_grad_() for x in pair)
    results = []
    for hidden in (True, False):
        with torch.autocast("cpu", torch.bfloat16):
            if hidden:
                loss = HiddenLogitsDistill(temperature, divergence)(student, head, teacher, teacher_head)
            else:
                loss = LogitsDistill(temperature, divergence)(student @ head.T, teacher @ teacher_head.T)
        assert loss.dtype == torch.float32
        results.append((loss, *torch.autograd.grad(loss, (student, head))))
    (loss, *got), (expected, *wanted) = results
    torch.testing.assert_close(loss, expected)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2 * float(other.abs().max()))


def test_second_derivatives_are_refused(pair):
    with pytest.raises(RuntimeError, match="no second derivative, because .* use LogitsDistill on the logits"):
        torch.autograd.grad(HiddenLogitsDistill()(*pair), pair[0], create_graph=True)


@pytest.mark.parametrize(("divergence", "bytes_of"), [("forward", 106), ("reverse", 106), ("js", 192)])
def test_operations_move_few_bytes_per_logit(divergence, bytes_of):
    tokens, classes, dim = 512, 4096, 16
    student, head, teacher, teacher_head = (torch.randn(n, dim) for n in (tokens, classes) * 2)
    student.requires_grad_(), head.requires_grad_()
    with Largest() as seen:
        HiddenLogitsDistill(2.0, divergence, chunk=128)(student, head, teacher, teacher_head).backward()
    assert seen.bytes <= bytes_of * tokens * classes
