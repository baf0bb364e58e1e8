"""Models and parts by their registered names."""

import inspect
import pickle

import pytest
import torch
from torch import nn

import transmamba.nn
from transmamba import models
from transmamba.models.config import BUILDERS
from transmamba.models.pretrained import Pretrained

# the models of transformers that are teachers of the paper
OTHERS = {"clip_vit_l14", "llava_llama_1b", "llava_llama_3b", "trans_llava_600m"}


@pytest.fixture(autouse=True)
def registry():
    """Remove the names that a test registers when it ends."""
    before = dict(BUILDERS)
    yield BUILDERS
    BUILDERS.clear()
    BUILDERS.update(before)


def test_every_size_function_is_listed_under_its_name():
    kinds = ("vim_", "vit_", "vmamba_", "plain_mamba_", "video_mamba_", "mamba_", "mamba2_", "clip_vit_", "llava_")
    functions = {name for name, value in vars(models).items() if inspect.isfunction(value)}
    sizes = {name for name in functions if name.startswith((*kinds, "trans_llava_"))}
    assert sizes - set(models.list_models()) == {"vmamba_v0", "vmamba_v2"}  # widths and depths are their arguments
    assert len(sizes) == 43 and set(models.list_models()) <= sizes


def test_listed_names_are_those_functions():
    assert all(getattr(models, name) is BUILDERS[name] for name in models.list_models())


@pytest.mark.parametrize(
    "name", ["vim_tiny", "vit_tiny", "plain_mamba_l1", "video_mamba_tiny", "vmamba_v0_tiny", "mamba2_130m"]
)
def test_a_created_model_is_what_its_function_builds(name):
    with torch.device("meta"):
        created, built = models.create(name), getattr(models, name)()
    assert type(created) is type(built)
    shapes = [{key: value.shape for key, value in model.state_dict().items()} for model in (created, built)]
    assert shapes[0] == shapes[1]
    assert created.build_config == built.build_config == {"build": name, "arguments": {}}


def test_create_passes_options_on():
    model = models.create("vit_tiny", img_size=8, patch_size=4, num_classes=5)
    assert model.head.weight.shape == (5, 192) and model.grid == (2, 2)
    assert model.build_config == {"build": "vit_tiny", "arguments": {"img_size": 8, "patch_size": 4, "num_classes": 5}}
    with pytest.raises(TypeError, match="colour"):
        models.create("vit_tiny", colour=3)


def test_every_class_of_models_that_can_be_saved_is_registered():
    savable = {
        name: value
        for name, value in vars(models).items()
        if inspect.isclass(value) and issubclass(value, Pretrained) and value is not Pretrained
    }
    assert savable and all(BUILDERS[name] is value for name, value in savable.items())
    assert isinstance(models.create("ViT", img_size=8, patch_size=4, depth=1), models.ViT)


def test_every_module_of_nn_is_registered():
    modules = [v for v in vars(transmamba.nn).values() if inspect.isclass(v) and issubclass(v, nn.Module)]
    assert len(modules) > 20 and all(BUILDERS[module.__name__] is module for module in modules)
    assert models.create("MambaMixer", d_model=8, d_state=3).branches[0].ssm.A_log.shape == (16, 3)


def test_names_are_listed_by_pattern_and_sorted():
    assert models.list_models("vim*") == ["vim_base", "vim_small", "vim_small_stride8", "vim_tiny", "vim_tiny_stride8"]
    assert models.list_models("VIM*") == models.list_models("") == []
    assert models.list_models("mamba2_*0m") == ["mamba2_130m", "mamba2_370m", "mamba2_780m"]
    names = models.list_models()
    assert names == sorted(names) and OTHERS <= set(names)
    assert not {"Vim", "MambaMixer", "from_hf", "vmamba_v2"} & set(names)


def test_an_unknown_name_has_a_hint():
    with pytest.raises(ValueError, match=r"unknown model 'vim_tinny': did you mean vim_tiny.*list_models\(\) has all"):
        models.create("vim_tinny")
    with pytest.raises(ValueError, match=r"unknown model '\?': transmamba\.models\.list_models\(\) has all names"):
        models.create("?")


def test_nothing_that_reads_a_path_is_registered():
    public = {models.from_official, models.from_hf, models.Pretrained.from_pretrained}
    assert not public & {inspect.unwrap(builder) for builder in BUILDERS.values() if not inspect.isclass(builder)}
    for name, builder in BUILDERS.items():
        kinds = str([parameter.annotation for parameter in inspect.signature(builder).parameters.values()])
        assert "Path" not in kinds and "path" not in inspect.signature(builder).parameters, name
    for config in ("/etc/passwd", torch, ["x"]):
        with pytest.raises(ValueError, match="cannot build 'from_hf': config must be the content of a config.json"):
            models.create("from_hf", config=config)


def test_ones_own_functions_and_classes_join(registry):
    @models.register
    class Own(Pretrained, nn.Module):
        def __init__(self, dim=2):
            super().__init__()
            self.linear = nn.Linear(dim, dim)

    @models.register("own_wide")
    def wide(dim: int = 5) -> Own:
        """Build a wide one."""
        return Own(dim)

    assert registry["Own"] is Own and wide.__name__ == "wide" and wide.__doc__ == "Build a wide one."
    assert models.list_models("own*") == ["own_wide"]
    assert models.create("own_wide").build_config == {"build": "own_wide", "arguments": {"dim": 5}}
    assert (
        wide(7).build_config
        == models.create("own_wide", dim=7).build_config
        == {"build": "own_wide", "arguments": {"dim": 7}}
    )
    assert models.create("Own", dim=3).build_config == Own(3).build_config == {"build": "Own", "arguments": {"dim": 3}}


def test_a_model_is_the_call_of_the_outermost_registered_function():
    @models.register
    def shifted(**options):
        model = models.vim_tiny(img_size=8, patch_size=4, **options)
        model.norm.eps = 0.5  # Vim's own arguments do not have this
        return model

    assert shifted(num_classes=2).build_config == {"build": "shifted", "arguments": {"num_classes": 2}}


def test_a_function_that_returns_no_model_of_ours_stays_as_it_is():
    @models.register
    def from_both_ends(dim: int) -> nn.Module:
        return transmamba.nn.MambaMixer(dim, directions=2, average=True)

    mixer = from_both_ends(4)
    assert mixer.average and not hasattr(mixer, "build_config")


def test_a_cell_that_runs_again_replaces_its_class_and_others_are_refused(registry):
    def cell():
        @models.register
        class Again(nn.Module):
            pass

        return Again

    first, latest = cell(), cell()
    assert first is not latest and registry["Again"] is latest
    with pytest.raises(
        ValueError, match=r"'Vim' is registered already, for transmamba\.models\.vim\.Vim: choose anoth"
    ):
        models.register("Vim")(latest)
    assert registry["Vim"] is models.Vim


@pytest.mark.parametrize("what", [3, None, nn.Identity(), ["Vim"]])
def test_other_things_are_not_registered(what):
    with pytest.raises(TypeError, match="register takes a class, a function or a name, got"):
        models.register(what)
    with pytest.raises(TypeError, match="register takes a class, a function or a name, got"):
        models.register("a name")(what)


def test_registered_functions_can_be_pickled():
    assert pickle.loads(pickle.dumps(models.vim_tiny)) is models.vim_tiny
