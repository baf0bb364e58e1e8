"""The scan of Mamba-2: heads of several channels with one decay each, by matrix products over chunks.

Head h with P channels keeps a state H of P x N numbers; its B and C are those of the group it belongs to:

    dt = clamp(softplus(dt + dt_bias))
    H_t = exp(dt_t A) H_{t-1} + dt_t x_t B_t^T          y_t = H_t C_t + D x_t
"""

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from transmamba._typing import check_sizes, typed
from transmamba.ops.plain import exporting_to_onnx, walk, without_autocast
from transmamba.ops.shapes import compute_dtype
from transmamba.ops.step import selective_step

Limits = tuple[float, float]


@typed
def ssd_scan(
    x: Float[Tensor, "batch length head channel"],
    dt: Float[Tensor, "batch length head"],
    A: Float[Tensor, " head"],
    B: Float[Tensor, "batch length group state"],
    C: Float[Tensor, "batch length group state"],
    D: Float[Tensor, " head"] | Float[Tensor, "head channel"] | None = None,
    *,
    dt_bias: Float[Tensor, " head"] | None = None,
    dt_softplus: bool = False,
    dt_limit: Limits = (0.0, float("inf")),
    initial_state: Float[Tensor, "batch head channel state"] | None = None,
    seq_idx: Int[Tensor, "batch length"] | None = None,
    mask: Bool[Tensor, "batch length"] | None = None,
    chunk_size: int = 64,
    return_last_state: bool = False,
) -> (
    Float[Tensor, "batch length head channel"]
    | tuple[Float[Tensor, "batch length head channel"], Float[Tensor, "batch head channel state"]]
):
    """Scan all heads over all tokens, in time and memory linear in the length.

    Arithmetic and states are float32 (float64 if an argument is), the output has the dtype of `x`. Every float input
    and the last state carry gradients.

    Args:
        x: input.
        dt: step sizes, before bias, softplus and limits.
        A: decay rates, negative for a stable scan.
        B: input weights of each group of heads.
        C: readout weights, likewise.
        D: weight of the direct path, per head or per channel.
        dt_bias: added to `dt`.
        dt_softplus: pass `dt` through softplus.
        dt_limit: smallest and largest step size.
        initial_state: the state before the first step; zero by default.
        seq_idx: number of the packed sequence each token belongs to; the state restarts where it changes.
        mask: True marks a real token; a padded one leaves the state as it is and its output is zero.
        chunk_size: tokens per matrix product; changes the speed, not the result.
        return_last_state: return `(y, state after the last step)`.

    Raises:
        ValueError: groups do not divide the heads, `dt_limit` is not an interval of step sizes, or `chunk_size` is
            below 1.

    Reference:
        Mamba-2, arXiv 2405.21060, section 6.

    Example:
        >>> x, dt, B = torch.ones(1, 5, 4, 3), torch.ones(1, 5, 4), torch.ones(1, 5, 2, 7)
        >>> ssd_scan(x, dt, -torch.ones(4), B, B).shape
        torch.Size([1, 5, 4, 3])
    """
    _check_groups(B.shape[2], x.shape[2])
    compute = compute_dtype(x, dt, A, B, C)
    with without_autocast(x.device):
        steps = _step_sizes(dt.to(compute), dt_bias, dt_softplus, dt_limit)
        inputs = x.to(compute)
        if mask is not None:
            steps = steps.masked_fill(~mask[..., None], 0.0)
            inputs = inputs.masked_fill(~mask[..., None, None], 0.0)
        state = None if initial_state is None else initial_state.to(compute)
        y, last_state = scan_chunks(
            inputs * steps[..., None], steps * A, B.to(compute), C.to(compute), state, seq_idx, chunk_size
        )
        if D is not None:
            y = y + (D if D.dim() == 2 else D[:, None]) * inputs
    y = y.to(x.dtype) if mask is None else y.to(x.dtype).masked_fill(~mask[..., None, None], 0.0)
    return (y, last_state) if return_last_state else y


@typed
def ssd_step(
    state: Float[Tensor, "batch head channel state"],
    x: Float[Tensor, "batch head channel"],
    dt: Float[Tensor, "batch head"],
    A: Float[Tensor, " head"],
    B: Float[Tensor, "batch group state"],
    C: Float[Tensor, "batch group state"],
    D: Float[Tensor, " head"] | Float[Tensor, "head channel"] | None = None,
    *,
    dt_bias: Float[Tensor, " head"] | None = None,
    dt_softplus: bool = False,
    dt_limit: Limits = (0.0, float("inf")),
) -> tuple[Float[Tensor, "batch head channel"], Float[Tensor, "batch head channel state"]]:
    """Run one step of `ssd_scan`: the output for one token and the state after it, which is a new tensor.

    Raises:
        ValueError: groups do not divide the heads.

    Example:
        >>> y, state = ssd_step(torch.zeros(1, 4, 3, 7), torch.ones(1, 4, 3), torch.ones(1, 4), -torch.ones(4),
        ...                     torch.ones(1, 2, 7), torch.ones(1, 2, 7))
        >>> y[0, 0]
        tensor([7., 7., 7.])
    """
    heads, channels, states = state.shape[1:]
    _check_groups(B.shape[1], heads)
    dt = _step_sizes(dt.to(state.dtype), dt_bias, dt_softplus, dt_limit)
    y, after = selective_step(
        state.flatten(1, 2),
        x.flatten(1),
        dt.repeat_interleave(channels, 1),
        A[:, None, None].expand(-1, channels, states).flatten(0, 1),
        B,
        C,
        D if D is None else (D if D.dim() == 2 else D[:, None]).expand(-1, channels).flatten(),
    )
    return y.unflatten(1, (heads, channels)), after.unflatten(1, (heads, channels))


def _check_groups(groups: int, heads: int) -> None:
    if not groups or heads % groups:
        raise ValueError(f"the groups of B and C must divide the heads: got {groups} groups, {heads} heads")


def check_limits(limits: Limits) -> None:
    """Raise ValueError unless 0 <= smallest <= largest step size."""
    if not 0 <= limits[0] <= limits[1]:
        raise ValueError(f"dt_limit must hold 0 <= smallest <= largest, got {limits}")


def _step_sizes(dt: Tensor, dt_bias: Tensor | None, softplus: bool, limits: Limits) -> Tensor:
    check_limits(limits)
    dt = dt if dt_bias is None else dt + dt_bias
    dt = F.softplus(dt) if softplus else dt
    return dt if limits == (0.0, float("inf")) else dt.clamp(*limits)


def scan_chunks(
    x: Tensor,
    rate: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor | None,
    seq_idx: Tensor | None,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """Return the outputs (b, l, h, p) and the last state of  H_t = exp(rate_t) H_{t-1} + x_t B_t^T,  y_t = H_t C_t."""
    check_sizes(chunk_size=chunk_size)
    (batch, length, heads, channels), groups = x.shape, B.shape[2]
    spare = 0
    if isinstance(length, torch.SymInt) and torch.compiler.is_exporting():
        # an exporter would tie the program to lengths of one chunk: onnx has a loop for chunks of one token, and for
        # torch.export one more than there are is never one alone
        chunk_size, spare = (1, 0) if exporting_to_onnx() else (chunk_size, 1)
    padding = ((length + chunk_size - 1) // chunk_size + spare) * chunk_size - length
    run = _runs(seq_idx, padding, chunk_size)
    # a step of rate and input zero leaves the state as it is
    x, B, C, rate = (F.pad(t, (0, 0) * (t.dim() - 2) + (0, padding)) for t in (x, B, C, rate))
    x = rearrange(x, "b (c t) (g k) p -> b c g k t p", t=chunk_size, g=groups)
    rate = rearrange(rate, "b (c t) (g k) -> b c g k t", t=chunk_size, g=groups)
    B, C = (rearrange(t, "b (c t) g n -> b c g t n", t=chunk_size) for t in (B, C))

    decay, into, out_of, across = _decays(rate, run)
    scores = einsum(B, C, "b c g s n, b c g t n -> b c g s t")[:, :, :, None] * decay
    y = einsum(scores, x, "b c g k s t, b c g k s p -> b c g k t p")
    added = einsum(x * out_of[..., None], B, "b c g k s p, b c g s n -> b c g k p n")
    if state is None:
        h = x.new_zeros(batch, groups, heads // groups, channels, B.shape[-1])
    else:
        h = state.unflatten(1, (groups, heads // groups))
    h, before = _carry(h, across, added)
    if before is not None:
        carried = einsum(before, C, "b c g k p n, b c g t n -> b c g k t p")
        y = y + carried * into[..., None]
    return rearrange(y, "b c g k t p -> b (c t) (g k) p")[:, :length], h.flatten(1, 2)


def _carry(h: Tensor, across: Tensor, added: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the state after the last chunk, and those before each (None without chunks)."""
    if not isinstance(across.shape[1], torch.SymInt) or exporting_to_onnx():
        return walk(lambda h, now: (now[0][..., None, None] * h + now[1], h), h, (across, added), dim=1)
    # their number is open: a product of all pairs of chunks stands for the loop
    factor = F.pad(across.movedim(1, -1), (1, 0), value=1.0)
    size = factor.shape[-1]
    later = torch.ones(size, size, dtype=torch.bool, device=h.device).triu(1)
    left = factor[..., None, :].masked_fill(~later, 1.0).cumprod(-1).masked_fill(later.mT, 0.0)
    states = einsum(left, torch.cat([h[:, None], added], 1), "b g k s c, b s g k p n -> b c g k p n")
    return states[:, -1], states[:, :-1]


def _decays(rate: Tensor, run: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the share of a state that is left, for rates (..., t) of the steps of each chunk.

    Returns:
        Four tensors: from step s to step t (..., s, t), from before the chunk to step t (..., t), from step s to the
        end (..., s), and from before the chunk to its end (...).
    """
    size = rate.shape[-1]
    later = torch.ones(size, size, dtype=torch.bool, device=rate.device).triu(1)
    # summed from s + 1 to t, not as a difference of sums from the start: after one huge step all digits would be gone
    between = rate[..., None, :].masked_fill(~later, 0.0).cumsum(-1)
    decay = between.exp().masked_fill(later.mT, 0.0)
    into = rate.cumsum(-1).exp()
    out_of, across = between[..., -1].exp(), into[..., -1]
    if run is not None:
        run = run[:, :, None, None]
        end = run[..., -1:]
        previous = F.pad(end[:, :-1], (0, 0, 0, 0, 0, 0, 1, 0))
        decay = decay * (run[..., None] == run[..., None, :])
        into, out_of = into * (run == previous), out_of * (run == end)
        across = across * (end == previous)[..., 0]
    return decay, into, out_of, across


def _runs(seq_idx: Tensor | None, padding: int, chunk_size: int) -> Tensor | None:
    """Count the changes of sequence before each token, (batch, chunk, token); padding stays in the last one."""
    if seq_idx is None or not seq_idx.shape[1]:
        return None
    run = F.pad((seq_idx[:, 1:] != seq_idx[:, :-1]).long(), (1, padding)).cumsum(1)
    return run.unflatten(1, (-1, chunk_size))
