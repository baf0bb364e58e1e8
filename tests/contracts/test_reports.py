"""Public reports about peers, tried here; docs/tried_reports.md lists them all, and those tried elsewhere."""

import copy
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from transmamba.distill import (
    LayerCalibrators,
    LogitsDistill,
    OFADistill,
    check_vocabularies,
    match_layers,
    resize_tokens,
    tap,
)
from transmamba.models import (
    MambaLM,
    PlainMamba,
    VideoMamba,
    Vim,
    VisionMamba,
    ViT,
    from_hf,
    from_official,
    to_official,
)
from transmamba.models import vmamba_v2 as vmamba
from transmamba.nn import CrossMamba, Mamba2Mixer, Mamba3Mixer, MambaMixer
from transmamba.ops import FLOP_FORMULAS, multi_scan, selective_scan, ssd_scan
from transmamba.transfer import param_groups

MIXERS = {
    "mamba": MambaMixer,
    "mamba2": partial(Mamba2Mixer, head_dim=4),
    "mamba3": partial(Mamba3Mixer, d_state=4, head_dim=4),
}
every_mixer = pytest.mark.parametrize("mixer", MIXERS)


def text_model(mixer, **options):
    return MambaLM(11, 12, depth=2, mixer=MIXERS[mixer], **options).eval()


def scan_inputs(length=7, **options):
    return [torch.rand(2, 4, length, **options), torch.rand(2, 4, length), -torch.rand(4, 3), torch.rand(2, 3, length),
            torch.rand(2, 3, length)]  # fmt: skip


@every_mixer
@pytest.mark.parametrize("length", [1, 3, 31, 65])
def test_steps_give_what_the_whole_text_gives(mixer, length):
    """mamba 187, 622, 683, 985, 38."""
    model, ids = text_model(mixer), torch.randint(11, (2, length))
    caches, steps = model.prefill(ids[:, :1])[1], []
    for t in range(1, length):
        logits, caches = model.step(ids[:, t], caches)
        steps.append(logits)
    if steps:
        torch.testing.assert_close(torch.stack(steps, 1), model(ids)[:, 1:], atol=1e-4, rtol=1e-4)


@every_mixer
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_prompt_goes_on_like_the_bare_one(mixer, side):
    """transformers 48256, 31540, 32677, 41790; mamba 66, 70."""
    model, ids = text_model(mixer), torch.randint(11, (1, 6))
    padding = torch.full((1, 3), 7)
    padded = torch.cat([padding, ids] if side == "left" else [ids, padding], 1)
    mask = torch.cat([padding < 0, ids >= 0] if side == "left" else [ids >= 0, padding < 0], 1)
    expected = model.generate(ids, 5)[:, 6:]
    assert torch.equal(model.generate(padded, 5, mask=mask)[:, 9:], expected)


@every_mixer
def test_weights_that_change_are_seen_by_the_next_step(mixer):
    """Megatron-LM 6723: a decay that was kept from before."""
    model, ids = text_model(mixer), torch.randint(11, (2, 5))
    model.generate(ids, 3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.7)
    fresh = text_model(mixer)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(model.generate(ids, 3), fresh.generate(ids, 3))


@every_mixer
def test_prompts_in_one_batch_do_not_change_each_other(mixer):
    """transformers 30670; mlx-lm 1403."""
    model, ids = text_model(mixer), torch.randint(11, (3, 5))
    together = model(ids)
    torch.testing.assert_close(torch.cat([model(row[None]) for row in ids]), together, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("length", [1, 63, 64, 65])
def test_gradients_are_finite_around_the_borders_of_chunks(length):
    """mamba 352, 353; VSSD 5; mamba2-torch 2."""
    x, dt, B = torch.randn(1, length, 4, 3), torch.rand(1, length, 4), torch.randn(1, length, 2, 5)
    inputs = [t.requires_grad_() for t in (x, dt, -torch.rand(4), B)]
    ssd_scan(*inputs, B, dt_softplus=True).square().sum().backward()
    assert all(t.grad.isfinite().all() for t in inputs)


def test_strides_do_not_matter():
    """mamba 36, 351, 643; VMamba 331."""
    u, delta, A, B, C = scan_inputs()
    expected = selective_scan(u, delta, A, B, C)
    turned = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (u, delta, B, C)]
    torch.testing.assert_close(selective_scan(turned[0], turned[1], A, *turned[2:]), expected)
    torch.testing.assert_close(selective_scan(u[..., ::2], delta[..., ::2], A, B[..., ::2], C[..., ::2]),
                               selective_scan(*(x[..., ::2].contiguous() for x in (u, delta)), A,
                                              *(x[..., ::2].contiguous() for x in (B, C))))  # fmt: skip


def test_a_width_that_heads_do_not_divide_says_so():
    """mamba 360, 413."""
    with pytest.raises(ValueError, match="head"):
        Mamba2Mixer(16, 8)


def test_wide_states_have_no_limit():
    """mamba 120, 774: 256 states at most."""
    u, delta, A, B, C = scan_inputs()
    wide = [x.repeat(*(1 if i != (1 if x.dim() == 2 else 1) else 100 for i in range(x.dim()))) for x in (A, B, C)]
    got = selective_scan(u, delta, *wide)
    torch.testing.assert_close(got, 100 * selective_scan(u, delta, A, B, C), atol=1e-4, rtol=1e-4)


def test_weights_of_a_channel_of_their_own():
    """mamba 887, 888: D per channel in step and scan."""
    x, dt, B, D = torch.randn(2, 5, 4, 3), torch.rand(2, 5, 4), torch.randn(2, 5, 2, 6), torch.randn(4, 3)
    y = ssd_scan(x, dt, -torch.ones(4), B, B, D)
    torch.testing.assert_close(y - ssd_scan(x, dt, -torch.ones(4), B, B), D * x)


def test_states_go_in_and_out_with_gradients():
    """mamba 101, 146, 155, 175, 258, 577, 739, 1013."""
    u, delta, A, B, C = scan_inputs(8)
    h = torch.randn(2, 4, 3, requires_grad=True)
    whole, last = selective_scan(u, delta, A, B, C, initial_state=h, return_last_state=True)
    half = selective_scan(*(x[..., :3] for x in (u, delta)), A, *(x[..., :3] for x in (B, C)), initial_state=h,
                          return_last_state=True)  # fmt: skip
    rest = selective_scan(*(x[..., 3:] for x in (u, delta)), A, *(x[..., 3:] for x in (B, C)), initial_state=half[1],
                          return_last_state=True)  # fmt: skip
    torch.testing.assert_close(torch.cat([half[0], rest[0]], -1), whole)
    torch.testing.assert_close(*(torch.autograd.grad(x.sum(), h, retain_graph=True)[0] for x in (rest[1], last)))


@every_mixer
def test_packed_texts_are_separate_ones(mixer):
    """mamba 180, 236, 383, 434; transformers 35861."""
    model, ids = text_model(mixer), torch.randint(11, (1, 9))
    texts = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1]])
    expected = torch.cat([model(ids[:, :4]), model(ids[:, 4:])], 1)
    torch.testing.assert_close(model(ids, seq_idx=texts), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_mixer
def test_half_precision_stays_finite(mixer, dtype):
    """mamba 6, 72, 812; Vim 30; VideoMamba 28; U-Mamba 8; VMamba 165."""
    model, ids = text_model(mixer), torch.randint(11, (2, 65))
    with torch.autocast("cpu", dtype):
        loss = model(ids).float().square().mean()
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", ["x_proj", "in_proj", "out_proj", "dt_proj"])
def test_adapters_train_and_merge(name):
    """peft 2274, 2556, 3554; transformers 30316; Falcon-H1 13."""
    peft = pytest.importorskip("peft")
    model = text_model("mamba")
    if not any(part.endswith(f".{name}") for part, module in model.named_modules() if hasattr(module, "weight")):
        with pytest.raises(ValueError, match="not found"):
            peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(target_modules=[name]))
        return
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=[name], init_lora_weights=False))
    ids = torch.randint(11, (2, 6))
    y = adapted(ids)
    y.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in adapted.parameters() if p.requires_grad)
    torch.testing.assert_close(adapted.merge_and_unload()(ids), y, atol=1e-4, rtol=1e-4)


def test_tied_weights_stay_tied_when_dispatched(tmp_path):
    """accelerate 993, 1197, 2906, 3824."""
    accelerate = pytest.importorskip("accelerate")
    ids = torch.randint(11, (2, 5))
    model = MambaLM(11, 12, depth=2).eval()
    model.save_pretrained(tmp_path)
    with torch.device("meta"):
        empty = MambaLM(11, 12, depth=2).eval()
    weights = tmp_path / "model.safetensors"
    placed = accelerate.load_checkpoint_and_dispatch(empty, str(weights), device_map={"": "cpu"})
    torch.testing.assert_close(placed(ids), model(ids))


def test_vocabularies_that_differ_are_refused():
    """trl 2215, 3028, 4562; DistillKit 7, 12, 17, 29; Model-Optimizer 2489."""
    with pytest.raises(ValueError, match="11.*13|13.*11"):
        LogitsDistill()(torch.randn(2, 11), torch.randn(2, 13))
    with pytest.raises(ValueError):
        check_vocabularies({"a": 0, "b": 1}, {"a": 1, "b": 0})


def test_a_batch_without_answers_gives_zero_not_nan():
    """trl 2217."""
    student = torch.randn(2, 5, 11, requires_grad=True)
    loss = LogitsDistill()(student, torch.randn(2, 5, 11), torch.zeros(2, 5, dtype=torch.bool))
    loss.backward()
    assert loss == 0 and student.grad.eq(0).all()


def test_masked_logits_give_no_nan():
    """OFAKD 5; verl 7514: an impossible class."""
    student, teacher = torch.randn(2, 5, requires_grad=True), torch.randn(2, 5)
    teacher[0, 1] = -torch.inf
    for divergence in ("forward", "js"):
        loss = LogitsDistill(2.0, divergence)(student, teacher)
        loss.backward()
        assert loss.isfinite() and student.grad.isfinite().all()
    # a class that neither side can choose changes nothing
    both = torch.cat([student.detach(), torch.full((2, 1), -torch.inf)], 1)
    given = torch.cat([teacher, torch.full((2, 1), -torch.inf)], 1)
    torch.testing.assert_close(LogitsDistill()(both, given), LogitsDistill()(student, teacher).detach())
    assert OFADistill()(student.detach(), torch.randn(2, 5), torch.tensor([1, 2])).isfinite()


def test_a_frozen_teacher_has_no_gradient_and_no_training_mode():
    """lightly-train 434; torchdistill 333."""
    teacher, x = ViT(8, 4, dim=12, depth=2, heads=3, num_classes=5).train(), torch.randn(2, 3, 8, 8)
    with pytest.raises(ValueError, match="requires grad: freeze it first"), tap(teacher, "blocks.*", frozen=True):
        pass
    teacher.requires_grad_(False)
    with pytest.raises(ValueError, match="is in training mode"), tap(teacher, "blocks.*", frozen=True):
        pass
    with tap(teacher.eval(), "blocks.*", frozen=True) as features:
        teacher(x)
    assert not any(layer.requires_grad for layer in features.layers)


def test_sizes_of_images_may_differ_between_teacher_and_student():
    """MedSAM 279; yolo-distiller 11: the features are brought to one grid."""
    teacher, student = ViT(16, 4, dim=12, depth=1, heads=3), Vim(8, 4, dim=8, depth=1)
    wide, small = teacher.forward_features(torch.randn(2, 3, 16, 16)), student.forward_features(torch.randn(2, 3, 8, 8))
    target = resize_tokens(wide.last[:, 1:], (4, 4), (2, 2))
    own = small.last[:, [i for i in range(5) if i not in small.extra]]
    assert LayerCalibrators([8], 12)([own])[0].shape == target.shape


def test_depths_may_differ():
    """TextBrewer 103; torchdistill 140; OFAKD 39."""
    assert match_layers(3, 12, "proportional")[-1] == 11
    assert match_layers(12, 3, "proportional")[-1] == 2


def test_class_counts_that_differ_are_refused():
    """deit 124."""
    with pytest.raises(ValueError):
        LogitsDistill()(torch.randn(2, 5), torch.randn(2, 1000))


@pytest.mark.parametrize("size", [12, 16, 20])
def test_vim_is_read_at_another_size(size):
    """Vim 108, 112; MambaVision 2; MambaVision and timm 908."""
    model = Vim(16, 4, dim=12, depth=1, num_classes=5)
    config = {"img_size": 16, "patch_size": 4, "stride": 4, "embed_dim": 12, "depth": 1, "num_classes": 5}
    other = from_official("vim", config, to_official(model), img_size=size)
    assert other(torch.randn(1, 3, size, size)).shape == (1, 5)


def test_another_size_than_the_position_table_is_refused():
    """VideoMamba 71; PyTorch-Pretrained-ViT 14."""
    with pytest.raises(ValueError, match="built for a patch grid"):
        Vim(8, 4, dim=12, depth=1)(torch.randn(1, 3, 12, 12))
    with pytest.raises(ValueError, match="frames"):
        VideoMamba(8, 4, num_frames=4, dim=12, depth=1)(torch.randn(1, 3, 3, 8, 8))


@pytest.mark.parametrize("frames", [2, 8])
def test_videos_of_other_lengths_are_read(frames):
    """VideoMamba 29, 71, 97."""
    model = VideoMamba(8, 4, num_frames=4, dim=12, depth=1, num_classes=5)
    config = {"img_size": 8, "patch_size": 4, "embed_dim": 12, "depth": 1, "num_classes": 5, "num_frames": 4}
    other = from_official("videomamba", config, to_official(model), num_frames=frames)
    assert other(torch.randn(1, 3, frames, 8, 8)).shape == (1, 5)


def test_features_without_a_head():
    """VideoMamba 45; VMamba 194; mmpretrain 534."""
    model = VideoMamba(8, 4, num_frames=2, dim=12, depth=2)
    assert model.forward_features(torch.randn(1, 3, 2, 8, 8)).last.dim() == 3


@pytest.mark.parametrize("side", [32, 50, 33])
def test_vmamba_takes_images_of_any_size(side):
    """VMamba 90, 372."""
    assert vmamba((8, 12), (1, 1), num_classes=5)(torch.randn(1, 3, side, side + 7)).shape == (1, 5)


def test_batches_may_be_empty():
    """A kind: PlainMamba refused one."""
    models = [
        PlainMamba(8, 4, dim=12, depth=1), Vim(8, 4, dim=12, depth=1), VisionMamba(8, 4, dim=12, depth=1),
        vmamba((8, 12), (1, 1)), ViT(8, 4, dim=12, depth=1, heads=3),
    ]  # fmt: skip
    for model in models:
        assert model.eval()(torch.randn(0, 3, 32, 32)[..., :8, :8] if not hasattr(model, "stages") else
                            torch.randn(0, 3, 32, 32)).shape == (0, 1000)  # fmt: skip


@every_mixer
def test_one_token_trains(mixer):
    """mamba 985."""
    model = text_model(mixer)
    model(torch.randint(11, (2, 1))).square().mean().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_decays_and_biases_have_no_weight_decay():
    """mamba 1, timm: parameters marked on the tensor lose their mark in a copy."""
    model = copy.deepcopy(text_model("mamba"))
    decayed = [id(p) for group in param_groups(model, set(), lr=1.0) if group["weight_decay"] for p in group["params"]]
    spared = [p for name, p in model.named_parameters() if name.endswith(("A_log", ".D", "dt_proj.bias"))]
    assert spared and not any(id(p) in decayed for p in spared)


def test_starting_on_the_meta_device_is_starting_anew():
    """transformers 43717; fla 169, 753."""
    with torch.device("meta"):
        model = text_model("mamba2")
    model.to_empty(device="cpu").reset_parameters()
    assert all(p.isfinite().all() for p in model.parameters())
    assert model(torch.randint(11, (1, 5))).isfinite().all()


def test_flops_are_counted():
    """mamba 110, 303, 535, 817; VideoMamba 18; MambaVision 21; PlainMamba 8; Mamba4Rec 5."""
    u, delta, A, B, C = scan_inputs()
    with FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS) as counter:
        selective_scan(u, delta, A, B, C)
    assert counter.get_total_flops() == 9 * 2 * 4 * 7 * 3


@pytest.mark.parametrize("wide", range(5))
def test_flops_grow_with_the_directions_whichever_input_has_them(wide):
    shapes = [(2, 1, 7, 4), (2, 1, 7, 4), (1, 4, 3), (2, 1, 7, 3), (2, 1, 7, 3)]
    axis = 0 if wide == 2 else 1
    inputs = [
        -torch.rand(*(5 if (i, a) == (wide, axis) else n for a, n in enumerate(shape)))
        for i, shape in enumerate(shapes)
    ]
    with FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS) as counter:
        multi_scan(*inputs)
    assert counter.get_total_flops() == 5 * 9 * 2 * 4 * 7 * 3


def test_a_configuration_that_does_not_fit_its_weights_names_what_differs():
    """mamba 752; transformers 29631, 33864."""
    state = {"backbone.embeddings.weight": torch.zeros(11, 13)}
    config = {"model_type": "mamba", "hidden_size": 12, "num_hidden_layers": 1, "vocab_size": 11, "state_size": 4,
              "conv_kernel": 4, "time_step_rank": 1, "expand": 2}  # fmt: skip
    with pytest.raises(ValueError, match="does not fit a MambaLM of these arguments"):
        from_hf(config, state)


def test_cross_sequences_may_have_other_lengths():
    """mamba 229, 263, 511; VMamba 194; CrossMamba 1; HiddenMambaAttn 13."""
    module, query, context = CrossMamba(6, 5), torch.randn(2, 3, 6), torch.randn(2, 9, 5)
    y = module(query, context)
    assert not torch.allclose(y, module(query, context.flip(1)))
    padded, mask = torch.cat([context, torch.randn(2, 4, 5)], 1), torch.arange(13).expand(2, -1) < 9
    torch.testing.assert_close(module(query, padded, mask), y)


def test_importing_builds_nothing_and_needs_no_kernel():
    """mamba 55, 97, 138, 324; causal-conv1d 4, 18; VMamba 67, 102, 169."""
    script = "import sys; sys.modules['mamba_ssm'] = None; sys.modules['triton'] = None; import transmamba, torch\n"
    script += "transmamba.models.Vim(8, 4, dim=12, depth=1)(torch.zeros(1, 3, 8, 8)).sum().backward(); print('ran')"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.stdout == "ran\n", done.stderr


@every_mixer
def test_gradients_repeat_bit_for_bit(mixer):
    """mamba 137, 493, 698; VMamba 362."""
    model, ids = text_model(mixer), torch.randint(11, (2, 33))
    grads = []
    for _ in range(3):
        model.zero_grad()
        model(ids).square().mean().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for other in grads[1:] for a, b in zip(grads[0], other, strict=True))
