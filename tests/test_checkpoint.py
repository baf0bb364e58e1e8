"""Checkpoints as files, folders and state dicts; hostile files are in tests/hardening/test_checkpoints.py."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from transmamba import transfer
from transmamba._checkpoint import (
    FLOATING,
    FLOATING_CODES,
    LazyTensors,
    indexed_files,
    load_json,
    named_tensors,
    open_safetensors,
    read,
    read_checkpoint,
    shape_of,
    strip_prefixes,
)


@pytest.fixture
def tensors():
    return {"one": torch.arange(6.0).view(2, 3), "two": torch.tensor([1.5, -2.0])}


@pytest.fixture
def folder(tensors, tmp_path):
    """Write two shards, their index, and a third file that the index does not name."""
    save_file({"one": tensors["one"]}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"two": tensors["two"]}, tmp_path / "model-00002-of-00002.safetensors")
    save_file({"layers.0.weight": torch.ones(1)}, tmp_path / "consolidated.safetensors")
    index = {f"{name}": f"model-0000{i}-of-00002.safetensors" for i, name in enumerate(tensors, 1)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return tmp_path


def test_a_folder_is_read_by_its_index_with_its_config(folder, tensors):
    lazy = open_safetensors(folder)
    assert lazy.keys() == tensors.keys() and all(torch.equal(lazy[name], value) for name, value in tensors.items())
    assert lazy.config == {"model_type": "llama"}
    assert transfer.open_safetensors is open_safetensors


def test_without_an_index_every_file_of_the_folder_is_read(folder):
    (folder / "model.safetensors.index.json").unlink()
    assert indexed_files(folder) == []
    assert sorted(open_safetensors(folder)) == ["layers.0.weight", "one", "two"]


def test_files_have_no_config(folder, tensors):
    lazy = LazyTensors(*indexed_files(folder))
    assert lazy.config is None and lazy.keys() == tensors.keys()


def test_two_configs_are_refused(folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    save_file({"three": torch.ones(1)}, other / "model.safetensors")
    assert sorted(open_safetensors(folder, other)) == ["one", "three", "two"]
    (other / "config.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"expected the config\.json of one checkpoint, got .*config\.json and .*other"
    ):
        open_safetensors(folder, other)


def test_a_damaged_config_or_index_is_refused_by_name(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"cannot read .*config\.json"):
        open_safetensors(folder)
    for parts in ({"one": "../one.safetensors"}, {"one": 3}, ["one"], None):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
        with pytest.raises(ValueError, match="expected weight_map, from names to files of the same folder"):
            open_safetensors(folder)


def test_a_shard_that_is_missing_is_named(folder):
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint .*model-00002-of-00002\.safetensors"):
        open_safetensors(folder)


@pytest.mark.parametrize(("dtype", "code"), [*zip(FLOATING, FLOATING_CODES, strict=True)])
def test_the_header_names_the_format(dtype, code, tmp_path):
    save_file({"x": torch.ones(2, 0, 3, dtype=dtype)}, tmp_path / "x.safetensors")
    lazy = open_safetensors(tmp_path / "x.safetensors")
    assert (lazy.dtype("x"), lazy.shape("x"), shape_of(lazy, "x")) == (code, (2, 0, 3), (2, 0, 3))
    assert lazy["x"].dtype is dtype


def test_an_unknown_name_is_a_key_error(folder):
    lazy = open_safetensors(folder)
    assert "three" not in lazy and lazy.get("three") is None
    for ask in (lazy.__getitem__, lazy.shape, lazy.dtype):
        with pytest.raises(KeyError, match="three"):
            ask("three")


def test_tensors_of_modules_are_the_parameters_themselves(tensors):
    linear = nn.Linear(3, 2)
    assert named_tensors(linear)["weight"] is linear.weight and named_tensors(tensors) is tensors
    assert shape_of(tensors, "one") == (2, 3)
    assert not read(named_tensors(linear), "weight").requires_grad


def test_wrappers_prefixes_and_averages(tensors):
    given = {
        "epoch": 3,
        "model": {"module.one": tensors["one"], "backbone.two": tensors["two"], "ema_one": tensors["two"]},
    }
    found = read_checkpoint(given)
    assert found.keys() == tensors.keys() and all(found[name] is value for name, value in tensors.items())
    assert strip_prefixes("module._orig_mod.encoder.blocks.0.model.weight") == "blocks.0.model.weight"


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ({3: torch.ones(1)}, TypeError, "state dict keys must be strings, got int: 3"),
        ({"a": 3}, TypeError, "a in the state dict is not a tensor but int"),
        ({"a": torch.ones(1), "module.a": torch.ones(1)}, ValueError, "module.a and another name in the state dict"),
        ([torch.ones(1)], TypeError, "expected a state dict or the path of one, got a list"),
    ],
)
def test_what_is_no_state_dict_is_refused(source, error, message):
    with pytest.raises(error, match=message):
        read_checkpoint(source)


def test_json_that_is_no_object_is_refused(tmp_path):
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"a\.json: expected an object, it holds a list"):
        load_json(tmp_path / "a.json")
    with pytest.raises(FileNotFoundError):
        load_json(tmp_path / "b.json")
