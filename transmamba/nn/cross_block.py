"""The residual block around CrossMamba: the one that is stacked between a network's own blocks."""

from collections.abc import Callable
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor, nn

from transmamba._typing import check_sizes, check_width, scaled_size, typed
from transmamba.nn.block import DropPath, Mlp
from transmamba.nn.cache import CrossCache
from transmamba.nn.cross import CrossMamba


class CrossMambaBlock(nn.Module):
    """x + mixer(norm1(x), norm_context(context)), then x + mlp(norm2(x)).

    Args:
        query_dim: width of the tokens that read.
        context_dim: width of the context.
        mixer: a `CrossMamba` of these widths with `residual=False`; one with its defaults if there is none.
        mlp: with the second half.
        mlp_ratio: hidden width of the MLP as a multiple of `query_dim`.
        norm: builds a normalisation from a width.
        drop_path: rate at which each residual branch is dropped.

    Raises:
        ValueError: the mixer adds the query by itself, or a width is below 1.

    Reference:
        Section on cross-Mamba of arXiv 2502.15130; norms and MLP are ours, as in `MambaBlock`.

    Example:
        >>> import torch
        >>> CrossMambaBlock(8, 6)(torch.zeros(2, 5, 8), torch.zeros(2, 7, 6)).shape
        torch.Size([2, 5, 8])
    """

    @typed
    def __init__(
        self,
        query_dim: int,
        context_dim: int,
        mixer: nn.Module | None = None,
        *,
        mlp: bool = True,
        mlp_ratio: float = 4.0,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        check_sizes(query_dim=query_dim, context_dim=context_dim)
        if getattr(mixer, "residual", False):
            raise ValueError("the block adds the query, and so does its mixer: build it with residual=False")
        self.dims = query_dim, context_dim
        self.norm1 = norm(query_dim)
        self.norm_context = norm(context_dim)
        self.mixer: Any = mixer if mixer is not None else CrossMamba(query_dim, context_dim, residual=False)
        self.norm2 = norm(query_dim) if mlp else None
        self.mlp = Mlp(query_dim, scaled_size(query_dim, mlp_ratio, "mlp_ratio")) if mlp else None
        self.drop_path = DropPath(drop_path)

    @typed
    def forward(
        self,
        x: Float[Tensor, "batch token dim"],
        context: Float[Tensor, "batch context_token context_dim"],
        context_mask: Bool[Tensor, "batch context_token"] | None = None,
        query_mask: Bool[Tensor, "batch token"] | None = None,
    ) -> Float[Tensor, "batch token dim"]:
        """Return the stream after the block. True in either mask marks a real token, as in `CrossMamba.forward`.

        Raises:
            ValueError: a width is not the one the block was built for.
        """
        for name, tokens, width in zip(("x", "context"), (x, context), self.dims, strict=True):
            check_width(tokens, width, name)
        # a mixer of one's own need not have it
        asking = {} if query_mask is None else {"query_mask": query_mask}
        return self._add(x, self.mixer(self.norm1(x), self.norm_context(context), context_mask, **asking))

    def prefill(
        self,
        context: Float[Tensor, "batch context_token context_dim"],
        context_mask: Bool[Tensor, "batch context_token"] | None = None,
    ) -> CrossCache:
        """Scan the context once, for `read` and `step`.

        Raises:
            ValueError: the mixer's readout is not "final".
        """
        return self.mixer.prefill(self.norm_context(context), context_mask)

    def read(self, x: Float[Tensor, "batch token dim"], cache: CrossCache) -> Float[Tensor, "batch token dim"]:
        """Return the output of `forward`, for any number of tokens that read the context of `cache`."""
        return self._add(x, self.mixer.read(self.norm1(x), cache))

    def step(self, x: Float[Tensor, "batch dim"], cache: CrossCache) -> Float[Tensor, "batch dim"]:
        """Return the output of `forward` for one token, at the same cost for any context; `cache` does not change."""
        return self._add(x, self.mixer.step(self.norm1(x), cache))

    def _add(self, x: Tensor, update: Tensor) -> Tensor:
        x = x + self.drop_path(update)
        if self.norm2 is None or self.mlp is None:
            return x
        return x + self.drop_path(self.mlp(self.norm2(x)))
