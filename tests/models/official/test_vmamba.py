"""VMamba gives the official numbers: both versions, with and without gate, three ways of downsampling."""

import torch

from tests.models.official.cases import computed, every_run, load
from transmamba.models.official import from_official
from transmamba.models.vmamba import ORDERS
from transmamba.ops import scan_orders, use_backend

CASES = ("vmamba_a_v0", "vmamba_b_v2", "vmamba_c_v2_gated_ln")


def as_map(tokens, grid):
    return tokens.transpose(1, 2).unflatten(2, grid)


def by_block(model):
    return [(f"{s}.{b}", block) for s, stage in enumerate(model.stages) for b, block in enumerate(stage.blocks)]


@every_run(*CASES)
def test_logits_streams_and_gradients_are_the_official_ones(case, dtype, backend):
    data, model, x, features = computed(case, dtype, backend)
    data.check("output/pooled", features.last.mean(1))
    data.check("block/patch_embed", model.patch_embed(x))
    for i, (name, _) in enumerate(by_block(model)):
        grid = features.grids[i]
        assert list(grid) == data.meta["grids"][name]
        data.check(f"block/{name}/out", as_map(features.layers[i], grid))
        orders = scan_orders(ORDERS, grid)
        mixed = sum(part[i][:, order.inverse] for part, order in zip(features.directions, orders, strict=True))
        data.check(f"block/{name}/op", as_map(mixed, grid))
    ends = model.forward_intermediates(x)[1]
    for s, stage in enumerate(model.stages[:-1]):
        grid = tuple(data.meta["grids"][f"{s}.0"])
        data.check(f"block/{s}.downsample", stage.downsample(as_map(ends[s], grid)))


@every_run(*CASES)
def test_scans_of_each_direction_are_the_official_ones(case, dtype, backend):
    data, model, x = load(case, dtype)
    features = model.forward_features(x)
    starts = [model.patch_embed(x).flatten(2).transpose(1, 2), *features.layers]
    with use_backend(backend), torch.no_grad():
        for i, (name, block) in enumerate(by_block(model)):
            grid = features.grids[i]
            start = starts[i]
            if name.endswith(".0") and i:
                stage = model.stages[int(name[0]) - 1]
                start = stage.downsample(as_map(start, features.grids[i - 1])).flatten(2).transpose(1, 2)
            y, _ = block.mixer._scan(block.norm1(start), scan_orders(ORDERS, grid), grid, merge=False)
            data.check(f"dir/{name}/y", y.movedim(1, 0))


def test_linear_layers_kept_as_convolutions_load():
    data, model, x = load("vmamba_b_v2")
    state = data.part("param")
    for name in state:
        if name.endswith(("in_proj.weight", "fc1.weight")):
            state[name] = state[name][..., None, None]
    again = from_official("vmamba", data.meta["config"], state).eval()
    assert torch.equal(again(x), model(x))


def test_names_of_the_first_releases_load():
    data, model, x = load("vmamba_a_v0")
    old = {}
    for name, value in data.part("param").items():
        for new, before in (
            ("patch_embed.0", "patch_embed.proj"), ("patch_embed.2", "patch_embed.norm"), ("classifier.", ""),
            (".op.", ".self_attention."), ("blocks.0.norm.", "blocks.0.ln_1."), ("blocks.1.norm.", "blocks.1.ln_1."),
        ):  # fmt: skip
            name = name.replace(new, before)
        old[name] = value
    again = from_official("vmamba", data.meta["config"], old).eval()
    assert torch.equal(again(x), model(x))
