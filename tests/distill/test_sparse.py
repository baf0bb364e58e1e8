import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from transmamba.distill import LogitsDistill, SparseLogits, SparseLogitsDistill, top_logits


class Largest(TorchDispatchMode):
    """Remembers the most elements of a tensor that an operation makes."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        out = operation(*arguments, **(options or {}))
        made = [x for x in (out if isinstance(out, tuple | list) else [out]) if isinstance(x, torch.Tensor)]
        self.elements = max([self.elements, *(x.numel() for x in made)])
        return out


@pytest.fixture
def pair():
    torch.manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64, requires_grad=True)  # noqa: E731
    return draw(2, 5, 3), draw(11, 3), draw(2, 5, 7), draw(11, 7)


MASK = torch.arange(5).expand(2, 5) < torch.tensor([[3], [5]])


@pytest.mark.parametrize("tail", ["bucket", "renormalise"])
@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("mask", [None, MASK])
def test_all_classes_are_the_whole_divergence(pair, tail, chunk, mask):
    student, head, teacher, teacher_head = pair
    stored = top_logits(teacher, teacher_head, 11, temperature=2.0, chunk=chunk)
    got = SparseLogitsDistill(2.0, tail=tail, chunk=chunk)(student, head, stored, mask)
    wanted = LogitsDistill(2.0)(student @ head.T, (teacher @ teacher_head.T).detach(), mask)
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)
    for one, other in zip(*(torch.autograd.grad(x, (student, head)) for x in (got, wanted)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_the_other_classes_are_one_class(pair):
    student, head, teacher, teacher_head = pair
    stored = top_logits(teacher, teacher_head, 4)
    p, q = ((x @ w.T).softmax(-1) for x, w in ((teacher, teacher_head), (student, head)))
    torch.testing.assert_close(stored.log_probs, p.gather(-1, stored.classes).log())
    p, q = (
        torch.cat([x.gather(-1, stored.classes), 1 - x.gather(-1, stored.classes).sum(-1, True)], -1) for x in (p, q)
    )
    got = SparseLogitsDistill()(student, head, stored)
    torch.testing.assert_close(got, (p * (p / q).log()).sum(-1).mean())
    p = p[..., :4] / p[..., :4].sum(-1, True)
    got = SparseLogitsDistill(tail="renormalise")(student, head, stored)
    torch.testing.assert_close(got, (p * (p / q[..., :4]).log()).sum(-1).mean())


def test_a_student_equal_to_its_teacher_stays(pair):
    student, head, _, _ = pair
    loss = SparseLogitsDistill()(student, head, top_logits(student, head, 3))
    assert abs(loss.item()) < 1e-12
    assert max(g.abs().max() for g in torch.autograd.grad(loss, (student, head))) < 1e-12


def test_padding_may_hold_anything(pair):
    student, head, teacher, teacher_head = (x.detach().clone() for x in pair)
    student[~MASK], teacher[~MASK] = torch.nan, torch.nan
    student.requires_grad_()
    SparseLogitsDistill()(student, head, top_logits(teacher, teacher_head, 3), MASK).backward()
    assert student.grad.isfinite().all()


def test_no_tensor_has_all_tokens_and_all_classes(pair):
    student, head = torch.randn(400, 3, requires_grad=True), torch.randn(220, 3, requires_grad=True)
    with Largest() as seen:
        SparseLogitsDistill(chunk=16)(student, head, top_logits(student, head, 5, chunk=16)).backward()
    assert seen.elements <= 16 * 220


def test_half_precision_is_computed_in_single(pair):
    student, head, teacher, teacher_head = (x.detach().bfloat16() for x in pair)
    stored = top_logits(teacher, teacher_head, 3)
    assert stored.log_probs.dtype == torch.float32
    stored = SparseLogits(stored.classes.int(), stored.log_probs.half())
    assert SparseLogitsDistill()(student, head, stored).dtype == torch.float32


def test_clear_errors(pair):
    student, head, teacher, teacher_head = pair
    with pytest.raises(ValueError, match="cannot keep 12 of 11 classes"):
        top_logits(teacher, teacher_head, 12)
    with pytest.raises(ValueError, match="temperature must be positive and finite, got 0"):
        SparseLogitsDistill(0.0)
    stored = top_logits(teacher, teacher_head, 3)
    with pytest.raises(ValueError, match=r"student has tokens \(2, 4\), the teacher's classes are \(2, 5, 3\)"):
        SparseLogitsDistill()(student[:, :4], head, stored)
    with pytest.raises(ValueError, match="stored classes reach from 0 to .* of 3"):
        SparseLogitsDistill()(student, head[:3], stored)
