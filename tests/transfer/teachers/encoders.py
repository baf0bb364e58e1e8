"""Encoders of text against their translation, on real tokens under padding on either side."""

import re

import pytest
import torch

from tests.transfer.teachers.canonical import Canonical, Reference, error, perturb
from transmamba.transfer.teachers import translate

transformers = pytest.importorskip("transformers")
PAD = 1
IDS = torch.tensor([[5, 9, 33, 14, 7, 60, 21, 8, 30, 12, 45], [44, 6, 6, 17, 50, 23, 3, 28, 19, 2, 11]])
RIGHT = torch.ones_like(IDS, dtype=torch.bool).index_fill(0, torch.tensor([1]), False)
RIGHT[1, :6] = True
LEFT = RIGHT.flip(1)
SIZES = {
    "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 40, "vocab_size": 61,
    "max_position_embeddings": 30, "pad_token_id": PAD, "bos_token_id": 0, "eos_token_id": 2, "layer_norm_eps": 1e-2,
}  # fmt: skip


def encode(translated, ids, mask=None, types=None):
    """Compute the stream of a translated encoder."""
    return Canonical(translated).text(ids, mask, types)


def task_models(name, config):
    """List every model of a family with a head that transformers has (but for ESMFold, which is more than a head)."""
    pattern = rf"{name}(For(?!ProteinFolding)\w+|LMHeadModel)"
    return [getattr(transformers, kind)(config) for kind in dir(transformers) if re.fullmatch(pattern, kind)]


def worst_error(teacher, types=None, base=None, short=False, keep=(), pad=PAD, **options):
    """Compute the largest relative error of the translation without padding, and with padding on either side.

    Args:
        teacher: a transformers model; its parameters are moved first.
        types: token types, if the model reads any.
        base: the encoder inside the model; the model itself by default.
        short: with padding on the right only, and without our own model.
        keep: parameters that are not free, with their values.
        pad: the padding token.
        options: of `translate`.
    """
    teacher = perturb(teacher)
    with torch.no_grad():
        for parameter, value in keep:
            parameter.copy_(value)
    base, translated = base or teacher, translate(teacher, **options)
    worst, ours = 0.0, Reference(translated) if short else Canonical(translated)
    for mask in (RIGHT,) if short else (None, RIGHT, LEFT):
        ids = IDS if mask is None else IDS.masked_fill(~mask, pad)
        given = {} if types is None else {"token_type_ids": types}
        given |= {} if mask is None else {"attention_mask": mask.long()}
        with torch.no_grad():
            wanted = base(ids, **given).last_hidden_state
            got = ours.text(ids, mask, types)
        real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
        worst = max(worst, error(got[real], wanted[real]))
    return worst
