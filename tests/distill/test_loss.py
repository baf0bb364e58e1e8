import math

import pytest
import torch
import torch._dynamo.testing

from transmamba.distill import TransMambaLoss

TASK, DISTILL = torch.tensor(3.0), torch.tensor(11.0)


def test_v1_is_equation_11():
    torch.testing.assert_close(TransMambaLoss.v1(alpha=0.25)(TASK, DISTILL), 0.25 * TASK + 0.75 * DISTILL)


def test_v2_swaps_the_role_of_alpha():
    torch.testing.assert_close(TransMambaLoss.v2(alpha=0.25, beta=2.0)(TASK, DISTILL), 2 * TASK + 0.25 * DISTILL)


def test_default_is_v1_at_one_half():
    loss = TransMambaLoss()
    assert (loss.task_weight, loss.distill_weight) == (0.5, 0.5)
    torch.testing.assert_close(loss(TASK, DISTILL), TransMambaLoss.v1()(TASK, DISTILL))


def test_default_of_v2_is_the_plain_sum():
    torch.testing.assert_close(TransMambaLoss.v2()(TASK, DISTILL), TASK + DISTILL)


def test_either_loss_may_count_alone():
    assert (TransMambaLoss.v1(0)(TASK, DISTILL), TransMambaLoss.v1(1)(TASK, DISTILL)) == (DISTILL, TASK)
    assert TransMambaLoss(0, 0)(TASK, DISTILL) == 0


def test_gradient_of_each_part_is_its_weight():
    task, distill = TASK.clone().requires_grad_(), DISTILL.clone().requires_grad_()
    TransMambaLoss(0.2, 5.0)(task, distill).backward()
    torch.testing.assert_close(task.grad.item(), 0.2)
    torch.testing.assert_close(distill.grad.item(), 5.0)


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_bad_weights_are_refused(weight):
    with pytest.raises(ValueError, match=f"task_weight must be finite and not negative, got {weight}"):
        TransMambaLoss(weight, 1.0)
    with pytest.raises(ValueError, match=f"distill_weight must be finite and not negative, got {weight}"):
        TransMambaLoss(1.0, weight)
    with pytest.raises(ValueError, match=f"alpha must lie between 0 and 1, got {weight}"):
        TransMambaLoss.v1(weight)


def test_a_share_above_one_is_refused():
    with pytest.raises(ValueError, match=r"alpha must lie between 0 and 1, got 1\.5"):
        TransMambaLoss.v1(1.5)


def test_a_loss_that_is_no_scalar_is_refused():
    with pytest.raises(TypeError, match="distill"):
        TransMambaLoss()(TASK, torch.ones(3))


def test_compiles_to_one_graph_and_a_schedule_does_not_recompile():
    loss = TransMambaLoss()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(loss, fullgraph=True, backend=counter)
    for step in range(8):
        loss.distill_weight = 0.5 + step / 16
        torch.testing.assert_close(compiled(TASK, DISTILL), 0.5 * TASK + loss.distill_weight * DISTILL)
    assert counter.frame_count <= 2
