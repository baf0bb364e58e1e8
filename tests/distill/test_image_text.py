import pytest
import torch

from transmamba.distill import LogitsDistill, align_image_text, align_text, check_vocabularies
from transmamba.distill.align import resize_tokens

GRIDS = {"student_grid": (2, 4), "teacher_grid": (1, 2)}


def side(words, images, patches, length, left):
    """Pad samples with their images after the first word: return tokens, mask, image."""
    dim = 3
    x, mask, image = torch.full((len(words), length, dim), 99.0), *torch.zeros(2, len(words), length, dtype=torch.bool)
    for sample, (count, own) in enumerate(zip(words, images, strict=True)):
        total = count + own * patches
        start = length - total if left else 0
        mask[sample, start : start + total] = True
        image[sample, start + 1 : start + 1 + own * patches] = True
        x[sample, mask[sample]] = torch.randn(total, dim)
    return x, mask, image


def both(words=(5, 2, 4), images=(1, 0, 2)):
    student, teacher = side(words, images, 8, 23, left=False), side(words, images, 2, 11, left=True)
    return student, teacher, (student[0], teacher[0], student[1], teacher[1], student[2], teacher[2])


def test_patches_meet_on_the_teachers_grid_and_words_in_their_order():
    student, teacher, arguments = both()
    s, t, mask = align_image_text(*arguments, **GRIDS)
    assert mask.sum(1).tolist() == [5 + 2, 2, 4 + 4] and s.shape == t.shape == (3, 4 + 5, 3)
    for sample, own in enumerate((1, 0, 2)):
        for aligned, (x, real, image), grid in ((s, student, (2, 4)), (t, teacher, (1, 2))):
            patches = x[sample, image[sample]].view(own, -1, 3) if own else torch.zeros(0, 8, 3)
            expected = resize_tokens(patches, grid, (1, 2)).reshape(-1, 3) if own else torch.zeros(0, 3)
            words = x[sample, real[sample] & ~image[sample]]
            torch.testing.assert_close(aligned[sample, mask[sample]], torch.cat([expected, words]))


def test_equal_grids_are_no_interpolation():
    student = side((3, 4), (2, 1), 2, 9, left=False)
    teacher = tuple(x.clone() for x in student)
    arguments = (student[0], teacher[0], student[1], teacher[1], student[2], teacher[2])
    s, t, mask = align_image_text(*arguments, student_grid=(1, 2), teacher_grid=(1, 2))
    assert torch.equal(s[mask], t[mask])


def test_gradients_flow_to_real_tokens_only():
    student, teacher, _ = both()
    x = student[0].requires_grad_()
    arguments = (x, teacher[0], student[1], teacher[1], student[2], teacher[2])
    s, _, mask = align_image_text(*arguments, **GRIDS)
    s[mask].sum().backward()
    assert torch.equal(x.grad.ne(0).any(-1), student[1])


def test_logits_meet_at_the_answers():
    student, teacher, _ = both()
    answers = [real & ~image & (real.cumsum(1) == real.sum(1, keepdim=True)) for _, real, image in (student, teacher)]
    s, t, mask = align_text(student[0], teacher[0], *answers)
    assert torch.equal(s[:, 0], student[0][answers[0]]) and bool(mask.all())
    with pytest.raises(ValueError, match="student has 3 classes, teacher 2: distil between equal vocabularies"):
        LogitsDistill()(s, t[..., :2], mask)


def test_samples_that_do_not_fit_are_named():
    _, _, arguments = both()
    fewer = list(both(images=(1, 0, 1))[2])
    mixed = [arguments[0], fewer[1], arguments[2], fewer[3], arguments[4], fewer[5]]
    with pytest.raises(ValueError, match="sample 2 has 2 images in the student, 1 in the teacher"):
        align_image_text(*mixed, **GRIDS)
    with pytest.raises(ValueError, match=r"sample 0 has 8 image tokens in the student: expected a multiple of 6"):
        align_image_text(*arguments, student_grid=(2, 3), teacher_grid=(1, 2))
    with pytest.raises(ValueError, match=r"teacher_grid\[1\] must be at least 1, got 0"):
        align_image_text(*arguments, student_grid=GRIDS["student_grid"], teacher_grid=(1, 0))
    words = list(both(words=(5, 3, 4))[2])
    mixed = [arguments[0], words[1], arguments[2], words[3], arguments[4], words[5]]
    with pytest.raises(ValueError, match="sample 1 has 2 real tokens in the student, 3 in the teacher"):
        align_image_text(*mixed, **GRIDS)


def test_vocabularies_must_be_one():
    check_vocabularies({"a": 0, "b": 1}, {"b": 1, "a": 0})
    with pytest.raises(ValueError, match="2 words differ, the first is 'a': number 0 in the student, 1 in the teacher"):
        check_vocabularies({"a": 0, "b": 1}, {"b": 0, "a": 1})
    with pytest.raises(ValueError, match="1 words differ, the first is 'c': number None in the student, 2"):
        check_vocabularies({"a": 0}, {"a": 0, "c": 2})
    with pytest.raises(TypeError, match=r"(?s)parameter .student.*Mapping"):
        check_vocabularies(["a"], {"a": 0})
