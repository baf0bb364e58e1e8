"""Custom ops of `torch.library` from a record of inputs, so that compile, export and autograd see one node.

The record is a NamedTuple: tensors first, then flags. A backend is a module that offers

    unsupported_reasons(inputs)                     reasons why it cannot run them
    forward(inputs, save)                           outputs, and the tensors of its backward if `save`
    backward(inputs, saved, *grad_outputs)          a record of gradients

or the same without `save` and `saved`. The rules for fake tensors, autograd and autocast are the same for all.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from transmamba.ops.dispatch import Backend
from transmamba.ops.plain import limits_of_custom_ops, without_autocast
from transmamba.ops.second import differentiate_again

# a level below `torch.library.custom_op`, whose wrappers take time at every call
_LIBRARY = torch.library.Library("transmamba", "FRAGMENT")
_TYPES = {Tensor: "Tensor", Tensor | None: "Tensor?", bool: "bool"}


class Operation(NamedTuple):
    """The properties of an operation that `define` needs."""

    name: str  # the ops are {name}_forward and {name}_backward
    inputs: type  # record of inputs, with a method `check`
    gradients: type  # record of gradients, whose fields name those inputs that have one, in their order
    grad_outputs: str  # schema of the gradients of the outputs: "Tensor grad_y", with `?` where None will do
    outputs: Callable[..., Any]  # empty outputs from inputs, module of the backend and `save`
    definition: Callable[[Any], tuple[Tensor, ...]]  # outputs in plain torch, for second derivatives
    saves: bool = True
    laid_out: Callable[[Tensor, str], Tensor] = lambda x, field: x.new_empty(x.shape)  # room for a gradient


def define(operation: Operation, modules: Mapping[str, Any]) -> tuple[Backend, ...]:
    """Register the two ops of an operation, and return a `Backend` per module, in the order of `modules`."""
    rules = _Rules(operation, modules)
    types = operation.inputs.__annotations__
    fields = ", ".join(f"{_TYPES[kind]} {field}" for field, kind in types.items())
    results = "(Tensor, Tensor, Tensor)" if operation.saves else "Tensor"
    save, saved = (", bool save", "Tensor saved, ") if operation.saves else ("", "")
    forward, backward = f"{operation.name}_forward", f"{operation.name}_backward"
    _define(f"{forward}(str name, {fields}{save}) -> {results}", rules.forward, rules.fake_forward)
    _define(
        f"{backward}(str name, {fields}, {saved}{operation.grad_outputs}) -> Tensor[]",
        rules.backward,
        rules.fake_backward,
    )
    for name, differentiate, setup in (
        (forward, rules.differentiate, rules.setup),
        (backward, rules.differentiate_again, rules.setup_again),
    ):
        torch.library.register_autograd(f"transmamba::{name}", differentiate, setup_context=setup, lib=_LIBRARY)
    run = _runner(getattr(torch.ops.transmamba, forward).default, operation.saves)
    return tuple(Backend(name, partial(run, name), partial(_unsupported_reasons, modules[name])) for name in modules)


def _define(schema: str, function: Callable[..., Any], fake: Callable[..., Any]) -> None:
    name = schema.partition("(")[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"transmamba::{name}", fake, lib=_LIBRARY)


def _unsupported_reasons(module: Any, inputs: Any) -> list[str]:
    return module.unsupported_reasons(inputs) + limits_of_custom_ops()


def _runner(forward: Any, saves: bool) -> Callable[[str, Any], Any]:
    # a closure, and loops written out: the dynamo of older torches traces both
    def run(name: str, inputs: Any) -> Any:
        if not saves:
            return forward(name, *inputs)
        grad = torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in inputs)
        # the number of chunks that are saved would tie an exported program to lengths of one chunk, or of several
        save = grad and not torch.compiler.is_exporting()
        y, last_state, _ = forward(name, *inputs, save)
        return y, last_state

    return run


class _Rules:
    """Kernels, fake kernels and derivatives of the two ops; arguments are a backend's name, the fields and the rest."""

    def __init__(self, operation: Operation, modules: Mapping[str, Any]) -> None:
        self.operation, self.modules = operation, modules
        self.record, self.fields = operation.inputs, len(operation.inputs.__annotations__)
        self.tensors = sum(kind is not bool for kind in operation.inputs.__annotations__.values())
        wanted = operation.gradients.__annotations__
        self.floating = [field in wanted for field in operation.inputs.__annotations__][: self.tensors]
        self.needs_first = not operation.grad_outputs.startswith("Tensor?")

    def forward(self, name: str, *arguments: Any) -> Any:
        inputs = self.record(*arguments[: self.fields])
        inputs.check()
        with without_autocast(arguments[0].device):
            return self.modules[name].forward(inputs, *arguments[self.fields :])

    def fake_forward(self, name: str, *arguments: Any) -> Any:
        return self.operation.outputs(
            self.record(*arguments[: self.fields]), self.modules[name], *arguments[self.fields :]
        )

    def backward(self, name: str, *arguments: Any) -> list[Tensor]:
        inputs = self.record(*arguments[: self.fields])
        with without_autocast(arguments[0].device):
            gradients = self.modules[name].backward(inputs, *arguments[self.fields :])
        return [x for x in gradients if x is not None]

    def fake_backward(self, name: str, *arguments: Any) -> list[Tensor]:
        named = zip(self.record.__annotations__, arguments, self.floating, strict=False)
        return [self.operation.laid_out(x, field) for field, x, floating in named if floating and x is not None]

    def setup(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.set_materialize_grads(False)
        ctx.name, ctx.flags, ctx.save = inputs[0], inputs[1 + self.tensors : 1 + self.fields], inputs[-1]
        y, saved = (output[0], output[-1:]) if self.operation.saves else (output, ())
        ctx.save_for_backward(*inputs[1 : 1 + self.tensors], *saved)
        ctx.like_y = y.shape, y.dtype

    def differentiate(self, ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        kept = ctx.saved_tensors  # once: a checkpoint gives recomputed tensors only once
        tensors, saved = kept[: self.tensors], kept[self.tensors :]
        ops, name = torch.ops.transmamba, self.operation.name
        if saved:
            grads = grads[:-1]
            if not ctx.save:
                saved = getattr(ops, f"{name}_forward").default(ctx.name, *tensors, *ctx.flags, True)[-1:]
        if grads[0] is None and self.needs_first:
            shape, dtype = ctx.like_y
            grads = (tensors[0].new_zeros(shape, dtype=dtype), *grads[1:])
        found = iter(getattr(ops, f"{name}_backward").default(ctx.name, *tensors, *ctx.flags, *saved, *grads))
        pairs = zip(tensors, self.floating, strict=True)
        gradients = [next(found) if floating and x is not None else None for x, floating in pairs]
        return (None, *gradients, *(None,) * (len(ctx.flags) + self.operation.saves))

    def setup_again(self, ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
        ctx.set_materialize_grads(False)
        ctx.flags = inputs[1 + self.tensors : 1 + self.fields]
        ctx.save_for_backward(*inputs[1 : 1 + self.tensors], *inputs[1 + self.fields + self.operation.saves :])

    def differentiate_again(self, ctx: Any, cotangents: list[Tensor | None]) -> tuple[Tensor | None, ...]:
        kept = ctx.saved_tensors
        tensors, grads = kept[: self.tensors], kept[self.tensors :]

        def run(tensors: list[Tensor | None]) -> tuple[Tensor, ...]:
            assert tensors[0] is not None
            with without_autocast(tensors[0].device):
                return self.operation.definition(self.record(*tensors, *ctx.flags))

        inputs, outputs = differentiate_again(run, tensors, grads, cotangents)
        return (None, *inputs, *(None,) * (len(ctx.flags) + self.operation.saves), *outputs)
