from functools import partial

import pytest
import torch
from torch import nn

from transmamba.models import MambaEncoder, MambaLM, ViT, replace_mixers
from transmamba.nn import Attention, Mamba2Mixer, Mamba3Mixer, MambaMixer


def language_model(**options):
    return MambaLM(16, 12, depth=3, mixer=partial(Attention, heads=2, causal=True), **options)


def test_all_other_weights_are_copies():
    model = language_model().double().eval()
    hybrid = replace_mixers(model, {1: partial(MambaMixer, d_state=8)})
    assert [type(block.mixer) for block in hybrid.blocks] == [Attention, MambaMixer, Attention]
    assert not hybrid.training and hybrid.head.weight is hybrid.embedding.weight
    ours, theirs = hybrid.state_dict(), model.state_dict()
    for name in ours.keys() & theirs.keys():
        assert torch.equal(ours[name], theirs[name]) and ours[name].data_ptr() != theirs[name].data_ptr()
    assert {name.split(".")[1] for name in ours.keys() ^ theirs.keys()} == {"1"}
    assert {tensor.dtype for tensor in ours.values()} == {torch.float64}


def test_the_same_mixer_is_new_as_well():
    model = language_model()
    hybrid = replace_mixers(model, {0: partial(Attention, heads=2, causal=True)})
    assert not torch.equal(hybrid.blocks[0].mixer.qkv.weight, model.blocks[0].mixer.qkv.weight)
    assert torch.equal(hybrid.blocks[1].mixer.qkv.weight, model.blocks[1].mixer.qkv.weight)


def test_a_hybrid_is_saved_and_changed_again(tmp_path):
    hybrid = replace_mixers(language_model().eval(), {1: partial(MambaMixer, d_state=8)})
    hybrid.save_pretrained(tmp_path)
    ids = torch.arange(7)[None]
    again = MambaLM.from_pretrained(tmp_path)
    assert torch.equal(again(ids), hybrid(ids))
    more = replace_mixers(again, {2: partial(Mamba2Mixer, d_state=4, head_dim=4)})
    assert [type(block.mixer) for block in more.blocks] == [Attention, MambaMixer, Mamba2Mixer]
    assert more.blocks[1].mixer.branches[0].ssm.A_log.shape == (24, 8)


def test_a_vit_built_by_default():
    vit = ViT(8, 4, dim=12, depth=2, heads=3, num_classes=5).eval()
    hybrid = replace_mixers(vit, {1: partial(MambaMixer, directions=2)})
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(hybrid.forward_features(images).layers[0], vit.forward_features(images).layers[0])
    assert hybrid(images).shape == (2, 5)


@pytest.mark.parametrize(
    "mixer", [partial(Mamba2Mixer, d_state=4, head_dim=4), partial(Mamba3Mixer, d_state=4, head_dim=4), MambaMixer]
)
def test_orders_come_with_mixers_of_several_directions(mixer, tmp_path):
    vit = ViT(8, 2, dim=12, depth=2, heads=3, num_classes=5).eval()
    names = ("snake", "snake_reverse", "snake_column", "snake_column_reverse")
    four = partial(mixer, directions=4)
    hybrid = replace_mixers(vit, {0: four, 1: four}, orders=names, prefix_scan="middle")
    images = torch.randn(2, 3, 8, 8)
    features = hybrid.forward_features(images, directions=True)
    assert len(features.directions) == 4 and features.orders[0].index[8] == 0
    assert torch.equal(hybrid.patch_embed.proj.weight, vit.patch_embed.proj.weight)
    hybrid.save_pretrained(tmp_path)
    assert torch.equal(ViT.from_pretrained(tmp_path)(images), hybrid(images))


def test_options_change_no_weights():
    vit = ViT(8, 4, dim=12, depth=1, heads=3, num_classes=5)
    with pytest.raises(ValueError, match="registers would change the weight reg_token: give options that change none"):
        replace_mixers(vit, {}, registers=1)
    with pytest.raises(ValueError, match="img_size would change the weight pos_embed"):
        replace_mixers(vit, {}, img_size=16)
    with pytest.raises(ValueError, match="ViT takes no option 'order': expected some of"):
        replace_mixers(vit, {}, order=("forward",))


def test_clear_errors():
    with pytest.raises(ValueError, match="layer 3 does not exist: expected 0 to 2"):
        replace_mixers(language_model(), {3: MambaMixer})
    with pytest.raises(ValueError, match="MambaEncoder was not built with mixer="):
        replace_mixers(MambaEncoder(16, 12, depth=1), {0: MambaMixer})
    with pytest.raises(ValueError, match="Linear was not built with mixer="):
        replace_mixers(nn.Linear(2, 2), {0: MambaMixer})
    with pytest.raises(ValueError, match="not registered"):
        replace_mixers(language_model(), {0: lambda dim: MambaMixer(dim)})
