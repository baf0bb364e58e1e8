"""The promises of every backbone, checked on each."""

import copy
import json
import math
import pickle
from functools import partial

import pytest
import torch

from tests.contracts.backbones import BACKBONES, CLASSES, SCANNING, SNAPSHOT, build, mixers, state_keys, turned
from transmamba.models import (
    Backbone,
    PlainMamba,
    VideoMamba,
    Vim,
    VisionMamba,
    ViT,
    recompute_blocks,
    vmamba_v2,
)

every_backbone = pytest.mark.parametrize("name", BACKBONES)
every_scanning = pytest.mark.parametrize("name", SCANNING)


def recorded(model, modules, x):
    """Record the outputs of the modules, and their inputs, while the features of x are made."""
    calls = []
    hooks = [
        module.register_forward_hook(lambda _, given, kwargs, out: calls.append((given, kwargs, out)), with_kwargs=True)
        for module in modules
    ]
    features = model.forward_features(x)
    for hook in hooks:
        hook.remove()
    return features, calls


def blocks(model):
    return [module for module in model.modules() if hasattr(module, "norm1")]


def natural(features, orders, i):
    """Return the shares of layer i, each brought back to the natural order of the tokens."""
    return [part[i][:, order.inverse] for part, order in zip(features.directions, orders, strict=True)]


@every_backbone
def test_shapes(name):
    model, x = build(name)
    assert isinstance(model, Backbone)
    features = model.forward_features(x)
    assert model(x).shape == (2, CLASSES) and model(x[:1]).shape == (1, CLASSES)
    assert len(features.layers) == len(blocks(model))
    assert features.last.shape == features.layers[-1].shape
    grids = features.grids or (features.grid,) * len(features.layers)
    for layer, grid in zip(features.layers, grids, strict=True):
        assert layer.shape[:2] == (2, math.prod(grid) + len(features.extra))
    assert grids[-1] == features.grid and features.directions == ()


@every_backbone
def test_features_are_the_stream_after_each_block(name):
    model, x = build(name)
    features, calls = recorded(model, blocks(model), x)
    for layer, (_, _, out) in zip(features.layers, calls, strict=True):
        assert torch.equal(layer, out)
    torch.testing.assert_close(model.norm(features.layers[-1]), features.last)
    pooled = features.last[:, features.extra[0]] if features.extra else features.last.mean(1)
    torch.testing.assert_close(model.head(pooled), model(x))


@every_backbone
def test_the_head_makes_of_the_features_what_forward_gives(name):
    model, x = build(name)
    features = model.forward_features(x)
    for given in (features, features.last):
        torch.testing.assert_close(model.forward_head(given), model(x))
    pooled = model.forward_head(features, pre_logits=True)
    torch.testing.assert_close(model.head(pooled), model(x))


@every_backbone
def test_maps_agree_with_what_is_said_of_them(name):
    model, x = build(name)
    last, tokens = model.forward_intermediates(x)
    torch.testing.assert_close(last, model.forward_features(x).last)
    maps, info = model.forward_intermediates(x, output_fmt="NCHW")[1], model.feature_info
    assert len(maps) == len(tokens) == len(info)
    extra = model.forward_features(x).extra
    for one, layer, said in zip(maps, tokens, info, strict=True):
        patches = [i for i in range(layer.shape[1]) if i not in extra]
        torch.testing.assert_close(one.flatten(2).transpose(1, 2), layer[:, patches])
        assert one.shape[1] == said["num_chs"] and model.get_submodule(said["module"])
        assert one.shape[-2:] == tuple(-(-side // said["reduction"]) for side in x.shape[-2:])
    with pytest.raises(ValueError, match="unknown output_fmt 'NHWC': expected NLC or NCHW"):
        model.forward_intermediates(x, output_fmt="NHWC")


@every_backbone
def test_intermediates_select_like_timm(name):
    model, x = build(name)
    last, every = model.forward_intermediates(x)
    torch.testing.assert_close(last, model.forward_features(x).last)
    for indices, expected in ((1, every[-1:]), ([0, -1], [every[0], every[-1]])):
        torch.testing.assert_close(model.forward_intermediates(x, indices)[1], expected)
    with pytest.raises(ValueError, match=f"layer {len(every)} does not exist"):
        model.forward_intermediates(x, [len(every)])


@every_scanning
def test_directions_add_up_to_the_output_of_the_mixer(name):
    model, x = build(name)
    _, calls = recorded(model, mixers(model), x)
    features = model.forward_features(x, directions=True)
    assert len(features.directions) == len(features.orders)
    torch.testing.assert_close(features.last, model.forward_features(x).last)
    for i, (mixer, (given, _, out)) in enumerate(zip(mixers(model), calls, strict=True)):
        bias = 0 if mixer.out_proj.bias is None else mixer.out_proj.bias
        torch.testing.assert_close(sum(natural(features, given[1], i)) + bias, out)


@every_scanning
def test_a_grid_turned_by_half_gives_the_output_turned_by_half(name):
    model, x = build(name)
    _, calls = recorded(model, mixers(model)[:1], x)
    (tokens, *context), _, out = calls[0]
    again = turned(mixers(model)[0])(tokens.flip(1), *context)
    torch.testing.assert_close(again.flip(1), out, atol=1e-5, rtol=1e-4)


@every_backbone
def test_sizes_other_than_the_constructors(name):
    model, x = build(name)
    other = torch.randn(2, *BACKBONES[name].shape[:-2], 37, 26)
    if BACKBONES[name].any_size:
        features = model.forward_features(other, directions=True)
        assert model(other).shape == (2, CLASSES) and features.layers[0].isfinite().all()
    else:
        with pytest.raises(ValueError, match="do not tile"):
            model(other)
        with pytest.raises(ValueError, match="built for a patch grid"):
            model(torch.cat([x, x], -1))


@every_backbone
def test_gradients_reach_every_parameter(name):
    model, x = build(name)
    model(x).square().sum().backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # a class token that comes first meets no history on the way forward
    expected = ["blocks.1.mixer.branches.0.ssm.A_log"] if name.startswith("video") or name == "vit_of_scans" else []
    assert silent == expected


@every_backbone
def test_the_gradient_of_a_batch_is_that_of_its_samples(name):
    model, x = build(name)
    model(x).square().sum().backward()
    together = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    for sample in x:
        model(sample[None]).square().sum().backward()
    torch.testing.assert_close([p.grad for p in model.parameters()], together, atol=1e-4, rtol=1e-3)


@every_backbone
def test_parameters_spared_from_weight_decay_exist(name):
    model, _ = build(name)
    names, spared = {n for n, _ in model.named_parameters()}, model.no_weight_decay()
    assert spared & names
    assert {n for n in names if n.endswith(("A_log", "pos_embed", "cls_token", ".D", "dt_bias"))} <= spared
    assert not [n for n in spared if n.endswith("proj.weight")]


@every_backbone
def test_runs_in_bfloat16(name):
    model, x = build(name)
    expected = model(x)
    half = copy.deepcopy(model).bfloat16()
    got = half(x.bfloat16())
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), expected, atol=0.1 * expected.abs().max().item(), rtol=0.1)
    stream = half.forward_features(x.bfloat16()).layers[0].dtype
    assert stream == (torch.float32 if BACKBONES[name].float32_residual else torch.bfloat16)


@every_backbone
def test_trains_under_autocast(name):
    model, x = build(name)
    expected = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = model(x)
    torch.testing.assert_close(got.float(), expected, atol=0.1 * expected.abs().max().item(), rtol=0.1)
    got.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


@every_scanning
def test_recomputed_blocks_give_the_same_gradients(name):
    model, x = build(name)
    model(x).square().sum().backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    recompute_blocks(model)
    model(x).square().sum().backward()
    torch.testing.assert_close([p.grad for p in model.parameters()], expected)


def test_a_model_without_stack_cannot_recompute():
    with pytest.raises(ValueError, match="Linear has no BlockStack: wrap its blocks"):
        recompute_blocks(torch.nn.Linear(2, 3))


@every_backbone
def test_a_model_from_the_meta_device_starts_like_any_other(name):
    with torch.device("meta"):
        empty = BACKBONES[name].build()
    empty = empty.to_empty(device="cpu")  # poisoned with NaN, so that a value that is not drawn again shows
    direct = BACKBONES[name].build()
    for model in (empty, direct):
        torch.manual_seed(3)
        model.reset_parameters()
    direct = direct.state_dict()
    for key, value in empty.state_dict().items():
        assert torch.equal(value, direct[key]), key


@every_backbone
def test_a_new_model_is_as_after_a_reset(name):
    torch.manual_seed(3)
    model, again = BACKBONES[name].build(), BACKBONES[name].build()
    again.reset_parameters()
    again = dict(again.named_parameters())
    for key, value in model.named_parameters():
        scale, other = value.std(correction=0), again[key].std(correction=0)
        if value.numel() > 100 or scale == 0:
            torch.testing.assert_close(scale, other, atol=1e-6, rtol=0.25, msg=lambda text, key=key: f"{key}: {text}")


@every_backbone
def test_copies_are_equal_and_apart(name):
    model, x = build(name)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(copied(x), model(x))
        with torch.no_grad():
            copied.head.bias += 1.0
        assert not torch.equal(copied(x), model(x))


@every_backbone
def test_drop_path_and_seeds_are_the_only_chance(name):
    model, x = build(name)
    assert torch.equal(model(x), model(x))
    other = BACKBONES[name].build().eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), model(x))


def test_names_and_shapes_of_parameters_are_frozen():
    """Checkpoints are an interface; to change it on purpose run `python -m tests.contracts.backbones`."""
    assert state_keys() == json.loads(SNAPSHOT.read_text())


@pytest.mark.parametrize("build", [ViT, Vim, VisionMamba, PlainMamba, VideoMamba, partial(vmamba_v2, (8, 12), (1, 2))])
def test_without_classes_the_output_is_the_input_of_the_head(build):
    sizes = {} if isinstance(build, partial) else {"img_size": 8, "patch_size": 4, "dim": 12, "depth": 1}
    frames = {"num_frames": 2} if build is VideoMamba else {}
    heads = {"heads": 3} if build is ViT else {}
    torch.manual_seed(0)
    model = build(**sizes, **frames, **heads, num_classes=0).eval()
    x = torch.randn(2, 3, *((2,) if frames else ()), *((8, 8) if sizes else (32, 32)))
    out = model(x)
    assert out.shape == (2, 12) and not any(name.startswith("head.") for name in model.state_dict())
    torch.testing.assert_close(out, model.forward_head(model.forward_features(x), pre_logits=True))
    model.reset_parameters()
