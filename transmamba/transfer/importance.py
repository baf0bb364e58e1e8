"""Importance of a teacher's neurons: scores of its weights, of which the highest are kept.

A score is a tensor of the weight's shape, or of size 1 along axes on which it is constant. Some need the weights alone,
others let the teacher run: on a few batches of its data, or along a fine-tuning.
"""

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from transmamba._checkpoint import Weights, named_tensors
from transmamba._typing import typed

Batch = Tensor | Sequence[Any] | Mapping[str, Any]
MATRICES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def magnitude_importance(name: str, weight: Tensor) -> Tensor:
    """Score each weight by its absolute value. Pass the function itself as `importance`."""
    return weight.abs()


def _is_number(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def first_importance(name: str, weight: Tensor) -> Tensor:
    """Give all weights one score, so that ties keep the first neurons: the baseline that cuts tensors at the front."""
    return torch.zeros(()).expand(weight.shape)


def random_importance(seed: int = 0) -> Callable[[str, Tensor], Tensor]:
    """Draw independent scores per weight, the same for one seed and name: the control of every comparison."""

    def score(name: str, weight: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
        return torch.rand(weight.shape, generator=generator)

    return score


@typed
def stability_importance(
    before: Weights, after: Weights, *, change: Literal["absolute", "relative", "squared"] = "absolute"
) -> dict[str, Tensor]:
    """Score weights by how little they change in a short fine-tuning of the teacher: the score is minus the change.

    Args:
        before: the pretrained teacher.
        after: the same after the fine-tuning.
        change: "absolute"; "relative" to the weight's size before; or "squared", with which a
            neuron's score follows the L2 norm of its change.

    Raises:
        ValueError: a tensor has another shape in `after`, or both have no floating tensor in common.
        TypeError: a tensor is floating in `before` only.

    Reference:
        TransMamba, arXiv 2502.15130, section on weight subcloning. Granularity and kinds of change are ours.

    Example:
        >>> stability_importance({"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([1.5, 2.25])})["w"]
        tensor([-0.5000, -0.2500])
    """
    old, new = named_tensors(before), named_tensors(after)
    scores = {}
    for name in old:
        if name not in new or not _is_number(old[name]):
            continue
        if old[name].shape != new[name].shape:
            raise ValueError(
                f"{name} has shape {tuple(old[name].shape)} before the fine-tuning and {tuple(new[name].shape)} after:"
                " expected one model at two times"
            )
        if not _is_number(new[name]):
            raise TypeError(f"{name} is {old[name].dtype} before the fine-tuning and {new[name].dtype} after")
        moved = (new[name].detach() - old[name].detach().to(new[name].device)).abs()
        if change == "relative":
            moved = moved / old[name].detach().abs().clamp_min(torch.finfo(moved.dtype).eps)
        scores[name] = -(moved.square() if change == "squared" else moved)
    if not scores:
        raise ValueError(
            f"no floating tensor of before ({', '.join(list(old)[:3])}) is in after ({', '.join(list(new)[:3])}):"
            " expected one model at two times"
        )
    return scores


@typed
def activation_importance(teacher: nn.Module, batches: Iterable[Batch], *, progress: bool = True) -> dict[str, Tensor]:
    """Return the mean absolute value of every neuron, where a layer or a norm reads it.

    A matrix gets one score per input, a norm one per channel of the stream that enters it.

    Args:
        teacher: the model; called as `teacher(batch)`, `teacher(*batch)` or `teacher(**batch)`.
        batches: inputs of the teacher's own task.
        progress: show a progress bar, if tqdm is installed.

    Raises:
        ValueError: there is no batch, or the model ran none of its linear layers.

    Reference:
        Weight subcloning, arXiv 2312.09299.
    """
    sums, counts = _read_inputs(teacher, batches, torch.abs, progress)
    return {name: _as_input(teacher, name, sums[name] / counts[name]) for name in sums}


@typed
def wanda_importance(teacher: nn.Module, batches: Iterable[Batch], *, progress: bool = True) -> dict[str, Tensor]:
    """Score each weight by its absolute value times the L2 norm of its input over all tokens.

    Args:
        teacher: the model; called as `teacher(batch)`, `teacher(*batch)` or `teacher(**batch)`.
        batches: inputs of the teacher's own task.
        progress: show a progress bar, if tqdm is installed.

    Raises:
        ValueError: there is no batch, or the model ran none of its linear layers.

    Reference:
        Wanda, arXiv 2306.11695.
    """
    sums, _ = _read_inputs(teacher, batches, torch.square, progress)
    weights = dict(teacher.named_parameters())
    return {name: weights[name].detach().abs() * _as_input(teacher, name, sums[name].sqrt()) for name in sums}


@typed
def taylor_importance(
    teacher: nn.Module,
    batches: Iterable[Batch],
    loss: Callable[[nn.Module, Any], Tensor],
    *,
    progress: bool = True,
) -> dict[str, Tensor]:
    """Sum |weight times gradient| over batches: to first order, how far the loss would move without the weight.

    The teacher's own gradients and training mode are as before afterwards.

    Args:
        teacher: the model.
        batches: inputs of `loss`.
        loss: (teacher, batch) -> scalar.
        progress: show a progress bar, if tqdm is installed.

    Raises:
        ValueError: there is no batch, no parameter requires a gradient, or the loss depends on none.

    Reference:
        Importance estimation for pruning, arXiv 1906.10771.
    """
    parameters = {name: p for name, p in teacher.named_parameters() if p.requires_grad}
    scores = {name: torch.zeros_like(p.detach().abs()) for name, p in parameters.items()}
    reached: set[str] = set()
    if not parameters:
        raise ValueError("no parameter of the teacher requires a gradient: call teacher.requires_grad_(True) first")
    with _evaluating(teacher), torch.enable_grad():
        for batch in _counted(batches, progress):
            gradients = torch.autograd.grad(loss(teacher, batch), list(parameters.values()), allow_unused=True)
            for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
                if gradient is not None:
                    reached.add(name)
                    # the gradient of a complex number points along its conjugate
                    scores[name] += (parameter.detach().conj() * gradient).real.abs()
    if not reached:
        raise ValueError("the loss depends on no parameter of the teacher")
    return {name: scores[name] for name in parameters if name in reached}


class StabilityRecorder:
    """The paper's importance from a recorded run: minus the path each weight travels while the teacher is fine-tuned.

    Two checkpoints give only the distance between start and end (`stability_importance`); this sums the distance moved
    at every step.

    Args:
        teacher: the model that is being fine-tuned.

    Reference:
        TransMamba, arXiv 2502.15130, section on weight subcloning. That the path counts is ours.

    Example:
        >>> teacher = nn.Linear(2, 1, bias=False)
        >>> recorder = StabilityRecorder(teacher)
        >>> for step in (0.5, -0.5):
        ...     _ = teacher.weight.data[0, 0].add_(step)
        ...     recorder.update()
        >>> recorder.importance()["weight"].tolist()
        [[-1.0, -0.0]]
    """

    @typed
    def __init__(self, teacher: nn.Module) -> None:
        self._teacher = teacher
        self._last = {name: p.detach().clone() for name, p in teacher.named_parameters()}
        self._path = {name: torch.zeros_like(p) for name, p in self._last.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Call after every optimiser step."""
        for name, p in self._teacher.named_parameters():
            self._path[name] += (p - self._last[name]).abs()
            self._last[name].copy_(p)

    def importance(self) -> dict[str, Tensor]:
        """Return the scores of all weights so far."""
        return {name: -path for name, path in self._path.items()}


def _read_inputs(
    teacher: nn.Module, batches: Iterable[Batch], statistic: Callable[[Tensor], Tensor], progress: bool
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Sum `statistic` per channel over all inputs of each matrix and norm, and count those inputs."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def reader(name: str, module: nn.Module) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def read(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            channel = 1 if isinstance(module, MATRICES[1:]) else -1
            rows = inputs[0].detach().movedim(channel, -1).flatten(0, -2).float()
            sums[name] = sums.get(name, torch.zeros((), device=rows.device)) + statistic(rows).sum(0)
            counts[name] = counts.get(name, 0) + len(rows)

        return read

    handles = [module.register_forward_pre_hook(reader(name, module)) for name, module in _readers(teacher).items()]
    try:
        with _evaluating(teacher), torch.no_grad():
            for batch in _counted(batches, progress):
                _call(teacher, batch)
    finally:
        for handle in handles:
            handle.remove()
    if not sums:
        raise ValueError(f"{type(teacher).__name__} ran no linear layer and no norm: nothing to score")
    return sums, counts


def _readers(teacher: nn.Module) -> dict[str, nn.Module]:
    """Map weight names to the modules that read a stream: matrices, and modules with one weight per channel."""
    found = {}
    for name, module in teacher.named_modules():
        weight = getattr(module, "weight", None)
        grouped = getattr(module, "groups", 1) != 1
        norm = isinstance(weight, nn.Parameter) and weight.dim() == 1
        if (isinstance(module, MATRICES) and not grouped) or norm:
            found[f"{name}.weight" if name else "weight"] = module
    return found


def _as_input(teacher: nn.Module, name: str, score: Tensor) -> Tensor:
    """Place one score per channel along the axis of the weight that reads the channel."""
    dims = teacher.get_parameter(name).dim()
    return score if dims == 1 else score.reshape(1, -1, *(1,) * (dims - 2))


def _call(teacher: nn.Module, batch: Batch) -> None:
    if isinstance(batch, Tensor):
        teacher(batch)
    elif isinstance(batch, Mapping):
        teacher(**batch)
    else:
        teacher(*batch)


@contextmanager
def _evaluating(teacher: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in teacher.modules()}
    teacher.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _counted(batches: Iterable[Batch], progress: bool) -> Iterator[Batch]:
    count = 0
    for batch in _bar(batches) if progress else batches:
        count += 1
        yield batch
    if not count:
        raise ValueError("no batch to run the teacher on: give at least one")


def _bar(batches: Iterable[Batch]) -> Iterable[Batch]:
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return batches
    return tqdm(batches, desc="importance", leave=False)
