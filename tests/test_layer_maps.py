import pytest

from transmamba._layer_maps import LAYER_MAPS, drop_middle, early, proportional, resolve_layer_map, uniform

DEPTHS = [(1, 1), (1, 5), (2, 5), (3, 7), (4, 7), (5, 5), (6, 12)]


def test_early_takes_the_first_layers():
    assert early(3, 7) == {0: 0, 1: 1, 2: 2}
    assert early(5, 2) == {0: 0, 1: 1}


@pytest.mark.parametrize(("student", "teacher"), DEPTHS)
def test_uniform_spreads_evenly_from_first_to_last(student, teacher):
    layers = uniform(student, teacher)
    assert list(layers) == list(range(student))
    steps = {layers[i + 1] - layers[i] for i in range(student - 1)}
    assert max(steps, default=0) - min(steps, default=0) <= 1
    assert layers[0] == 0
    assert student == 1 or layers[student - 1] == teacher - 1


def test_uniform_repeats_layers_for_a_deeper_student():
    assert uniform(4, 2) == {0: 0, 1: 0, 2: 1, 3: 1}


@pytest.mark.parametrize(("student", "teacher"), DEPTHS)
def test_drop_middle_removes_one_run(student, teacher):
    layers = list(drop_middle(student, teacher).values())
    assert layers[: (student + 1) // 2] == list(range((student + 1) // 2))
    assert layers[(student + 1) // 2 :] == list(range(teacher - student // 2, teacher))


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [(4, 4, (0, 1, 2, 3)), (3, 12, (3, 7, 11)), (4, 2, (0, 0, 1, 1)), (5, 12, (2, 4, 7, 9, 11)), (1, 7, (6,))],
)
def test_proportional_keeps_depth_and_ends_together(student, teacher, expected):
    assert proportional(student, teacher) == dict(enumerate(expected))


@pytest.mark.parametrize("name", LAYER_MAPS)
def test_equal_depths_are_the_identity(name):
    assert resolve_layer_map(name, 5, 5) == {layer: layer for layer in range(5)}


def test_explicit_maps_may_be_mappings_or_sequences():
    assert resolve_layer_map({2: 0}, 3, 1) == {2: 0}
    assert resolve_layer_map([4, 2], 3, 5) == {0: 4, 1: 2}


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(
        ValueError, match="unknown layer map 'late': expected one of early, uniform, drop_middle, proportional"
    ):
        resolve_layer_map("late", 3, 5)
