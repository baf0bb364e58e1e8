"""A head is tied or not: read from the configuration, or from the names if there is none."""

import pytest
import torch

from transmamba.transfer.teachers.checkpoint import Checkpoint, Config
from transmamba.transfer.teachers.decoder import is_tied


@pytest.mark.parametrize(
    ("names", "prefix", "values", "tied"),
    [
        ("embed", "", {"tie_word_embeddings": True}, True),
        ("embed lm_head.weight", "", {"tie_word_embeddings": False}, False),
        ("embed", "", {"vocab_size": 7}, False),
        ("embed", "", None, False),
        ("model.embed", "model.", None, True),
        ("model.embed lm_head.weight", "model.", None, False),
        ("model.embed model.score.weight", "model.", None, False),
    ],
)
def test_a_head_is_tied_by_configuration_or_by_names(names, prefix, values, tied):
    weights = {name: torch.ones(7, 2) for name in names.split()}
    assert is_tied(Checkpoint(weights, Config(values), prefix)) is tied


def test_a_family_of_tied_models_needs_no_prefix():
    defaults = {"tie_word_embeddings": True}
    assert is_tied(Checkpoint({"embed": torch.ones(7, 2)}, Config(None, defaults))) is True
    assert is_tied(Checkpoint({"lm_head.weight": torch.ones(7, 2)}, Config(None, defaults))) is False
