"""The stream at the beginning of a stage: the last linear map of a stem or downsampling, and the norm behind it."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import ProcessGroup, all_reduce

from transmamba.transfer.closed_form.least_squares import LeastSquares, write_readout
from transmamba.transfer.closed_form.lockstep import Lockstep
from transmamba.transfer.closed_form.streams import hooked, watch

LINEAR = (nn.Linear, nn.Conv2d)


class Rows(NamedTuple):
    """One batch: features of the linear map, the module's output and its target, each (batch, token, dim)."""

    features: Tensor
    output: Tensor
    target: Tensor


class StageInput:
    """Solve the module before a stage, so that the stage begins at the teacher's stream as nearly as it can.

    The target is the teacher's stream before the block that the stage's first block follows, less positions that are
    added behind the module. The module's last linear layer or convolution becomes the ridge solution; then gain
    and shift of a norm behind it are solved channel by channel, because the norm undoes the size of the solution.

    Args:
        module: a stem or downsampling.
        streams: teacher and student at the first block of the stage, `keep=False`.
        view: from the teacher's tokens to the stage's, width included.
        group: solve from the batches of all its processes.

    Raises:
        ValueError: the module ends in something else.
    """

    def __init__(
        self, module: nn.Module, streams: Lockstep, view: Callable[[Tensor], Tensor], group: ProcessGroup | None
    ) -> None:
        self.module, self.streams, self.view, self.group = module, streams, view, group
        self.linear, self.norm = self._parts()

    @torch.no_grad()
    def solve(self, ridge: float, min_tokens: int | None, products: torch.dtype) -> float:
        """Write the solution, and return the share of the target's variance that the module's output explains.

        Raises:
            ValueError: there are too few tokens, or the system is singular.
        """
        weight, bias = self.linear.weight.flatten(1), self.linear.bias is not None
        sums = LeastSquares(weight.shape[1], len(weight), bias=bias, products=products, device=weight.device)
        for rows in self._rows():
            sums.update(rows.features, rows.target)
        if self.group is not None:
            sums.all_reduce(self.group)
        solved = sums.solve(ridge, min_tokens=min_tokens)
        write_readout(self.linear, solved._replace(weight=solved.weight.view_as(self.linear.weight)))
        return sums.r2(solved.weight, solved.bias) if self.norm is None else self._solve_norm(ridge)

    def _solve_norm(self, ridge: float) -> float:
        norm: Any = self.norm
        shifts = getattr(norm, "bias", None) is not None
        nn.init.ones_(norm.weight)
        if shifts:
            nn.init.zeros_(norm.bias)
        sums = torch.zeros(6, len(norm.weight), dtype=torch.float64, device=norm.weight.device)
        for rows in self._rows():
            x, y = rows.output.double(), rows.target.double()
            sums += torch.stack([part.flatten(0, 1).sum(0) for part in (torch.ones_like(x), x, y, x * x, x * y, y * y)])
        if self.group is not None:
            all_reduce(sums, group=self.group)
        count, x, y, xx, xy, yy = sums
        spread, common = (xx - x * x / count, xy - x * y / count) if shifts else (xx, xy)
        new = common / (spread + ridge * spread.mean())
        shift = (y - new * x) / count if shifts else torch.zeros_like(y)
        norm.weight.copy_(new)
        if shifts:
            norm.bias.copy_(shift)
        error = yy - 2 * (new * xy + shift * y) + new * new * xx + 2 * new * shift * x + shift * shift * count
        return 1 - float(error.sum() / (yy - y * y / count).sum())

    def _rows(self) -> Iterator[Rows]:
        found: dict[str, Tensor] = {}
        keep = self.linear.register_forward_pre_hook(lambda _, given: found.update(given=given[0]))
        with hooked(keep, watch(self.module, found, "output")):
            for step in self.streams.steps():
                output = found["output"].flatten(2).transpose(1, 2)
                target = self.view(step.taught.before) - (step.place.tokens - output)
                yield Rows(_features(self.linear, found["given"]), output, target)

    def _parts(self) -> tuple[Any, nn.Module | None]:
        """Return the linear map that the module ends in, and the norm behind it, if there is one."""
        called: list[tuple[nn.Module, tuple[Any, ...], Tensor]] = []
        parts = [part for part in self.module.modules() if isinstance(part, LINEAR) or _has_gain(part)]
        found: dict[str, Tensor] = {}
        handles = [part.register_forward_hook(lambda *call: called.append(call)) for part in parts]
        with hooked(*handles, watch(self.module, found, "output")):
            next(iter(self.streams.steps()))
        linear = max((i for i, (part, *_) in enumerate(called) if isinstance(part, LINEAR)), default=-1)
        behind = called[linear + 1 :]
        if linear >= 0 and len(behind) <= 1 and getattr(called[linear][0], "groups", 1) == 1:
            part, given, output = called[-1]
            axis = _gain_axis(part, *given) if behind else 1 if isinstance(part, nn.Conv2d) else -1
            if axis is not None and torch.equal(output.movedim(axis, 1), found["output"]):
                return called[linear][0], part if behind else None
        raise ValueError(
            f"a {type(self.module).__name__} leads into a stage, which does not end in a linear layer or convolution"
            " (of one group), with at most a norm behind it that multiplies each channel by its weight: leave it as it"
            " is with inputs=False"
        )


def _has_gain(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() == 1


def _gain_axis(norm: Any, *given: Any) -> int | None:
    """Return the axis along which a norm multiplies by its weight and adds its bias, None if it does anything else.

    That is tried, not read from the name of its class: there are norms that multiply by 1 + weight.
    """
    shifts = getattr(norm, "bias", None) is not None
    tensors = [norm.weight, norm.bias] if shifts else [norm.weight]
    gain = torch.linspace(0.5, 2, len(norm.weight)).to(norm.weight)

    def write(*values: Tensor) -> None:
        for tensor, value in zip(tensors, values, strict=False):  # a norm without bias takes the gain alone
            tensor.copy_(value)

    old = [tensor.clone() for tensor in tensors]
    write(torch.ones_like(gain), torch.zeros_like(gain))
    plain = norm(*given).float()
    size = plain.abs().max()
    shift = (gain.flip(0) - 1) * size if shifts else torch.zeros_like(gain)
    write(gain, shift)
    changed = norm(*given).float()
    write(*old)
    # a gain of another kind is wrong by half of the size; half precision rounds by a hundredth
    for axis in (1, -1):
        ours, theirs = plain.movedim(axis, -1), changed.movedim(axis, -1)
        if ours.shape[-1] == len(gain) and (ours * gain + shift - theirs).abs().max() <= 0.05 * size:
            return axis
    return None


def _features(layer: Any, given: Tensor) -> Tensor:
    """Return the inputs of a linear layer, or the patches of a convolution, as (batch, token, feature)."""
    if isinstance(layer, nn.Linear):
        return given.flatten(1, -2)
    return F.unfold(given, layer.kernel_size, layer.dilation, layer.padding, layer.stride).transpose(1, 2)
