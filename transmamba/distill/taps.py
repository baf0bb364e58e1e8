"""Read intermediate features of any model by the names of its modules."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from transmamba._typing import check_choice

Point = Literal["output", "input", "residual"]
Select = Callable[[Any], Tensor]

_WILDCARDS = {"*": r"[^.]+", "**": ".+", "**.": r"(?:.+\.)?"}


class TappedFeatures(Mapping[str, Tensor]):
    """The features of the latest forward, by module name, in the order of definition."""

    def __init__(self, names: Sequence[str], frozen: bool = False) -> None:
        self._calls: dict[str, list[Tensor]] = {name: [] for name in names}
        self._frozen, self._with_gradient = frozen, False

    def __iter__(self) -> Iterator[str]:
        """Iterate over the tapped names."""
        return iter(self._calls)

    def __len__(self) -> int:
        """Return the number of taps."""
        return len(self._calls)

    def __getitem__(self, name: str) -> Tensor:
        """Return the feature of one module.

        Raises:
            KeyError: there is no such tap.
            RuntimeError: the module was not called, or more than once, since the model began its latest forward.
        """
        if name not in self._calls:
            raise KeyError(f"no tap on {name!r}: tapped are {', '.join(self._calls)}")
        calls = self._calls[name]
        if len(calls) > 1:
            raise RuntimeError(
                f"module {name!r} was called {len(calls)} times in one forward: read calls({name!r}), or tap a module "
                "that is called once"
            )
        self.check_heard([name])
        return calls[0]

    @property
    def layers(self) -> list[Tensor]:
        """All features, as the losses take them."""
        return list(self.values())

    def calls(self, name: str) -> list[Tensor]:
        """Return the features of every call of one module in the latest forward."""
        return list(self._calls[name])

    def begin(self) -> None:
        """Forget all features: the model begins a forward."""
        if _recomputing():
            return
        for calls in self._calls.values():
            calls.clear()
        self._with_gradient = torch.is_grad_enabled()

    def record(self, name: str, feature: Tensor) -> None:
        """Keep the feature of one call, unless a backward only repeats it.

        Raises:
            RuntimeError: it has no gradient although the forward around it does.
        """
        if _recomputing():
            return
        if self._with_gradient and not (self._frozen or torch.is_grad_enabled()):
            raise RuntimeError(
                f"module {name!r} ran without gradient inside a forward that has it: a re-entrant checkpoint "
                "(choose use_reentrant=False), or a frozen part (tap that part with frozen=True)"
            )
        self._calls[name].append(feature.detach() if self._frozen else feature)

    def check_heard(self, names: Sequence[str] | None = None) -> None:
        """Refuse to go on if a module was never called.

        Raises:
            RuntimeError: some of the modules were silent.
        """
        silent = [name for name in (self._calls if names is None else names) if not self._calls[name]]
        if silent:
            raise RuntimeError(
                f"module {silent[0]!r} was never called ({len(silent)} of {len(self)} taps silent): either the model "
                "did not run inside the tap, or a fused path goes around the module (tap its parent), or a graph "
                "compiled before the tap ran instead (tap first, compile then)"
            )


@contextmanager
def tap(
    model: nn.Module,
    patterns: str | Sequence[str],
    *,
    point: Point = "output",
    frozen: bool = False,
    select: Select | None = None,
) -> Iterator[TappedFeatures]:
    """Record features of `model` while the context lasts, without editing it.

    The mistakes of the usual hook, and the behaviour here:

    - Blocks of mamba-ssm, Vim and VideoMamba return (hidden, residual) before adding them: the stream is their sum,
      and that is recorded. Tap `blocks.*` for the stream, `blocks.*.mixer` for the mixer's addition to it.
    - `hidden_states` of Hugging Face models begin and end at different places in different families. A tap on the
      blocks always is the output of block i.
    - A module that is never called, because a fused path goes around it, is an error and not an old or empty feature.
    - A checkpoint runs its modules again in the backward, which is not recorded; a re-entrant one records features
      without gradient the first time, which is an error.
    - A compiled model ignores hooks set after compilation: an error, whether recognised at once or by the silence.
    - Class tokens stay where the model has them: see `align_tokens`.

    Each forward of `model` forgets the features of the one before. For a student they carry gradient; for a frozen
    teacher no graph is kept.

    Args:
        model: any module.
        patterns: module names as in `named_modules`; `*` stands for one part of a dotted name, `**` for any
            number of them.
        point: the module's "output", its first "input", or their sum ("residual": the stream after a mixer).
        frozen: demand that no parameter requires grad and no module is in training mode, and detach.
        select: picks the tensor out of an output that is neither a tensor, a tuple led by one, nor has a
            `last_hidden_state`.

    Yields:
        The features, a mapping from names to tensors; `.layers` is the list of them. They outlive the context.

    Raises:
        ValueError: a pattern matches no module, `point` is unknown, or a frozen model has a trainable parameter or is
            in training mode.
        RuntimeError: a tapped module is compiled, stayed silent, or ran without the gradient of the forward around it.
        TypeError: an output holds no tensor that could be meant.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 7))
        >>> with tap(model, "*") as features:
        ...     y = model(torch.ones(2, 3))
        >>> [tuple(feature.shape) for feature in features.layers]
        [(2, 5), (2, 5), (2, 7)]
    """
    check_choice("point", point, get_args(Point))
    if frozen:
        _check_frozen(model)
    modules = _find(model, [patterns] if isinstance(patterns, str) else patterns)
    _check_eager(model)
    features = TappedFeatures(list(modules), frozen)

    def hook(name: str) -> Callable[..., None]:
        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            features.record(name, _read(name, point, args, kwargs, output, select))

        return record

    handles = [model.register_forward_pre_hook(lambda *_: features.begin(), prepend=True)]
    handles += [module.register_forward_hook(hook(name), with_kwargs=True) for name, module in modules.items()]
    try:
        yield features
    finally:
        for handle in handles:
            handle.remove()
    features.check_heard()


def _recomputing() -> bool:
    """Check whether a backward is running, so that this forward is a checkpoint's second one."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _find(model: nn.Module, patterns: Sequence[str]) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {}
    for pattern in patterns:
        parts = re.split(r"(\*\*\.|\*\*|\*)", pattern)
        regex = "".join(_WILDCARDS.get(part, re.escape(part)) for part in parts)
        matches = {name: module for name, module in model.named_modules() if name and re.fullmatch(regex, name)}
        if not matches:
            top = ", ".join(name for name, _ in model.named_children()) or "none"
            raise ValueError(f"no module matches {pattern!r}: the model's children are {top}")
        found |= matches
    # several patterns: the order of definition, not of the patterns
    return {name: module for name, module in model.named_modules() if name in found}


def _check_frozen(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            raise ValueError(
                f"teacher parameter {name!r} requires grad: freeze it first, model.requires_grad_(False), "
                "or tap with frozen=False"
            )
    for name, module in model.named_modules():
        if module.training:
            raise ValueError(
                f"teacher module {name or type(model).__name__!r} is in training mode, so that dropout would blur its "
                "features and batch statistics would move: call model.eval(), or tap with frozen=False"
            )


def _check_eager(model: nn.Module) -> None:
    for name, module in model.named_modules():
        wrapped = hasattr(module, "_orig_mod")
        if wrapped or getattr(module, "_compiled_call_impl", None) is not None:
            raise RuntimeError(
                f"module {name or type(model).__name__!r} is compiled and would ignore the tap: tap the model first "
                "and compile it inside the context"
            )


def _read(
    name: str, point: Point, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any, select: Select | None
) -> Tensor:
    if point == "output":
        return _tensor(name, output, select)
    given = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
    if given is None:
        raise TypeError(f"module {name!r} was called without a tensor: tap its output")
    return given if point == "input" else given + _tensor(name, output, select)


def _tensor(name: str, output: Any, select: Select | None) -> Tensor:
    if select is not None:
        output = select(output)
    if isinstance(output, Tensor):
        return output
    if hasattr(output, "last_hidden_state"):
        return output.last_hidden_state
    if isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
        return _stream(output)
    raise TypeError(f"module {name!r} returned a {type(output).__name__}: say which tensor you mean with select=")


def _stream(output: Sequence[Any]) -> Tensor:
    """Return the first entry; with its residual added if it is a pair of tensors of one shape."""
    if len(output) == 2 and isinstance(output[1], Tensor) and output[0].shape == output[1].shape:
        return output[0] + output[1]
    return output[0]
