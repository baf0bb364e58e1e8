"""A mixer whose output is scaled channel by channel."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from transmamba._typing import check_sizes, typed


class ScaledMixer(nn.Module):
    """gamma mixer(...), with one learned number per channel (LayerScale).

    Args:
        dim: width of the tokens.
        mixer: any mixer with an output projection `out_proj`.
        initial: value that gamma starts from.

    Raises:
        ValueError: the mixer is of another width.

    Example:
        >>> from transmamba.nn import MambaMixer
        >>> ScaledMixer(8, MambaMixer(8))(torch.zeros(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """

    @typed
    def __init__(self, dim: int, mixer: nn.Module, *, initial: float = 1e-5) -> None:
        super().__init__()
        check_sizes(dim=dim)
        self.mixer: Any = mixer
        if self.out_proj.out_features != dim:
            raise ValueError(f"the mixer gives {self.out_proj.out_features} channels, there are {dim} scales")
        self.gamma, self.initial = nn.Parameter(torch.empty(dim)), initial
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set gamma to its initial value."""
        nn.init.constant_(self.gamma, self.initial)

    @property
    def out_proj(self) -> nn.Linear:
        """The output projection of the mixer."""
        return self.mixer.out_proj

    @property
    def directions(self) -> int:
        """Number of scan orders of the mixer."""
        return self.mixer.directions

    @typed
    def forward(self, x: Float[Tensor, "batch token dim"], *context: Any) -> Float[Tensor, "batch token dim"]:
        """Return the output of the mixer, scaled."""
        return self.gamma * self.mixer(x, *context)

    def forward_directions(self, x: Tensor, *context: Any) -> tuple[Tensor, Tensor]:
        """Return the output of `forward`, and each direction's share of it."""
        mixed, shares = self.mixer.forward_directions(x, *context)
        return self.gamma * mixed, self.gamma * shares
