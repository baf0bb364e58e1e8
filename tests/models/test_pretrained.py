"""Models come back from a folder, and from a hub, as they were saved."""

import copy
import json
import pickle
import sys
import types

import pytest
import torch
from torch import nn

from tests.contracts.backbones import BACKBONES, build
from tests.golden import golden
from transmamba import models
from transmamba.models.pretrained import Pretrained


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
    assert pickle.loads(pickle.dumps(model)).recipe == model.recipe
    assert model.recipe["build"] == "vmamba_v0"


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
    with pytest.raises(ValueError, match="cannot build 'Tied': it is neither Vim nor a name of transmamba.models"):
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
    with pytest.raises(ValueError, match="built with modules or functions, which cannot be written: build it with one"):
        model.save_pretrained(tmp_path)
    assert copy.deepcopy(model).recipe is None


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub in a folder."""
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
