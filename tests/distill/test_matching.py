import pytest
import torch

from transmamba.distill import cka_matrix, linear_cka, match_layers


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [(4, 4, (0, 1, 2, 3)), (3, 12, (3, 7, 11)), (4, 2, (0, 0, 1, 1)), (5, 12, (2, 4, 7, 9, 11)), (1, 7, (6,))],
)
def test_proportional_keeps_depth_and_ends_together(student, teacher, expected):
    assert match_layers(student, teacher, "proportional") == expected


def test_last_meets_last():
    assert match_layers(3, 5, "last") == (4, 4, 4)


def test_explicit_indices_count_from_both_ends():
    assert match_layers(3, 5, [0, -1, 2]) == (0, 4, 2)


def test_similarity_finds_the_layer_each_one_came_from():
    teacher = [torch.randn(13, 5, 7) for _ in range(4)]
    rotation = torch.linalg.qr(torch.randn(7, 7)).Q
    student = [3 * teacher[2] @ rotation, teacher[0] @ rotation]
    assert match_layers(student, teacher, "similarity") == (2, 0)


def test_cka_follows_its_kernel_definition():
    x, y = torch.randn(11, 3, dtype=torch.float64), torch.randn(11, 5, dtype=torch.float64)
    centre = torch.eye(11, dtype=torch.float64) - 1 / 11
    k, m = (centre @ side @ side.T @ centre for side in (x, y))
    expected = (k * m).sum() / (k.norm() * m.norm())
    torch.testing.assert_close(linear_cka(x, y), expected)


def test_cka_ignores_rotation_scale_and_shift():
    x, y = torch.randn(11, 5, dtype=torch.float64), torch.randn(11, 3, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q
    torch.testing.assert_close(linear_cka(7 * x @ rotation + 2, y), linear_cka(x, y))
    torch.testing.assert_close(linear_cka(7 * x @ rotation + 2, x).item(), 1.0)


def test_constant_features_are_like_nothing():
    assert linear_cka(torch.ones(5, 3), torch.randn(5, 3)) == 0


def test_matrix_has_a_row_per_student_layer():
    student, teacher = ([torch.randn(7, 5, width) for width in widths] for widths in ((2, 3), (3, 5, 7)))
    matrix = cka_matrix(student, teacher)
    assert matrix.shape == (2, 3)
    torch.testing.assert_close(matrix[1, 2], linear_cka(student[1], teacher[2]))


@pytest.mark.parametrize(
    ("student", "teacher", "how", "message"),
    [
        (0, 3, "last", r"cannot match 0 student layers with 3 teacher layers: both need at least one"),
        (2**40, 3, "last", r"student must be at most 2147483647, got 1099511627776"),
        (2, 3, [0], r"1 teacher indices for 2 student layers: give one for each"),
        (2, 3, [0, 3], r"student layer 1 asks for teacher layer 3: valid are -3 to 2"),
        (2, 3, "similarity", r"matching by similarity needs the features of both sides, got a number of layers"),
    ],
)
def test_bad_matches_are_refused(student, teacher, how, message):
    with pytest.raises(ValueError, match=message):
        match_layers(student, teacher, how)


def test_unknown_matching_is_refused():
    with pytest.raises(TypeError, match="first"):
        match_layers(2, 3, "first")


def test_cka_of_unaligned_features_is_refused():
    with pytest.raises(ValueError, match=r"student layer 0 has samples \(2, 6\), teacher layer 0 \(2, 5\): align them"):
        cka_matrix([torch.randn(2, 6, 3)], [torch.randn(2, 5, 3)])
