import math

import pytest
import torch

from transmamba.nn.rotary import Rotary

transformers = pytest.importorskip("transformers")
utils = pytest.importorskip("transformers.modeling_rope_utils")

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
SCALED = {
    "linear": {"factor": 4.0},
    "llama3": {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
    },
    "yarn": YARN,
    "yarn, whole range": {
        **YARN, "truncate": False, "beta_fast": 20.0,
    },
    "yarn, scales": {
        **YARN, "mscale": 0.7, "mscale_all_dim": 0.9,
    },
    "yarn, amplitude": {
        **YARN, "attention_factor": 1.3,
    },
}  # fmt: skip


@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize("name", SCALED)
def test_frequencies_are_those_of_transformers(name, share):
    rope = {"rope_type": name, "rope_theta": 500.0, "partial_rotary_factor": share, **SCALED[name]}
    config = transformers.LlamaConfig(hidden_size=64, num_attention_heads=2, head_dim=32, rope_parameters=dict(rope))
    expected, amplitude = utils.ROPE_INIT_FUNCTIONS[rope["rope_type"]](config)
    ours = Rotary(rope, 32)
    torch.testing.assert_close(torch.tensor(ours.frequencies), expected)
    assert ours.amplitude == pytest.approx(amplitude) and ours.width == 32 * share


def test_pairs_turn_by_position_times_frequency():
    """As complex numbers: channel i is the real part, channel i + width / 2 the imaginary one."""
    rotary = Rotary({"rope_theta": 7.0}, 6)
    x, positions = torch.randn(2, 3, 5, 6, dtype=torch.float64), torch.tensor([[0, 1, 2, 3, 9], [4, 3, 2, 1, 0]])
    turned = rotary.turn(x, rotary.phases(positions, x.dtype))
    frequencies = torch.tensor([7.0 ** (-i / 3) for i in range(3)], dtype=torch.float64)
    expected = torch.complex(x[..., :3], x[..., 3:]) * torch.exp(1j * positions[:, None, :, None] * frequencies)
    torch.testing.assert_close(turned, torch.cat([expected.real, expected.imag], -1), rtol=1e-5, atol=1e-5)


def test_scores_depend_on_the_distance_alone():
    rotary, q, k = Rotary({"rope_theta": 10.0}, 8), torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)

    def score(i, j):
        q_i, k_j = (rotary.turn(x, rotary.phases(torch.tensor([[n]]), x.dtype)) for x, n in ((q, i), (k, j)))
        return (q_i * k_j).sum()

    torch.testing.assert_close(score(9, 4), score(5, 0))


def test_channels_beyond_the_share_are_left_alone():
    rotary, x = Rotary({"rope_theta": 10.0, "partial_rotary_factor": 0.5}, 8), torch.randn(2, 1, 3, 8)
    turned = rotary.turn(x, rotary.phases(torch.arange(3)[None], x.dtype))
    assert torch.equal(turned[..., 4:], x[..., 4:]) and not torch.equal(turned[..., 1:, :4], x[..., 1:, :4])


def test_axial_angles_are_those_of_dinov3():
    dinov3 = pytest.importorskip("transformers.models.dinov3_vit.modeling_dinov3_vit")
    config = transformers.DINOv3ViTConfig(
        image_size=[12, 20], patch_size=4, hidden_size=24, num_attention_heads=3, rope_theta=50.0
    )
    cos, sin = dinov3.DINOv3ViTRopePositionEmbedding(config).eval()(torch.zeros(1, 3, 12, 20))
    x, rotary = torch.randn(1, 3, 17, 8), Rotary({"rope_type": "axial", "rope_theta": 50.0, "grid": [3, 5]}, 8)
    expected, _ = dinov3.apply_rotary_pos_emb(x, x, cos, sin)
    torch.testing.assert_close(rotary.turn(x, rotary.phases(torch.arange(17)[None], x.dtype)), expected)
    assert torch.equal(expected[:, :, :2], x[:, :, :2])


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        (
            {"rope_theta": 10.0, "rope_type": "longrope"},
            "rope_type must be one of default, linear, llama3, yarn",
        ),
        ({"rope_type": "default"}, "rope of type default needs rope_theta, got only rope_type"),
        ({"rope_theta": 10.0, "rope_type": "linear"}, "rope of type linear needs factor"),
        ({"rope_theta": -1.0}, "rope_theta of the rope must be a positive number, got -1.0"),
        ({"rope_theta": math.nan}, "rope_theta of the rope must be a positive number, got nan"),
        ({"rope_theta": "x"}, "rope_theta of the rope must be a positive number, got 'x'"),
        ({"rope_theta": 10.0, "partial_rotary_factor": 0.4}, "turn groups of 2 channels, got 3 of the 8 of a head"),
        ({"rope_theta": 10.0, "rope_type": "axial", "grid": [2, 0]}, "must be at least 1, got 0"),
        ({"rope_theta": 10.0, "rope_type": "axial", "grid": 4}, "grid of the rope must be rows and columns, got 4"),
    ],
)
def test_a_rope_that_is_none_is_refused(rope, message):
    with pytest.raises(ValueError, match=message):
        Rotary(rope, 8)


def test_too_few_tokens_for_the_grid_are_refused():
    with pytest.raises(ValueError, match=r"rotary positions are for a grid of \(2, 3\), got 5 tokens"):
        Rotary({"rope_theta": 10.0, "rope_type": "axial", "grid": [2, 3]}, 8).angles(torch.arange(5)[None])


def test_interleaved_pairs_are_neighbours():
    apart, beside = (Rotary({"rope_theta": 100.0, **kind}, 6) for kind in ({}, {"interleaved": True}))
    x, positions = torch.randn(1, 2, 5, 6, dtype=torch.float64), torch.arange(5)[None]
    phases = apart.phases(positions, torch.float64)
    shuffle = torch.tensor([0, 3, 1, 4, 2, 5])
    torch.testing.assert_close(beside.turn(x[..., shuffle], phases), apart.turn(x, phases)[..., shuffle])
