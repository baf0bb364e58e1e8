"""The worth of each layer's mixer, which decides which layers keep their attention."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from transmamba._typing import typed
from transmamba.transfer.closed_form.streams import blocks_of, counted, evaluating, hooked, mixer_of


class Sensitivity(NamedTuple):
    """The loss of the unchanged model, and its loss with the mixer of one layer changed.

    Attributes:
        base: loss of the model as it is.
        losses: layer -> loss.
    """

    base: float
    losses: dict[int, float]

    @property
    def costs(self) -> dict[int, float]:
        """Layer -> by how much the loss rises."""
        return {layer: loss - self.base for layer, loss in self.losses.items()}

    def keep(self, count: int) -> list[int]:
        """Return the layers that cost most, sorted; a tie keeps the lower one.

        Raises:
            ValueError: there are not that many.
        """
        if not 0 <= count <= len(self.losses):
            raise ValueError(f"cannot keep {count} of {len(self.losses)} measured layers")
        return sorted(sorted(self.losses, key=lambda layer: (-self.losses[layer], layer))[:count])

    def replace(self, count: int) -> list[int]:
        """Return the layers that cost least, sorted: all but those to keep."""
        return sorted(set(self.losses) - set(self.keep(len(self.losses) - count)))


@typed
def sensitivity(
    model: nn.Module,
    evaluate: Callable[[nn.Module], float],
    *,
    layers: Sequence[int] | None = None,
    replace: Mapping[int, nn.Module] | Callable[[int], nn.Module] | None = None,
    progress: bool = True,
) -> Sensitivity:
    """Measure the worth of each layer's mixer, one layer at a time; the model is unchanged afterwards.

    Costs of single layers need not add up: layers can stand in for each other.

    Args:
        model: a backbone with `blocks`, as `fit_layers` takes it.
        evaluate: the model's loss, lower is better, on text or images that the final test does not use.
        layers: layers to measure; all by default.
        replace: by layer, a mixer that is called in place of the old one with the same arguments; by default the old
            one's output becomes zero, as if it were deleted.
        progress: show a progress bar, if tqdm is installed.

    Raises:
        ValueError: a layer does not exist, or the loss is not finite.

    Example:
        >>> from transmamba.models import MambaLM
        >>> ids = torch.arange(22).view(2, 11) % 11
        >>> found = sensitivity(MambaLM(11, 8, depth=3), lambda lm: float(lm(ids).square().mean()), progress=False)
        >>> len(found.costs), len(found.keep(2)), sorted(found.keep(2) + found.replace(1))
        (3, 2, [0, 1, 2])
    """
    blocks = blocks_of(model, "model")
    wanted = list(range(len(blocks)) if layers is None else layers)
    if wrong := [layer for layer in wanted if not 0 <= layer < len(blocks)]:
        raise ValueError(f"layer {wrong[0]} does not exist: expected 0 to {len(blocks) - 1}")
    with evaluating(model):
        base = _finite(evaluate(model), "the model as it is")
        losses = {}
        for layer in counted(wanted, progress):
            other = replace(layer) if callable(replace) else None if replace is None else replace[layer]
            with hooked(mixer_of(blocks[layer]).register_forward_hook(_instead(other), with_kwargs=True)):
                losses[layer] = _finite(evaluate(model), f"layer {layer} changed")
    return Sensitivity(base, losses)


def _instead(other: nn.Module | None) -> Callable[..., Tensor]:
    """Return a hook that puts another output in place of a module's own."""

    def hook(own: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any], output: Tensor) -> Tensor:
        if other is own:  # calling it would call this hook again
            return output
        return torch.zeros_like(output) if other is None else other(*arguments, **options)

    return hook


def _finite(loss: float, what: str) -> float:
    if not -float("inf") < loss < float("inf"):
        raise ValueError(f"evaluate gave {loss} for {what}: expected a finite number")
    return float(loss)
