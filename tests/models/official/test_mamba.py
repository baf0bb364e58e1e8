import pytest
import torch

from tests.golden import golden
from transmamba.models.official import from_official, to_official
from transmamba.nn import Mamba2Mixer, Mamba3Mixer, MambaMixer

CASES = ["mamba_lm_a", "mamba_lm_b_mamba2", "mamba_block_a", "mamba_block_b", "mamba2_block_a", "mamba2_block_b"]


def load(case, **changes):
    numbers = golden(case)
    config = numbers.meta["config"] | changes
    return numbers, from_official(numbers.meta["family"], config, numbers.part("param"))


@pytest.mark.parametrize("case", CASES)
def test_what_is_read_is_written_back(case):
    numbers, model = load(case)
    written = to_official(model)
    assert written.keys() == numbers.part("param").keys()
    for name, value in numbers.part("param").items():
        assert torch.equal(written[name], value), name


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_the_loaded_module_gives_the_official_numbers(case):
    numbers, model = load(case)
    if "input/ids" in numbers.tensors:
        numbers.check("output/logits", model(numbers.tensors["input/ids"]))
    else:
        numbers.check("output/y", model(numbers.tensors["input/x"]))


def test_a_tied_head_stays_tied():
    model = load("mamba_lm_a")[1]
    assert model.head.weight is model.embedding.weight
    assert load("mamba_lm_b_mamba2")[1].head.weight is not load("mamba_lm_b_mamba2")[1].embedding.weight


def test_only_names_that_change_nothing_are_passed_over():
    load("mamba_lm_a", fused_add_norm=False, residual_in_fp32=False)
    with pytest.raises(ValueError, match="attn_cfg has no num_heads: the official attention has no default for it"):
        load("mamba_lm_a", attn_layer_idx=[1])
    with pytest.raises(ValueError, match="extra=3: unknown"):
        load("mamba_lm_a", extra=3)
    with pytest.raises(ValueError, match="layer='Mamba9': expected one of Mamba1, Mamba2, Mamba3"):
        load("mamba_lm_a", ssm_cfg={"layer": "Mamba9"})
    with pytest.raises(ValueError, match="d_ssm=4096 is more than the inner width"):
        load("mamba2_block_a", d_ssm=4096)


def test_mamba_3_keeps_its_official_names():
    config = {"d_model": 6, "d_state": 8, "headdim": 3, "ngroups": 2, "rope_fraction": 1.0, "chunk_size": 64}
    mixer = Mamba3Mixer(6, 8, head_dim=3, groups=2, rotary_fraction=1.0)
    state, x = mixer.state_dict(), torch.randn(2, 5, 6)
    assert {"in_proj.weight", "dt_bias", "D", "B_bias", "C_bias", "B_norm.weight", "C_norm.weight"} < state.keys()
    loaded = from_official("mamba3_block", config, state)
    torch.testing.assert_close(loaded(x), mixer(x))
    assert to_official(loaded).keys() == state.keys()
    with pytest.raises(ValueError, match="is_mimo=True: expected False"):
        from_official("mamba3_block", config | {"is_mimo": True}, state)


def test_the_gate_may_come_after_the_norm():
    numbers = golden("mamba2_block_a")
    mixer = from_official("mamba2_block", numbers.meta["config"] | {"norm_before_gate": True}, numbers.part("param"))
    assert isinstance(mixer, Mamba2Mixer) and mixer.norm.norm_before_gate


def test_a_second_direction_has_no_official_name():
    with pytest.raises(ValueError, match="no name for branches.1.conv1d.weight: its mixer has one direction"):
        to_official(MambaMixer(8, directions=2))
