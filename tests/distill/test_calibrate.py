import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from transmamba.distill import FeatureCalibrator, LayerCalibrators

MODES = ("pad_mlp", "pad_linear", "linear", "mlp", "pad", "identity")


def randomised(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


@pytest.mark.parametrize("mode", ["pad_mlp", "pad_linear", "pad"])
@pytest.mark.parametrize(("pad", "left", "right"), [("right", 0, 4), ("center", 2, 2)])
def test_new_padded_calibrator_is_the_padding(mode, pad, left, right):
    x = torch.randn(2, 5, 3)
    assert torch.equal(FeatureCalibrator(3, 7, mode=mode, pad=pad)(x), F.pad(x, (left, right)))


def test_odd_zero_of_centred_padding_goes_right():
    assert torch.equal(
        FeatureCalibrator(2, 5, mode="pad", pad="center")(torch.ones(2)), torch.tensor([0.0, 1, 1, 0, 0])
    )


@pytest.mark.parametrize("pad", ["right", "center"])
@pytest.mark.parametrize("hidden", [None, 3])
def test_sliced_form_equals_padding_then_full_mlp(pad, hidden):
    calibrator = randomised(FeatureCalibrator(3, 7, pad=pad, hidden_dim=hidden))
    x = torch.randn(2, 5, 3, requires_grad=True)
    first, last = calibrator.maps
    left = 2 if pad == "center" else 0
    padded = F.pad(x, (left, 4 - left))
    full = F.linear(F.gelu(F.linear(padded, first.weight, first.bias)), last.weight, last.bias) + padded
    got = calibrator(x)
    torch.testing.assert_close(got, full)
    wanted = (x, *calibrator.parameters())
    direction = torch.randn_like(full)
    for ours, theirs in zip(
        torch.autograd.grad(got, wanted, direction), torch.autograd.grad(full, wanted, direction), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


PLACES = (6, 0, 4)


def spread(x):
    """Place student channel j at teacher channel PLACES[j] of 7."""
    y = torch.zeros(*x.shape[:-1], 7)
    for channel, place in enumerate(PLACES):
        y[..., place] = x[..., channel]
    return y


@pytest.mark.parametrize("mode", ["pad_mlp", "pad_linear", "pad"])
@pytest.mark.parametrize("pad", [PLACES, list(PLACES), torch.tensor(PLACES)], ids=["tuple", "list", "tensor"])
def test_new_calibrator_puts_channels_where_they_were_kept(mode, pad):
    x = torch.randn(2, 5, 3)
    assert torch.equal(FeatureCalibrator(3, 7, mode=mode, pad=pad)(x), spread(x))


@pytest.mark.parametrize("hidden", [None, 3])
def test_scattered_form_equals_padding_then_full_mlp(hidden):
    calibrator = randomised(FeatureCalibrator(3, 7, pad=PLACES, hidden_dim=hidden))
    x = torch.randn(2, 5, 3, requires_grad=True)
    first, last = calibrator.maps
    padded = spread(x)
    full = F.linear(F.gelu(F.linear(padded, first.weight, first.bias)), last.weight, last.bias) + padded
    got = calibrator(x)
    torch.testing.assert_close(got, full)
    wanted, direction = (x, *calibrator.parameters()), torch.randn_like(full)
    for ours, theirs in zip(
        torch.autograd.grad(got, wanted, direction), torch.autograd.grad(full, wanted, direction), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_the_first_places_are_padding_on_the_right():
    right, places = (randomised(FeatureCalibrator(3, 7, pad=pad)) for pad in ("right", range(3)))
    places.load_state_dict({**right.state_dict(), "index": places.index})
    x = torch.randn(2, 5, 3)
    torch.testing.assert_close(places(x), right(x))


def test_places_at_equal_widths_permute():
    x = torch.randn(2, 3)
    assert torch.equal(FeatureCalibrator(3, 3, pad=(2, 0, 1))(x), x[:, [1, 2, 0]])


def test_places_travel_with_the_weights():
    calibrator = randomised(FeatureCalibrator(3, 7, pad=PLACES))
    other = FeatureCalibrator(3, 7, pad=(1, 2, 3), device="meta").to_empty(device="cpu")
    other.load_state_dict(calibrator.state_dict())
    x = torch.randn(2, 5, 3)
    torch.testing.assert_close(other(x), calibrator(x))


def test_places_survive_autocast_compile_and_a_start_on_meta():
    calibrator = randomised(FeatureCalibrator(3, 7, pad=PLACES))
    x = torch.randn(2, 5, 3)
    with torch.autocast("cpu", torch.bfloat16):
        half = calibrator(x)
    torch.testing.assert_close(half.float(), calibrator(x), atol=3e-2, rtol=3e-2)
    compiled = torch.compile(calibrator, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), calibrator(x))
    late = FeatureCalibrator(3, 7, pad=PLACES, device="meta").to_empty(device="cpu")
    late.reset_parameters()
    assert torch.equal(late(x), spread(x))


def test_without_residual_there_is_no_skip():
    calibrator = randomised(FeatureCalibrator(3, 7, mode="pad_linear", residual=False))
    x = torch.randn(5, 3)
    (only,) = calibrator.maps
    torch.testing.assert_close(calibrator(x), F.pad(x, (0, 4)) @ only.weight.T + only.bias)


@pytest.mark.parametrize(("mode", "maps"), [("linear", 1), ("mlp", 2)])
def test_plain_modes_are_plain_maps(mode, maps):
    calibrator = FeatureCalibrator(3, 7, mode=mode)
    x = torch.randn(2, 5, 3)
    expected = nn.Sequential(*[part for one in calibrator.maps for part in (one, nn.GELU())][:-1])(x)
    assert len(calibrator.maps) == maps
    torch.testing.assert_close(calibrator(x), expected)


def test_identity_returns_the_feature():
    x = torch.randn(2, 5, 3)
    assert FeatureCalibrator(3, 3, mode="identity")(x) is x


def test_equal_widths_start_as_the_feature():
    x = torch.randn(2, 5, 3)
    assert torch.equal(FeatureCalibrator(3, 3)(x), x)


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "identity"])
def test_wider_student_is_projected(mode):
    x = torch.randn(2, 5, 11)
    y = FeatureCalibrator(11, 7, mode=mode)(x)
    assert y.shape == (2, 5, 7)
    assert y.abs().sum() > 0


def test_wider_student_starts_as_its_projection():
    calibrator = FeatureCalibrator(11, 7)
    x = torch.randn(5, 11)
    torch.testing.assert_close(calibrator(x), x @ calibrator.skip.weight.T)


def test_state_dict_has_the_shapes_of_the_full_mlp():
    shapes = {name: tuple(value.shape) for name, value in FeatureCalibrator(3, 7, hidden_dim=5).state_dict().items()}
    assert shapes == {"maps.0.weight": (5, 7), "maps.0.bias": (5,), "maps.1.weight": (7, 5), "maps.1.bias": (7,)}


def test_depth_and_bias_are_options():
    calibrator = FeatureCalibrator(3, 7, depth=3, bias=False, activation=nn.Tanh)
    assert [tuple(one.weight.shape) for one in calibrator.maps] == [(7, 7)] * 3
    assert all(one.bias is None for one in calibrator.maps)


def test_layer_norm_acts_on_the_input():
    x = torch.randn(2, 5, 3) * 4 + 2
    y = FeatureCalibrator(3, 7, norm="layer")(x)
    torch.testing.assert_close(y, F.pad(F.layer_norm(x, (3,)), (0, 4)))


def test_standardize_does_not_mix_samples():
    x = torch.randn(2, 5, 3) * 4 + 2
    calibrator = FeatureCalibrator(3, 3, mode="pad", norm="standardize")
    y = calibrator(x)
    torch.testing.assert_close(y[1:], calibrator(x[1:]))
    torch.testing.assert_close(y.flatten(1).mean(1), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.flatten(1).var(1, correction=0), torch.ones(2), atol=1e-4, rtol=0)


def test_standardize_takes_a_batch_of_nothing():
    assert FeatureCalibrator(3, 3, mode="pad", norm="standardize")(torch.ones(0, 5, 3)).shape == (0, 5, 3)


@pytest.mark.parametrize("norm", [None, "layer", "standardize"])
@pytest.mark.parametrize("mode", MODES)
def test_meta_then_reset_equals_direct_construction(mode, norm):
    widths = (3, 3) if mode == "identity" else (3, 7)
    torch.manual_seed(0)
    direct = FeatureCalibrator(*widths, mode=mode, norm=norm)
    late = FeatureCalibrator(*widths, mode=mode, norm=norm, device="meta").to_empty(device="cpu")
    torch.manual_seed(0)
    late.reset_parameters()
    for name, value in direct.state_dict().items():
        assert torch.equal(value, late.state_dict()[name]), name


def test_factory_options_reach_every_parameter():
    calibrator = FeatureCalibrator(3, 7, norm="layer", dtype=torch.float64)
    assert {parameter.dtype for parameter in calibrator.parameters()} == {torch.float64}


@pytest.mark.parametrize("mode", ["pad_mlp", "pad_linear", "mlp"])
def test_gradients_by_finite_differences(mode):
    calibrator = randomised(FeatureCalibrator(3, 5, mode=mode, dtype=torch.float64))
    assert torch.autograd.gradcheck(calibrator, torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True))


def test_input_is_not_written_to():
    calibrator = randomised(FeatureCalibrator(3, 3))
    x = torch.randn(2, 5, 3)
    before = x.clone()
    calibrator(x)
    assert torch.equal(x, before)


def test_autocast_stays_near_full_precision():
    calibrator = randomised(FeatureCalibrator(3, 7))
    x = torch.randn(2, 5, 3)
    with torch.autocast("cpu", torch.bfloat16):
        half = calibrator(x)
    torch.testing.assert_close(half.float(), calibrator(x), atol=3e-2, rtol=3e-2)


def test_output_can_carry_a_hook():
    # FSDP puts one there; on a view that was written to it would crash
    y = randomised(FeatureCalibrator(3, 7))(torch.randn(2, 5, 3))
    seen = []
    y.register_hook(lambda grad: seen.append(grad.shape))
    y.sum().backward()
    assert seen == [y.shape]
    assert not y._is_view()


def test_hook_on_the_first_layer_fires():
    calibrator = FeatureCalibrator(3, 7)
    seen = []
    calibrator.maps[0].register_forward_hook(lambda *_: seen.append(1))
    calibrator(torch.randn(2, 3))
    assert seen == [1]


def test_compiles_to_one_graph():
    calibrator = randomised(FeatureCalibrator(3, 7))
    x = torch.randn(2, 5, 3, requires_grad=True)
    compiled = torch.compile(calibrator, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), calibrator(x))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0, 7), {}, r"student_dim must be at least 1, got 0"),
        ((3, 0), {}, r"teacher_dim must be at least 1, got 0"),
        ((3, 7), {"depth": 0}, r"depth must be at least 1, got 0"),
        ((3, 7), {"hidden_dim": -1}, r"hidden_dim must be at least 1, got -1"),
        ((3, 7), {"mode": "glue"}, r"unknown mode 'glue': expected one of pad_mlp, pad_linear"),
        ((3, 7), {"pad": "left"}, r"unknown pad 'left': expected right or center"),
        ((3, 7), {"pad": (0, 1)}, r"pad names 2 teacher channels for 3 student channels: name one each"),
        ((3, 7), {"pad": (0, 1, 7)}, r"pad names teacher channel 7: expected integers from 0 to 6"),
        ((3, 7), {"pad": (0, 1, -1)}, r"pad names teacher channel -1: expected integers from 0 to 6"),
        ((3, 7), {"pad": torch.tensor([0.0, 1, 2])}, r"pad names teacher channel 0.0: expected integers"),
        ((3, 7), {"pad": (5, 1, 5)}, r"pad names teacher channel 5 more than once"),
        ((3, 7), {"pad": PLACES, "mode": "mlp"}, r"mode='mlp' does not pad: leave out the channels in pad"),
        ((9, 7), {"pad": range(9)}, r"pad names teacher channel 7: expected integers from 0 to 6"),
        ((3, 7), {"norm": "batch"}, r"unknown norm 'batch': expected layer or standardize"),
        ((3, 7), {"mode": "identity"}, r"mode='identity' needs equal widths, got 3 and 7: use mode='pad_mlp'"),
        ((9, 7), {"on_wider": "error"}, r"student has 9 channels, more than the teacher's 7, and cannot be padded"),
    ],
)
def test_bad_options_are_refused(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        FeatureCalibrator(*arguments, **options)


def test_wrong_width_is_refused():
    with pytest.raises(ValueError, match=r"feature has 5 channels, the calibrator expects 3"):
        FeatureCalibrator(3, 7)(torch.randn(2, 5))


@pytest.mark.parametrize("pad", ["right", "center", PLACES])
@pytest.mark.parametrize(("padded", "plain"), [("pad_mlp", "mlp"), ("pad_linear", "linear")])
def test_padded_form_multiplies_no_more_than_the_plain_one(padded, plain, pad):
    def operations(**options):
        calibrate, x = FeatureCalibrator(3, 7, **options), torch.randn(2, 5, 3, requires_grad=True)
        with FlopCounterMode(display=False) as counter:
            calibrate(x).sum().backward()
        return counter.get_total_flops()

    assert 0 < operations(mode=padded, pad=pad) == operations(mode=plain)


def test_each_layer_has_its_own_calibrator():
    calibrators = randomised(LayerCalibrators([3, 5], 7))
    layers = [torch.randn(2, 11, 3), torch.randn(2, 11, 5)]
    for got, one, layer in zip(calibrators(layers), calibrators.layers, layers, strict=True):
        torch.testing.assert_close(got, one(layer))


def test_shared_calibrator_has_the_parameters_of_one():
    shared = LayerCalibrators([3, 3, 3], 7, shared=True)
    assert {name.split(".")[1] for name in shared.state_dict()} == {"0"}
    assert len(shared([torch.randn(2, 3)] * 3)) == 3


def test_recomputing_changes_no_gradient():
    torch.manual_seed(0)
    plain = randomised(LayerCalibrators([3, 3], 7))
    frugal = LayerCalibrators([3, 3], 7, recompute=True)
    frugal.load_state_dict(plain.state_dict())
    layers = [torch.randn(2, 5, 3, requires_grad=True) for _ in range(2)]
    grads = [
        torch.autograd.grad(sum(y.square().sum() for y in module(layers)), [*layers, *module.parameters()])
        for module in (plain, frugal)
    ]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def test_container_refuses_bad_input():
    with pytest.raises(ValueError, match=r"student_dims is empty: expected the width of at least one layer"):
        LayerCalibrators([], 7)
    with pytest.raises(ValueError, match=r"a shared calibrator needs equal widths, got \[3, 5\]: use shared=False"):
        LayerCalibrators([3, 5], 7, shared=True)
    with pytest.raises(ValueError, match=r"got 1 student layers, the calibrators were made for 2"):
        LayerCalibrators([3, 3], 7)([torch.randn(2, 3)])


def test_container_resets_every_calibrator():
    calibrators = randomised(LayerCalibrators([3, 3], 7))
    calibrators.reset_parameters()
    x = torch.randn(2, 3)
    assert all(torch.equal(y, F.pad(x, (0, 4))) for y in calibrators([x, x]))
