import torch

from transmamba.models import vmamba_v0, vmamba_v2


def test_every_stage_halves_the_map():
    model = vmamba_v2((8, 12, 16), (1, 2, 1), num_classes=5).eval()
    x = torch.randn(2, 3, 48, 37)
    features = model.forward_features(x)
    assert features.grids == ((12, 10), (6, 5), (6, 5), (3, 3)) and features.grid == (3, 3)
    assert [layer.shape[-1] for layer in features.layers] == [8, 12, 12, 16]


def test_intermediates_are_the_ends_of_the_stages():
    model = vmamba_v0((8, 12), (2, 1), num_classes=5).eval()
    x = torch.randn(2, 3, 24, 20)
    layers = model.forward_features(x).layers
    last, stages = model.forward_intermediates(x, [0, 1])
    torch.testing.assert_close(stages, [layers[1], layers[2]])
    torch.testing.assert_close(last, model.norm(layers[2]))


def test_the_versions_differ_in_gate_and_mlp():
    old, new = vmamba_v0((8,), (1,)), vmamba_v2((8,), (1,), expand=1.0)
    assert old.stages[0].blocks[0].mlp is None and old.stages[0].blocks[0].mixer.in_proj.out_features == 32
    assert new.stages[0].blocks[0].mlp is not None and new.stages[0].blocks[0].mixer.in_proj.out_features == 8


def test_drop_path_rises_over_all_stages():
    model = vmamba_v2((8, 12), (2, 2), drop_path=0.3)
    rates = [block.drop_path.rate for stage in model.stages for block in stage.blocks]
    torch.testing.assert_close(torch.tensor(rates), torch.tensor([0.0, 0.1, 0.2, 0.3]))
