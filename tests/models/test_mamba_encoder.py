import pytest
import torch
import transformers

from transmamba.models import MambaEncoder
from transmamba.ops import permute_tokens

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2], [2, 7, 1, 8, 0, 0, 0]])
MASK = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])


def tiny(**options):
    return MambaEncoder(11, 6, depth=2, d_state=3, **{"max_length": 7, "types": 2, **options}).double()


def test_padding_changes_nothing():
    model = tiny()
    y = model(IDS, MASK)
    torch.testing.assert_close(y[1, :4], model(IDS[1:, :4])[0])


def test_every_token_sees_both_sides():
    x = torch.randn(1, 7, 6, dtype=torch.float64, requires_grad=True)
    model = tiny()
    model.embedding.forward = lambda ids: x
    (seen,) = torch.autograd.grad(model(IDS[:1])[0, 3, 0], x)
    assert (seen[0].abs().sum(-1) > 0).all()


def test_directions_add_up_to_the_mixer():
    model = tiny()
    features = model.forward_features(IDS, directions=True, mask=MASK)
    torch.testing.assert_close(features.last, model(IDS, MASK))
    before = features.layers[0]
    mixed = model.blocks[1].mixer(model.blocks[1].norm1(before), features.orders, MASK)
    parts = [permute_tokens(p[1], order.undo()) for p, order in zip(features.directions, features.orders, strict=True)]
    torch.testing.assert_close(sum(parts), mixed)


def test_embeddings_are_those_of_bert():
    config = transformers.BertConfig(
        vocab_size=11, hidden_size=6, num_hidden_layers=1, num_attention_heads=1, max_position_embeddings=7
    )
    bert = transformers.BertModel(config).eval().double()
    theirs, model = bert.embeddings, tiny()
    types = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [0] * 7])
    with torch.no_grad():
        model.embedding.weight.copy_(theirs.word_embeddings.weight)
        model.pos_embed.copy_(theirs.position_embeddings.weight)
        model.type_embedding.weight.copy_(theirs.token_type_embeddings.weight)
        model.embed_norm.load_state_dict(theirs.LayerNorm.state_dict())
    torch.testing.assert_close(model._embed(IDS, types), theirs(IDS, token_type_ids=types))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tiny(max_length=5)(IDS), "built for at most 5 tokens, got 7"),
        (lambda: tiny(types=0)(IDS, type_ids=IDS), "type_ids need a table: build the encoder with types=2"),
    ],
)
def test_what_has_no_table_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
