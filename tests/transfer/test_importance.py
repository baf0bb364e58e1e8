import torch

from transmamba.transfer import (
    first_importance,
    magnitude_importance,
    random_importance,
    stability_importance,
    subclone,
)


def test_stability_keeps_the_neurons_that_moved_least(stream, plan):
    before, after, student = stream(7, 6), stream(7, 6), stream(5, 6)
    after.load_state_dict(before.state_dict())
    with torch.no_grad():
        after.head.weight[:, [1, 4]] += 1.0
    report = subclone(before, student, stability_importance(before, after), plan=plan)
    assert report.kept == {"residual": (0, 2, 3, 5, 6)}


def test_stability_measures_follow_their_definitions():
    before, after = {"w": torch.tensor([2.0, -4.0])}, {"w": torch.tensor([3.0, -1.0])}
    expected = {"absolute": [-1.0, -3.0], "relative": [-0.5, -0.75], "squared": [-1.0, -9.0]}
    for change, values in expected.items():
        assert stability_importance(before, after, change=change)["w"].tolist() == values


def test_stability_skips_counters():
    before = {"w": torch.ones(2), "steps": torch.tensor(3)}
    assert set(stability_importance(before, before)) == {"w"}


def test_magnitude_is_the_absolute_value():
    assert magnitude_importance("w", torch.tensor([-2.0, 1.0])).tolist() == [2.0, 1.0]


def test_first_keeps_the_front(stream, plan):
    report = subclone(stream(7, 6), stream(4, 5), first_importance, plan=plan)
    assert report.kept == {"residual": (0, 1, 2, 3), "hidden.0": (0, 1, 2, 3, 4), "hidden.1": (0, 1, 2, 3, 4)}


def test_random_depends_on_seed_and_name_only():
    weight = torch.ones(3, 5)
    score = random_importance(1)
    assert torch.equal(score("a", weight), random_importance(1)("a", 2 * weight))
    assert not torch.equal(score("a", weight), score("b", weight))
    assert not torch.equal(score("a", weight), random_importance(2)("a", weight))


def test_axis_scores_go_before_element_scores(stream, plan):
    scores = {"residual": torch.arange(7.0), "head.weight": torch.arange(7.0).flip(0).expand(5, 7)}
    report = subclone(stream(7, 6), stream(3, 6), scores, plan=plan)
    assert report.kept == {"residual": (4, 5, 6)}


def test_scores_constant_along_an_axis_rank_nothing_on_it(stream, plan):
    # one score per input of fc2 is not one of the stream it writes to
    scores = {"blocks.0.fc2.weight": torch.arange(6.0)[None], "head.weight": torch.arange(7.0)[None]}
    report = subclone(stream(7, 6, 1), stream(3, 2, 1), scores, plan=plan)
    assert report.kept == {"residual": (4, 5, 6), "hidden.0": (4, 5)}
