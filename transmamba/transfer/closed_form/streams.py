"""The streams of a teacher and of its student between their blocks, one block at a time."""

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Batch = Tensor | Sequence[Any] | Mapping[str, Any]
MIXERS = ("mixer", "attn")
OUTPUTS = ("out_proj", "proj", "fc2")


class Reached(Exception):  # noqa: N818 - no error: it ends a forward that need not go on
    """Raised inside of a forward that needs to go no further."""


def blocks_of(model: nn.Module, side: str) -> nn.ModuleList:
    """Return the blocks of a backbone.

    Raises:
        ValueError: it has none under that name.
    """
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, nn.ModuleList) or not len(blocks):
        raise ValueError(
            f"{side} is a {type(model).__name__} without a list `blocks`: expected a backbone whose blocks are called"
            " one after the other as block(tokens, *context); models.from_transformer makes one of a Transformer,"
            " fit_stages solves a pyramid such as VMamba"
        )
    return blocks


def mixer_of(block: Any) -> nn.Module:
    """Return the mixer of a block: the module named by its `mixer_name`, else `mixer` or `attn`.

    Raises:
        ValueError: there is none.
    """
    for name in (getattr(block, "mixer_name", None), *MIXERS):
        mixer = getattr(block, name, None) if name else None
        if isinstance(mixer, nn.Module):
            return mixer
    raise ValueError(f"{type(block).__name__} has neither `mixer_name` nor {' nor '.join(MIXERS)}: where is its mixer?")


def readout_of(module: nn.Module) -> nn.Linear:
    """Return the linear layer that a mixer or an MLP ends with: `out_proj`, `proj` or `fc2`, else its last one.

    Raises:
        ValueError: it has no linear layer.
    """
    named = [getattr(module, name, None) for name in OUTPUTS]
    linear = [layer for layer in (*named, *reversed(list(module.modules()))) if isinstance(layer, nn.Linear)]
    if not linear:
        raise ValueError(f"{type(module).__name__} has no linear layer that could be solved: leave its layer out")
    return linear[0]


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Switch to evaluation without gradients, and restore every module's mode afterwards."""
    modes = {module: module.training for model in models for module in model.modules()}
    for model in models:
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def hooked(*handles: torch.utils.hooks.RemovableHandle) -> Iterator[None]:
    """Remove hooks at the end."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def counted(layers: Iterable[int], progress: bool) -> Iterable[int]:
    """Iterate over layers, with a progress bar if tqdm is installed."""
    if not progress:
        return layers
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return layers
    return tqdm(layers, desc="layers", leave=False)


def call(model: nn.Module, batch: Batch) -> Any:
    """Call a model as model(batch), model(*batch) or model(**batch)."""
    if isinstance(batch, Tensor):
        return model(batch)
    return model(**batch) if isinstance(batch, Mapping) else model(*batch)


@dataclass
class Place:
    """The stream before a block, and the other arguments with which all blocks are called."""

    tokens: Tensor
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    def run(self, block: nn.Module) -> Tensor:
        """Return the stream after a block."""
        return block(self.tokens, *self.arguments, **self.options)

    def at(self, tokens: Tensor) -> "Place":
        """Return the place where the stream is another one."""
        return Place(tokens, self.arguments, self.options)

    def after(self, block: nn.Module) -> "Place":
        """Return the place after a block."""
        return self.at(self.run(block))

    def mask(self, block: nn.Module) -> Tensor | None:
        """Return the block's `mask` argument."""
        return mask_of(block, (self.tokens, *self.arguments), self.options)


def mask_of(module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> Tensor | None:
    """Return the `mask` argument of a call of this module."""
    return inspect.signature(module.forward).bind(*arguments, **options).arguments.get("mask")


def start(model: nn.Module, blocks: nn.ModuleList, batch: Batch) -> Place:
    """Return the stream before the first block.

    Raises:
        ValueError: the model does not call its first block.
    """
    found: list[Place] = []

    def record(_: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        found.append(Place(arguments[0], arguments[1:], options))
        raise Reached

    with hooked(blocks[0].register_forward_pre_hook(record, with_kwargs=True)):
        try:
            call(model, batch)
        except Reached:
            return found[0]
    raise ValueError(f"{type(model).__name__} ran without its first block: its streams cannot be followed")


def watch(module: nn.Module, found: dict[str, Tensor], name: str) -> torch.utils.hooks.RemovableHandle:
    """Keep the output of a module (the first one, if it has several)."""

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        found[name] = output if isinstance(output, Tensor) else output[0]

    return module.register_forward_hook(keep)


def run_until(place: Place, block: nn.Module, layer: nn.Module) -> Tensor:
    """Run a block until it calls one of its layers, and return the input of that layer.

    Raises:
        ValueError: the block does not call it.
    """
    found: list[Tensor] = []

    def stop(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append(inputs[0])
        raise Reached

    with hooked(layer.register_forward_pre_hook(stop)):
        try:
            place.run(block)
        except Reached:
            return found[0]
    raise ValueError(f"{type(block).__name__} goes around its {type(layer).__name__}, which cannot be solved then")


@dataclass
class Taught:
    """One block of the teacher: outputs of its mixer and MLP, the stream before it, in between, and after it."""

    mixed: Tensor
    fed: Tensor | None
    before: Tensor
    middle: Tensor
    after: Tensor

    def part(self, index: int, parts: int) -> "Taught":
        """Return one of the equal parts in which several student blocks go the way of this one."""
        if parts == 1:
            return self
        way = (self.after - self.before) / parts
        before = self.before + index * way
        fed = None if self.fed is None else self.fed / parts
        return Taught(self.mixed / parts, fed, before, before + (self.middle - self.before) / parts, before + way)


def teach(place: Place, block: Any) -> Taught:
    """Run one block of the teacher."""
    placement = getattr(block, "placement", "pre")
    between = {"post": "norm1", "sandwich": "post_norm1", "output": "norm1"}.get(placement)
    norm = getattr(block, between, None) if between else None
    mlp = getattr(block, "mlp", None)
    found: dict[str, Tensor] = {}
    parts = {"mixed": mixer_of(block), "fed": mlp, "norm": norm}
    handles = [watch(part, found, name) for name, part in parts.items() if isinstance(part, nn.Module)]
    with hooked(*handles):
        after = place.run(block)
    added = found.get("norm", found["mixed"])
    middle = added if placement == "post" and norm is not None else place.tokens + added
    return Taught(found["mixed"], found.get("fed"), place.tokens, middle, after)


def ends_with_mixer(place: Place, block: nn.Module) -> bool:
    """Return whether a block does nothing but add its mixer's output to the stream."""
    found: dict[str, Tensor] = {}
    with hooked(watch(mixer_of(block), found, "mixed")):
        after = place.run(block)
    return after.shape == found["mixed"].shape and torch.allclose(
        after, place.tokens + found["mixed"], rtol=1e-2, atol=1e-3
    )
