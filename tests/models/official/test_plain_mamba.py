"""PlainMamba gives the official numbers, quirks of the released scan included."""

import pytest
import torch

from tests.models.official.cases import computed, every_run, load, without_output_projection
from transmamba.nn.plain_mamba import moves_between
from transmamba.ops import use_backend

CASES = ("plainmamba_a", "plainmamba_b_resized")


@every_run(*CASES)
def test_logits_streams_and_gradients_are_the_official_ones(case, dtype, backend):
    data, model, x, features = computed(case, dtype, backend)
    data.check("output/tokens", features.last)
    data.check("output/pooled", features.last.mean(1))
    data.check("block/patch_embed", model.patch_embed(x).flatten(2).transpose(1, 2))
    for i, stream in enumerate(features.layers):
        data.check(f"block/{i}/out", stream)
    assert features.grid == tuple(data.meta["token_grid"])
    indices = torch.stack([order.index for order in features.orders])
    assert torch.equal(indices, data.tensors["input/scan_order"].long())
    assert torch.equal(moves_between(features.orders, features.grid), data.tensors["input/scan_direction"].long())


@every_run(*CASES)
def test_directions_are_the_official_ones(case, dtype, backend):
    data, model, x = load(case, dtype)
    features = model.forward_features(x)
    moves = moves_between(features.orders, features.grid)
    with use_backend(backend), torch.no_grad():
        streams = [model._embed(x)[0], *features.layers]
        for i, block in enumerate(model.blocks):
            normed = block.norm1(streams[i])
            gate = torch.nn.functional.silu(block.mixer.in_proj(normed).chunk(2, -1)[1])
            mixer = without_output_projection(block.mixer)
            _, parts = mixer.forward_directions(normed, features.orders, moves, features.grid)
            data.check(f"dir/{i}/y", parts / gate)


def test_new_models_scan_with_the_parameters_of_the_token_they_visit():
    data, model, x = load("plainmamba_a")
    for block in model.blocks:
        block.mixer.released_scan = False
    clean = model(x)
    with pytest.raises(AssertionError, match="output/logits"):
        data.check("output/logits", clean)
