"""Which neurons to keep: scores of a teacher's weights, higher is kept.

A score is a tensor of the weight's shape, or of size 1 along axes on which it is constant.
"""

import zlib
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from transmamba._checkpoint import Weights, named_tensors
from transmamba._typing import typed


def magnitude_importance(name: str, weight: Tensor) -> Tensor:
    """The absolute value of each weight. Pass the function itself as `importance`."""
    return weight.abs()


def first_importance(name: str, weight: Tensor) -> Tensor:
    """One score for all, so that ties keep the first neurons: the baseline of cutting tensors at the front."""
    return torch.zeros(()).expand(weight.shape)


def random_importance(seed: int = 0) -> Callable[[str, Tensor], Tensor]:
    """Independent scores per weight, the same for one seed and name: the control of every comparison."""

    def score(name: str, weight: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
        return torch.rand(weight.shape, generator=generator)

    return score


@typed
def stability_importance(
    before: Weights, after: Weights, *, measure: Literal["absolute", "relative", "squared"] = "absolute"
) -> dict[str, Tensor]:
    """Minus the change of each weight under a short fine-tuning of the teacher: what moved least is kept.

    Args:
        before: the pretrained teacher.
        after: the same after the fine-tuning.
        measure: "absolute" change; "relative" to the weight's size before; or the "squared" change, with which a
            neuron's score follows the L2 norm of its change.

    Raises:
        ValueError: a tensor has another shape in `after`, or both have no floating tensor in common.
        TypeError: a tensor is floating in `before` only.

    Reference:
        TransMamba, arXiv 2502.15130, section on weight subcloning. Granularity and measure are ours.

    Example:
        >>> stability_importance({"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([1.5, 2.25])})["w"]
        tensor([-0.5000, -0.2500])
    """
    old, new = named_tensors(before), named_tensors(after)
    scores = {}
    for name in old:
        if name not in new or not old[name].is_floating_point():
            continue
        if old[name].shape != new[name].shape:
            raise ValueError(
                f"{name} has shape {tuple(old[name].shape)} before the fine-tuning and {tuple(new[name].shape)} after:"
                " expected one model at two times"
            )
        if not new[name].is_floating_point():
            raise TypeError(f"{name} is {old[name].dtype} before the fine-tuning and {new[name].dtype} after")
        change = (new[name].detach() - old[name].detach().to(new[name].device)).abs()
        if measure == "relative":
            change = change / old[name].detach().abs().clamp_min(torch.finfo(change.dtype).eps)
        scores[name] = -(change.square() if measure == "squared" else change)
    if not scores:
        raise ValueError(
            f"no floating tensor of before ({', '.join(list(old)[:3])}) is in after ({', '.join(list(new)[:3])}):"
            " expected one model at two times"
        )
    return scores
