import math
from functools import partial

import pytest
import torch

from transmamba.distill import align_tokens, dry_run


def test_table_tells_widths_and_tokens():
    student = {"blocks.0": torch.empty(2, 9, 3), "blocks.1": torch.empty(2, 9, 11)}
    teacher = [torch.empty(2, 10, 7)] * 4
    table = dry_run(student, teacher, "proportional", align=partial(align_tokens, teacher_prefix=1))
    assert table.fits
    assert str(table).splitlines() == [
        "student   teacher  width            tokens",
        "blocks.0  layer 1  3 -> 7 pad       9, teacher 10 -> 9",
        "blocks.1  layer 3  11 -> 7 project  9, teacher 10 -> 9",
    ]


def test_what_does_not_fit_is_listed_not_raised():
    table = dry_run([torch.empty(2, 9, 3)], [torch.empty(2, 10, 3)])
    assert not table.fits
    assert table.rows[0].tokens.startswith("do not fit: student has 9 tokens, teacher 10")
    assert table.rows[0].width == "3"


def test_stages_of_a_pyramid_are_resized():
    def align(student, teacher):
        grid = (math.isqrt(student.shape[1]),) * 2
        return align_tokens(student, teacher, teacher_prefix=1, student_grid=grid, teacher_grid=(14, 14))

    student = [torch.empty(2, side * side, width) for side, width in ((56, 96), (28, 192), (14, 384), (7, 768))]
    table = dry_run(student, [torch.empty(2, 197, 384)], align=align)
    assert [row.tokens for row in table.rows] == [
        "3136 -> 196, teacher 197 -> 196",
        "784 -> 196, teacher 197 -> 196",
        "196, teacher 197 -> 196",
        "49 -> 196, teacher 197 -> 196",
    ]
    assert [row.width for row in table.rows] == ["96 -> 384 pad", "192 -> 384 pad", "384", "768 -> 384 project"]


def test_nothing_is_computed():
    huge = torch.empty(8, 4096, 8192, device="meta")
    assert dry_run([huge] * 3, [huge] * 5, "proportional").rows[2].teacher == "layer 4"


def test_impossible_match_is_refused():
    with pytest.raises(ValueError, match=r"1 teacher indices for 2 student layers"):
        dry_run([torch.empty(2, 9, 3)] * 2, [torch.empty(2, 9, 3)], [0])
