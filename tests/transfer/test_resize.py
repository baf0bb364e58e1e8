import pytest
import torch
import torch.nn.functional as F

from transmamba.transfer import first_importance, subclone


def move(teacher, student, axes):
    """Subclone one tensor `t`."""
    subclone({"t": teacher}, {"t": student}, first_importance, plan={"t": ("t", axes)})
    return student


def table(rows, dim=3):
    return torch.arange(rows * dim, dtype=torch.float32).reshape(1, rows, dim)


def test_the_class_row_is_dropped_and_the_patches_stay():
    teacher = table(10)
    assert torch.equal(move(teacher, torch.zeros(1, 9, 3), "1 token ."), teacher[:, 1:])


def test_both_rows_of_a_distilled_teacher_are_dropped():
    teacher = table(11)
    assert torch.equal(move(teacher, torch.zeros(1, 9, 3), "1 token ."), teacher[:, 2:])
    assert torch.equal(move(teacher, torch.zeros(1, 10, 3), "1 token ."), teacher[:, [0, *range(2, 11)]])


def test_the_class_row_moves_to_the_middle():
    teacher, rows = table(10), [1, 2, 3, 4, 0, 5, 6, 7, 8, 9]
    assert torch.equal(move(teacher, torch.zeros(1, 10, 3), "1 token:1>mid ."), teacher[:, rows])


def test_a_new_class_row_keeps_its_initialisation():
    student = move(table(9), torch.full((1, 10, 3), -1.0), "1 token .")
    assert student[0, 0].eq(-1).all()
    assert torch.equal(student[:, 1:], table(9))


def test_a_finer_grid_is_interpolated_and_the_class_row_is_not():
    """timm 908."""
    teacher = torch.randn(1, 10, 3)
    student = move(teacher, torch.zeros(1, 26, 3), "1 token .")
    image = teacher[0, 1:].reshape(3, 3, 3).permute(2, 0, 1)[None]
    expected = F.interpolate(image, (5, 5), mode="bicubic", antialias=True)[0].permute(1, 2, 0).reshape(25, 3)
    torch.testing.assert_close(student[0, 1:], expected)
    assert torch.equal(student[:, 0], teacher[:, 0])


def test_a_table_that_is_linear_in_the_rows_stays_linear_inside():
    teacher = torch.arange(6.0)[:, None].expand(6, 6).reshape(36, 1)
    student = move(teacher, torch.zeros(144, 1), "token .").reshape(12, 12)
    steps = student.diff(dim=0)[4:-4]
    torch.testing.assert_close(steps, torch.full_like(steps, 0.5))


def test_grids_that_are_not_square_are_written_in_the_plan():
    student = move(table(7), torch.zeros(1, 24, 3), "1 token:1>0:2x3>4x6 .")
    image = table(7)[0, 1:].reshape(2, 3, 3).permute(2, 0, 1)[None]
    expected = F.interpolate(image, (4, 6), mode="bicubic", antialias=True)[0].permute(1, 2, 0).reshape(24, 3)
    torch.testing.assert_close(student[0], expected)


def test_odd_tables_of_equal_size_are_copied():
    assert torch.equal(move(table(13), torch.zeros(1, 13, 3), "1 token ."), table(13))


def test_half_precision_tables_are_resized_too():
    student = move(table(9).bfloat16(), torch.zeros(1, 16, 3, dtype=torch.float16), "1 token .")
    assert student.dtype == torch.float16
    assert student.isfinite().all()


@pytest.mark.parametrize(
    ("teacher", "student", "axes", "message"),
    [
        (13, 9, "1 token .", "position table teacher tensor t of 13 rows is not a square"),
        (9, 13, "1 token .", "position table student tensor t of 13 rows is not a square"),
        (7, 16, "1 token:1>0 .", "position table teacher tensor t has 6 patch rows, not 2 x 2"),
        (7, 16, "1 token:1>0:2x2>4x4 .", "position table teacher tensor t has 6 patch rows, not 2 x 2"),
        (7, 16, "1 token:one>0 .", "axis 'token:one>0' of student tensor t: expected token:1>0"),
    ],
)
def test_tables_that_fit_no_grid_are_refused(teacher, student, axes, message):
    with pytest.raises(ValueError, match=message):
        move(table(teacher), torch.zeros(1, student, 3), axes)


def test_padding_rows_of_a_vocabulary_keep_their_initialisation():
    student = move(torch.ones(11, 3), torch.zeros(16, 3), "vocab .")
    assert student[:11].eq(1).all()
    assert student[11:].eq(0).all()
    assert move(torch.ones(16, 3), torch.zeros(11, 3), "logit .").eq(1).all()


def test_other_vocabularies_are_refused():
    with pytest.raises(ValueError, match="teacher tensor t has 300 vocabulary rows, student tensor t 11: more than"):
        move(torch.ones(300, 3), torch.zeros(11, 3), "vocab .")
    with pytest.raises(ValueError, match="teacher tensor t has 300 vocabulary rows, student tensor t 556: more than"):
        move(torch.ones(300, 3), torch.zeros(556, 3), "vocab .")
    assert move(torch.ones(300, 3), torch.zeros(555, 3), "vocab .").sum() == 900


def test_a_text_table_shares_its_first_positions():
    student = move(table(700)[0], torch.zeros(11, 3), "sequence .")
    assert torch.equal(student, table(700)[0, :11])


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_an_inflated_patch_embedding_gives_the_image_answer_on_a_still_clip(frames):
    image_weight, image = torch.randn(5, 3, 2, 2), torch.randn(2, 3, 8, 6)
    video_weight = move(image_weight, torch.full((5, 3, frames, 2, 2), 7.0), ". . time . .")
    clip = image[:, :, None].expand(-1, -1, frames, -1, -1)
    torch.testing.assert_close(
        F.conv3d(clip, video_weight, stride=(1, 2, 2))[:, :, 0], F.conv2d(image, image_weight, stride=2)
    )
    assert int((video_weight.abs().sum((0, 1, 3, 4)) > 0).nonzero()) == frames // 2


def test_tubelets_of_two_lengths_are_refused():
    with pytest.raises(ValueError, match="teacher tensor t has 2 frames, student tensor t 3"):
        move(torch.ones(5, 3, 2, 2, 2), torch.ones(5, 3, 3, 2, 2), ". . time . .")
