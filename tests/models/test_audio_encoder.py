from functools import partial

import pytest
import torch

from transmamba.models import AudioEncoder, Backbone
from transmamba.nn import Attention, MambaMixer

transformers = pytest.importorskip("transformers")
MEL = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(1))


def encoder(**options):
    return AudioEncoder(5, 8, **{"depth": 2, "heads": 2, "max_length": 6, **options}).eval()


def test_is_the_encoder_of_whisper():
    modeling = pytest.importorskip("transformers.models.whisper.modeling_whisper")
    config = transformers.WhisperConfig(
        d_model=8,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=32,
        num_mel_bins=5,
        max_source_positions=6,
    )
    theirs, ours = modeling.WhisperEncoder(config).eval(), encoder()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    state = theirs.state_dict()
    renamed = {"pos_embed": state.pop("embed_positions.weight")[None]}
    for name, value in state.items():
        for old, new in (
            ("layers.", "blocks."), ("self_attn_layer_norm", "norm1"), ("final_layer_norm", "norm2"),
            ("layer_norm", "norm"), (".fc", ".mlp.fc"), ("self_attn.out_proj", "attn.proj"), ("self_attn", "attn"),
        ):  # fmt: skip
            name = name.replace(old, new)
        renamed[name] = value
    for i in range(2):
        prefix = f"blocks.{i}.attn."
        renamed[f"{prefix}k_proj.bias"] = torch.zeros(8)
        for kind in ("weight", "bias"):
            parts = [renamed.pop(f"{prefix}{letter}_proj.{kind}") for letter in "qkv"]
            renamed[f"{prefix}qkv.{kind}"] = torch.cat(parts)
    ours.load_state_dict(renamed)
    torch.testing.assert_close(ours(MEL), theirs(MEL).last_hidden_state, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {
            "mixer": [partial(MambaMixer, d_state=3, directions=2), partial(Attention, heads=2)],
            "orders": ("forward", "backward"),
        },
        {"norm": "rms"},
    ],
)
def test_features_are_the_stream_after_each_block(options):
    model = encoder(**options)
    features = model.forward_features(MEL)
    assert isinstance(model, Backbone) and features.grid == (6,) and len(features.layers) == 2
    torch.testing.assert_close(model.norm(features.layers[-1]), features.last)
    torch.testing.assert_close(features.last, model(MEL))
    torch.testing.assert_close(model.forward_intermediates(MEL, 1)[1][0], features.layers[1])
    with torch.device("meta"):
        empty = encoder(**options)
    empty.to_empty(device="cpu").reset_parameters()
    assert empty(MEL).isfinite().all() and "pos_embed" in empty.no_weight_decay()


def test_short_sounds_have_the_first_positions():
    model = encoder()
    with torch.no_grad():
        model.pos_embed[:, 4:] = torch.nan
    assert model(MEL[:, :, :8]).shape == (2, 4, 8) and model(MEL[:, :, :7]).isfinite().all()


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="built for at most 12 frames, got 13"):
        encoder()(torch.zeros(1, 5, 13))
    with pytest.raises(ValueError, match="frames must be at least 1, got 0"):
        encoder()(torch.zeros(1, 5, 0))
    with pytest.raises(ValueError, match="x has 4 channels, the module was built for 5"):
        encoder()(torch.zeros(1, 4, 12))


def test_exports_for_any_batch_and_length():
    model = encoder()
    dims = {0: torch.export.Dim("batch", min=1, max=64), 2: 2 * torch.export.Dim("pair", min=2, max=6)}
    program = torch.export.export(model, (MEL,), dynamic_shapes=(dims,)).module()
    for mel in (MEL, MEL[:1, :, :6]):
        torch.testing.assert_close(program(mel), model(mel))
