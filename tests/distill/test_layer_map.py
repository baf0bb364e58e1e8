import pytest
import torch

from transmamba import models, subclone, transfer
from transmamba._layer_maps import LAYER_MAPS, resolve_layer_map
from transmamba.distill import cka_matrix, linear_cka, match_layers


@pytest.mark.parametrize(("student", "teacher"), [(4, 4), (3, 12), (5, 12), (1, 7)])
@pytest.mark.parametrize("name", LAYER_MAPS)
def test_a_layer_imitates_the_layer_it_inherits_from(name, student, teacher):
    """The maps have one definition: the same names mean the same layers for weights and for features."""
    layers = resolve_layer_map(name, student, teacher)
    assert match_layers(student, teacher, name) == tuple(layers[i] for i in range(student))
    assert match_layers(student, teacher, layers) == match_layers(student, teacher, name)


def test_the_layers_of_a_report_are_a_match():
    size = {"img_size": 8, "patch_size": 4, "num_classes": 3}
    teacher = models.ViT(**size, dim=12, depth=7, heads=3)
    student = models.VisionMamba(**size, dim=12, depth=3)
    report = subclone(teacher, student, transfer.first_importance, layer_map="uniform")
    assert match_layers(3, 7, report.layers) == match_layers(3, 7, "uniform") == (0, 3, 6)


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
        (
            3,
            2,
            "early",
            r"gives student layer 2 no teacher layer to imitate: choose another map, such as 'uniform', or",
        ),
        (3, 4, {1: 0}, r"gives student layer 0 no teacher layer to imitate.* of these layers \(0, 2\)"),
        (1, 2, {0: 2}, r"layer map sends student layer 0 to teacher layer 2: expected 0 to 0 and 0 to 1"),
        (3, 2, "drop_middle", r"drop_middle removes layers, but the student has 3 and the teacher 2"),
        (2, 3, [0, 3], r"student layer 1 is matched with teacher layer 3: valid are -3 to 2"),
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
