"""Whatever the official constructors can make loads and agrees with a plain derivation; gradients too."""

import pytest
import torch

from tests.models.official import plain, shapes
from transmamba.models.official import FAMILIES, from_official, to_official
from transmamba.ops import use_backend

VIM = {"img_size": 12, "patch_size": 4, "stride": 4, "depth": 2, "embed_dim": 8, "num_classes": 5, "d_state": 3}
VIM_VARIANTS = {
    "as released": {},
    "summed": {"if_divide_out": False},
    "layer norm": {"rms_norm": False},
    "another epsilon": {"norm_epsilon": 1e-2},
    "class token first": {"use_middle_cls_token": False},
    "two class tokens": {"use_double_cls_token": True},
    "mean pooling": {"if_cls_token": False, "final_pool_type": "mean"},
    "largest logits": {"if_cls_token": False, "final_pool_type": "max"},
    "last token": {"if_cls_token": False, "final_pool_type": "none"},
    "no positions": {"if_abs_pos_embed": False},
    "one direction": {"bimamba_type": "none", "if_divide_out": True},
    "one convolution for both": {"bimamba_type": "v1"},
    "the older flag for it": {"if_bimamba": True},
    "layer scale": {"init_layer_scale": 1e-3},
    "layer scale of one convolution": {"init_layer_scale": 1e-3, "bimamba_type": "v1"},
    "another mixer": {"ssm_cfg": {"d_conv": 3, "expand": 1.5, "dt_rank": 2, "bias": True, "conv_bias": False}},
    "overlapping patches": {"stride": 2},
    "no head": {"num_classes": 0},
    "dropout in training": {"drop_rate": 0.5},
    "rotation": {"if_rope": True, "img_size": 8, "depth": 3},
    "rotation of the residual": {"if_rope": True, "if_rope_residual": True, "img_size": 8, "pt_hw_seq_len": 7},
    "rotation without class token": {"if_rope": True, "img_size": 8, "if_cls_token": False, "final_pool_type": "mean"},
    "layers in pairs": {"if_bidirectional": True, "depth": 4},
    "layers of one direction in pairs": {"if_bidirectional": True, "bimamba_type": "none"},
    "layers of one convolution in pairs": {"if_bidirectional": True, "bimamba_type": "v1", "init_layer_scale": 1e-3},
    "rotation in pairs": {"if_rope": True, "if_bidirectional": True, "img_size": 8, "depth": 4, "rms_norm": False},
    "rotation of the residual in pairs": {
        "if_rope": True,
        "if_rope_residual": True,
        "if_bidirectional": True,
        "img_size": 8,
        "depth": 4,
    },
}
VIDEO = {"img_size": 8, "patch_size": 4, "depth": 2, "embed_dim": 8, "num_classes": 5}
VIDEO_VARIANTS = {
    "images": {},
    "images, overlapping": {"stride": 2},
    "images, layer norm": {"rms_norm": False, "norm_epsilon": 1e-3},
    "images, one direction": {"bimamba": False},
    "images, no head": {"num_classes": 0},
    "clips": {"num_frames": 3},
    "clips of tubelets, layer norm": {"num_frames": 4, "kernel_size": 2, "rms_norm": False},
    "clips, another mixer": {"num_frames": 2, "ssm_cfg": {"d_state": 5, "d_conv": 2, "bias": True, "expand": 1.5}},
    "clips, dropout in training": {"num_frames": 2, "drop_rate": 0.5, "fc_drop_rate": 0.5},
}
SNAKE = {
    "img_size": 16,
    "patch_size": 4,
    "embed_dims": 8,
    "num_layers": 2,
    "num_convs_patch_embed": 1,
    "num_classes": 5,
}


def layer(use_rms_norm=False, **mamba_cfg):
    """Return layer_cfgs of PlainMamba."""
    return {"layer_cfgs": {"use_rms_norm": use_rms_norm, "mamba_cfg": {"d_state": 3, "conv_size": 3, **mamba_cfg}}}


SNAKE_VARIANTS = {
    "as released": layer(conv_size=7, bias=True),
    "conv_size=3": layer(bias=True),
    "no bias": layer(conv_bias=False),
    "rms norm": layer(use_rms_norm=True),
    "another mixer": layer(expand=1.5, dt_rank=2, conv_size=5),
    "layer scale": layer(init_layer_scale=1e-3),
    "a convolution after a layer": layer() | {"layers_with_dwconv": [1], "num_convs_patch_embed": 0},
    "no positions, no last norm": layer() | {"with_pos_embed": False, "final_norm": False, "drop_rate": 0.5},
    "another epsilon": layer() | {"norm_cfg": {"type": "LN", "eps": 1e-2}},
    "an image that patches do not fill": layer() | {"img_size": 14},
    "layers that differ": {
        "layer_cfgs": [layer(conv_size=5)["layer_cfgs"], layer(use_rms_norm=True, bias=True)["layer_cfgs"]]
    },
}
CROSS = {"dims": (6, 8), "depths": (1, 1), "num_classes": 5, "ssm_d_state": 2, "forward_type": "v05", "imgsize": 16}
NORMS = ("none", "sigmoid", "softmax", "dwconv3", "cnorm")
CROSS_VARIANTS = {
    "first version": {"forward_type": "v0", "mlp_ratio": 0.0, "downsample_version": "v1"},
    "no gate": {"forward_type": "v05_noz"},
    "linear gate": {"forward_type": "v04_nozact"},
    "activated output": {"forward_type": "v03_oact_no32"},
    **{f"{norm} after the scan": {"forward_type": f"v05_on{norm}_noz"} for norm in NORMS},
    "scans one way": {"forward_type": "v051d"},
    "scans along rows": {"forward_type": "v052d_noz"},
    "other activations": {"ssm_act_layer": "gelu", "mlp_act_layer": "relu"},
    "sigmoid": {"ssm_act_layer": "sigmoid", "mlp_act_layer": "silu"},
    "gated MLP": {"gmlp": True},
    "no convolution": {"ssm_conv": 1},
    "wide convolution": {"ssm_conv": 5, "ssm_conv_bias": False, "ssm_ratio": 1.5, "ssm_dt_rank": 2},
    "no norm after patches": {"patch_norm": False},
    "other patches": {"patch_size": 2},
    "overlapping patches": {"patchembed_version": "v2", "downsample_version": "v3"},
    "other overlapping patches": {"patchembed_version": "v2", "patch_size": 8, "patch_norm": False, "imgsize": 32},
    "positions": {"posembed": True},
    "rows, then columns": {"forward_type": "v052dc_noz", "norm_layer": "ln2d"},
    "rows, then columns, gated": {"forward_type": "v32dc"},
    "heads": {"forward_type": "m0_noz", "ssm_dt_rank": 3, "ssm_ratio": 3.0},
    "heads, convolved norm": {"forward_type": "m0_oncnorm_noz_oact", "ssm_dt_rank": 2, "ssm_conv_bias": False},
    "heads without convolution": {"forward_type": "m0_noz", "ssm_conv": 1},
    "batch norms": {"norm_layer": "BN", "downsample_version": "v3", "patchembed_version": "v2"},
    "batch norms and patch merging": {"norm_layer": "bn", "forward_type": "v052d_noz", "downsample_version": "v1"},
    "dropout": {"ssm_drop_rate": 0.5, "mlp_drop_rate": 0.5},
}
LM = {"d_model": 8, "n_layer": 2, "vocab_size": 11, "tie_embeddings": False, "ssm_cfg": {"d_state": 3}}
MAMBA2 = {"layer": "Mamba2", "d_state": 3, "headdim": 4}
LM_VARIANTS = {
    "Mamba": {},
    "Mamba, layer norm": {"rms_norm": False},
    "Mamba, layer norm and MLP": {"rms_norm": False, "d_intermediate": 20},
    "Mamba, tied": {"tie_embeddings": True},
    "Mamba, another mixer": {"ssm_cfg": {"expand": 1.5, "d_conv": 3, "dt_rank": 3, "bias": True, "conv_bias": False}},
    "Mamba-2": {"ssm_cfg": MAMBA2},
    "Mamba-2, layer norm": {"ssm_cfg": MAMBA2, "rms_norm": False},
    "Mamba-2, no norm": {"ssm_cfg": MAMBA2 | {"rmsnorm": False}},
    "Mamba-2, d_ssm": {"ssm_cfg": MAMBA2 | {"d_ssm": 8}},
    "Mamba-2, d_ssm, no norm": {"ssm_cfg": MAMBA2 | {"d_ssm": 12, "rmsnorm": False, "bias": True}},
    "Mamba-2, norm before the gate": {"ssm_cfg": MAMBA2 | {"norm_before_gate": True, "D_has_hdim": True}},
    "Mamba-2, groups": {"ssm_cfg": MAMBA2 | {"ngroups": 2, "d_conv": 2, "conv_bias": False, "d_ssm": 8}},
}
HYBRID = {"ssm_cfg": MAMBA2, "attn_layer_idx": [1], "d_intermediate": 12}
HYBRID_VARIANTS = {
    "as released": {"num_heads": 2, "d_conv": 4, "qkv_proj_bias": False, "out_proj_bias": False, "rotary_emb_dim": 2},
    "plain": {"num_heads": 2},
    "an MLP beside the heads": {"num_heads": 4, "num_heads_kv": 2, "mlp_dim": 100, "softmax_scale": 0.3},
    "wide heads, pairs side by side": {
        "num_heads": 3,
        "num_heads_kv": 1,
        "head_dim": 6,
        "d_conv": 3,
        "rotary_emb_dim": 4,
        "rotary_emb_base": 100.0,
        "rotary_emb_interleaved": True,
    },
}
LM_VARIANTS |= {
    f"hybrid, {name}": HYBRID | {"attn_cfg": attn_cfg | {"causal": True}} for name, attn_cfg in HYBRID_VARIANTS.items()
}
LM_VARIANTS |= {"attention only": {"attn_layer_idx": [0, 1], "attn_cfg": {"num_heads": 2, "causal": True}}}
CASES = {
    **{f"Vim, {name}": ("vim", VIM | c) for name, c in VIM_VARIANTS.items()},
    **{f"VideoMamba, {name}": ("videomamba", VIDEO | c) for name, c in VIDEO_VARIANTS.items()},
    **{f"PlainMamba, {name}": ("plainmamba", SNAKE | c) for name, c in SNAKE_VARIANTS.items()},
    **{f"VMamba, {name}": ("vmamba", CROSS | c) for name, c in CROSS_VARIANTS.items()},
    **{name: ("mamba_lm", LM | c) for name, c in LM_VARIANTS.items()},
}
PLAIN = {
    "vim": (shapes.vim, plain.vim),
    "videomamba": (shapes.video_mamba, plain.video_mamba),
    "plainmamba": (shapes.plain_mamba, plain.plain_mamba),
    "vmamba": (shapes.vmamba, plain.vmamba),
    "mamba_lm": (shapes.language_model, plain.language_model),
}


def given(family, config):
    """Return a state dict of the case, its plain derivation, and an input."""
    shapes_of, derive = PLAIN[family]
    state = plain.draw(shapes_of(config))
    if config.get("if_rope"):
        width, side = config["embed_dim"], config["img_size"] // config["patch_size"]
        turned = plain.angles(side, width, config.get("pt_hw_seq_len", 14))
        state |= {"rope.freqs_cos": turned.cos().double(), "rope.freqs_sin": turned.sin().double()}
    if config.get("tie_embeddings"):
        state["lm_head.weight"] = state["backbone.embedding.weight"]
    size = config.get("img_size", config.get("imgsize"))
    if size is None:
        return state, derive, torch.randint(config["vocab_size"], (2, 7))
    frames = (config["num_frames"],) if "num_frames" in config else ()
    return state, derive, torch.randn(2, 3, *frames, size, size, dtype=torch.float64)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_are_those_of_the_plain_derivation(case, backend):
    family, config = CASES[case]
    state, derive, x = given(family, config)
    model = from_official(family, config, state).eval()
    leaves = {name: value.clone().requires_grad_(value.is_floating_point()) for name, value in state.items()}
    if config.get("tie_embeddings"):
        leaves["lm_head.weight"] = leaves["backbone.embedding.weight"]
    expected = derive(leaves, x, config)
    with use_backend(backend):
        got = model(x)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    weight = torch.randn_like(expected)
    names = {FAMILIES[family].official_name(name): p for name, p in model.named_parameters()}
    grads = torch.autograd.grad((got * weight).sum(), list(names.values()))
    wanted = torch.autograd.grad((expected * weight).sum(), [leaves[name] for name in names])
    for name, grad, want in zip(names, grads, wanted, strict=True):
        torch.testing.assert_close(grad.reshape(want.shape), want, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("case", CASES)
def test_what_was_read_is_written_back_and_survives_a_folder(case, tmp_path):
    family, config = CASES[case]
    state, _, x = given(family, config)
    model = from_official(family, config, state).eval()
    written = to_official(model)
    assert written.keys() == state.keys() and all(torch.equal(written[name], state[name]) for name in state)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(type(model).from_pretrained(tmp_path)(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize("case", [case for case, (family, _) in CASES.items() if family == "mamba_lm"])
def test_decoding_gives_what_the_parallel_pass_gives(case):
    family, config = CASES[case]
    state, _, ids = given(family, config)
    model = from_official(family, config, state).eval()
    logits, cache = model.prefill(ids[:, :3])
    for t in range(3, 7):
        torch.testing.assert_close(logits, model(ids[:, :t])[:, -1], rtol=1e-9, atol=1e-9)
        logits, cache = model.step(ids[:, t], cache)


@pytest.mark.parametrize("case", [case for case, (family, _) in CASES.items() if family not in ("mamba_lm", "vmamba")])
def test_directions_add_up_to_what_the_mixers_give(case):
    family, config = CASES[case]
    state, _, x = given(family, config)
    model = from_official(family, config, state).eval()
    features = model.forward_features(x, directions=True)
    for i, block in enumerate(model.blocks):
        if family == "plainmamba" and block.local is not None:
            continue
        first = model.embed(x) if family == "videomamba" else model._embed(x)
        stream = features.layers[i - 1] if i else first[0] if isinstance(first, tuple) else first
        if config.get("if_rope_residual"):
            stream = model.rope(stream)
        stream = 2 * stream if config.get("if_bidirectional") else stream
        bias = getattr(block, "there", block).mixer.out_proj.bias
        natural = sum(
            part[i][:, order.inverse] for part, order in zip(features.directions, features.orders, strict=True)
        )
        natural = natural if bias is None else natural + bias
        torch.testing.assert_close(stream + natural, features.layers[i], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", ["two class tokens", "mean pooling", "class token first"])
def test_positions_are_resized_around_the_class_tokens(case):
    config = VIM | VIM_VARIANTS[case]
    state, _, _ = given("vim", config)
    model = from_official("vim", config, state, img_size=20)
    for row, new in {"two class tokens": ((0, 0), (10, 26)), "class token first": ((0, 0),)}.get(case, ()):
        assert torch.equal(model.pos_embed[0, new], state["pos_embed"][0, row])
    assert model.pos_embed.shape[1] == 25 + len(model.cls_positions)
    assert model(torch.randn(1, 3, 20, 20, dtype=torch.float64)).shape == (1, 5)


def test_dropout_works_while_training():
    for case in ("Vim, dropout in training", "VideoMamba, clips, dropout in training", "VMamba, dropout"):
        family, config = CASES[case]
        state, _, x = given(family, config)
        model = from_official(family, config, state).train()
        assert not torch.equal(model(x), model(x))


@pytest.mark.parametrize("norm", ["softmax", "none"])
def test_an_output_that_is_no_sum_of_directions_is_not_split(norm):
    config = CROSS | {"forward_type": f"v05_on{norm}"}
    state, _, x = given("vmamba", config)
    model = from_official("vmamba", config, state)
    with pytest.raises(NotImplementedError, match="the output is not a sum over directions: it is split only where"):
        model.forward_features(x, directions=True)


def test_positions_of_vmamba_are_for_one_size():
    config = CROSS | {"posembed": True}
    state, _, _ = given("vmamba", config)
    with pytest.raises(ValueError, match=r"the positions are for a map of \(4, 4\), the image gives one of \(6, 4\)"):
        from_official("vmamba", config, state)(torch.zeros(1, 3, 24, 16, dtype=torch.float64))


def test_older_names_of_vmamba_are_those_of_today():
    merging = CROSS | {"downsample_version": "v1", "forward_type": "v05_ondwconv3"}
    state, derive, x = given("vmamba", merging)
    older = {
        name.replace("downsample.norm", "downsample.1")
        .replace("downsample.reduction", "downsample.2")
        .replace("out_norm.1.weight", "out_norm.weight"): value
        for name, value in state.items()
    }
    torch.testing.assert_close(from_official("vmamba", merging, older).eval()(x), derive(state, x, merging))


def test_a_released_architecture_has_a_name():
    model = from_official("plainmamba", {"arch": "L1", "img_size": 32}, _empty("L1"))
    assert len(model.blocks) == 24 and model.head.in_features == 192 and model.blocks[0].local is not None


def _empty(arch):
    width = {"L1": 192}[arch]
    own = layer(conv_size=7, bias=True, d_state=16)
    config = {"img_size": 32, "patch_size": 16, "embed_dims": width, "num_layers": 24, "num_classes": 1000} | own
    shape = shapes.plain_mamba(config | {"num_convs_patch_embed": 1, "layers_with_dwconv": (0,)})
    return {name: torch.zeros(size) for name, size in shape.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attn_cfg": {"num_heads": 2}}, "each token would attend to the one it is to predict, so no language model"),
        ({"attn_cfg": {"causal": True}}, "attn_cfg has no num_heads: the official attention has no default for it"),
        ({"attn_layer_idx": [1, 2]}, r"attn_layer_idx names layers \[2\]: expected 0 to 1"),
        ({"attn_cfg": {"num_heads": 2, "causal": True, "window": 3}}, "window=3: unknown"),
    ],
)
def test_attention_without_a_meaning_is_refused(change, message):
    config = LM | HYBRID | {"attn_cfg": {"num_heads": 2, "causal": True}} | change
    with pytest.raises(ValueError, match=message):
        from_official("mamba_lm", config, {})


def test_padding_and_packing_reach_no_text_of_a_hybrid():
    config = LM | LM_VARIANTS["hybrid, wide heads, pairs side by side"]
    state, _, ids = given("mamba_lm", config)
    model = from_official("mamba_lm", config, state).eval()
    alone = model(ids)
    padded = torch.cat([torch.full((2, 3), 5), ids, torch.full((2, 2), 7)], 1)
    mask = torch.zeros(2, 12, dtype=torch.bool)
    mask[:, 3:10] = True
    torch.testing.assert_close(model(padded, mask=mask)[:, 3:10], alone, rtol=1e-9, atol=1e-9)
    logits, cache = model.prefill(padded[:, :8], mask=mask[:, :8])
    torch.testing.assert_close(logits, alone[:, 4], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model.step(ids[:, 5], cache)[0], alone[:, 5], rtol=1e-9, atol=1e-9)
    more, _ = model.prefill(ids[:, 5:], cache=cache)
    torch.testing.assert_close(more, alone[:, 6], rtol=1e-9, atol=1e-9)
    packed = model(ids.view(1, 14), seq_idx=torch.arange(14)[None] // 7)
    torch.testing.assert_close(packed.view(2, 7, -1), alone, rtol=1e-9, atol=1e-9)


def test_rotations_have_the_angles_of_the_grid():
    for img_size, trained in ((8, 14), (24, 7)):
        model = from_official("vim", *_rotation(img_size, pt_hw_seq_len=trained))
        fresh = type(model)(img_size, 4, dim=8, depth=2, d_state=3, num_classes=5, turns="output", turned_grid=trained)
        for name, value in model.rope.state_dict().items():
            torch.testing.assert_close(fresh.rope.state_dict()[name].double(), value, rtol=0, atol=2e-6)
    grown = from_official("vim", *_rotation(8), img_size=16)
    torch.testing.assert_close(grown.rope.freqs_sin, plain.angles(4, 8, 14).sin().double(), rtol=0, atol=2e-6)
    assert grown(torch.randn(1, 3, 16, 16, dtype=torch.float64)).isfinite().all()


def _rotation(img_size, **options):
    config = VIM | {"if_rope": True, "img_size": img_size} | options
    return config, given("vim", config)[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"img_size": 12}, "fails with 9 patches, 1 class tokens and a width of 8; expected an even number of patches"),
        ({"use_double_cls_token": True}, "fails with 4 patches, 2 class tokens"),
        ({"stride": 2}, "fails with 9 patches, 1 class"),
        ({"embed_dim": 6}, "a width of 6; .* and a width that is a multiple of 4"),
        ({"img_size": (8, 8)}, r"if_rope=True, img_size=\(8, 8\): expected one number"),
        ({"if_bidirectional": True, "depth": 3}, "expected an even depth, because the official model takes two layers"),
        (
            {"flip_img_sequences_ratio": 0.5},
            "expected -1.0, because the official model then flips its tokens by a coin",
        ),
    ],
)
def test_variants_of_vim_that_do_not_run_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        from_official("vim", VIM | {"if_rope": True, "img_size": 8} | change, {})


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
def test_positions_of_plain_mamba_are_resized_as_configured(mode):
    config = SNAKE | layer() | {"interpolate_mode": mode}
    state, derive, _ = given("plainmamba", config)
    model, x = from_official("plainmamba", config, state).eval(), torch.randn(1, 3, 24, 20, dtype=torch.float64)
    torch.testing.assert_close(model(x), derive(state, x, config), rtol=1e-9, atol=1e-9)
    larger = from_official("plainmamba", config, state, img_size=(24, 20)).eval()
    torch.testing.assert_close(larger(x), model(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"forward_type": "xv1a_act"},
            "'xv1a_act' is not built here: the official code fails on it, because it lays out",
        ),
        ({"forward_type": "v052d3_noz"}, "its authors keep it for debugging, and no configuration of theirs trains it"),
        ({"forward_type": "m0"}, "the official code of the gate fails: expected m0_noz"),
        ({"forward_type": "m0_nozact"}, "the official code of the gate fails: expected m0_noz"),
        ({"forward_type": "m0_noz", "norm_layer": "ln2d"}, "forward_type='m0_noz' runs with 'ln' only"),
        ({"forward_type": "v0", "norm_layer": "bn"}, "forward_type='v0' runs with 'ln' only"),
        ({"norm_layer": "gn"}, "norm_layer='gn' is unknown: expected one of ln, ln2d, bn"),
        ({"forward_type": "m0_noz", "ssm_dt_rank": 5}, "heads must divide the inner width: got 5 heads, width 12"),
    ],
)
def test_variants_of_vmamba_that_do_not_run_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        from_official("vmamba", CROSS | change, {})


def test_projections_of_all_directions_at_once_are_those_of_each():
    state, derive, x = given("vmamba", CROSS)
    grouped = {
        name.replace("x_proj_weight", "x_proj.weight").replace("dt_projs_weight", "dt_projs.weight"): value.flatten(
            0, 1
        )
        if name.endswith(("x_proj_weight", "dt_projs_weight"))
        else value
        for name, value in state.items()
    }
    torch.testing.assert_close(from_official("vmamba", CROSS, grouped).eval()(x), derive(state, x, CROSS))


def test_batch_norms_learn_their_statistics_as_those_of_maps_do():
    config = CROSS | CROSS_VARIANTS["batch norms"]
    state, _, x = given("vmamba", config)
    model = from_official("vmamba", config, state).train()
    stem = model.patch_embed[0]
    model(x)
    twin = torch.nn.BatchNorm2d(stem.conv.out_channels).double()
    twin.load_state_dict(
        {n.removeprefix("patch_embed.2."): v for n, v in state.items() if n.startswith("patch_embed.2.")}
    )
    twin(stem.conv(x))
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(stem.channel_norm.state_dict()[name], value)


def test_rows_then_columns_are_not_split_by_direction():
    config = CROSS | {"forward_type": "v052dc_noz"}
    state, _, x = given("vmamba", config)
    with pytest.raises(NotImplementedError, match="columns are scanned after rows, over the output of the rows"):
        from_official("vmamba", config, state).forward_features(x, directions=True)
