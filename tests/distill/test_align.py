import pytest
import torch
from einops import rearrange

from transmamba.distill import align_tokens, drop_tokens, flatten_map, resize_tokens


def numbered(*names):
    """Return one sample of one channel whose tokens carry these values."""
    return torch.tensor(names, dtype=torch.float32).view(1, -1, 1)


@pytest.mark.parametrize(
    ("special", "position", "kept"),
    [
        (0, "front", [0, 1, 2, 3, 4, 5, 6]),
        (0, "middle", [0, 1, 2, 3, 4, 5, 6]),
        (2, "front", [2, 3, 4, 5, 6]),
        (2, "back", [0, 1, 2, 3, 4]),
        (1, "middle", [0, 1, 2, 4, 5, 6]),
        (2, "both", [1, 2, 3, 4, 5]),
        ([0, 3, -1], "front", [1, 2, 4, 5]),
        ([-1, 6, 5], "front", [0, 1, 2, 3, 4]),
        ((), "front", [0, 1, 2, 3, 4, 5, 6]),
    ],
)
def test_special_tokens_go(special, position, kept):
    assert drop_tokens(numbered(*range(7)), special, position).flatten().tolist() == kept


def test_vim_class_token_stands_at_half_the_patches():
    patches = list(range(9))
    with_class = patches[: 9 // 2] + [-1] + patches[9 // 2 :]
    assert drop_tokens(numbered(*with_class), 1, "middle").flatten().tolist() == patches


def test_dropping_from_the_ends_copies_nothing():
    x = torch.randn(2, 7, 3)
    assert drop_tokens(x, 2).data_ptr() == x[:, 2:].data_ptr()


@pytest.mark.parametrize(
    ("special", "position", "message"),
    [
        (7, "front", r"cannot drop 7 of 7 tokens"),
        (-1, "front", r"cannot drop -1 of 7 tokens"),
        (1, "both", r"1 special tokens cannot stand at both ends in equal numbers: list their indices"),
        (range(7), "front", r"cannot drop 7 of 7 tokens"),
        ([9], "front", r"special token 9 is out of range: there are 7 tokens"),
    ],
)
def test_impossible_drops_are_refused(special, position, message):
    with pytest.raises(ValueError, match=message):
        drop_tokens(numbered(*range(7)), special, position)


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_maps_become_tokens_in_raster_order(layout):
    tokens = torch.randn(2, 15, 7)
    pattern = {"channels_first": "b (h w) d -> b d h w", "channels_last": "b (h w) d -> b h w d"}[layout]
    assert torch.equal(flatten_map(rearrange(tokens, pattern, h=3), layout), tokens)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: drop_tokens(x, 1, "left"),
        lambda x: flatten_map(x, "channels_middle"),
        lambda x: resize_tokens(x, (9,), (5,), "linear"),
        lambda x: align_tokens(x, x, resize="both"),
    ],
)
def test_unknown_choices_are_refused_at_the_border(call):
    with pytest.raises(TypeError, match="Literal|left|channels_middle|linear|both"):
        call(torch.randn(2, 9, 3))


def test_map_without_grid_is_refused():
    with pytest.raises(ValueError, match=r"map has shape \(2, 3\): expected a batch, a channel and at least one grid"):
        flatten_map(torch.randn(2, 3))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "area", "nearest"])
@pytest.mark.parametrize("side", [56, 28, 14, 7])
def test_stages_come_to_the_teachers_grid(side, interpolation):
    stage = torch.full((1, side * side, 3), 2.5)
    resized = resize_tokens(stage, (side, side), (14, 14), interpolation)
    torch.testing.assert_close(resized, torch.full((1, 196, 3), 2.5))


def test_area_is_the_mean_of_the_covered_cells():
    x = torch.randn(2, 36, 5)
    expected = rearrange(x, "b (h i w j) d -> b (h w) (i j) d", h=3, i=2, w=3, j=2).mean(2)
    torch.testing.assert_close(resize_tokens(x, (6, 6), (3, 3), "area"), expected)


@pytest.mark.parametrize("grids", [((5,), (9,)), ((3, 2), (5, 7)), ((2, 3, 2), (4, 5, 3))])
def test_linear_ramps_stay_ramps_inside(grids):
    # along the last axis a linear function of the cell centre is reproduced wherever no border is clamped
    grid, target = grids
    centres = (torch.arange(grid[-1]) + 0.5) / grid[-1]
    x = centres.expand(grid).reshape(1, -1, 1)
    wanted = ((torch.arange(target[-1]) + 0.5) / target[-1]).clamp(centres[0], centres[-1])
    torch.testing.assert_close(resize_tokens(x, grid, target).view(target), wanted.expand(target))


def test_resizing_is_differentiable():
    x = torch.randn(1, 6, 2, dtype=torch.float64, requires_grad=True)
    for target in ((4, 5), (1, 2)):
        assert torch.autograd.gradcheck(lambda x, target=target: resize_tokens(x, (2, 3), target), x)


def test_half_precision_is_kept():
    assert resize_tokens(torch.randn(1, 6, 2).half(), (2, 3), (4, 5)).dtype == torch.float16


@pytest.mark.parametrize(
    ("grid", "target", "interpolation", "message"),
    [
        ((2, 2), (3, 3), "bilinear", r"grid \(2, 2\) holds 4 tokens, there are 6: drop special tokens first"),
        ((2, 3), (6,), "bilinear", r"cannot resize grid \(2, 3\) to \(6,\): expected 1 to 3 axes"),
        ((6,), (3,), "bicubic", r"bicubic interpolation needs a 2-D grid, got \(6,\): use bilinear"),
    ],
)
def test_impossible_resizes_are_refused(grid, target, interpolation, message):
    with pytest.raises(ValueError, match=message):
        resize_tokens(torch.randn(1, 6, 2), grid, target, interpolation)


def test_vim_student_meets_a_distilled_deit():
    # Vim: one class token in the middle; DeiT: class and distillation tokens in front
    patches = torch.arange(9.0)
    student = numbered(*patches[:4], -1, *patches[4:])
    teacher = numbered(-1, -2, *patches).expand(1, 11, 5)
    s, t = align_tokens(student, teacher, student_prefix=1, teacher_prefix=2, prefix_position=("middle", "front"))
    assert torch.equal(s.flatten(), patches)
    assert torch.equal(t[..., 0].flatten(), patches)


def test_registers_at_the_back_and_class_in_front_are_listed():
    teacher = numbered(-1, *range(6), -2, -3)
    s, t = align_tokens(numbered(*range(6)), teacher, teacher_prefix=[0, -1, -2])
    assert torch.equal(s, t)


@pytest.mark.parametrize(("resize", "tokens"), [("student", 25), ("teacher", 9)])
def test_one_side_takes_the_others_grid(resize, tokens):
    student, teacher = torch.randn(2, 9, 3), torch.randn(2, 1 + 25, 7)
    grids = {"student_grid": (3, 3), "teacher_grid": (5, 5)}
    s, t = align_tokens(student, teacher, teacher_prefix=1, resize=resize, **grids)
    assert s.shape == (2, tokens, 3)
    assert t.shape == (2, tokens, 7)
    kept = {"student": (t, teacher[:, 1:]), "teacher": (s, student)}[resize]
    assert torch.equal(*kept)


def test_frames_seen_as_a_batch_are_joined():
    # an image teacher gets 4 frames as a batch, each with a class token; the student gets one time-major sequence
    video = torch.randn(2, 4 * 6, 3)
    frames = rearrange(video, "b (f t) d -> (b f) t d", f=4)
    teacher = torch.cat([torch.zeros(8, 1, 3), frames], 1)
    student = torch.cat([torch.zeros(2, 1, 3), video], 1)
    grids = {"student_grid": (4, 2, 3), "teacher_grid": (4, 2, 3)}
    s, t = align_tokens(student, teacher, student_prefix=1, teacher_prefix=1, **grids)
    assert torch.equal(s, video)
    assert torch.equal(t, video)


def test_tubelets_meet_frames():
    student, teacher = torch.randn(2, 2 * 6, 3), torch.randn(2 * 4, 6, 5)
    s, t = align_tokens(student, teacher, student_grid=(2, 2, 3), teacher_grid=(4, 2, 3), resize="teacher")
    assert s.shape == (2, 12, 3)
    assert t.shape == (2, 12, 5)


def test_what_cannot_be_aligned_is_refused():
    x = torch.randn(2, 9, 3)
    with pytest.raises(ValueError, match=r"student has 9 tokens, teacher 10: say how many are special"):
        align_tokens(x, torch.randn(2, 10, 3))
    with pytest.raises(ValueError, match=r"student has batch 2, teacher 3: give both the same samples"):
        align_tokens(x, torch.randn(3, 9, 3))
    with pytest.raises(ValueError, match=r"grids \(3, 3\) and \(5, 5\) differ: choose resize='student'"):
        align_tokens(x, torch.randn(2, 25, 3), student_grid=(3, 3), teacher_grid=(5, 5), resize="none")
