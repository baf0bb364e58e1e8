"""LLaMA and its kin: the translated tensors in a plain Transformer give the teacher's logits."""

import pytest
import torch

from tests.transfer.teachers.canonical import Canonical, error, perturb
from transmamba.transfer.teachers import translate

transformers = pytest.importorskip("transformers")
SIZES = {
    "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 40, "vocab_size": 61, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
IDS = torch.arange(1, 23).view(2, 11)

TEACHERS = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)),
    "llama with biases": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True, tie_word_embeddings=True)
    ),
}


@pytest.mark.parametrize("name", TEACHERS)
def test_the_translated_teacher_is_the_teacher(name):
    teacher = perturb(TEACHERS[name]())
    with torch.no_grad():
        assert error(Canonical(translate(teacher)).logits(IDS), teacher(IDS).logits) < 1e-5
