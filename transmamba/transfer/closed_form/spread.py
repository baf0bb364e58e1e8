"""The directions in which a teacher's stream varies most."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from transmamba._typing import typed
from transmamba.transfer.closed_form.streams import Batch, blocks_of, evaluating, start


@typed
def principal_axes(teacher: nn.Module, batches: Iterable[Batch], dim: int) -> Float[Tensor, "student_dim teacher_dim"]:
    """Return orthonormal rows onto which the streams after all blocks are projected with the least loss.

    Every layer counts alike: its covariance is divided by its trace. Norms of a student in these coordinates are not
    those of the teacher, so its readouts have to be solved (`fit_layers(projection=...)`); a set of neurons keeps the
    norms nearly as they were.

    Args:
        teacher: a backbone with `blocks`.
        batches: its inputs; padding counts unless the blocks are given a `mask`.
        dim: width of the student's stream.

    Raises:
        ValueError: the stream is narrower than `dim`, or there is no batch.

    Example:
        >>> from transmamba.models import MambaLM
        >>> principal_axes(MambaLM(11, 8, depth=2), [torch.arange(11)[None]], 3).shape
        torch.Size([3, 8])
    """
    blocks = blocks_of(teacher, "teacher")
    moments: list[Tensor] = []
    with evaluating(teacher):
        for batch in batches:
            place = start(teacher, blocks, batch)
            for index, block in enumerate(blocks):
                place, mask = place.after(block), place.mask(block)
                x = (place.tokens.flatten(0, -2) if mask is None else place.tokens[mask]).double()
                x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
                if index == len(moments):
                    moments.append(torch.zeros(x.shape[1], x.shape[1], dtype=x.dtype, device=x.device))
                moments[index] += x.T @ x
    if not moments:
        raise ValueError("no batch to run the teacher on: give at least one")
    width = len(moments[0]) - 1
    if not 1 <= dim <= width:
        raise ValueError(f"dim must lie between 1 and the stream's width {width}, got {dim}")
    total = torch.zeros(width, width, dtype=torch.float64, device=moments[0].device)
    for moment in moments:
        mean = moment[:-1, -1] / moment[-1, -1]
        spread = moment[:-1, :-1] - moment[-1, -1] * torch.outer(mean, mean)
        total += spread / spread.trace()
    return torch.linalg.eigh(total)[1].T.flip(0)[:dim].float().contiguous()
