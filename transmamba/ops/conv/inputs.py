"""The form in which every backend receives a convolution."""

from typing import NamedTuple

from torch import Tensor

from transmamba.ops.shapes import check_shapes


class ConvInputs(NamedTuple):
    """Depthwise causal convolutions of the same tokens, K directions.

    With r = orders[k], direction k computes y[r[t]] = act(bias + sum_j weight[j] x[r[t - width + 1 + j]]) from tokens
    of the same sequence; act is the identity or SiLU. y is (b, k, l, d) in the dtype of x.
    """

    x: Tensor  # (b, l, d)
    weight: Tensor  # (k, d, width), any floating dtype
    bias: Tensor | None = None  # (k, d)
    orders: Tensor | None = None  # (k, l) int64: token visited at each step; None is 0, 1, 2, ...
    inverses: Tensor | None = None  # (k, l) int64: step at which each token is visited
    segments: Tensor | None = None  # (b, l) int64: earlier tokens are forgotten where the value changes on the way
    initial_tokens: Tensor | None = None  # (b, k, width - 1, d) in the dtype of x: visited before, oldest first
    silu: bool = False

    def check(self) -> None:
        """Check shapes and devices, because kernels read raw pointers.

        Raises:
            ValueError: see `check_shapes`.
        """
        (b, l, d), (k, _, width) = self.x.shape, self.weight.shape  # noqa: E741
        shapes = ((b, l, d), (k, d, width), (k, d), (k, l), (k, l), (b, l), (b, k, width - 1, d))
        check_shapes(self, shapes, shapes)


class ConvGradients(NamedTuple):
    """One entry per floating tensor of `ConvInputs`, with its shape and dtype; None for an input that is None."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    initial_tokens: Tensor | None
