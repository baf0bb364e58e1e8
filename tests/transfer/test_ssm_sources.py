"""SSM parameters from another Mamba, or from the teacher's attention, on real models."""

from functools import partial

import pytest
import torch
from torch import nn

from transmamba.models import MambaLM, VisionMamba, ViT
from transmamba.nn import Mamba2Mixer, MambaMixer
from transmamba.nn.mamba2 import HeadSSM
from transmamba.transfer import AttentionInit, first_importance, magnitude_importance, subclone
from transmamba.transfer.teachers import translate

transformers = pytest.importorskip("transformers")


def llama(hidden=128, **options):
    config = transformers.LlamaConfig(
        hidden_size=12,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=hidden,
        num_key_value_heads=2,
        vocab_size=11,
        **options,
    )
    return transformers.LlamaForCausalLM(config)


@pytest.mark.parametrize("mixer", [partial(MambaMixer, d_state=5), partial(Mamba2Mixer, d_state=5, head_dim=4)])
def test_a_mamba_of_equal_size_is_copied_and_of_smaller_size_is_cut(mixer):
    teacher = MambaLM(11, 12, depth=3, mixer=mixer, d_intermediate=128)
    twin = MambaLM(11, 12, depth=3, mixer=mixer, d_intermediate=128)
    report = subclone(teacher, twin, magnitude_importance)
    tokens = torch.randint(11, (2, 7))
    assert report.fraction == 1.0
    assert torch.equal(twin(tokens), teacher(tokens))
    facts = translate(teacher).architecture
    assert (facts.kind, facts.dim, facts.depth) == ("ssm", 12, 3)
    small = MambaLM(11, 8, depth=2, mixer=mixer, d_intermediate=128)
    report = subclone(teacher, small, magnitude_importance)
    assert report.fraction == 1.0
    assert small(tokens).isfinite().all()


def test_channels_of_a_mamba_are_cut_alike_in_every_tensor():
    """A Mamba whose dead channels go keeps its function."""
    teacher = MambaMixer(7, 3, expand=2, dt_rank=2)
    student = MambaMixer(7, 3, expand=1, dt_rank=2)
    alive = torch.tensor([0, 2, 5, 6, 9, 11, 12])
    dead = [channel for channel in range(14) if channel not in alive]
    branch = teacher.branches[0]
    with torch.no_grad():
        teacher.in_proj.weight.view(2, 14, 7)[:, dead] = 0
        teacher.out_proj.weight[:, dead] = 0
        branch.ssm.x_proj.weight[:, dead] = 0
        branch.conv1d.weight[dead] = 0
        branch.conv1d.bias[dead] = 0
    named = [{f"blocks.0.mixer.{name}": p for name, p in side.state_dict().items()} for side in (teacher, student)]
    report = subclone(*named, magnitude_importance)
    assert report.kept == {"inner.0": tuple(alive.tolist())}
    x = torch.randn(2, 11, 7)
    torch.testing.assert_close(student(x), teacher(x))


def test_hugging_face_mambas_compute_the_same_after_subcloning():
    config = transformers.MambaConfig(vocab_size=16, hidden_size=8, num_hidden_layers=2, state_size=4)
    teacher, student = (
        transformers.MambaForCausalLM(config).eval(),
        MambaLM(16, 8, depth=2, mixer=partial(MambaMixer, d_state=4)),
    )
    report = subclone(teacher, student, first_importance)
    tokens = torch.randint(16, (2, 7))
    assert report.fraction == 1.0
    torch.testing.assert_close(student(tokens), teacher(tokens).logits, atol=1e-5, rtol=1e-4)


def test_ssm_parameters_come_from_another_mamba():
    transformer, mamba = llama(), MambaLM(11, 12, depth=4, mixer=partial(MambaMixer, d_state=5))
    student = MambaLM(11, 12, depth=3, mixer=partial(MambaMixer, d_state=5), d_intermediate=128)
    report = subclone(transformer, student, {}, ssm_from=mamba)
    padding = 5 * 12  # rows 11 to 15 of the vocabulary
    assert report.fraction == 1 - padding / sum(p.numel() for p in student.parameters())
    x = torch.randn(2, 7, 12)
    torch.testing.assert_close(student.blocks[2].mixer(x), mamba.blocks[2].mixer(x), rtol=0, atol=0)
    assert torch.equal(student.blocks[2].norm1.weight, transformer.model.layers[2].input_layernorm.weight)


def test_one_direction_of_a_mamba_fills_both_of_a_vision_student():
    mamba = MambaLM(11, 12, depth=3, mixer=partial(MambaMixer, d_state=5))
    teacher = ViT(img_size=8, patch_size=2, dim=12, depth=3, heads=3)
    student = VisionMamba(img_size=8, patch_size=2, dim=12, depth=3, d_state=5)
    renames = (
        (".branches.0.ssm.", "."),
        (".branches.0.", "."),
        ("blocks.", "backbone.layers."),
        ("dt_bias", "dt_proj.bias"),
        (".norm1.", ".norm."),
        ("head.", "lm_head."),
    )
    one_way = {}
    for name, tensor in mamba.state_dict().items():
        for ours, theirs in renames:
            name = name.replace(ours, theirs)
        one_way["backbone.norm_f.weight" if name == "norm.weight" else name] = tensor
    subclone(teacher, student, first_importance, ssm_from=one_way)
    for branch in student.blocks[1].mixer.branches:
        assert torch.equal(branch.ssm.A_log, mamba.blocks[1].mixer.branches[0].ssm.A_log)
        assert torch.equal(branch.ssm.dt_bias, mamba.blocks[1].mixer.branches[0].ssm.dt_bias)


def test_a_transformer_is_no_source_of_ssm_parameters():
    with pytest.raises(ValueError, match=r"ssm_from is a Transformer \(llama\), which has no SSM parameters"):
        subclone(llama(), MambaLM(11, 12, depth=3), {}, ssm_from=llama())


def test_mamba2_heads_are_the_heads_of_attention():
    teacher = llama(head_dim=3)
    mixer = lambda dim: Mamba2Mixer(dim, expand=1, ssm=HeadSSM(4, 3, d_state=3, groups=4))  # noqa: E731
    student = MambaLM(11, 12, depth=3, mixer=mixer)
    subclone(teacher, student, {}, ssm_from=AttentionInit(4, 7, kv_heads=2, decay=1e-4))
    attention, mamba = teacher.model.layers[1].self_attn, student.blocks[1].mixer
    h = torch.randn(2, 7, 12)
    heads = lambda z, repeat: nn.functional.silu(z).unflatten(-1, (-1, 3)).repeat_interleave(repeat, 2).transpose(1, 2)  # noqa: E731
    q, k, v = (heads(attention.q_proj(h), 1), heads(attention.k_proj(h), 2), heads(attention.v_proj(h), 2))
    expected = ((q @ k.mT).tril() @ v / 7).transpose(1, 2).flatten(2)
    z, xBC, dt = mamba.in_proj(h).split([12, 36, 4], -1)
    xBC = nn.functional.silu(mamba.conv1d(nn.functional.pad(xBC.mT, (3, 0))).mT)
    torch.testing.assert_close(mamba.ssm(xBC, dt)[0], expected, atol=1e-5, rtol=1e-3)
    assert torch.equal(mamba.out_proj.weight, attention.o_proj.weight)


def test_another_scale_of_attention_goes_into_the_start():
    def start(scale, factor):
        torch.manual_seed(0)
        teacher = transformers.GraniteForCausalLM(
            transformers.GraniteConfig(
                hidden_size=12, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=4,
                intermediate_size=8, vocab_size=11, attention_multiplier=scale,
            )
        )  # fmt: skip
        with torch.no_grad():
            teacher.model.layers[0].self_attn.q_proj.weight.mul_(factor)
        student = MambaLM(11, 12, depth=1, mixer=partial(MambaMixer, d_state=3))
        subclone(teacher, student, {}, ssm_from=AttentionInit(4, 7))
        return student.state_dict()

    torch.testing.assert_close(start(0.25, 1.0), start(3**-0.5, 0.25 * 3**0.5))


@pytest.mark.parametrize("head_dim", [2, 3])
def test_mamba2_heads_must_be_those_of_the_teacher(head_dim):
    message = (
        "mismatched heads: the Mamba-2 mixer has 6 heads in 24 channels and 5 rows of B"
        rf".*HeadSSM\(4, {head_dim}, d_state={head_dim}"
    )
    student = MambaLM(11, 12, depth=3, mixer=partial(Mamba2Mixer, d_state=5, head_dim=4))
    with pytest.raises(ValueError, match=message):
        subclone(llama(head_dim=head_dim), student, {}, ssm_from=AttentionInit(4, 7, kv_heads=2))


def test_groups_of_mamba2_are_those_of_the_teacher():
    def lm(heads, states):
        mixer = lambda dim: Mamba2Mixer(dim, expand=1, ssm=HeadSSM(heads, 3, d_state=states, groups=2))  # noqa: E731
        return MambaLM(11, 3 * heads, depth=2, mixer=mixer)

    teacher, student = lm(4, 5), lm(2, 3)
    present = teacher.state_dict()
    report = subclone(teacher, student, magnitude_importance)
    kept = torch.tensor(report.kept["state.1"])
    rows = torch.cat([torch.arange(24)[24:], 24 + kept, 24 + 5 + kept])
    residual, ours = list(report.kept["residual"]), student.blocks[1].mixer.in_proj.weight
    assert torch.equal(ours[12:18], present["blocks.1.mixer.in_proj.weight"][rows][:, residual])
