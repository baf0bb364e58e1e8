"""Description of an official implementation: the rules by which its checkpoints are read and written."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from torch import Size, Tensor, nn

from transmamba._checkpoint import State


class Family(NamedTuple):
    """One official implementation.

    Attributes:
        model: our class.
        build: makes our model from the official constructor arguments; it also gets the state dict, for sizes that the
            arguments leave open.
        official_name: our name of a tensor -> the official one.
        official_shape: our name and shape -> the official shape, which holds the same numbers in the same order; None
            if all shapes are ours.
        upgrade_names: brings names and shapes of older checkpoints of the family to those of today; None if there are
            no older ones.
        infer_config: official arguments with which the tensors of a checkpoint (official names without prefixes) were
            made, where they differ from those of the given model; None if the size is always the configured one.
        adapt: fits a state (our names) of the first model to the second, which has another size; None if models of the
            family cannot be resized.
    """

    model: type[nn.Module]
    build: Callable[[Mapping[str, Any], Mapping[str, Tensor]], nn.Module]
    official_name: Callable[[str], str]
    official_shape: Callable[[str, Size], tuple[int, ...]] | None = None
    upgrade_names: Callable[[State], State] | None = None
    infer_config: Callable[[nn.Module, State], dict[str, Any]] | None = None
    adapt: Callable[[State, nn.Module, nn.Module], State] | None = None

    def shape(self, name: str, ours: Size) -> tuple[int, ...]:
        """Return the official shape of our tensor `name`."""
        return tuple(ours) if self.official_shape is None else self.official_shape(name, ours)


def check_argument(name: str, value: object, choices: Iterable[str], fault: str = "is unknown") -> None:
    """Refuse the value of an official argument that is none of `choices`.

    Raises:
        ValueError: it is another one.
    """
    if value not in (known := list(choices)):
        raise ValueError(f"{name}={value!r} {fault}: expected one of {', '.join(known)}")


def read_config(
    config: Mapping[str, Any],
    defaults: Mapping[str, Any],
    fixed: Mapping[str, Any] | None = None,
    ignored: tuple[str, ...] = (),
    reasons: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return the official constructor arguments that matter here: those of `defaults`, overwritten by `config`.

    Args:
        config: the caller's arguments.
        defaults: every argument that is understood, with its official default.
        fixed: arguments that have to have this value, because nothing else is built here.
        ignored: arguments without influence on the numbers.
        reasons: why a fixed argument has no other value, for the message.

    Raises:
        ValueError: an argument is unknown, or a fixed one has another value; the message lists all of them.
    """
    fixed = fixed or {}
    wrong = [
        f"{name}={value!r}: expected {fixed[name]!r}{_because(name, reasons or {})}"
        if name in fixed
        else f"{name}={value!r}: unknown"
        for name, value in config.items()
        if name not in defaults and name not in ignored and not (name in fixed and value == fixed[name])
    ]
    if wrong:
        raise ValueError("cannot build from these official arguments: " + "; ".join(wrong))
    return {name: config.get(name, default) for name, default in defaults.items()}


def _because(name: str, reasons: Mapping[str, str]) -> str:
    return f", because {reasons[name]}" if name in reasons else ""
