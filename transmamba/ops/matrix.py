"""A scan written out as the matrix it is, for short sequences."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from transmamba._typing import typed
from transmamba.ops.orders import ScanOrder, stack_orders


@typed
def mixing_matrix(
    dt: Float[Tensor, "batch #direction length dim"],
    A: Float[Tensor, "#direction dim state"],
    B: Float[Tensor, "batch #direction length state"],
    C: Float[Tensor, "batch #direction length state"],
    D: Float[Tensor, "#direction dim"] | None = None,
    *,
    dt_bias: Float[Tensor, "#direction dim"] | None = None,
    softplus: bool = False,
    orders: Sequence[ScanOrder] | None = None,
) -> Float[Tensor, "batch direction dim length length"]:
    """Compute the matrix M of every channel with y = M u, tokens in natural order on both sides.

    In the order of direction k, M_ts = sum_n C_tn exp(A_n (dt_s+1 + ... + dt_t)) B_sn dt_s for s <= t, and D is added
    to the diagonal: attention without its softmax, to be compared with a teacher's. Memory is batch x direction x dim
    x length^2 x state, so the sequence must be short. The arguments are those of `multi_scan`.

    Raises:
        ValueError: there is not one order per direction, or sizes on the direction axis disagree.

    Reference:
        Eqs. 3 and 6-8 of arXiv 2502.15130.

    Example:
        >>> one = torch.ones(1, 1, 3, 1)
        >>> mixing_matrix(one, torch.zeros(1, 1, 1), one, one)[0, 0, 0]
        tensor([[1., 0., 0.],
                [1., 1., 0.],
                [1., 1., 1.]])
    """
    directions, length = max(x.shape[1] for x in (dt, B, C)), dt.shape[2]
    directions = max(directions, len(A), len(orders or ()))
    if not {x.shape[1] for x in (dt, B, C)} | {len(x) for x in (A, D, dt_bias) if x is not None} <= {1, directions}:
        raise ValueError(f"every input needs 1 or {directions} entries on the direction axis")
    if orders is not None and len(orders) != directions:
        raise ValueError(f"expected {directions} scan orders, one per direction, got {len(orders)}")
    dt = dt if dt_bias is None else dt + dt_bias[:, None]
    dt = F.softplus(dt) if softplus else dt
    index = torch.arange(length, device=dt.device).expand(directions, -1)
    index = index if orders is None else stack_orders(orders, length).index

    def in_scan_order(x: Tensor) -> Tensor:
        x = x.expand(-1, directions, -1, -1)
        return x.gather(2, index[None, :, :, None].expand(x.shape[0], -1, -1, x.shape[-1]))

    dt_scan, B_scan, C_scan = (in_scan_order(x) for x in (dt, B, C))
    elapsed = dt_scan.cumsum(2)
    since = elapsed[:, :, :, None] - elapsed[:, :, None]
    past = torch.ones(length, length, dtype=torch.bool, device=dt.device).tril()
    # the future is cut off before the exponential, which would overflow there
    exponent = (since[..., None] * A[:, None, None]).masked_fill(~past[..., None, None], -torch.inf)
    in_steps = einsum(
        C_scan, torch.exp(exponent), B_scan, dt_scan, "b k t n, b k t s d n, b k s n, b k s d -> b k d t s"
    )
    inverse = index.argsort(-1)
    rows, columns = inverse[None, :, None, :, None], inverse[None, :, None, None]
    matrix = in_steps.gather(3, rows.expand_as(in_steps)).gather(4, columns.expand_as(in_steps))
    return matrix if D is None else matrix + torch.diag_embed(D[None, :, :, None].expand(-1, -1, -1, length))
