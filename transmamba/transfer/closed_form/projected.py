"""A start for a student whose stream is a projection of its teacher's: stem and first matrices of the MLPs."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from transmamba._layer_maps import LayerMap, resolve_layer_map
from transmamba._typing import typed
from transmamba.transfer.closed_form.layouts import TokenMatch
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

    The patch embedding, the position table and the class and register tokens become P times the teacher's, so that the
    student's stream begins at P times the teacher's, token by token, wherever each model has its class token. Positions
    of a teacher that rotates or biases its attention are in no table: the student's becomes zero. The first matrix of
    each MLP becomes the teacher's on P's transpose, the gain of its norm inside, with the hidden units that the second
    matrix weighs most; the norm before it starts at one. The readouts, the mixers, the last norm and the head are left
    as they are: solve the readouts with `fit_layers(teacher, student, batches, projection=P)`. `subclone` does the same
    for a set of neurons, and more.

    Args:
        teacher: a `ViT`, such as `models.from_transformer` gives.
        student: a `VisionMamba`, a `Vim` with one class token or none, or a `ViT` of other mixers, of the same patches.
        projection: `principal_axes(teacher, batches, student_dim)`, or rows of the identity for a set of neurons.
        layer_map: as for `fit_layers`.

    Returns:
        names of the student's parameters that were written.

    Raises:
        ValueError: a model has another stem or normalises before its blocks, or widths, patches, grids, positions or
            tokens do not fit.

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
    _check_stems(teacher, student, projection)
    _project_stem(teacher, student, projection)
    for layer, source in resolve_layer_map(layer_map, len(ours), len(theirs)).items():
        if getattr(ours[layer], "mlp", None) is not None:
            _project_mlp(theirs[source], ours[layer], projection)
    return [name for name, _ in student.named_parameters() if _is_written(name)]


def _check_stems(teacher: Any, student: Any, projection: Tensor) -> None:
    for side, model in (("teacher", teacher), ("student", student)):
        if not isinstance(getattr(getattr(model, "patch_embed", None), "proj", None), nn.Conv2d):
            raise ValueError(
                f"{side} is a {type(model).__name__}, whose stem is not one matrix on patches (`patch_embed.proj`): a"
                " projection of the stream cannot begin there; take a ViT, a VisionMamba or a Vim, or subclone"
            )
        if not isinstance(getattr(model, "norm_pre", nn.Identity()), nn.Identity):
            raise ValueError(
                f"{side} normalises its tokens before the first block (norm_pre), which no projection goes through:"
                " take a set of neurons with subclone"
            )
    sizes = [len(model.patch_embed.proj.weight) for model in (student, teacher)]
    if list(projection.shape) != sizes:
        raise ValueError(f"the projection is {tuple(projection.shape)}, the widths are {tuple(sizes)}, student first")
    (a, b) = (model.patch_embed.proj.weight.shape[1:] for model in (student, teacher))
    if a != b:
        raise ValueError(f"the student's patches are {tuple(a)}, the teacher's {tuple(b)}: build it with the same ones")
    grids = [tuple(model.grid) for model in (student, teacher)]
    if grids[0] != grids[1]:
        raise ValueError(f"the grids are {grids[0]} and {grids[1]}, student first: build it for the same images")
    if student.pos_embed is None and teacher.pos_embed is not None:
        raise ValueError("the student has no table for the teacher's positions (pos_embed): build it with one")


def _project_stem(teacher: Any, student: Any, projection: Tensor) -> None:
    ours, theirs = student.patch_embed.proj, teacher.patch_embed.proj
    ours.weight.copy_(torch.einsum("dt,t...->d...", projection, theirs.weight))
    bias = torch.zeros_like(ours.weight[:, 0, 0, 0]) if theirs.bias is None else projection @ theirs.bias
    if ours.bias is not None:
        ours.bias.copy_(bias)
    elif bias.any():
        raise ValueError("the student's patch embedding has no bias, the teacher's has one: build it with patch_bias")
    tokens = [name for name in TOKENS if getattr(student, name, None) is not None]
    for name in tokens:
        own, other = getattr(student, name), getattr(teacher, name, None)
        if other is None or other.shape[1] != own.shape[1]:
            raise ValueError(f"the student has a {name} of {own.shape[1]} tokens that the teacher lacks")
        own.copy_(other @ projection.T)
    if student.pos_embed is not None:
        _project_positions(teacher, student, projection)


def _project_positions(teacher: Any, student: Any, projection: Tensor) -> None:
    """Write the student's position table; a teacher that rotates or biases its attention instead has zeros there."""
    table, patches = student.pos_embed, math.prod(student.grid)
    rows = _rows_of_tokens(teacher, patches)
    theirs = table.new_zeros(patches + len(teacher.extra_tokens), teacher.patch_embed.proj.out_channels)
    if teacher.pos_embed is not None:
        theirs[rows] = teacher.pos_embed[0].to(theirs)
    wanted = theirs[TokenMatch(teacher, student).index(len(theirs))] @ projection.T
    own = _rows_of_tokens(student, patches)
    table.copy_(wanted[own])
    for name, place in _places_of_tokens(student).items():
        if place[0] not in own:  # a token without a row carries its position itself
            getattr(student, name).add_(wanted[place])


def _rows_of_tokens(model: Any, patches: int) -> list[int]:
    """Return the positions of the tokens that have a row in the table of positions, in the order of the rows."""
    without = model.extra_tokens[getattr(model, "prefix_positions", len(model.extra_tokens)) :]
    return [i for i in range(patches + len(model.extra_tokens)) if i not in without]


def _places_of_tokens(model: Any) -> dict[str, list[int]]:
    """Return the positions of the tokens of each parameter."""
    rest, places = list(model.extra_tokens), {}
    for name in TOKENS:
        if getattr(model, name, None) is not None:
            count = getattr(model, name).shape[1]
            places[name], rest = rest[:count], rest[count:]
    return places


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
