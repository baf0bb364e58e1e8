"""Models come back from a folder, and from a hub, as they were saved."""

import copy
import json
import pickle
import sys
import types
from functools import partial

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from tests.contracts.backbones import BACKBONES, build
from tests.golden import golden
from transmamba import models
from transmamba.models.config import BUILDERS, rebuild
from transmamba.models.pretrained import Pretrained
from transmamba.nn import Attention, HeadSSM, Mamba2Mixer, Mamba3Mixer, MambaMixer, TransformerBlock


@pytest.mark.parametrize("name", BACKBONES)
def test_a_model_comes_back_from_its_folder(name, tmp_path):
    model, x = build(name)
    model.save_pretrained(tmp_path / "model")
    again = type(model).from_pretrained(tmp_path / "model")
    assert not again.training and torch.equal(again(x), model(x))
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]
    again.save_pretrained(tmp_path / "again")
    for part in ("config.json", "model.safetensors"):
        assert (tmp_path / "model" / part).read_bytes() == (tmp_path / "again" / part).read_bytes()
    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as file:  # others ask for the framework
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("case", ["vim_a", "plainmamba_a", "vmamba_a_v0", "videomamba_a_video"])
def test_an_official_model_comes_back_with_its_official_names(case, tmp_path):
    data = golden(case)
    model = models.from_official(data.meta["family"], data.meta["config"], data.part("param"), num_classes=3)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(str(tmp_path))
    official, expected = models.to_official(again), models.to_official(model)
    assert official.keys() == expected.keys()
    assert all(torch.equal(official[name], expected[name]) for name in expected)


def test_it_stays_what_it_is_in_another_dtype(tmp_path):
    model = build("vim")[0].bfloat16()
    model.save_pretrained(tmp_path)
    assert {p.dtype for p in models.Vim.from_pretrained(tmp_path).parameters()} == {torch.bfloat16}


def test_copies_remember_how_they_were_built():
    model, _ = build("vmamba_v0")
    assert pickle.loads(pickle.dumps(model)).build_config == model.build_config
    assert model.build_config["build"] == "vmamba_v0"


def test_without_safetensors_torch_writes_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr("transmamba.models.pretrained.find_spec", lambda name: None)
    model, x = build("vim")
    model.save_pretrained(tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    assert torch.equal(models.Vim.from_pretrained(tmp_path)(x), model(x))


class Tied(Pretrained, nn.Module):
    """A model of the user whose two layers share their weight."""

    def __init__(self, dim, *, scale=1.0):
        super().__init__()
        self.first, self.second, self.scale = nn.Linear(dim, dim), nn.Linear(dim, dim, bias=False), scale
        self.second.weight = self.first.weight


def test_ones_own_model_comes_back_and_what_was_shared_is(tmp_path):
    model = Tied(3, scale=2.0)
    model.save_pretrained(tmp_path)
    again = Tied.from_pretrained(tmp_path)
    assert again.scale == 2.0 and again.second.weight is again.first.weight
    assert torch.equal(again.first.weight, model.first.weight)
    with pytest.raises(ValueError, match="cannot build 'Tied': it is neither Vim nor registered with trans"):
        models.Vim.from_pretrained(tmp_path)


def test_another_class_is_refused(tmp_path):
    build("vim")[0].save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a Vim, not a PlainMamba"):
        models.PlainMamba.from_pretrained(tmp_path)


def test_names_that_are_not_public_are_refused(tmp_path):
    build("vim")[0].save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"build": "__import__", "arguments": {"name": "os"}}))
    with pytest.raises(ValueError, match="cannot build '__import__'"):
        models.Vim.from_pretrained(tmp_path)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no model: expected config.json and model.safetensors or"):
        models.Vim.from_pretrained(tmp_path)


def test_arguments_that_are_modules_are_refused(tmp_path):
    model = models.VMamba((8,), (1,), stem=nn.Identity(), block=lambda dim, rate: nn.Identity(), downsample=nn.Identity)
    message = r"cannot write the config\.json of this VMamba: stem is of type Identity: .*; register a function"
    for one in (model, copy.deepcopy(model)):
        with pytest.raises(ValueError, match=message):
            one.save_pretrained(tmp_path / "model")
    assert copy.deepcopy(model).build_config is None and not (tmp_path / "model").exists()


class Mixture(Pretrained, nn.Module):
    """A model of the user that takes one builder of mixers per layer."""

    def __init__(self, dim, *, mixer, **others):
        super().__init__()
        self.mixers, self.others = nn.ModuleList(build(dim) for build in mixer), others

    def forward(self, x):
        for mixer in self.mixers:
            x = x + mixer(x)
        return x


@models.register
class OwnMixer(MambaMixer):
    """A mixer of the user."""

    def __init__(self, d_model, *, rope):
        super().__init__(d_model, d_state=len(rope))
        self.rope = rope


@models.register
def grouped(d_model, *, groups=2):
    """Build a Mamba-2 with a part that is not plain data."""
    return Mamba2Mixer(d_model, head_dim=4, ssm=HeadSSM(2 * d_model // 4, 4, d_state=8, groups=groups))


LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
MIXERS = {
    "class": MambaMixer,
    "state size": partial(MambaMixer, d_state=8),
    "Mamba-2": partial(Mamba2Mixer, d_state=6, head_dim=4),
    "Mamba-3": partial(Mamba3Mixer, d_state=6, head_dim=4),
    "attention": partial(Attention, heads=2, causal=True, rope=LLAMA_3),
    "own": partial(OwnMixer, rope={"theta": 1e4, "factors": [1.0, 2.0]}),
    "function": partial(grouped, groups=4),
}


def comes_back(model, folder, *inputs):
    """Return the model from its folder, after a check that it is the same."""
    model.eval().save_pretrained(folder)
    again = type(model).from_pretrained(folder)
    assert again.build_config == model.build_config == json.loads((folder / "config.json").read_text())
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    assert torch.equal(again(*inputs), model(*inputs))
    return again


@pytest.mark.parametrize("name", MIXERS)
def test_a_language_model_of_any_mixer_comes_back(name, tmp_path):
    model = models.MambaLM(11, 8, depth=2, mixer=MIXERS[name])
    again = comes_back(model, tmp_path, torch.tensor([[1, 2, 3]]))
    assert type(again.blocks[0].mixer) is type(model.blocks[0].mixer)


def test_a_language_model_of_all_mixers_comes_back_and_goes_on(tmp_path):
    model = models.MambaLM(11, 8, depth=len(MIXERS), mixer=list(MIXERS.values()))
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(comes_back(model, tmp_path, ids).generate(ids, 5), model.generate(ids, 5))


def test_an_image_model_of_two_mixers_comes_back(tmp_path):
    attention = partial(Attention, heads=3, rope={"rope_theta": 100.0, "grid": (2, 2)})
    parts = {"mixer": [attention, partial(MambaMixer, directions=2)], "block": partial(TransformerBlock, hidden_dim=7)}
    model = models.ViT(8, 4, dim=12, depth=2, num_classes=5, **parts)
    assert comes_back(model, tmp_path, torch.randn(2, 3, 8, 8)).blocks[0].mlp.fc1.out_features == 7


def test_a_translated_teacher_comes_back(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 3}
    llama = transformers.LlamaConfig(**sizes, vocab_size=11, num_key_value_heads=1, rope_parameters=LLAMA_3)
    language = models.from_transformer(transformers.LlamaForCausalLM(llama))
    comes_back(language, tmp_path / "language", torch.tensor([[1, 2, 3]]))
    dino = transformers.Dinov2WithRegistersConfig(**sizes, image_size=28, patch_size=14)
    images = models.from_transformer(transformers.Dinov2WithRegistersModel(dino))
    comes_back(images, tmp_path / "images", torch.randn(1, 3, 28, 28))


def test_a_mixture_of_ones_own_comes_back(tmp_path):
    model = Mixture(8, mixer=list(MIXERS.values()), scale=2.0, names=("a", "b"))
    again = comes_back(model, tmp_path, torch.randn(2, 5, 8))
    assert [type(mixer) for mixer in again.mixers] == [type(mixer) for mixer in model.mixers]
    assert again.mixers[5].rope == {"theta": 1e4, "factors": [1.0, 2.0]}
    assert again.others == {"scale": 2.0, "names": ("a", "b")}


def test_a_size_with_another_mixer_comes_back():
    with torch.device("meta"):
        model = models.mamba2_130m(mixer=partial(Mamba2Mixer, d_state=16))
        assert model.build_config["arguments"] == {"mixer": {"build": "Mamba2Mixer", "arguments": {"d_state": 16}}}
        assert rebuild(model.build_config, {}, models.MambaLM).blocks[5].mixer.ssm.d_state == 16


def test_an_unregistered_mixer_is_refused_by_its_place(tmp_path):
    class Unregistered(MambaMixer):
        pass

    model = Mixture(8, mixer=[MambaMixer, partial(Unregistered, d_state=3)])
    with pytest.raises(ValueError, match=r"config\.json of this Mixture: mixer\[1\] is .*Unregistered, which is not"):
        model.save_pretrained(tmp_path)
    models.register(Unregistered)
    try:
        comes_back(Mixture(8, mixer=[MambaMixer, partial(Unregistered, d_state=3)]), tmp_path, torch.randn(1, 3, 8))
    finally:
        del BUILDERS["Unregistered"]
    with pytest.raises(ValueError, match="cannot build 'Unregistered': it is not registered .* import the file"):
        Mixture.from_pretrained(tmp_path)


class Unnamed(Pretrained, nn.Module):
    """A model of the user with arguments that have no names."""

    def __init__(self, *sizes):
        super().__init__()
        self.sizes = sizes


def test_arguments_without_names_are_refused(tmp_path):
    comes = Unnamed()
    assert comes.build_config == {"build": "Unnamed", "arguments": {}}
    with pytest.raises(ValueError, match=r"\*sizes has arguments without names: give each of them a name"):
        Unnamed(3, 4).save_pretrained(tmp_path)


def test_a_configuration_that_is_no_plain_data_is_refused_when_saved(tmp_path):
    data = golden("vim_a")
    model = models.from_official("vim", {**data.meta["config"], "dtype": torch.float32}, data.part("param"))
    with pytest.raises(ValueError, match=r"this Vim: config\['dtype'\] is of type dtype: a dictionary may hold"):
        model.save_pretrained(tmp_path)


OLD = {
    "class": ({"build": "Vim", "arguments": {"img_size": [8, 12], "patch_size": 4, "dim": 12, "depth": 1}},
              lambda: models.Vim((8, 12), 4, dim=12, depth=1)),
    "orders": ({"build": "VisionMamba", "arguments": {"img_size": 8, "patch_size": 4, "dim": 12, "depth": 1,
                                                      "orders": ["snake", [3, 1, 2, 0]]}},
               lambda: models.VisionMamba(8, 4, dim=12, depth=1, orders=("snake", [3, 1, 2, 0]))),
    "function": ({"build": "vmamba_v2", "arguments": {"dims": [8, 12], "depths": [1, 1], "d_state": 1, "expand": 2.0}},
                 lambda: models.vmamba_v2((8, 12), (1, 1))),
    "from_hf": ({"build": "from_hf", "arguments": {"config": {
        "model_type": "mamba", "hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 11, "state_size": 3}}},
        lambda: models.from_hf({"model_type": "mamba", "hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 11,
                                "state_size": 3})),
    "family": ({"family": "mamba_lm", "config": {"d_model": 8, "n_layer": 1, "vocab_size": 11,
                                                 "ssm_cfg": {"layer": "Mamba2", "headdim": 4}}}, None),
}  # fmt: skip


@pytest.mark.parametrize("name", OLD)
def test_what_earlier_versions_wrote_is_read(name, tmp_path):
    build_config, build = OLD[name]
    if build is None:
        with torch.device("meta"):
            empty = rebuild(build_config, {}, models.MambaLM)
        state = {key: torch.randn(value.shape) for key, value in empty.state_dict().items()}
    else:
        state = build().state_dict()
    untied = {key: value for key, value in state.items() if key != "head.weight" or "embedding.weight" not in state}
    save_file(untied, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(build_config))
    model = models.Pretrained.from_pretrained(tmp_path)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items() if key in untied)
    model.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == build_config


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Put a folder in the place of the hub."""
    fake = types.ModuleType("huggingface_hub")
    fake.asked = []

    def upload_folder(repo_id, folder_path, commit_message):
        import shutil

        shutil.copytree(folder_path, tmp_path / repo_id)

    def snapshot_download(repository, revision, allow_patterns):
        fake.asked.append((repository, revision))
        return str(tmp_path / repository)

    fake.create_repo = lambda repository, private, exist_ok: fake.asked.append((repository, private))
    fake.upload_folder, fake.snapshot_download = upload_folder, snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    return fake


def test_a_model_goes_to_the_hub_and_back(hub):
    model, x = build("vim")
    model.push_to_hub("someone/vim", private=True)
    again = models.Vim.from_pretrained("someone/vim", revision="v1")
    assert torch.equal(again(x), model(x))
    assert hub.asked == [("someone/vim", True), ("someone/vim", "v1")]


def test_without_huggingface_hub_there_is_no_hub(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for call in (lambda: build("vim")[0].push_to_hub("someone/vim"), lambda: models.Vim.from_pretrained("someone/vim")):
        with pytest.raises(ImportError, match=r"pip install transmamba\[hub\]"):
            call()
