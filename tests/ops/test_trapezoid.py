import math

import pytest
import torch
import torch.nn.functional as F

from transmamba.ops import TrapezoidState, ssd_scan, trapezoidal_scan, trapezoidal_step

BY_TOKEN = ("x", "dt", "A", "B", "C", "blend", "theta")


def inputs(batch=2, length=11, heads=3, channels=2, states=5, pairs=2):
    def draw(*shape):
        return torch.randn(batch, length, heads, *shape, dtype=torch.float64)

    tensors = {
        "x": draw(channels),
        "dt": draw().exp(),
        "A": -draw().exp(),
        "B": draw(states),
        "C": draw(states),
        "blend": draw().sigmoid(),
        "theta": draw(pairs),
        "D": torch.randn(heads, dtype=torch.float64),
    }
    shapes = ((pairs,), (channels, states), (states,), (channels,))
    initial = TrapezoidState(*(torch.randn(batch, heads, *shape, dtype=torch.float64) for shape in shapes))
    return {name: x.requires_grad_() for name, x in tensors.items()}, TrapezoidState(
        *(x.requires_grad_() for x in initial)
    )


def definition(x, dt, A, B, C, blend, theta, D, initial):
    """Compute the recurrence with complex numbers: two states are one that turns, and reading takes the real part."""
    pairs = theta.shape[-1]

    def fold(v):
        pair = torch.view_as_complex(v[..., : 2 * pairs].unflatten(-1, (-1, 2)).contiguous())
        return torch.cat([pair, v[..., 2 * pairs :].to(pair.dtype)], -1)

    def turn(v, angle):
        return fold(v) * torch.polar(torch.ones_like(angle), angle)

    def padded(angle):
        return F.pad(angle, (0, B.shape[-1] - 2 * pairs))

    angle, H, B_old, x_old = initial.angle, fold(initial.state), fold(initial.B), initial.x
    outputs = []
    for t in range(x.shape[1]):
        angle = angle + dt[:, t, :, None] * theta[:, t]
        B_t, C_t = turn(B[:, t], padded(angle)), turn(C[:, t], padded(angle))
        a = torch.exp(dt[:, t] * A[:, t])[..., None, None]
        dt_t, blend_t = dt[:, t, :, None, None], blend[:, t, :, None, None]
        H = a * H + (1 - blend_t) * dt_t * a * x_old[..., None] * B_old[:, :, None]
        H = H + blend_t * dt_t * x[:, t, ..., None] * B_t[:, :, None]
        outputs.append((H * C_t.conj()[:, :, None]).real.sum(-1) + D[:, None] * x[:, t])
        B_old, x_old = B_t, x[:, t]
    return torch.stack(outputs, 1)


@pytest.mark.parametrize("length", [1, 2, 4, 9])
def test_chunks_give_the_recurrence(length):
    tensors, initial = inputs(length=length)
    y, _ = trapezoidal_scan(**tensors, initial=initial, chunk_size=4)
    expected = definition(**tensors, initial=initial)
    torch.testing.assert_close(y, expected)
    weights, leaves = torch.randn_like(y), [*tensors.values(), *initial]
    grads = [torch.autograd.grad((out * weights).sum(), leaves) for out in (y, expected)]
    torch.testing.assert_close(*grads)


def test_steps_give_what_the_scan_gives():
    tensors, before = inputs()
    y, after = trapezoidal_scan(**tensors, initial=before, chunk_size=4)
    D, outputs = tensors.pop("D"), []
    for t in range(11):
        out, before = trapezoidal_step(before, **{name: v[:, t] for name, v in tensors.items()}, D=D)
        outputs.append(out)
    torch.testing.assert_close((torch.stack(outputs, 1), *before), (y, *after))


def test_a_blend_of_one_without_rotation_is_the_scan_of_mamba_2():
    tensors, _ = inputs()
    x, dt, A, B, C, D = (tensors[name] for name in ("x", "dt", "A", "B", "C", "D"))
    A = A[:1, :1].expand_as(A)
    y, _ = trapezoidal_scan(x, dt, A, B, C, torch.ones_like(dt), torch.zeros_like(tensors["theta"]), D)
    torch.testing.assert_close(y, ssd_scan(x, dt, A[0, 0], B, C, D))


def test_half_a_blend_integrates_with_second_order():
    def error(steps):
        time = torch.linspace(0, 1, steps + 1, dtype=torch.float64)[None, :, None]
        dt, one = torch.full_like(time, 1 / steps), torch.ones(1, steps + 1, 1, 1, dtype=torch.float64)
        start = TrapezoidState(
            *(torch.zeros(1, 1, *shape, dtype=torch.float64) for shape in ((0,), (1, 1), (1,), (1,)))
        )
        dt = torch.cat([dt[:, :1] * 0, dt[:, 1:]], 1)  # the first token only sets x at time 0
        y, _ = trapezoidal_scan(
            time.cos()[..., None], dt, -torch.ones_like(dt), one, one, 0.5 + 0 * dt, one[..., :0], initial=start
        )
        exact = (math.cos(1) + math.sin(1) - math.exp(-1)) / 2  # of h' = -h + cos(t), h(0) = 0
        return abs(y[0, -1].item() - exact)

    assert 3.5 < error(10) / error(20) < 4.5


def test_angles_of_a_packed_text_are_those_of_the_text_alone():
    tensors, _ = inputs(1, 20_007, heads=1, channels=1, states=2, pairs=1)
    tensors = {name: v.detach().float() for name, v in tensors.items()}
    tensors["theta"] = 3 * tensors["theta"].abs()  # all turn one way, so the sum grows
    seq_idx = (torch.arange(20_007) >= 20_000).long()[None]
    packed, _ = trapezoidal_scan(**tensors, seq_idx=seq_idx)
    alone, _ = trapezoidal_scan(**{name: v if name == "D" else v[:, 20_000:] for name, v in tensors.items()})
    # summed in float32, these angles would be off by 1e-2
    torch.testing.assert_close(packed[:, 20_000:], alone, rtol=2e-6, atol=2e-6)


def test_packed_is_separate_is_padded():
    lengths = (4, 1, 6)
    tensors, _ = inputs(1, sum(lengths))
    seq_idx = torch.repeat_interleave(torch.tensor([1, 0, 1]), torch.tensor(lengths))[None]
    packed, last = trapezoidal_scan(**tensors, seq_idx=seq_idx, chunk_size=4)
    D, begin = tensors.pop("D"), 0
    for length in lengths:
        piece = {name: v[:, begin : begin + length] for name, v in tensors.items()}
        alone, after = trapezoidal_scan(**piece, D=D)
        torch.testing.assert_close(packed[:, begin : begin + length], alone)
        for left in (0, 8 - length):
            sides = (left, 8 - length - left)
            padded = {name: F.pad(v, (0, 0) * (v.dim() - 2) + sides, value=0.7) for name, v in piece.items()}
            mask = F.pad(torch.ones(1, length, dtype=torch.bool), sides)
            y, state = trapezoidal_scan(**padded, D=D, mask=mask, chunk_size=4)
            torch.testing.assert_close((y[mask][None], *state), (alone, *after))
            assert not y[~mask].any()
        begin += length
    torch.testing.assert_close((*last,), (*after,))
