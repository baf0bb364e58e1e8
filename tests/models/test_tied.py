"""Embedding and head as one matrix: the warning to adapters, how they stay one, and how they become two."""

import copy
import pickle
import warnings

import pytest
import torch

from tests.golden import golden
from transmamba.models import MambaLM, from_official

TOLD = "embedding and head are one matrix: merging an adapter of either changes both"
TWO = "the state has two different matrices as embedding and head, the model has one: call untie_head"
IDS = torch.tensor([[1, 2, 3, 5, 8]])


def adapted(lm, names=("head",)):
    """Give the model an adapter that does something."""
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(lm, peft.LoraConfig(r=2, target_modules=list(names), init_lora_weights=False))
    return model.eval()


def test_the_config_says_what_is_tied():
    for tied in (True, False):
        lm = MambaLM(11, 8, depth=1, tied=tied)
        assert lm.config.tie_word_embeddings is tied and lm.config.to_dict()["tie_word_embeddings"] is tied
        assert lm.config.vocab_size == 16 and lm.config.hidden_size == 8
        assert lm.get_input_embeddings() is lm.embedding and lm.get_output_embeddings() is lm.head


@pytest.mark.parametrize("names", [("head",), ("embedding",), ("head", "embedding")])
def test_merging_an_adapter_into_a_tied_matrix_is_no_silent_change(names):
    with pytest.warns(UserWarning, match=TOLD):
        model = adapted(MambaLM(11, 8, depth=1), names)
    with torch.no_grad():
        before = model(IDS)
    with pytest.warns(UserWarning, match=TOLD):
        merged = model.merge_and_unload()
    with torch.no_grad():
        assert not torch.allclose(merged(IDS), before)


@pytest.mark.parametrize("names", [("head",), ("embedding",), ("in_proj", "out_proj")])
def test_after_untying_a_merged_model_is_the_adapted_one(names):
    lm = MambaLM(11, 8, depth=1)
    with torch.no_grad():
        plain = lm.eval()(IDS)
        lm.untie_head()
        torch.testing.assert_close(lm(IDS), plain, rtol=0, atol=0)
        model = adapted(lm, names)
        before = model(IDS)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            merged = model.merge_and_unload()
        torch.testing.assert_close(merged(IDS), before)
        assert not torch.allclose(before, plain)


def test_an_adapter_elsewhere_warns_of_nothing():
    model = adapted(MambaLM(11, 8, depth=1), ("in_proj",))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.merge_and_unload()


def test_two_matrices_are_saved_as_two(tmp_path):
    official = golden("mamba_lm_a")
    models = {
        "own": MambaLM(11, 8, depth=1),
        "official": from_official("mamba_lm", official.meta["config"], official.part("param")),
    }
    for name, lm in models.items():
        lm.untie_head()
        lm.untie_head()
        with torch.no_grad():
            lm.head.weight += 1.0
        lm.eval().save_pretrained(tmp_path / name)
        again = MambaLM.from_pretrained(tmp_path / name)
        assert not again.tied and not torch.equal(again.head.weight, again.embedding.weight)
        torch.testing.assert_close(again(IDS), lm(IDS), rtol=0, atol=0)


def one(lm):
    return (
        lm.head.weight is lm.embedding.weight and len([n for n, _ in lm.named_parameters() if n == "head.weight"]) == 0
    )


def test_moving_emptying_and_casting_keep_one_matrix():
    lm = MambaLM(11, 8, depth=1)
    assert one(lm.double()) and one(lm.to_empty(device="cpu")) and one(copy.deepcopy(lm)) and one(lm.half())
    assert one(pickle.loads(pickle.dumps(lm)))
    with torch.device("meta"):
        lm = MambaLM(11, 8, depth=1)
    assert one(lm.to_empty(device="cpu"))
    lm.reset_parameters()
    assert one(lm)
    apart = MambaLM(11, 8, depth=1, tied=False)
    assert not one(apart.to_empty(device="cpu"))
    lm.untie_head()
    assert not one(lm.double())


@pytest.mark.parametrize("left_out", [None, "head.weight", "embedding.weight"])
def test_loading_into_a_model_without_numbers_keeps_one_matrix(left_out):
    full = MambaLM(11, 8, depth=1).eval()
    state = {name: value.clone() for name, value in full.state_dict().items() if name != left_out}
    with torch.device("meta"):
        lm = MambaLM(11, 8, depth=1).eval()
    lm.load_state_dict(state, assign=True, strict=left_out is None)
    assert one(lm)
    torch.testing.assert_close(lm(IDS), full(IDS), rtol=0, atol=0)


@pytest.mark.parametrize("assign", [False, True])
def test_two_matrices_are_not_taken_for_one(assign):
    state = MambaLM(11, 8, depth=1, tied=False).state_dict()
    lm = MambaLM(11, 8, depth=1)
    with pytest.raises(ValueError, match=TWO):
        lm.load_state_dict(state, assign=assign)
    with pytest.raises(ValueError, match=TWO):
        torch.nn.ModuleDict({"lm": lm}).load_state_dict({f"lm.{name}": value for name, value in state.items()})
    lm.untie_head()
    lm.load_state_dict(state, assign=assign)
    assert torch.equal(lm.head.weight, state["head.weight"]) and not one(lm)


def test_accelerate_starts_empty_with_one_matrix(tmp_path):
    accelerate = pytest.importorskip("accelerate")
    full = MambaLM(11, 8, depth=2).eval()
    torch.save(full.state_dict(), tmp_path / "weights.bin")
    with accelerate.init_empty_weights():
        lm = MambaLM(11, 8, depth=2).eval()
    assert one(lm) and lm.head.weight.is_meta
    lm.tie_weights()
    placed = accelerate.load_checkpoint_and_dispatch(lm, str(tmp_path / "weights.bin"), device_map={"": "cpu"})
    assert one(placed)
    torch.testing.assert_close(placed(IDS), full(IDS), rtol=0, atol=0)
    with accelerate.init_empty_weights():
        lm = MambaLM(11, 8, depth=2)
    lm.to_empty(device="cpu").load_state_dict(full.state_dict())
    assert one(lm)
