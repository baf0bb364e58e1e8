"""Cross-attention in the language of state spaces: one sequence writes the state, another one reads it."""

import math
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from transmamba._typing import check_sizes, check_width, typed
from transmamba.nn.cache import CrossCache
from transmamba.nn.ssm import decay_rates, init_decay, init_step_bias
from transmamba.ops import ScanOrder, causal_conv1d, cross_scan, multi_scan, read_state

Readout = Literal["final", "aligned", "progress"]


class StateWriter(nn.Module):
    """Parameters of one direction over the context: a selective SSM that is only written to (no C, no D)."""

    def __init__(self, d_inner: int, *, d_state: int, d_conv: int, dt_rank: int) -> None:
        super().__init__()
        self.dt_rank, self.d_state = dt_rank, d_state
        self.conv1d = nn.Conv1d(d_inner, d_inner, d_conv, groups=d_inner)
        self.x_proj = nn.Linear(d_inner, dt_rank + d_state, bias=False)
        self.dt_proj = nn.Linear(dt_rank, d_inner, bias=False)
        self.dt_bias = nn.Parameter(torch.empty(d_inner))
        self.A_log = nn.Parameter(torch.empty(d_inner, d_state))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial values of this module's own parameters again."""
        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        init_step_bias(self.dt_bias, 1e-3, 1e-1)
        init_decay(self.A_log)


class CrossMamba(nn.Module):
    """Y = C (M X) with C from the query and K = B, V = X and the step size from the context.

    The context, convolved, is scanned into states h; query token t reads y_t = C_t h_s(t), is gated by silu(z_t),
    projected, and added to the query. `readout` decides s(t):

    - "final": every query reads the last state. Any lengths; the order of the queries does not matter.
    - "aligned": s(t) = t, the lengths are equal; the literal C (M X).
    - "progress": s(t) = ceil((t + 1) L_context / L_query) - 1, counting real tokens on both sides: both start and end
      together.

    An empty context, or one of padding alone, has nothing to read: the query stays as it is.

    Args:
        query_dim: width of the query, which is also the width of the output.
        context_dim: width of the context.
        d_state: states per channel.
        d_conv: width of the convolution over the context.
        expand: inner width as a multiple of `query_dim`.
        readout: which state a query reads.
        bidirectional: also scan the context from its end, with parameters of its own, and add both outputs.
        residual: add the query to the output.

    Raises:
        ValueError: a size is below 1.

    Reference:
        Section on cross-Mamba of arXiv 2502.15130; gate, convolution, residual, lengths and readouts are ours
        (docs/decisions.md). There is no direct path D: `u` and the query live on different tokens.

    Example:
        >>> CrossMamba(8, 6)(torch.zeros(2, 5, 8), torch.zeros(2, 7, 6)).shape
        torch.Size([2, 5, 8])
    """

    @typed
    def __init__(
        self,
        query_dim: int,
        context_dim: int,
        *,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        readout: Readout = "final",
        bidirectional: bool = False,
        residual: bool = True,
    ) -> None:
        super().__init__()
        check_sizes(query_dim=query_dim, context_dim=context_dim, d_state=d_state, d_conv=d_conv, expand=expand)
        d_inner = expand * query_dim
        self.readout, self.residual, directions = readout, residual, 2 if bidirectional else 1
        self.in_proj = nn.Linear(context_dim, d_inner, bias=False)
        self.gate_proj = nn.Linear(query_dim, d_inner, bias=False)
        self.c_proj = nn.Linear(query_dim, directions * d_state, bias=False)
        self.branches: Sequence[StateWriter] = nn.ModuleList(  # type: ignore[assignment]
            StateWriter(d_inner, d_state=d_state, d_conv=d_conv, dt_rank=math.ceil(query_dim / 16))
            for _ in range(directions)
        )
        self.out_proj = nn.Linear(d_inner, query_dim, bias=False)

    @typed
    def forward(
        self,
        query: Float[Tensor, "batch token dim"],
        context: Float[Tensor, "batch context_token context_dim"],
        context_mask: Bool[Tensor, "batch context_token"] | None = None,
        query_mask: Bool[Tensor, "batch token"] | None = None,
    ) -> Float[Tensor, "batch token dim"]:
        """Let the query read the context.

        Args:
            query: tokens that read.
            context: tokens that are read.
            context_mask: True marks a real token; a padded one is not there.
            query_mask: True marks a real token; a padded one reads nothing, and the readout "progress" does not count
                it.

        Raises:
            ValueError: a width is not the one the module was built for, or the readout is "aligned" and the lengths
                differ.
        """
        check_width(query, self.gate_proj.in_features, "query")
        check_width(context, self.in_proj.in_features, "context")
        if self.readout == "aligned" and query.shape[1] != context.shape[1]:
            raise ValueError(
                f"the aligned readout needs equal lengths, got {query.shape[1]} query and {context.shape[1]} context "
                'tokens: use readout="final" or "progress"'
            )
        if self.readout == "final":
            state = self.prefill(context, context_mask).state
            return self._gate(query, read_state(self._readout(query), state, merge=True), query_mask)
        inputs, C = self._write(context, context_mask), self._readout(query)
        if self.readout == "aligned":
            y: Any = multi_scan(**inputs, C=C, merge=True)
        else:
            reads = _in_proportion(_real(query, query_mask), _real(context, context_mask))
            y = cross_scan(**inputs, C=C, reads=reads, merge=True)
        return self._gate(query, y, query_mask)

    def prefill(
        self,
        context: Float[Tensor, "batch context_token context_dim"],
        context_mask: Bool[Tensor, "batch context_token"] | None = None,
    ) -> CrossCache:
        """Scan the context once, for `read` and `step`.

        Raises:
            ValueError: the readout is not "final": which state a token reads then depends on tokens to come.
        """
        if self.readout != "final":
            raise ValueError(
                f'only the last state can be read token by token: it needs readout="final", got {self.readout!r}'
            )
        inputs = self._write(context, context_mask)
        nobody = inputs["B"][:, :1, :0]
        return CrossCache(cross_scan(**inputs, C=nobody, return_last_state=True)[1])

    def read(self, query: Float[Tensor, "batch token dim"], cache: CrossCache) -> Float[Tensor, "batch token dim"]:
        """Return the output of `forward`, for any number of tokens that read the context of `cache`."""
        return self._gate(query, read_state(self._readout(query), cache.state, merge=True))

    def step(self, query: Float[Tensor, "batch dim"], cache: CrossCache) -> Float[Tensor, "batch dim"]:
        """Return the output of `forward` for one token, at the same cost for any context; `cache` does not change."""
        return self.read(query[:, None], cache)[:, 0]

    def _readout(self, query: Tensor) -> Tensor:
        """Return C of each direction, (batch, direction, token, state)."""
        return self.c_proj(query).unflatten(-1, (len(self.branches), -1)).movedim(2, 1)

    def _gate(self, query: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
        y = y if mask is None else y.masked_fill(~mask[..., None], 0.0)
        update = self.out_proj(y.to(query.dtype) * F.silu(self.gate_proj(query)))
        return query + update if self.residual else update

    def _write(self, context: Tensor, mask: Tensor | None) -> dict[str, Any]:
        """Return the arguments of the scans over the context."""
        # not by `scan_order`, which needs a token where a context may have none
        there = torch.arange(context.shape[1], device=context.device)
        orders = [ScanOrder(walk, walk) for walk in (there, there.flip(0))[: len(self.branches)]]
        x = self.in_proj(context)
        x = x if mask is None else x.masked_fill(~mask[..., None], 0.0)
        weight = torch.stack([branch.conv1d.weight[:, 0] for branch in self.branches])
        bias = torch.stack([cast(Tensor, branch.conv1d.bias) for branch in self.branches])
        u = causal_conv1d(x, weight, bias, orders=orders, activation="silu")
        steps = []
        for branch, u_k in zip(self.branches, u.unbind(1), strict=True):
            low, B = branch.x_proj(u_k).split([branch.dt_rank, branch.d_state], -1)
            steps.append((branch.dt_proj(low), B))
        dt, B = (torch.stack(parts, 1) for parts in zip(*steps, strict=True))
        A = decay_rates(torch.stack([branch.A_log for branch in self.branches]))
        dt_bias = torch.stack([branch.dt_bias for branch in self.branches])
        inputs = {"u": u, "dt": dt, "A": A, "B": B, "dt_bias": dt_bias, "softplus": True}
        return {**inputs, "orders": orders, "mask": mask}


def _real(tokens: Tensor, mask: Tensor | None) -> Tensor:
    return tokens.new_ones(tokens.shape[:2], dtype=torch.bool) if mask is None else mask


def _in_proportion(asking: Tensor, real: Tensor) -> Tensor:
    """Return the context token that each query reads after, (batch, query), from the masks of both sides.

    The t-th real query of T reads after the ceil(t L / T)-th real token of L.
    """
    count, length = asking.sum(-1, keepdim=True).clamp(min=1), real.sum(-1, keepdim=True)
    rank = -(-asking.cumsum(-1) * length // count) - 1
    # where no token is real any state is zero, and where there is no token none is read
    return F.pad((~real).long().argsort(dim=-1, stable=True), (0, 1)).gather(-1, rank.clamp(min=0))
