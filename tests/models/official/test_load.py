"""Official state dicts in every wrapping, errors that list everything, and models of another size."""

from argparse import Namespace

import pytest
import torch
from safetensors.torch import save_file

from tests.golden import golden
from tests.models.official.cases import load
from transmamba._checkpoint import load_file
from transmamba.models import VisionMamba, from_official, to_official

CASES = (
    "vim_a",
    "vim_b_overlap_odd",
    "plainmamba_a",
    "plainmamba_b_resized",
    "vmamba_a_v0",
    "vmamba_b_v2",
    "vmamba_c_v2_gated_ln",
    "videomamba_a_video",
    "videomamba_b_image",
)


@pytest.mark.parametrize("case", CASES)
def test_writing_gives_back_what_was_read_bit_for_bit(case):
    data, model, _ = load(case)
    written, given = to_official(model), data.part("param")
    assert written.keys() == given.keys()
    assert all(torch.equal(written[name], given[name]) for name in given)


@pytest.fixture
def vim():
    data = golden("vim_a")
    return data.meta["config"], data.part("param")


def same(config, state, given):
    written = to_official(from_official("vim", config, given))
    return written.keys() == state.keys() and all(torch.equal(written[name], state[name]) for name in state)


@pytest.mark.parametrize("prefix", ["module.", "model.", "backbone.", "module.backbone.", "_orig_mod.", "encoder."])
def test_prefixes_are_stripped(vim, prefix):
    config, state = vim
    assert same(config, state, {prefix + name: value for name, value in state.items()})


@pytest.mark.parametrize("wrapper", ["model", "module", "state_dict", "model_ema"])
def test_wrappers_are_opened(vim, wrapper):
    config, state = vim
    assert same(config, state, {wrapper: state, "epoch": 3, "args": None})
    assert same(config, state, {"state_dict": {wrapper: state}, "meta": {}})


def test_the_weights_win_over_their_average(vim):
    config, state = vim
    averaged = {name: value + 1 for name, value in state.items()}
    assert same(config, state, {"model_ema": averaged, "model": state})
    assert same(config, state, {**state, "ema_head_weight": state["head.weight"]})


def test_the_model_does_not_share_memory_with_what_was_given(vim):
    config, state = vim
    model = from_official("vim", config, state)
    before = state["head.weight"].clone()
    with torch.no_grad():
        model.head.weight += 1.0
    assert torch.equal(state["head.weight"], before)


def test_the_dtype_of_the_checkpoint_stays(vim):
    config, state = vim
    model = from_official("vim", config, {name: value.bfloat16() for name, value in state.items()})
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert all(p.requires_grad for p in model.parameters())


def test_files_are_read(vim, tmp_path):
    config, state = vim
    save_file(state, tmp_path / "vim.safetensors")
    torch.save({"model": state, "epoch": 3, "args": Namespace(lr=0.1)}, tmp_path / "vim.pth")
    assert same(config, state, tmp_path / "vim.safetensors")
    assert same(config, state, str(tmp_path / "vim.pth"))


def test_a_pickle_that_runs_code_is_refused(vim, tmp_path):
    config, _ = vim
    torch.save({"model": VisionMamba}, tmp_path / "vim.pth")
    with pytest.raises(ValueError, match="cannot read .*vim.pth: Weights only load failed"):
        from_official("vim", config, tmp_path / "vim.pth")


def test_an_unknown_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot read vim.npz: expected a .safetensors file"):
        load_file(tmp_path / "vim.npz")


def test_everything_that_does_not_fit_is_listed(vim):
    config, state = vim
    state["more"] = torch.zeros(2)
    state["norm_f.weight"] = torch.zeros(3)
    state["layers.0.mixer.A_b_log"] = torch.zeros(64, 3)
    del state["head.bias"], state["layers.2.mixer.D"]
    with pytest.raises(ValueError, match="does not fit a Vim") as error:
        from_official("vim", config, state)
    for line in (
        "missing: head.bias",
        "missing: layers.2.mixer.D",
        "left over: more",
        r"wrong shape: norm_f.weight is (3,), expected (32,)",
        r"wrong shape: layers.0.mixer.A_b_log is (64, 3), expected (64, 16)",
    ):
        assert line in str(error.value)
    assert str(error.value).count("\n") == 5


def test_a_tensor_of_as_many_numbers_in_another_shape_is_refused():
    data = golden("vmamba_a_v0")
    state = data.part("param")
    state["layers.0.blocks.0.op.A_logs"] = state["layers.0.blocks.0.op.A_logs"].view(4, 32, 8)
    with pytest.raises(ValueError, match=r"op.A_logs is \(4, 32, 8\), expected \(128, 8\)"):
        from_official("vmamba", data.meta["config"], state)


def test_names_that_differ_by_their_prefix_are_refused(vim):
    config, state = vim
    with pytest.raises(ValueError, match="another name in the state dict are both head.bias"):
        from_official("vim", config, {**state, "module.head.bias": state["head.bias"]})


def test_what_is_no_tensor_is_refused(vim):
    config, state = vim
    with pytest.raises(TypeError, match="epoch in the state dict is not a tensor but int"):
        from_official("vim", config, {**state, "epoch": 3})


def test_unknown_families_and_models_are_refused(vim):
    with pytest.raises(ValueError, match="unknown family 'vit': expected one of vim, plainmamba"):
        from_official("vit", {}, {})
    with pytest.raises(TypeError, match="no official names are known for a Linear: expected one of Vim"):
        to_official(torch.nn.Linear(2, 2))


def test_arguments_that_are_not_built_are_refused(vim):
    config, state = vim
    with pytest.raises(ValueError, match=r"flip_img_sequences_ratio=1: expected -1.0, .*; colour=3: unknown"):
        from_official("vim", {**config, "flip_img_sequences_ratio": 1, "colour": 3}, state)
    with pytest.raises(ValueError, match=r"bimamba_type='v3' is unknown: expected none, v1 or v2"):
        from_official("vim", {**config, "bimamba_type": "v3"}, state)
    with pytest.raises(ValueError, match="final_pool_type='all' gives no logits of an image"):
        from_official("vim", {**config, "if_cls_token": False, "final_pool_type": "all"}, state)
    with pytest.raises(ValueError, match="final_pool_type='max' takes the largest logit of a class token"):
        from_official("vim", {**config, "final_pool_type": "max"}, state)
    with pytest.raises(ValueError, match="d_state in ssm_cfg: expected among the arguments of the model itself"):
        from_official("vim", {**config, "ssm_cfg": {"d_state": 8}}, state)
    with pytest.raises(ValueError, match="forward_type='v05_onbatch' is not built here: expected one of v0, v01"):
        from_official("vmamba", {"forward_type": "v05_onbatch"}, {})
    with pytest.raises(ValueError, match="the first version, v0, has no suffixes"):
        from_official("vmamba", {"forward_type": "v0_noz"}, {})
    with pytest.raises(ValueError, match="the checkpoint has batch norms"):
        from_official("vmamba", {}, {"layers.0.blocks.0.norm.running_mean": torch.zeros(3)})
    with pytest.raises(ValueError, match="mlp_act_layer='tanh' is not built here: expected one of silu, gelu, relu"):
        from_official("vmamba", {"mlp_act_layer": "tanh"}, {})
    with pytest.raises(ValueError, match="arch='L4' is unknown: expected one of L1, L2, L3"):
        from_official("plainmamba", {"arch": "L4"}, {})
    with pytest.raises(ValueError, match="layer_cfgs has 0 entries: expected one for each of the 24 layers"):
        from_official("plainmamba", {"layer_cfgs": []}, {})
    with pytest.raises(ValueError, match="layer_cfgs is a str: expected one mapping, or a list of one per layer"):
        from_official("plainmamba", {"layer_cfgs": "L1"}, {})
    with pytest.raises(ValueError, match="an entry of layer_cfgs is a int: expected a mapping"):
        from_official("plainmamba", {"num_layers": 1, "layer_cfgs": [3]}, {})
    with pytest.raises(ValueError, match="interpolate_mode='nearest': expected bicubic or bilinear, because"):
        from_official("plainmamba", {"interpolate_mode": "nearest"}, {})
    with pytest.raises(ValueError, match="patches of clips do not overlap: expected stride=16 or None, got 8"):
        from_official("videomamba", {"stride": 8, "num_frames": 4}, {})


def test_another_number_of_classes_starts_a_new_head(vim):
    config, state = vim
    model = from_official("vim", config, state, num_classes=3)
    assert model.head.weight.shape == (3, 32) and model.head.bias.tolist() == [0.0] * 3
    assert torch.equal(model.norm.weight, state["norm_f.weight"])


def test_vim_keeps_the_class_row_in_the_middle_when_resized(vim):
    config, state = vim
    state["pos_embed"] = torch.arange(17.0).view(1, 17, 1).expand(1, 17, 32).clone()
    state["pos_embed"][:, 8] = -50.0
    model = from_official("vim", config, state, img_size=(40, 64))  # a grid of 4 x 4 becomes 5 x 8
    assert model.pos_embed.shape == (1, 41, 32) and model.cls_position == 20
    assert (model.pos_embed[:, 20] == -50.0).all()
    assert (torch.cat([model.pos_embed[:, :20], model.pos_embed[:, 21:]], 1) > -3.0).all()
    assert model(torch.zeros(1, 3, 40, 64)).shape == (1, 10)


def test_plain_mamba_resized_beforehand_equals_resized_on_the_way():
    data = golden("plainmamba_b_resized")
    x = data.tensors["input/x"]
    model = from_official("plainmamba", data.meta["config"], data.part("param"), img_size=(40, 32)).eval()
    assert model.pos_embed.shape == (1, 20, 24)
    data.check("output/logits", model(x))


def test_vmamba_takes_any_image_as_it_is():
    data = golden("vmamba_b_v2")
    model = from_official("vmamba", data.meta["config"], data.part("param"), img_size=64, num_classes=3)
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 3)


def test_an_image_model_sees_the_same_in_a_clip_of_one_frame():
    data = golden("videomamba_b_image")
    config, state, x = data.meta["config"], data.part("param"), data.tensors["input/x"]
    clip_model = from_official("videomamba", config, state, num_frames=1).eval()
    data.check("output/logits", clip_model(x[:, :, None]))


def test_frames_start_from_the_image_and_without_position():
    data = golden("videomamba_b_image")
    config, state = data.meta["config"], data.part("param")
    model = from_official("videomamba", {**config}, state, num_frames=3, num_classes=5)
    assert torch.equal(model.patch_embed.proj.weight[:, :, 0], state["patch_embed.proj.weight"])
    assert not model.temporal_pos_embed.any() and model.head.out_features == 5
    assert model(torch.zeros(1, 3, 3, 32, 48)).shape == (1, 5)


def test_frames_and_size_of_a_clip_change():
    data = golden("videomamba_a_video")
    model = from_official("videomamba", data.meta["config"], data.part("param"), num_frames=8, img_size=48)
    assert model.temporal_pos_embed.shape == (1, 8, 32) and model.pos_embed.shape == (1, 10, 32)
    table = data.tensors["param/temporal_pos_embedding"]
    torch.testing.assert_close(model.temporal_pos_embed[:, 1], 0.75 * table[:, 0] + 0.25 * table[:, 1])
    assert torch.equal(model.pos_embed[:, 0], data.tensors["param/pos_embed"][:, 0])


def loaded(case, **config):
    data = golden(case)
    return from_official(data.meta["family"], {**data.meta["config"], **config}, data.part("param"))


@pytest.mark.parametrize(
    ("case", "size", "other"),
    [("vim_a", 48, {}), ("plainmamba_a", 48, {}), ("videomamba_a_video", 64, {"num_frames": 6})],
)
def test_a_checkpoint_of_another_size_is_recognised(case, size, other):
    """An argument of the model by keyword can also be given in `config`, against the checkpoint."""
    data = golden(case)
    said = loaded(case, img_size=size, **other).state_dict()
    asked = from_official(data.meta["family"], data.meta["config"], data.part("param"), img_size=size, **other)
    assert all(torch.equal(value, said[name]) for name, value in asked.state_dict().items())


def test_an_image_checkpoint_is_recognised():
    said = loaded("videomamba_b_image", num_frames=3)
    assert said.patch_embed.proj.weight.shape == (48, 3, 1, 16, 16) and said.temporal_pos_embed.shape == (1, 3, 48)


@pytest.mark.parametrize("case", ["vim_a", "plainmamba_a", "vmamba_a_v0", "videomamba_a_video"])
def test_another_number_of_classes_is_recognised_and_logged(case, caplog):
    assert loaded(case, num_classes=3).head.out_features == 3
    assert "the head is new: the checkpoint has 10 classes, the model 3" in caplog.text


def test_a_table_of_no_square_image_is_refused(vim):
    config, state = vim
    state["pos_embed"] = state["pos_embed"][:, :-1]
    with pytest.raises(ValueError, match=r"wrong shape: pos_embed is \(1, 16, 32\), expected \(1, 17, 32\)"):
        from_official("vim", config, state)


def test_what_cannot_change_is_refused():
    data = golden("mamba_block_a")
    with pytest.raises(ValueError, match="num_classes=3: unknown"):
        from_official("mamba_block", data.meta["config"], data.part("param"), num_classes=3)
