"""A random part of the tokens, to make distillation cheaper."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from transmamba._typing import check_sizes, typed, unknown_choice
from transmamba.ops.orders import ScanOrder


class TokenSample(NamedTuple):
    """Some natural tokens, in ascending order, and the number of all."""

    tokens: Int[Tensor, " kept"]
    length: int

    def take(
        self, x: Float[Tensor, "batch token dim"], order: ScanOrder | str = "forward"
    ) -> Float[Tensor, "batch kept dim"]:
        """Take the sampled tokens of `x` in natural order, read from the scan order that `x` is in.

        Args:
            x: one layer, before its calibrator.
            order: "forward" for natural order, "backward" for the reversed one, or the `ScanOrder`.

        Raises:
            ValueError: `x` has another number of tokens, or the name is unknown.
        """
        if x.shape[1] != self.length:
            raise ValueError(f"sample of {self.length} tokens, x has {x.shape[1]}")
        if isinstance(order, ScanOrder):
            return x.index_select(1, order.inverse.index_select(0, self.tokens))
        if order not in ("forward", "backward"):
            raise unknown_choice("order", order, ("forward", "backward", "a ScanOrder"))
        return x.index_select(1, self.tokens if order == "forward" else self.length - 1 - self.tokens)


@typed
def sample_tokens(
    length: int, kept: int, *, generator: torch.Generator | None = None, device: torch.device | str | None = None
) -> TokenSample:
    """Choose `kept` of `length` tokens at random; the calibrator then works on those only.

    One sample serves all layers, directions and the teacher, so that every layer meets the same tokens. The features
    that `take` returns are in natural order: compare them with order="raster".

    Args:
        length: number of tokens.
        kept: how many to keep.
        generator: source of randomness, on `device`.
        device: where the index lives.

    Raises:
        ValueError: `kept` is not between 1 and `length`, or `length` is above 2**31 - 1.

    Example:
        >>> sample = sample_tokens(5, 5)
        >>> sample.take(torch.arange(5.0).view(1, 5, 1), "backward").flatten()
        tensor([4., 3., 2., 1., 0.])
    """
    if not 1 <= kept <= length:
        raise ValueError(f"cannot keep {kept} of {length} tokens")
    check_sizes(length=length)
    return TokenSample(torch.randperm(length, generator=generator, device=device)[:kept].sort().values, length)
