"""Continuing a text: which token comes next, and when to stop."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from transmamba._typing import typed

Cache = TypeVar("Cache")


@typed
def next_token(
    logits: Float[Tensor, "batch vocabulary"],
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Int[Tensor, " batch"]:
    """Return the most likely token, or with a temperature one drawn from softmax(logits / temperature).

    Args:
        logits: one row per sequence.
        temperature: zero always takes the most likely token.
        top_k: draw from this many of the most likely tokens.
        top_p: draw from the fewest most likely tokens that together have at least this probability.
        generator: source of randomness.

    Raises:
        ValueError: there is no token to choose, the temperature is negative, `top_k` not positive, or `top_p` not in
            (0, 1].
        RuntimeError: a logit to draw from is not a number.

    Example:
        >>> next_token(torch.tensor([[0.0, 2.0, 1.0]]))
        tensor([1])
    """
    if not logits.shape[-1]:
        raise ValueError(f"logits of shape {tuple(logits.shape)} have no vocabulary to choose from")
    if not temperature >= 0:
        raise ValueError(f"temperature must not be negative, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be in (0, 1], got {top_p}")
    if temperature == 0:
        return logits.argmax(-1)
    ranked, tokens = (logits.float() / temperature).sort(dim=-1, descending=True, stable=True)
    chances = ranked[:, :top_k].softmax(-1)
    if top_p is not None:
        # a token stays if those before it have not reached top_p; the first always does
        chances = chances * (chances.cumsum(-1) - chances < top_p)
    drawn = torch.multinomial(chances, 1, generator=generator)
    return tokens.gather(1, drawn)[:, 0]


def continue_tokens(
    logits: Tensor,
    cache: Cache,
    step: Callable[[Tensor, Cache], tuple[Tensor, Cache]],
    choose: Callable[[Tensor], Tensor],
    *,
    max_new_tokens: int,
    stop_tokens: Sequence[int],
    pad_token: int,
) -> Tensor:
    """Generate tokens (batch, at most max_new_tokens) from the logits and the cache after the prompt.

    A sequence ends with its first stop token, which is kept, and is filled up with `pad_token`; when all have ended,
    decoding stops.
    """
    stops = torch.tensor(stop_tokens, dtype=torch.long, device=logits.device)
    done = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
    new: list[Tensor] = []
    while len(new) < max_new_tokens:
        token = choose(logits).masked_fill(done, pad_token)
        new.append(token)
        done = done | torch.isin(token, stops)
        if len(new) == max_new_tokens or (len(stops) and bool(done.all())):
            break
        logits, cache = step(token, cache)
    return torch.stack(new, 1) if new else torch.empty(len(logits), 0, dtype=torch.long, device=logits.device)


def last_real(x: Float[Tensor, "batch token dim"], mask: Bool[Tensor, "batch token"] | None) -> Tensor:
    """Return the last token of each sequence that is not padding, (batch, dim)."""
    if mask is None:
        return x[:, -1]
    last = (mask * torch.arange(1, x.shape[1] + 1, device=x.device)).argmax(1)
    return x[torch.arange(len(x), device=x.device), last]
