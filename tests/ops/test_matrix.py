import pytest
import torch

from tests.ops.scan.scans import inputs
from transmamba.ops import mixing_matrix, multi_scan, scan_order, scan_orders


@pytest.mark.parametrize("own", [1, 2])
@pytest.mark.parametrize("softplus", [True, False])
def test_matrix_times_input_is_the_scan(own, softplus):
    x = {k: v.detach() for k, v in inputs(2, 2, 6, 3, 5, own=own).items() if k != "initial_state"}
    orders = scan_orders(("snake", "column_reverse"), (2, 3))
    u = x.pop("u")
    matrix = mixing_matrix(**x, softplus=softplus, orders=orders)
    y = torch.einsum("bkdts,bsd->bktd", matrix, u[:, 0])
    torch.testing.assert_close(y, multi_scan(u, **x, softplus=softplus, orders=orders))


def test_forward_is_lower_and_backward_upper_triangular():
    x = {k: v.detach() for k, v in inputs(2, 2, 6, 3, 5).items() if k not in ("initial_state", "u")}
    orders = scan_orders(("forward", "backward"), 6)
    matrix = mixing_matrix(**x, softplus=True, orders=orders)
    assert torch.equal(matrix[:, 0], matrix[:, 0].tril())
    assert torch.equal(matrix[:, 1], matrix[:, 1].triu())


def test_long_decays_do_not_overflow():
    one = torch.ones(1, 1, 500, 1)
    dt = (1000 * one).requires_grad_()
    matrix = mixing_matrix(dt, -torch.ones(1, 1, 1), one, one)
    matrix.sum().backward()
    assert matrix.isfinite().all() and dt.grad.isfinite().all()


def test_number_of_orders_must_be_that_of_directions():
    x = {k: v.detach() for k, v in inputs(2, 2, 6, 3, 5).items() if k not in ("initial_state", "u")}
    with pytest.raises(ValueError, match="expected 2 scan orders, one per direction, got 1"):
        mixing_matrix(**x, orders=[scan_order("forward", 6)])
