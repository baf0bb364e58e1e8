"""The steps from a stored tensor to a canonical one, each against its definition."""

import pytest
import torch

from transmamba.transfer.teachers.terms import affine, optional, src

MATRIX = torch.arange(24.0).view(6, 4)
STORED = {"w": MATRIX, "b": torch.arange(6.0), "gain": torch.tensor([1.0, 2, 3, 4, 5, 6]), "table": torch.ones(5, 2)}


def read(term):
    return term.read(STORED.__getitem__)


def test_rearrangements_take_and_order_entries():
    heads = MATRIX.view(3, 2, 4)
    assert torch.equal(read(src("w").T), MATRIX.T)
    assert torch.equal(read(src("b").T), STORED["b"])
    assert torch.equal(read(src("w").part(1, 3)), MATRIX[2:4])
    assert torch.equal(read(src("w").rows(2)), MATRIX[2:])
    assert torch.equal(read(src("w").part_of_heads(1, 2, 3)), heads[:, 1])
    assert read(src("table").table()).shape == (1, 5, 2)
    assert read(src("b").table()).shape == (1, 1, 6)
    assert torch.equal(read(src("w").reshape(4, 6).permute(1, 0)), MATRIX.view(4, 6).T)


def test_interleaved_rotary_pairs_become_halves():
    rows = torch.arange(12.0)[:, None]
    got = src("rows").halves(heads=2).read({"rows": rows}.__getitem__)
    assert got.flatten().tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]
    partly = src("rows").halves(heads=2, rotary=4).read({"rows": rows}.__getitem__)
    assert partly.flatten().tolist() == [0, 2, 1, 3, 4, 5, 6, 8, 7, 9, 10, 11]


def test_values_change_in_float32_and_leave_the_checkpoint_alone():
    half = {"w": MATRIX.bfloat16(), "gain": STORED["gain"] / 3}
    before = half["w"].clone()
    got = (src("w").scale_rows("gain") * 2 + 1).read(half.__getitem__)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, before.float() * half["gain"][:, None] * 2 + 1)
    assert torch.equal(half["w"], before)
    assert read(src("w").rows(1, 3)).dtype == MATRIX.dtype


def test_what_belongs_to_nobody_else_is_written_in_place():
    fresh = MATRIX.clone()
    got = (src("w") + 1).read({"w": fresh}.__getitem__, fresh=True)
    assert got.data_ptr() == fresh.data_ptr()


def test_sums_broadcast_a_row_of_another_tensor():
    stored = STORED | {"other": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}
    got = src("table").plus("other", slice(1, 2)).read(stored.__getitem__)
    assert torch.equal(got, torch.tensor([[4.0, 5.0]]).expand(5, 2))


def test_steps_on_the_meta_device_give_shapes():
    term = src("w").T.part(0, 2).scale_rows("gain")
    meta = {"w": torch.empty(6, 4, device="meta"), "gain": torch.empty(2, device="meta")}
    assert term.read(meta.__getitem__).shape == (2, 6)


def test_scores_are_rearranged_but_not_folded():
    term = src("w").T.part(1, 2).scale_rows("gain") + 1
    assert torch.equal(term.arrange(MATRIX, (6, 4)), MATRIX.T[2:])
    # constant along the stored rows, which are the canonical columns
    by_column = torch.arange(4.0)[None]
    assert torch.equal(term.arrange(by_column, (6, 4)), torch.tensor([[2.0], [3.0]]))
    # a full score that happens to be one number is not "constant along an axis"
    assert term.arrange(torch.ones(()).expand(6, 4), (6, 4)).shape == (2, 6)


def test_a_fused_matrix_of_unequal_parts_is_refused():
    with pytest.raises(ValueError, match="w has 6 rows, which are not 4 equal parts"):
        read(src("w").part(0, 4))


def test_terms_name_their_sources_and_notes():
    term = src("h.{i}.w").scale_rows("h.{i}.gain") * 0.5
    assert term.sources(3) == ("h.3.w", "h.3.gain")
    assert term.note == "times h.{i}.gain, times 0.5"
    assert (src("w") * 1.0).note == ""
    assert affine("norm", "ln")["norm.bias"].optional and not affine("norm", "ln")["norm.weight"].optional
    assert all(one.optional for one in optional(affine("norm", "ln")).values())
