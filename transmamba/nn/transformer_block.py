"""A residual block around any mixer, with the norms where a Transformer has them."""

from collections.abc import Sequence
from typing import Any, Literal

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from transmamba._typing import check_sizes, check_width, typed
from transmamba.nn.attention import Attention
from transmamba.nn.block import Activation, DropPath, GatedMlp, Mlp
from transmamba.nn.norm import build_norm
from transmamba.ops import ScanOrder

Placement = Literal["pre", "post", "sandwich", "output"]
NORMS = ("norm1", "norm2", "post_norm1", "post_norm2")


class TransformerBlock(nn.Module):
    """A mixer and an MLP, each with a residual connection and norms.

    Placement of the norms:

    - "pre": x + f(norm(x))
    - "post": norm(x + f(x))
    - "sandwich": x + post_norm(f(norm(x)))
    - "output": x + norm(f(x))

    The parameters of the mixer are under `attn` if it is `Attention` in both directions, as timm has it, and under
    `mixer` otherwise.

    Args:
        dim: width of the tokens.
        mixer: any module called as `mixer(x, orders, mask, seq_idx)`.
        hidden_dim: hidden width of the MLP; without it the block has no MLP.
        gated: the MLP is a `GatedMlp`.
        activation: of the MLP, or of its gate.
        mlp_bias: bias of both layers of the MLP.
        norm: kind of the norms.
        eps: their epsilon.
        norm_bias: whether they have a bias; an RMSNorm has none.
        placement: where they stand.
        parallel: mixer and MLP both read the stream before the block.
        without: names of norms that are left out.
        drop_path: rate at which each residual branch is dropped.

    Raises:
        ValueError: a norm to leave out is none of the block's, or a parallel block is not "pre".

    Example:
        >>> import torch
        >>> TransformerBlock(8, Attention(8, heads=2), hidden_dim=32)(torch.zeros(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """

    @typed
    def __init__(
        self,
        dim: int,
        mixer: nn.Module,
        *,
        hidden_dim: int | None = None,
        gated: bool = False,
        activation: Activation = "gelu",
        mlp_bias: bool = True,
        norm: Literal["layer", "rms"] = "layer",
        eps: float = 1e-6,
        norm_bias: bool = True,
        placement: Placement = "pre",
        parallel: bool = False,
        without: Sequence[str] = (),
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        check_sizes(dim=dim, hidden_dim=hidden_dim)
        if parallel and (placement != "pre" or hidden_dim is None):
            raise ValueError(f"a parallel block has an MLP and norms of placement 'pre', got {placement!r}")
        names = [name for name in NORMS if (placement == "sandwich" or "post" not in name)]
        names = [name for name in names if hidden_dim is not None or "1" in name]
        unknown = set(without) - set(names)
        if unknown:
            raise ValueError(f"cannot leave out {sorted(unknown)}: the norms of the block are {', '.join(names)}")
        self.dim, self.placement, self.parallel = dim, placement, parallel

        def norm_of(name: str) -> nn.Module | None:
            return build_norm(norm, dim, eps, norm_bias) if name in names and name not in without else None

        self.mixer_name = "attn" if isinstance(mixer, Attention) and not mixer.causal else "mixer"
        self.norm1 = norm_of("norm1")
        setattr(self, self.mixer_name, mixer)
        self.post_norm1, self.norm2 = norm_of("post_norm1"), norm_of("norm2")
        self.mlp: Mlp | GatedMlp | None = None
        if hidden_dim is not None and gated:
            self.mlp = GatedMlp(dim, hidden_dim, multiple=1, activation=activation, bias=mlp_bias)
        elif hidden_dim is not None:
            self.mlp = Mlp(dim, hidden_dim, activation=activation, bias=mlp_bias)
        self.post_norm2 = norm_of("post_norm2")
        self.drop_path = DropPath(drop_path)

    @typed
    def forward(
        self,
        x: Float[Tensor, "batch token dim"],
        orders: Sequence[ScanOrder] | None = None,
        mask: Bool[Tensor, "batch token"] | None = None,
        seq_idx: Int[Tensor, "batch token"] | None = None,
    ) -> Float[Tensor, "batch token dim"]:
        """Return the stream after the block; the other arguments are the mixer's."""
        check_width(x, self.dim)
        return self._join(x, self._mixer(self._read(x, self.norm1), orders, mask, seq_idx))

    def forward_directions(
        self,
        x: Float[Tensor, "batch token dim"],
        orders: Sequence[ScanOrder] | None = None,
        mask: Bool[Tensor, "batch token"] | None = None,
        seq_idx: Int[Tensor, "batch token"] | None = None,
    ) -> tuple[Float[Tensor, "batch token dim"], Float[Tensor, "direction batch token dim"]]:
        """Return the stream after the block, and the mixer's output split by direction in natural token order."""
        mixed, shares = self._mixer.forward_directions(self._read(x, self.norm1), orders, mask, seq_idx)
        return self._join(x, mixed), shares

    def prefill(self, x: Tensor, mask: Tensor | None, cache: Any) -> tuple[Tensor, Any]:
        """Return the output of `forward`, going on from `cache`, and the cache after the tokens."""
        mixed, cache = self._mixer.prefill(self._read(x, self.norm1), mask, cache)
        return self._join(x, mixed), cache

    def step(self, x: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """Return the stream for one token (batch, dim) after those of `cache`, and the cache after it."""
        mixed, cache = self._mixer.step(self._read(x, self.norm1), cache)
        return self._join(x, mixed), cache

    @property
    def _mixer(self) -> Any:
        return getattr(self, self.mixer_name)

    def _read(self, x: Tensor, norm: nn.Module | None) -> Tensor:
        """Return the input of a branch."""
        if self.placement in ("pre", "sandwich") and norm is not None:
            return norm(x)
        # a norm gives the dtype of its weights; where there is none, the stream may be of a wider one
        return x.to(next(self.parameters()).dtype)

    def _join(self, x: Tensor, mixed: Tensor) -> Tensor:
        """Return the stream after the block, from the one before it and the output of the mixer."""
        after = self._add(x, mixed, self.norm1, self.post_norm1)
        if self.mlp is None:
            return after
        y = self.mlp(self._read(x if self.parallel else after, self.norm2))
        return self._add(after, y, self.norm2, self.post_norm2)

    def _add(self, x: Tensor, y: Tensor, norm: nn.Module | None, post_norm: nn.Module | None) -> Tensor:
        inner = {"sandwich": post_norm, "output": norm}.get(self.placement)
        x = x + self.drop_path(y if inner is None else inner(y))
        return x if self.placement != "post" or norm is None else norm(x)
