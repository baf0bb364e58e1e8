"""Bring student features to the teacher's width."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from transmamba._typing import check_choice, check_sizes, typed
from transmamba.distill.checks import Layers, check_tensors
from transmamba.distill.padded_linear import PaddedLinear

Mode = Literal["pad_mlp", "pad_linear", "linear", "mlp", "pad", "identity"]
Pad = Literal["right", "center"] | Sequence[int] | Tensor
Pads = Pad | Sequence[Pad]  # one for all layers, or one for each


class FeatureCalibrator(nn.Module):
    """Map a student feature into the teacher's space: pad its channels with zeros, then a small MLP.

    With P the padding, y = P x + MLP(P x). The last layer of the MLP starts at zero, so a new calibrator *is* the
    padding and the student's structure is kept. The product with the first weight leaves out the columns that would
    meet zeros.

    The cost of distillation is that of the two-layer MLP at teacher width; `hidden_dim=student_dim` is the cheap form.

    Args:
        student_dim: channels in.
        teacher_dim: channels out.
        mode: "pad_mlp" (the paper), "pad_linear" (one layer), "pad" (no parameters), "mlp" and "linear" (plain maps:
            no padding, no skip, usual initialisation), "identity" (equal widths only).
        pad: zeros on the "right", or in equal parts on both sides ("center"; an odd one goes right), or the teacher
            channel of each student channel. For an inherited student give `report.kept["residual"]`: then a channel
            meets the one it was cut from.
        hidden_dim: width between the layers; None takes teacher_dim.
        depth: number of linear layers of the MLP.
        activation: makes the activation between them.
        bias: give the linear layers a bias.
        residual: add P x in the padded modes; without it they start at random.
        norm: on the input: "layer" (LayerNorm) or "standardize" (mean 0, variance 1 over all of a sample).
        on_wider: a student wider than its teacher cannot be padded: "project" replaces P by a linear map, "error"
            refuses.
        device: where the parameters live.
        dtype: their dtype.

    Raises:
        ValueError: a width or depth below 1, an unknown name, unequal widths for "identity", a wider student with
            on_wider="error", or a `pad` that does not name one teacher channel for each of the student's.

    Reference:
        TransMamba, arXiv 2502.15130, feature calibration. The paper has a "simple MLP"; skip and zero start are ours.

    Example:
        >>> calibrate = FeatureCalibrator(2, 5)
        >>> calibrate(torch.ones(1, 3, 2))[0, 0]
        tensor([1., 1., 0., 0., 0.], grad_fn=...)
        >>> FeatureCalibrator(2, 5, pad=(1, 4))(torch.ones(1, 3, 2))[0, 0]
        tensor([0., 1., 0., 0., 1.], grad_fn=...)
    """

    index: Tensor | None

    def __init__(
        self,
        student_dim: int,
        teacher_dim: int,
        *,
        mode: Mode = "pad_mlp",
        pad: Pad = "right",
        hidden_dim: int | None = None,
        depth: int = 2,
        activation: Callable[[], nn.Module] = nn.GELU,
        bias: bool = True,
        residual: bool = True,
        norm: Literal["layer", "standardize"] | None = None,
        on_wider: Literal["project", "error"] = "project",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(student_dim=student_dim, teacher_dim=teacher_dim, depth=depth, hidden_dim=hidden_dim)
        check_choice("mode", mode, get_args(Mode))
        if isinstance(pad, str):
            check_choice("pad", pad, ("right", "center"))
        check_choice("norm", norm or "layer", ("layer", "standardize"))
        check_choice("on_wider", on_wider, ("project", "error"))
        _check_widths(student_dim, teacher_dim, mode, on_wider)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.student_dim, self.teacher_dim, self.mode = student_dim, teacher_dim, mode
        self.offset = max(teacher_dim - student_dim, 0) // 2 if pad == "center" else 0
        self.places = None if isinstance(pad, str) else _check_places(pad, student_dim, teacher_dim, mode)
        # in the state dict: the weights mean nothing without it
        self.register_buffer("index", None if self.places is None else torch.tensor(self.places, device=device))
        self.standardize = norm == "standardize"
        padded = mode.startswith("pad")
        self.residual = padded and (residual or mode == "pad")
        self.norm = nn.LayerNorm(student_dim, **factory) if norm == "layer" else nn.Identity()
        project = self.residual and student_dim > teacher_dim
        self.skip = nn.Linear(student_dim, teacher_dim, bias=False, **factory) if project else None
        self.maps = nn.ModuleList()
        self.activation = activation() if mode.endswith("mlp") and depth > 1 else nn.Identity()
        if mode not in ("pad", "identity"):
            hidden = [hidden_dim or teacher_dim] * (depth - 1 if mode.endswith("mlp") else 0)
            self._build_maps([student_dim, *hidden, teacher_dim], padded, bias, factory)
        self._start_as_skip()

    def _build_maps(self, widths: list[int], padded: bool, bias: bool, factory: dict[str, Any]) -> None:
        for number, (wide_in, wide_out) in enumerate(zip(widths, widths[1:], strict=False)):
            if number == 0 and padded and (self.student_dim < self.teacher_dim or self.places is not None):
                options = {"offset": self.offset, "bias": bias, **factory}
                self.maps.append(PaddedLinear(wide_in, self.teacher_dim, wide_out, **options))
            else:
                self.maps.append(nn.Linear(wide_in, wide_out, bias=bias, **factory))

    def _start_as_skip(self) -> None:
        if self.residual and len(self.maps):
            for parameter in self.maps[-1].parameters():
                nn.init.zeros_(parameter)

    def reset_parameters(self) -> None:
        """Initialise again; after `to_empty`, equal to direct construction."""
        for module in (self.norm, self.skip, *self.maps, self.activation):
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        self._start_as_skip()
        if self.index is not None:
            self.index.copy_(torch.tensor(self.places))

    @typed
    def forward(self, x: Float[Tensor, "*batch student"]) -> Float[Tensor, "*batch teacher"]:
        """Calibrate a feature.

        Raises:
            ValueError: the feature has another width than `student_dim`.
        """
        if x.shape[-1] != self.student_dim:
            raise ValueError(f"feature has {x.shape[-1]} channels, the calibrator expects {self.student_dim}")
        x = self.norm(_standardize(x) if self.standardize else x)
        if not len(self.maps):
            return self._skip(x)
        y: Tensor = self.maps[0](x) if self.index is None else self.maps[0](x, self.index)
        for layer in list(self.maps)[1:]:
            y = layer(self.activation(y))
        if not self.residual:
            return y
        if self.index is not None:
            return _scatter(y, x, self.index)
        # not in place: FSDP hangs its hook on the output, which must not be a view that was written to
        return y + self._skip(x)

    def _skip(self, x: Tensor) -> Tensor:
        if self.skip is not None:
            return self.skip(x)
        if self.index is not None:
            return _scatter(x.new_zeros(*x.shape[:-1], self.teacher_dim), x, self.index)
        if self.student_dim == self.teacher_dim:
            return x
        return F.pad(x, (self.offset, self.teacher_dim - self.student_dim - self.offset))

    def extra_repr(self) -> str:
        """Describe widths and mode."""
        return f"{self.student_dim}, {self.teacher_dim}, mode={self.mode!r}"


def _scatter(y: Tensor, x: Tensor, index: Tensor) -> Tensor:
    """Add channel j of `x` to channel index[j] of `y`, out of place; costs no more than adding a padded `x`."""
    dtype = torch.promote_types(y.dtype, x.dtype)
    return y.to(dtype).scatter_add(-1, index.expand(x.shape), x.to(dtype))


def _standardize(x: Tensor) -> Tensor:
    if not x.numel():
        return x
    axes = tuple(range(min(1, x.dim() - 1), x.dim()))
    variance, mean = torch.var_mean(x, dim=axes, correction=0, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + 1e-6)


def _check_places(pad: Sequence[int] | Tensor, student_dim: int, teacher_dim: int, mode: str) -> tuple[int, ...]:
    places = tuple(pad.tolist() if isinstance(pad, Tensor) else pad)
    if not mode.startswith("pad"):
        raise ValueError(f"mode={mode!r} does not pad: leave out the channels in pad, or use mode='pad_mlp'")
    if len(places) != student_dim:
        raise ValueError(f"pad names {len(places)} teacher channels for {student_dim} student channels: name one each")
    outside = [place for place in places if not (isinstance(place, int) and 0 <= place < teacher_dim)]
    if outside:
        raise ValueError(f"pad names teacher channel {outside[0]}: expected integers from 0 to {teacher_dim - 1}")
    if len(set(places)) < len(places):
        twice = next(place for place in places if places.count(place) > 1)
        raise ValueError(f"pad names teacher channel {twice} more than once: each can hold one student channel")
    return places


def _check_widths(student_dim: int, teacher_dim: int, mode: str, on_wider: str) -> None:
    if mode == "identity" and student_dim != teacher_dim:
        raise ValueError(f"mode='identity' needs equal widths, got {student_dim} and {teacher_dim}: use mode='pad_mlp'")
    if on_wider == "error" and student_dim > teacher_dim and mode.startswith("pad"):
        raise ValueError(
            f"student has {student_dim} channels, more than the teacher's {teacher_dim}, and cannot be padded: "
            "use on_wider='project'"
        )


class LayerCalibrators(nn.Module):
    """One calibrator per student layer, or one shared by all; a module of its own beside the student.

    Give its parameters to the optimiser; save it, or throw it away, apart from the student.

    Args:
        student_dims: the width of each student layer.
        teacher_dim: the teacher's width.
        shared: use one calibrator for all layers (equal widths only).
        pad: as for `FeatureCalibrator`, one for all layers or one for each; for an inherited student
            `report.pads(student)`.
        recompute: recompute the calibrators in the backward, trading time for memory.
        options: passed on to `FeatureCalibrator`.

    Raises:
        ValueError: no layers, shared calibrators for unequal widths, or pads for another number of layers; on the
            call, another number of layers.

    Example:
        >>> layers = [torch.ones(1, 3, 2), torch.ones(1, 3, 4)]
        >>> [layer.shape[-1] for layer in LayerCalibrators([2, 4], 5)(layers)]
        [5, 5]
    """

    def __init__(
        self,
        student_dims: Sequence[int],
        teacher_dim: int,
        *,
        shared: bool = False,
        pad: Pads = "right",
        recompute: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        if not student_dims:
            raise ValueError("student_dims is empty: expected the width of at least one layer")
        if shared and len(set(student_dims)) > 1:
            raise ValueError(f"a shared calibrator needs equal widths, got {list(student_dims)}: use shared=False")
        self.depth, self.recompute = len(student_dims), recompute
        widths = student_dims[:1] if shared else student_dims
        pads = _pad_by_layer(pad, len(student_dims), shared)
        self.layers = nn.ModuleList(
            FeatureCalibrator(width, teacher_dim, pad=of_layer, **options)
            for width, of_layer in zip(widths, pads, strict=True)
        )

    def reset_parameters(self) -> None:
        """Initialise all calibrators again."""
        for layer in self.layers.children():
            if isinstance(layer, FeatureCalibrator):
                layer.reset_parameters()

    @typed
    def forward(self, student: Layers) -> list[Tensor]:
        """Return each layer in the teacher's width."""
        check_tensors(student, "student")
        if len(student) != self.depth:
            raise ValueError(f"got {len(student)} student layers, the calibrators were made for {self.depth}")
        calibrators = list(self.layers) * (self.depth // len(self.layers))
        if not self.recompute:
            return [calibrator(layer) for calibrator, layer in zip(calibrators, student, strict=True)]
        return [
            checkpoint(calibrator, layer, use_reentrant=False)
            for calibrator, layer in zip(calibrators, student, strict=True)
        ]


def _pad_by_layer(pad: Pads, depth: int, shared: bool) -> list[Any]:
    """Return one pad per calibrator: channels are numbers, so a sequence of anything else holds pads."""
    one = isinstance(pad, str) or (isinstance(pad, Tensor) and pad.dim() == 1)
    if one or all(isinstance(entry, int) for entry in pad):
        return [pad] * (1 if shared else depth)
    pads = list(pad)
    if len(pads) != depth:
        raise ValueError(f"pad has {len(pads)} entries for {depth} layers: give one for all, or one for each")
    if not shared:
        return pads
    if any(list(other) != list(pads[0]) for other in pads):
        raise ValueError("a shared calibrator has one pad for all layers: use shared=False")
    return pads[:1]
