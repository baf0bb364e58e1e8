"""A start for a student whose stream is a projection of its teacher's: stem and first matrices of the MLPs."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from transmamba._layer_maps import LayerMap, resolve_layer_map
from transmamba._typing import typed
from transmamba.transfer.closed_form.streams import blocks_of, readout_of

TOKENS = ("cls_token", "dist_token", "reg_token")


@typed
@torch.no_grad()
def project_start(
    teacher: nn.Module,
    student: nn.Module,
    projection: Float[Tensor, "student_dim teacher_dim"],
    *,
    layer_map: LayerMap = "uniform",
) -> list[str]:
    """Write the part before the readouts of a narrower image student, in the coordinates of a projection P.

    The patch embedding, the position table and the tokens before the patches become P times the teacher's, so that the
    student's stream begins at P times the teacher's. The first matrix of each MLP becomes the teacher's on P's
    transpose, the gain of its norm inside, with the hidden units that the second matrix weighs most; the norm before it
    starts at one. The readouts, the mixers, the last norm and the head are left as they are: solve the readouts with
    `fit_layers(teacher, student, batches, projection=P)`. `subclone` does the same for a set of neurons, and more.

    Args:
        teacher: a `ViT`, such as `models.from_transformer` gives.
        student: a `VisionMamba`, or a `ViT` of other mixers, of the same patches.
        projection: `principal_axes(teacher, batches, student_dim)`, or rows of the identity for a set of neurons.
        layer_map: as for `fit_layers`.

    Returns:
        names of the student's parameters that were written.

    Raises:
        ValueError: a model lacks a part, or widths, patches, positions or tokens do not fit.

    Example:
        >>> from transmamba.models import VisionMamba, ViT
        >>> teacher = ViT(8, 4, dim=12, depth=4, heads=3, num_classes=5)
        >>> student = VisionMamba(8, 4, dim=6, depth=2, num_classes=5)
        >>> images = torch.randn(2, 3, 8, 8)
        >>> from transmamba.transfer import principal_axes
        >>> project_start(teacher, student, principal_axes(teacher, [images], 6))[:2]
        ['pos_embed', 'patch_embed.proj.weight']
    """
    ours, theirs = blocks_of(student, "student"), blocks_of(teacher, "teacher")
    _check_widths(teacher, student, projection)
    _project_stem(teacher, student, projection)
    for layer, source in resolve_layer_map(layer_map, len(ours), len(theirs)).items():
        if getattr(ours[layer], "mlp", None) is not None:
            _project_mlp(theirs[source], ours[layer], projection)
    return [name for name, _ in student.named_parameters() if _is_written(name)]


def _check_widths(teacher: Any, student: Any, projection: Tensor) -> None:
    for side, model in (("teacher", teacher), ("student", student)):
        if not hasattr(getattr(model, "patch_embed", None), "proj") or getattr(model, "pos_embed", None) is None:
            raise ValueError(f"{side} is a {type(model).__name__} without patch_embed.proj and pos_embed: see `ViT`")
    sizes = [len(model.patch_embed.proj.weight) for model in (student, teacher)]
    if list(projection.shape) != sizes:
        raise ValueError(f"the projection is {tuple(projection.shape)}, the widths are {tuple(sizes)}, student first")
    (a, b) = (model.patch_embed.proj.weight.shape[1:] for model in (student, teacher))
    if a != b:
        raise ValueError(f"the student's patches are {tuple(a)}, the teacher's {tuple(b)}: build it with the same ones")


def _project_stem(teacher: Any, student: Any, projection: Tensor) -> None:
    ours, theirs = student.patch_embed.proj, teacher.patch_embed.proj
    ours.weight.copy_(torch.einsum("dt,t...->d...", projection, theirs.weight))
    if ours.bias is not None:
        ours.bias.copy_(torch.zeros_like(ours.bias) if theirs.bias is None else projection @ theirs.bias)
    tokens = [name for name in TOKENS if getattr(student, name, None) is not None]
    for name in tokens:
        own, other = getattr(student, name), getattr(teacher, name, None)
        if other is None or other.shape[1] != own.shape[1]:
            raise ValueError(f"the student has a {name} of {own.shape[1]} tokens that the teacher lacks")
        own.copy_(other @ projection.T)
    # rows of tokens that the student lacks come first; those of the patches are the last ones in both tables
    grids = [tuple(model.grid) for model in (student, teacher)]
    rows = [model.pos_embed.shape[1] for model in (student, teacher)]
    if grids[0] != grids[1] or rows[0] > rows[1] or (tokens and rows[0] != rows[1]):
        raise ValueError(f"grids {grids} with {rows} positions (student, teacher) do not fit: build them alike")
    student.pos_embed.copy_(teacher.pos_embed[:, rows[1] - rows[0] :] @ projection.T)


def _project_mlp(teacher: Any, student: Any, projection: Tensor) -> None:
    ours, theirs, norm = student.mlp.fc1, teacher.mlp.fc1, teacher.norm2
    if len(ours.weight) > len(theirs.weight):
        raise ValueError(f"the student's MLP has {len(ours.weight)} hidden units, the teacher's {len(theirs.weight)}")
    weight = readout_of(teacher.mlp).weight
    if weight.shape[1] != len(theirs.weight):
        raise ValueError("a gated MLP cannot be projected: take a student with `mlp=False`, or subclone")
    hidden = weight.norm(dim=0).topk(len(ours.weight)).indices.sort().values
    ours.weight.copy_((theirs.weight[hidden] * norm.weight) @ projection.T)
    if ours.bias is not None:
        bias = theirs.weight[hidden] @ norm.bias if getattr(norm, "bias", None) is not None else 0
        ours.bias.copy_(bias + (0 if theirs.bias is None else theirs.bias[hidden]))
    nn.init.ones_(student.norm2.weight)
    if getattr(student.norm2, "bias", None) is not None:
        nn.init.zeros_(student.norm2.bias)


def _is_written(name: str) -> bool:
    return name.startswith(("patch_embed.proj", "pos_embed", *TOKENS)) or ".mlp.fc1." in name or ".norm2." in name
