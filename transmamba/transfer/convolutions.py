"""Initial values of the mixers' short convolutions, which lie between the inherited projections and the scan."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from transmamba._checkpoint import Weights, named_tensors
from transmamba._typing import typed
from transmamba.transfer.tensor_checks import check_target


@typed
def init_convolutions(student: Weights, start: Literal["normal", "identity"], *, std: float = 1.0) -> list[str]:
    """Redraw every depthwise convolution of the student's mixers, in place; biases become zero.

    Args:
        student: a module or a state dict.
        start: "normal" draws weights from a normal distribution, the paper's recipe for language models, which it
            found critical; "identity" passes the current token unchanged, so that the scan reads the inherited
            projections.
        std: spread of the normal distribution; the paper's is standard.

    Returns:
        The names of the tensors that were written.

    Raises:
        ValueError: the student has no tensor named `conv1d` or `conv2d`, or is on the meta device, or `std` is negative
            or not finite.

    Reference:
        TransMamba, arXiv 2502.15130, experiments with LLaVA.

    Example:
        >>> mixer = nn.ModuleDict({"conv1d": nn.Conv1d(2, 2, 3, groups=2)})
        >>> init_convolutions(mixer, "identity"), mixer["conv1d"].weight[0].tolist()
        (['conv1d.weight', 'conv1d.bias'], [[0.0, 0.0, 1.0]])
    """
    if not 0 <= std < math.inf:
        raise ValueError(f"std must be finite and not negative, got {std}")
    found = {
        name: tensor
        for name, tensor in named_tensors(student).items()
        if name.split(".")[-2:-1] in (["conv1d"], ["conv2d"])
    }
    if not found:
        raise ValueError("the student has no tensor named conv1d or conv2d: nothing to initialise")
    for name, tensor in found.items():
        check_target(name, tensor)
    with torch.no_grad():
        for name, tensor in found.items():
            if name.endswith("bias"):
                tensor.zero_()
            elif start == "normal":
                nn.init.normal_(tensor, std=std)
            else:
                tensor.copy_(identity_convolution(tensor))
    return list(found)


def identity_convolution(weight: Tensor) -> Tensor:
    """Return a depthwise kernel that passes the current token: the last tap if causal, the centre if 2-D."""
    kernel = torch.zeros(weight.shape)
    if weight.dim() == 3:
        kernel[:, 0, -1] = 1.0
    else:
        kernel[:, 0, weight.shape[2] // 2, weight.shape[3] // 2] = 1.0
    return kernel
