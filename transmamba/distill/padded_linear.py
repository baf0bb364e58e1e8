"""A linear layer on zero-padded input that never reads the zeros."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PaddedLinear(nn.Module):
    """`Linear(full_features, out_features)` applied to a zero-padded input, without the zeros.

    Columns of the weight that would meet padding are left out of the product and get no gradient. The parameters keep
    their full shape, so a state dict means the same with and without this shortcut.

    Args:
        in_features: width of the input before padding.
        full_features: width after padding.
        out_features: width of the output.
        offset: number of zeros to the left.
        bias: add a bias.
        device: where the parameters live.
        dtype: their dtype.

    Example:
        >>> PaddedLinear(3, 5, 7)(torch.ones(2, 3)).shape
        torch.Size([2, 7])
    """

    def __init__(
        self,
        in_features: int,
        full_features: int,
        out_features: int,
        *,
        offset: int = 0,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.offset = in_features, offset
        self.weight = nn.Parameter(torch.empty(out_features, full_features, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as `torch.nn.Linear` does: uniform within 1 / sqrt(full_features)."""
        bound = self.weight.shape[1] ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        """Multiply by the columns that meet the input: those of `index`, or `in_features` from `offset` on."""
        met = self.weight.narrow(1, self.offset, self.in_features) if index is None else self.weight[:, index]
        return F.linear(x, met, self.bias)
