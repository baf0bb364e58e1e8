import pytest
import torch

from transmamba.nn.position import resize_position


def test_cells_keep_their_centres_at_twice_the_size():
    rows = torch.arange(6.0)[:, None].expand(6, 5).reshape(1, 30, 1)
    wide = resize_position(rows, (6, 5), (12, 5)).view(12, 5)
    # a ramp: the two new cells lie as far before the old centre as behind it
    torch.testing.assert_close((wide[4:8:2] + wide[5:8:2]) / 2, torch.tensor([[2.0], [3.0]]).expand(2, 5))
    torch.testing.assert_close(wide, wide[:, :1].expand(-1, 5))


def test_a_length_is_interpolated_linearly():
    frames = torch.tensor([0.0, 1.0, 4.0]).view(1, 3, 1)
    torch.testing.assert_close(
        resize_position(frames, (3,), (6,)).flatten()[1:5], torch.tensor([0.25, 0.75, 1.75, 3.25])
    )


def test_the_same_grid_returns_the_table():
    table = torch.randn(1, 6, 7)
    assert resize_position(table, (2, 3), (2, 3)) is table


def test_rows_must_fit_the_grid():
    with pytest.raises(ValueError, match=r"the position table has 7 rows, a grid of \(2, 3\) has 6 cells"):
        resize_position(torch.zeros(1, 7, 5), (2, 3), (4, 3))
