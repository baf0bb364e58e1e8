"""Our own Transformers as teachers: they come back as they were, with every option."""

from functools import partial

import pytest
import torch

from tests.contracts.backbones import PARTS
from tests.transfer.teachers import test_bert, test_dino
from tests.transfer.teachers.canonical import perturb
from transmamba.models import AudioEncoder, MambaLM, TransformerEncoder, ViT, from_transformer
from transmamba.nn import Attention, MambaMixer, TransformerBlock
from transmamba.transfer.teachers import translate

transformers = pytest.importorskip("transformers")
SIZES = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 40, "vocab_size": 61,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
TEACHERS = {
    "llama": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**SIZES, num_key_value_heads=2, tie_word_embeddings=True)
    ),
    "gemma 2": lambda: transformers.Gemma2ForCausalLM(
        transformers.Gemma2Config(**SIZES, num_key_value_heads=2, head_dim=8, sliding_window=4)
    ),
    "gpt-neox": lambda: transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**SIZES)),
    "gpt-2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=24, n_layer=3, n_head=4, vocab_size=61, n_positions=30)
    ),
    "roberta": lambda: test_bert.build("Roberta"),
    "dinov3": lambda: test_dino.build("DINOv3ViT", num_register_tokens=2, intermediate_size=40),
    "dinov2, gated": lambda: test_dino.build("Dinov2", use_swiglu_ffn=True),
}


@pytest.mark.parametrize("name", TEACHERS)
def test_a_teacher_that_became_ours_is_translated_back(name):
    there = translate(perturb(TEACHERS[name]()))
    ours = from_transformer(there)
    back = translate(ours)
    assert back.family == "transmamba_transformer" and not set(there) - set(back)
    assert all(torch.equal(back[key], there[key]) for key in there)
    assert not any(back[key].any() for key in set(back) - set(there))  # biases that are one with others
    changed = {key for key, value in vars(there.architecture).items() if getattr(back.architecture, key) != value}
    assert changed <= {"tied"}
    state = from_transformer(back).state_dict()
    assert all(torch.equal(state[key], value) for key, value in ours.state_dict().items())


MODELS = {
    "vit": lambda: ViT(8, 4, dim=12, depth=2, heads=3, num_classes=5),
    "deit": lambda: ViT(8, 4, dim=12, depth=2, heads=3, num_classes=5, distilled=True),
    "vit of parts": lambda: ViT((8, 12), 4, dim=12, depth=2, num_classes=5, **PARTS),
    "vit with a table of distances": lambda: ViT(
        8, 4, dim=12, depth=2, mixer=partial(Attention, heads=3, relative_grid=[2, 2]), pool="mean", fc_norm=True
    ),
    "encoder": lambda: TransformerEncoder(11, 8, depth=2, heads=2, max_length=9, types=2, embedding_dim=4),
    "causal encoder": lambda: TransformerEncoder(
        11, 8, depth=2, max_length=9, final_norm=True, mixer=partial(Attention, heads=2, causal=True)
    ),
    "audio": lambda: AudioEncoder(5, 8, depth=2, heads=2, max_length=6),
    "language": lambda: MambaLM(
        11, 8, depth=2, max_length=9, tied=False, head_bias=True, logit_softcap=3.0, vocab_multiple=1,
        mixer=[partial(Attention, heads=2, causal=True, window=window) for window in (3, None)],
        block=[partial(TransformerBlock, norm="rms", hidden_dim=n, eps=1e-5) for n in (7, 9)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_our_models_are_rebuilt_from_their_translation(name):
    model = perturb(MODELS[name]())
    again = from_transformer(model)
    state = again.state_dict()
    assert list(state) == list(model.state_dict())
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    x = {
        ViT: torch.randn(2, 3, 8, 12 if "parts" in name else 8), AudioEncoder: torch.randn(2, 5, 9),
    }.get(type(model), torch.randint(11, (2, 6)))  # fmt: skip
    assert torch.equal(again(x), model(x))


def test_mixtures_are_no_transformers():
    mixers = [partial(MambaMixer, d_state=3), partial(Attention, heads=2, causal=True)]
    assert MambaLM(11, 8, depth=2, mixer=mixers).architecture is None
    assert ViT(8, 4, dim=12, depth=1, mixer=MambaMixer, orders=("forward",)).architecture is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixer": [partial(Attention, heads=h) for h in (2, 3)]}, "layers differ in heads, 2 and 3"),
        ({"norm_eps": 1e-3}, r"layers differ in eps, 1e-06 and 0.001"),
        ({"norm": "rms"}, "layers differ in norm, 'layer' and 'rms'"),
        ({"block": [partial(TransformerBlock, hidden_dim=5, activation=a) for a in ("gelu", "relu")]},
         "layers differ in activation, 'gelu' and 'relu'"),
    ],
)  # fmt: skip
def test_what_a_teacher_has_one_of_must_be_one(options, message):
    model = ViT(8, 4, dim=12, depth=2, **options)
    with pytest.raises(ValueError, match=message):
        translate(model)


def test_attention_for_another_grid_is_refused():
    rope = {"rope_type": "axial", "rope_theta": 10.0, "grid": [1, 4]}
    model = ViT(8, 4, dim=12, depth=1, mixer=partial(Attention, heads=3, rope=rope))
    with pytest.raises(ValueError, match=r"attention is for a grid of \(1, 4\), the model has \(2, 2\)"):
        translate(model)


def test_a_bare_state_dict_states_no_facts():
    state = MambaLM(11, 8, depth=1, mixer=partial(Attention, heads=2, causal=True)).state_dict()
    with pytest.raises(ValueError, match="models of this library are read as modules, not as state dicts"):
        translate(state, "transmamba_transformer")
