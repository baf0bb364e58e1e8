from functools import partial

import pytest
import torch
import torch.nn.functional as F

from transmamba.models import Backbone, TransformerEncoder
from transmamba.nn import Attention, MambaMixer, TransformerBlock

IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
KINDS = {
    "bert": {"max_length": 9, "types": 2},
    "counted positions": {"max_length": 9, "pad_token": 0},
    "narrow embeddings": {"max_length": 9, "embedding_dim": 4, "final_norm": True},
    "pre-norm, rotary, window": {
        "mixer": [partial(Attention, heads=2, window=window, rope={"rope_theta": 9.0}) for window in (2, None)],
        "block": partial(TransformerBlock, hidden_dim=7, gated=True), "final_norm": True, "embed_norm": False,
    },
    "hybrid": {
        "mixer": [partial(MambaMixer, d_state=3, directions=2), partial(Attention, heads=2)],
        "orders": ("forward", "backward"),
    },
    "causal": {"max_length": 9, "mixer": partial(Attention, heads=2, causal=True), "embed_norm": False},
}  # fmt: skip
kinds = pytest.mark.parametrize("options", KINDS.values(), ids=KINDS.keys())


def encoder(**options):
    model = TransformerEncoder(11, 8, **{"depth": 2, "heads": 2, **options}).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def test_embeddings_are_added_normed_and_projected():
    model, types = encoder(max_length=9, types=2, embedding_dim=4), torch.tensor([[0, 0, 1, 1, 1]] * 2)
    w = dict(model.named_parameters())
    x = w["embedding.weight"][IDS] + w["type_embedding.weight"][types] + w["pos_embed"][:, :5]
    x = F.layer_norm(x, (4,), w["embed_norm.weight"], w["embed_norm.bias"], 1e-12)
    for block in model.blocks:
        x = block(x @ w["embed_proj.weight"].T + w["embed_proj.bias"] if x.shape[2] == 4 else x)
    torch.testing.assert_close(model(IDS, type_ids=types), x)
    assert torch.equal(model(IDS), model(IDS, type_ids=torch.zeros_like(IDS)))


@kinds
def test_padding_on_the_right_changes_nothing(options):
    model, mask = encoder(**options), torch.tensor([[True, True, True, False, False], [True] * 5])
    y = model(IDS, mask)
    torch.testing.assert_close(y[0, :3], model(IDS[:1, :3])[0])
    torch.testing.assert_close(y[1], model(IDS[1:])[0])


@pytest.mark.parametrize("name", ["counted positions", "pre-norm, rotary, window", "hybrid"])
def test_padding_on_the_left_changes_nothing_where_positions_are_counted(name):
    model, mask = encoder(**KINDS[name]), torch.tensor([[False, False, True, True, True], [True] * 5])
    ids = IDS.masked_fill(~mask, 0)
    torch.testing.assert_close(model(ids, mask)[0, 2:], model(IDS[:1, 2:])[0])


def test_positions_in_the_row_are_those_of_bert_whatever_the_padding():
    model, mask = encoder(max_length=9), torch.tensor([[False, False, True, True, True]])
    moved = encoder(max_length=9)
    moved.load_state_dict(model.state_dict())
    with torch.no_grad():
        moved.pos_embed.copy_(model.pos_embed.roll(-2, 1))
    torch.testing.assert_close(model(IDS[:1], mask)[0, 2:], moved(IDS[:1, 2:])[0])


def test_without_a_mask_the_padding_token_decides():
    model = encoder(max_length=9, pad_token=0)
    ids = torch.tensor([[0, 0, 4, 1, 5], [9, 2, 6, 0, 0]])
    assert torch.equal(model(ids), model(ids, ids != 0))
    assert torch.equal(model.forward_features(ids).last, model(ids))


@kinds
def test_features_are_the_stream_after_each_block(options):
    model = encoder(**options)
    features = model.forward_features(IDS)
    torch.testing.assert_close(model.norm(features.layers[-1]), features.last)
    torch.testing.assert_close(features.last, model(IDS))
    last, (first,) = model.forward_intermediates(IDS, [0])
    torch.testing.assert_close((last, first), (features.last, features.layers[0]))
    assert isinstance(model, Backbone) and features.grid == (5,)


def test_directions_of_a_scanning_encoder():
    model = encoder(mixer=partial(MambaMixer, d_state=3, directions=2), orders=("forward", "backward"))
    features = model.forward_features(IDS, directions=True)
    assert len(features.directions) == len(features.orders) == 2 and len(features.directions[0]) == 2


@kinds
def test_exports_for_any_batch_and_length(options):
    model = encoder(**options).float()
    if "orders" in options:
        return  # the number of tokens of a scan is fixed in an exported program
    dims = {0: torch.export.Dim("batch", min=1, max=64), 1: torch.export.Dim("token", min=2, max=9)}
    program = torch.export.export(model, (IDS, IDS != 1), dynamic_shapes=(dims, dims)).module()
    for ids in (IDS, IDS[:1, :3], IDS.repeat(3, 1)):
        torch.testing.assert_close(program(ids, ids != 1), model(ids, ids != 1))


@kinds
def test_starts_anew_after_the_meta_device(options):
    with torch.device("meta"):
        model = TransformerEncoder(11, 8, **{"depth": 2, "heads": 2, **options})
    model.to_empty(device="cpu").reset_parameters()
    assert model(IDS).isfinite().all()
    assert model.no_weight_decay() <= {name for name, _ in model.named_parameters()}


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="built for at most 3 tokens, got 5"):
        encoder(max_length=3)(IDS)
    with pytest.raises(ValueError, match="type_ids need a table: build the encoder with types=2"):
        encoder()(IDS, type_ids=IDS)
    with pytest.raises(ValueError, match="mixer has 1 entries for 2 layers: give one builder, or one per layer"):
        encoder(mixer=[MambaMixer])
    with pytest.raises(ValueError, match="heads must divide the width: got 3 heads, width 8"):
        encoder(heads=3)
    with pytest.raises(ValueError, match="pad_token must be one of 11 tokens, got 11"):
        encoder(pad_token=11)


def test_a_table_with_fewer_rows_than_places_serves_few_real_tokens():
    model, mask = encoder(max_length=3, pad_token=0), torch.tensor([[False, False, True, True, True]])
    ids = IDS[:1].masked_fill(~mask, 0)
    torch.testing.assert_close(model(ids, mask)[0, 2:], model(ids[:, 2:])[0])
