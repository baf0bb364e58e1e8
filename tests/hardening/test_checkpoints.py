"""Damaged, truncated and hostile checkpoints: an error that names the file, and nothing in it is run."""

import json
import os
import pickle
import struct
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from tests.golden import golden
from transmamba import models
from transmamba.models import from_hf, from_official
from transmamba.transfer import open_safetensors, subclone

SUFFIXES = (".safetensors", ".pth")


@pytest.fixture(scope="module")
def vim():
    data = golden("vim_a")
    return data.meta["config"], data.part("param")


@pytest.fixture
def files(vim, tmp_path):
    """Write the same weights in both formats."""
    save_file(vim[1], tmp_path / "vim.safetensors")
    torch.save(vim[1], tmp_path / "vim.pth")
    return {suffix: tmp_path / f"vim{suffix}" for suffix in SUFFIXES}


def header(content, size=None):
    """Return the beginning of a safetensors file."""
    text = json.dumps(content).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text


HOSTILE = {
    "absurd size of the header": header({}, 2**62),
    "header of 99 MB that is not there": header({}, 99_000_000),
    "no header": b"\x00" * 3,
    "header that is not JSON": struct.pack("<Q", 8) + b"{{{{{{{{",
    "header that is a list": header([1, 2]),
    "numbers beyond the file": header({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}),
    "offsets that run backwards": header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}) + b"\x00" * 4,
    "negative offsets": header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}) + b"\x00" * 4,
    "two tensors in one place": header({
        "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
    }) + b"\x00" * 12,
    "a shape that overflows": header({"a": {"dtype": "F32", "shape": [2**40] * 2, "data_offsets": [0, 4]}}) + bytes(4),
    "an unknown format": header({"a": {"dtype": "Z9", "shape": [1], "data_offsets": [0, 4]}}) + b"\x00" * 4,
}  # fmt: skip


@pytest.mark.parametrize("how", HOSTILE)
def test_a_hostile_safetensors_file_is_refused_by_name(how, tmp_path):
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(HOSTILE[how])
    for read in (lambda: from_official("vim", {}, path), lambda: open_safetensors(path)):
        with pytest.raises(ValueError, match=r"cannot read .*hostile\.safetensors"):
            read()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_refused_by_name(suffix, share, files, vim):
    content = files[suffix].read_bytes()
    files[suffix].write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=rf"cannot read .*vim\{suffix}"):
        from_official("vim", vim[0], files[suffix])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_bytes_that_were_changed_end_in_documented_errors_or_in_other_numbers(suffix, files, vim):
    content = bytearray(files[suffix].read_bytes())
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        changed = bytearray(content)
        for place in torch.randint(len(content) if torch.rand((), generator=generator) < 0.5 else 2000, (4,),
                                   generator=generator).tolist():  # fmt: skip
            changed[place] = int(torch.randint(256, (), generator=generator))
        files[suffix].write_bytes(changed)
        try:
            from_official("vim", vim[0], files[suffix])
        except (ValueError, TypeError) as error:
            assert str(error)


class Evil:
    """An object that runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt", ".tar"])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(suffix, tmp_path):
    trace = tmp_path / "it_ran"
    torch.save({"model": Evil(trace)}, tmp_path / f"zip{suffix}")
    torch.save({"model": Evil(trace)}, tmp_path / f"old{suffix}", _use_new_zipfile_serialization=False)
    (tmp_path / f"plain{suffix}").write_bytes(pickle.dumps(Evil(trace)))
    for name in ("zip", "old", "plain"):
        with pytest.raises(ValueError, match=rf"cannot read .*{name}\{suffix}"):
            from_official("vim", {}, tmp_path / f"{name}{suffix}")
    assert not trace.exists()


def test_a_pickle_named_safetensors_is_no_pickle(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(pickle.dumps(Evil(tmp_path / "it_ran")))
    with pytest.raises(ValueError, match="cannot read"):
        from_official("vim", {}, tmp_path / "a.safetensors")
    assert not (tmp_path / "it_ran").exists()


def test_an_archive_that_is_no_checkpoint_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("../../outside", "x")
    with pytest.raises(ValueError, match=r"cannot read .*a\.pth"):
        from_official("vim", {}, tmp_path / "a.pth")
    torch.save([torch.ones(2)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"expected names and tensors, it holds a list"):
        from_official("vim", {}, tmp_path / "list.pth")


def test_a_file_that_changes_later_leaves_the_loaded_model_alone(tmp_path):
    models.VisionMamba(8, 4, dim=12, depth=1, num_classes=5).save_pretrained(tmp_path)
    model = models.VisionMamba.from_pretrained(tmp_path)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    file = tmp_path / "model.safetensors"
    with file.open("r+b") as opened:
        opened.seek(file.stat().st_size - 400)
        opened.write(bytes(400))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    changed = models.VisionMamba.from_pretrained(tmp_path).state_dict()
    assert not all(torch.equal(changed[name], value) for name, value in before.items())


def test_links_are_followed_and_loose_ends_are_named(files, vim, tmp_path):
    (tmp_path / "link.safetensors").symlink_to(files[".safetensors"])
    assert isinstance(from_official("vim", vim[0], tmp_path / "link.safetensors"), models.Vim)
    (tmp_path / "loose.pth").symlink_to(tmp_path / "nowhere.pth")
    (tmp_path / "round.pth").symlink_to(tmp_path / "round.pth")
    for name in ("loose", "missing"):
        with pytest.raises(FileNotFoundError, match=rf"there is no checkpoint .*{name}\.pth"):
            from_official("vim", vim[0], tmp_path / f"{name}.pth")
    with pytest.raises(OSError, match="round"):
        from_official("vim", vim[0], tmp_path / "round.pth")
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        open_safetensors(tmp_path / "missing.safetensors")


def test_a_folder_for_a_file_and_a_file_for_a_folder(files, tmp_path):
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(ValueError, match=r"folder\.pth: it is a folder"):
        from_official("vim", {}, tmp_path / "folder.pth")
    with pytest.raises(ValueError, match="is a file: expected the folder that save_pretrained wrote"):
        models.Vim.from_pretrained(files[".pth"])
    with pytest.raises(OSError):
        from_hf(files[".pth"])


def test_whole_numbers_for_weights_are_refused(vim):
    config, state = vim
    for dtype in (torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn):
        with pytest.raises(ValueError, match=r"wrong dtype: head\.bias is torch\."):
            from_official("vim", config, {**state, "head.bias": state["head.bias"].to(dtype)})


def test_numbers_are_not_looked_at(vim):
    config, state = vim
    model = from_official("vim", config, {**state, "head.bias": state["head.bias"] * torch.nan})
    assert model.head.bias.isnan().all()
    with torch.no_grad():
        teacher = {name: value * torch.nan for name, value in model.state_dict().items()}
    student = from_official("vim", config, state)
    subclone(teacher, student, {}, exclude=[])
    assert student.norm.weight.isnan().all()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "cannot read .*config.json"),
        ("[1]", "expected an object, it holds a list"),
        ("{}", "does not say what to build"),
        ('{"build": "Vim"}', "does not say what to build"),
        ('{"build": ["Vim"], "arguments": {}}', "does not say what to build"),
        ('{"family": "gpt", "config": {}}', "names no official family"),
        ('{"family": "vim", "config": 3}', "names no official family"),
        ('{"build": "from_official", "arguments": {"family": "vim", "state_dict": "x.pth"}}', "cannot build"),
        ('{"build": "from_hf", "arguments": {"config": "/etc"}}', "cannot build 'from_hf'"),
        ('{"build": "from_hf", "arguments": {"config": {"model_type": "/etc"}}}', "model_type must be one of mamba"),
        ('{"build": "from_pretrained", "arguments": {"source": "/etc"}}', "cannot build 'from_pretrained'"),
        ('{"build": "register", "arguments": {"builder": "x"}}', "cannot build 'register'"),
        ('{"build": "__import__", "arguments": {"name": "os"}}', "cannot build '__import__'"),
        ('{"build": "MambaMixer", "arguments": {"d_model": 8}}', "holds a MambaMixer, not a Vim"),
        ('{"build": "MambaLM", "arguments": {"vocab_size": 8, "dim": 8, "depth": 1, "mixer": {"build": "os.system",'
         '"arguments": {"command": "x"}}}}', "cannot build 'os.system': it is not registered"),
        ('{"build": "MambaLM", "arguments": {"vocab_size": 8, "dim": 8, "depth": 1, "mixer": {"build": "from_official",'
         '"arguments": {"family": "vim", "config": {}}}}}', "cannot build 'from_official'"),
        ('{"build": "MambaLM", "arguments": {"mixer": {"build": "MambaMixer"}}}', "does not say what to build"),
        ('{"build": "Vim", "arguments": {"img_size": ' + "[" * 900 + "]" * 900 + "}}", "nested too deeply|cannot read"),
        ('{"build": "Vim", "arguments": {"dim": 0}}', "dim must be at least 1"),
        ('{"build": "Vim", "arguments": {"dim": 99999999999}}', "dim must be at most"),
        ('{"build": "Vim", "arguments": {"img_size": 8, "patch_size": 4}}', "do not fit config.json"),
        ("[" * 100_000, "cannot read .*config.json"),
    ],
)  # fmt: skip
def test_a_hostile_recipe_is_refused(config, message, tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match=message):
        models.Vim.from_pretrained(tmp_path)


def test_a_recipe_of_other_arguments_is_refused(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    for arguments in ({"width": 3}, {"dim": "192"}, {"depth": [2]}):
        (tmp_path / "config.json").write_text(json.dumps({"build": "Vim", "arguments": arguments}))
        with pytest.raises((TypeError, ValueError)):
            models.Vim.from_pretrained(tmp_path)


def test_an_index_that_names_files_elsewhere_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    for parts in ({"a": "../model.safetensors"}, {"a": "/etc/passwd"}, {"a": 3}, [1], None):
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
        with pytest.raises(ValueError, match="expected weight_map, from names to files of the same folder"):
            from_hf(tmp_path)


def test_a_configuration_that_lacks_entries_says_which():
    with pytest.raises(ValueError, match="lacks hidden_size, num_hidden_layers, vocab_size, state_size"):
        from_hf({"model_type": "mamba"})
    with pytest.raises(ValueError, match="lacks head_dim"):
        from_hf({"model_type": "mamba2", "hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 8, "state_size": 4,
                 "n_groups": 1})  # fmt: skip
