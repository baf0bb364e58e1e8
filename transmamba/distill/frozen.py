"""A teacher beside the module that is trained."""

from typing import Any

import torch
from torch import Tensor, nn

from transmamba._typing import typed


class FrozenTeacher:
    """Call a teacher without gradient, and keep it out of everything that trains, saves or copies a module.

    As an attribute of a module it is not a part of it: not of `parameters()`, hence of no optimiser, gradient norm, DDP
    or FSDP; not of `state_dict()`, hence of no checkpoint; and `train()` does not reach it. It follows the first tensor
    that it is called with to its device. A copy of the module, such as an average of its weights, shares the teacher.

    Args:
        model: the teacher; it is frozen and put in evaluation mode, for good.
        method: the method that a call runs, "forward_features" for instance.

    Raises:
        AttributeError: the model has no such method.
        RuntimeError: on the call, if somebody has put the teacher into training mode since.

    Example:
        >>> student = nn.Linear(3, 2)
        >>> student.teacher = FrozenTeacher(nn.Linear(3, 5))
        >>> student.teacher(torch.ones(1, 3)).requires_grad, len(student.state_dict()), len(list(student.parameters()))
        (False, 2, 2)
    """

    @typed
    def __init__(self, model: nn.Module, method: str = "forward") -> None:
        getattr(model, method)  # a misspelt name fails here, not in the first step
        self.model, self.method = model.eval().requires_grad_(False), method

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the teacher's method and return its output, without a graph."""
        if any([module.training for module in self.model.modules()]):
            raise RuntimeError("the teacher is in training mode: call teacher.model.eval(), and do not train it")
        given = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        own = next(self.model.parameters(), None)
        if given is not None and own is not None and own.device != given.device:
            self.model.to(given.device)
        # a call of the module itself, not of its forward, so that hooks and taps run
        run = self.model if self.method == "forward" else getattr(self.model, self.method)
        with torch.no_grad():
            return run(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> "FrozenTeacher":
        """Return the same teacher: nothing in it changes."""
        return self

    def __repr__(self) -> str:
        """Show the class and size of the teacher."""
        count = sum(p.numel() for p in self.model.parameters())
        return f"FrozenTeacher({type(self.model).__name__}, {count} parameters, method={self.method!r})"
