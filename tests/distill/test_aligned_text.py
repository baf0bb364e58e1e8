import pytest
import torch

from transmamba.distill import AdaptiveLayerDistill, align_text


def padded(tokens, length, side):
    """Pad samples of different lengths into one tensor; return it and its mask."""
    x = torch.full((len(tokens), length, tokens[0].shape[-1]), 99.0)
    mask = torch.zeros(len(tokens), length, dtype=torch.bool)
    for number, sample in enumerate(tokens):
        where = slice(0, len(sample)) if side == "right" else slice(length - len(sample), length)
        x[number, where], mask[number, where] = sample, True
    return x, mask


def test_left_and_right_padding_of_different_length_agree():
    tokens = [torch.randn(n, 3) for n in (5, 2, 4)]
    student, student_mask = padded(tokens, 11, "left")
    teacher, teacher_mask = padded(tokens, 7, "right")
    s, t, mask = align_text(student, teacher, student_mask, teacher_mask)
    assert s.shape == (3, 5, 3)
    assert mask.sum(1).tolist() == [5, 2, 4]
    assert torch.equal(s[mask], t[mask])
    assert torch.equal(s[mask], torch.cat(tokens))


def test_loss_of_aligned_text_is_the_loss_of_the_unpadded():
    students, teachers = ([torch.randn(n, 3) for n in (5, 2)] for _ in range(2))
    (s, s_mask), (t, t_mask) = padded(students, 9, "left"), padded(teachers, 6, "right")
    aligned = align_text(s, t, s_mask, t_mask)
    loss = AdaptiveLayerDistill(weighting="uniform")
    expected = sum(loss([a[None]], b[None]) for a, b in zip(students, teachers, strict=True)) / 2
    torch.testing.assert_close(loss([aligned.student], aligned.teacher, aligned.mask), expected)


def test_gradients_flow_to_real_tokens_only():
    x, mask = padded([torch.randn(n, 3) for n in (5, 2)], 7, "left")
    x.requires_grad_()
    s, _, aligned = align_text(x, x.detach(), mask, mask)
    s[aligned].sum().backward()
    assert torch.equal(x.grad != 0, mask[..., None].expand_as(x))


def test_other_tokenizers_are_refused():
    x = torch.randn(2, 5, 3)
    mask = torch.ones(2, 5, dtype=torch.bool)
    fewer = mask.clone()
    fewer[1, 3:] = False
    with pytest.raises(ValueError, match=r"sample 1 has 5 real tokens in the student, 3 in the teacher: texts cut by"):
        align_text(x, x, mask, fewer)
