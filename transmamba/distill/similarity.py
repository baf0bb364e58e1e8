"""Cosines between features, per sample, and their mean over the (global) batch."""

from typing import Literal

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor

from transmamba.distill.checks import real_tokens, widen
from transmamba.distill.fused import TokenCosine, fusible

Similarity = Literal["token", "flatten", "pooled"]

# shorter vectors count as zero: their direction is noise, and its gradient 1 / norm would overflow in half precision
NEGLIGIBLE = 1e-6

_AXES = {"token": (2,), "flatten": (1, 2), "pooled": (2,)}


def inverse_norm(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Return the factor that makes vectors unit vectors; zero for negligible ones."""
    norm = torch.linalg.vector_norm(x, dim=axes, keepdim=True)
    return torch.where(norm > NEGLIGIBLE, 1 / norm.clamp_min(NEGLIGIBLE), 0.0)


def _vectors(x: Tensor, similarity: Similarity, mask: Tensor | None) -> Tensor:
    x = widen(real_tokens(x, mask))
    return x.sum(1, keepdim=True) if similarity == "pooled" else x


def unit_target(
    teacher: Float[Tensor, "batch token dim"], similarity: Similarity, mask: Bool[Tensor, "batch token"] | None
) -> Float[Tensor, "batch target dim"]:
    """Return the teacher as unit vectors: detached and normalised once, whatever the number of student layers."""
    vectors = _vectors(teacher.detach(), similarity, mask)
    return vectors * inverse_norm(vectors, _AXES[similarity])


def cosine(
    student: Float[Tensor, "batch token dim"],
    target: Float[Tensor, "batch target dim"],
    similarity: Similarity,
    mask: Bool[Tensor, "batch token"] | None,
) -> Float[Tensor, " batch"]:
    """Compute the cosine of each sample with its `unit_target`; for "token", the mean over the real tokens.

    A sum over tokens points where their mean points, so "pooled" never divides by a count.
    """
    if similarity == "token" and fusible(student, target):
        cosines = TokenCosine.apply(student, target, NEGLIGIBLE)
    else:
        axes = _AXES[similarity]
        vectors = _vectors(student, similarity, mask)
        cosines = (vectors * target).sum(axes) * inverse_norm(vectors, axes).squeeze(axes)
    if similarity != "token":
        return cosines.flatten()
    if mask is None:
        return cosines.mean(1)
    return cosines.masked_fill(~mask, 0).sum(1) / mask.sum(1).clamp_min(1)


def batch_mean(
    values: Float[Tensor, "*axes batch"],
    mask: Bool[Tensor, "batch token"] | None,
    group: dist.ProcessGroup | None,
) -> Float[Tensor, "*axes"]:
    """Average over the samples that have a real token; with `group`, over the samples of all its processes.

    The value is the global mean on every process. Its gradient is the world size times the local share, which data
    parallel training, averaging gradients over processes, turns into the gradient of the joined batch. So there is no
    communication in the backward.
    """
    present = values.new_ones(values.shape[-1]) if mask is None else mask.any(1).to(values.dtype)
    total, count = (values * present).sum(-1), present.sum()
    if group is not None:
        packed = torch.cat([total.detach().flatten(), count[None]])
        dist.all_reduce(packed, group=group)
        share = total * dist.get_world_size(group)
        total, count = packed[:-1].view_as(total) + (share - share.detach()), packed[-1]
    return total / count.clamp_min(1)
